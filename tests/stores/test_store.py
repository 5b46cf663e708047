"""The memory store, and what a store's URL may be."""

from __future__ import annotations

import inspect
import sys
import time
from types import SimpleNamespace

import attrs
import pytest

from braze_sends import ConfigurationError, MemoryStore, open_store
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.window import DAY
from braze_sends.stores import store as module
from braze_sends.stores.sqlite import SQLiteStore
from braze_sends.stores.store import MEMORY, Remembered, Transaction, steady


async def test_a_new_bucket_has_the_offset_of_the_two_clocks() -> None:
    """It is the wall clock's difference to the steady one."""
    store = MemoryStore(clock=lambda: 5.0, wall=lambda: 105.0)
    bucket = await store.transact("w", [], lambda transaction: transaction.bucket)
    assert Bucket(offset=100.0) == bucket
    assert "MemoryStore(1 workspaces)" == repr(store)
    await store.close()


async def test_what_is_remembered_is_kept_for_a_month() -> None:
    """Longer than Braze keeps the analytics of a send."""
    now = 0.0
    store = MemoryStore(clock=lambda: now, wall=lambda: now)

    def remember(transaction: Transaction) -> None:
        transaction.pairs["pair"] = Remembered("s")

    def recall(transaction: Transaction) -> dict[str, Remembered]:
        return dict(transaction.pairs)

    await store.transact("w", [], remember)
    now = MEMORY - 1
    assert {"pair": Remembered("s")} == await store.transact("w", ["pair"], recall)
    now = MEMORY
    await store.transact("w", [], recall)
    assert {} == await store.transact("w", ["pair"], recall)
    assert 14 * DAY < MEMORY


async def test_what_is_remembered_anew_lives_anew() -> None:
    """And does not keep what is older alive."""
    now = 0.0
    store = MemoryStore(clock=lambda: now, wall=lambda: now)

    def keep(name: str, send_id: str | None) -> object:
        def change(transaction: Transaction) -> None:
            transaction.pairs[name] = Remembered(send_id)

        return change

    await store.transact("w", [], keep("a", None))  # type: ignore[arg-type]
    await store.transact("w", [], keep("b", "b"))  # type: ignore[arg-type]
    now = DAY
    await store.transact("w", ["a"], keep("a", "a"))  # type: ignore[arg-type]
    now = MEMORY
    found = await store.transact("w", ["a", "b"], lambda t: dict(t.pairs))
    found = await store.transact("w", ["a", "b"], lambda t: dict(t.pairs))
    assert {"a": Remembered("a")} == found


def test_the_clock_counts_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has one that does; it is the default of the stores that need one."""
    if sys.platform == "linux":
        assert time.CLOCK_BOOTTIME == module._COUNTS_SLEEP
    clocks = SimpleNamespace(clock_gettime=lambda clock: {7: 700.0}[clock], monotonic=lambda: 500.0)
    monkeypatch.setattr(module, "time", clocks)
    for clock, now in ((7, 700.0), (None, 500.0)):
        monkeypatch.setattr(module, "_COUNTS_SLEEP", clock)
        assert now == steady()
    for kind in (MemoryStore, SQLiteStore):
        assert steady is inspect.signature(kind).parameters["clock"].default


async def test_memory_that_slept_knows_that_time_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the clock that it has by default."""
    now = 1000.0
    clocks = SimpleNamespace(clock_gettime=lambda _: now, monotonic=lambda: 500.0)
    monkeypatch.setattr(module, "time", clocks)
    monkeypatch.setattr(module, "_COUNTS_SLEEP", 7)
    store = MemoryStore(wall=lambda: 0.0)
    assert 1000.0 == await store.transact("w", [], lambda transaction: transaction.now)
    now += 8 * 3600
    assert now == await store.transact("w", [], lambda transaction: transaction.now)


def test_a_state_that_is_not_believed_is_a_lower_bound() -> None:
    """One request goes first, begun later than all before; what Braze counts beyond may be ours."""
    bucket = Bucket(
        offset=5.0, limit=50, used=3, reset=9e9, known=True, probes=8, created=2, cleared=1
    )
    expected = attrs.evolve(bucket, known=False, probes=1, unknown_since=7.0, cleared=50)
    bucket.distrust(7.0)
    assert expected == bucket


@pytest.mark.parametrize(
    "url", ["memory", "memory://x", "mongodb://user:secret@host/0", "secret", ""]
)
def test_an_unknown_store_is_refused(url: str) -> None:
    """The message shows no password, nor a key in the wrong place."""
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("quota.db", "sqlite:///quota.db"),
        ("./data/quota.sqlite3", "sqlite:///./data/quota.sqlite3"),
        ("/var/lib/quota.db", "sqlite:////var/lib/quota.db"),
        ("sqlite:quota.db", "sqlite:///quota.db"),
        ("sqlite://quota.db", "sqlite:///quota.db"),
    ],
)
def test_a_file_in_place_of_a_url_is_answered_with_the_url(url: str, meant: str) -> None:
    """A file's name is refused, and the message has the URL to pass."""
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert f"a store is named by a URL: did you mean {meant}?" == str(caught.value)


def test_memory_is_a_store_by_url() -> None:
    """One of its own for each call."""
    assert isinstance(open_store("memory://"), MemoryStore)
