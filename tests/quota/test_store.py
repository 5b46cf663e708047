"""The memory store, and what a store's URL may be."""

from __future__ import annotations

import pytest

from braze_sends import ConfigurationError, MemoryStore, open_store
from braze_sends.quota.bucket import DAY, Bucket
from braze_sends.quota.store import MEMORY, Remembered, Transaction


async def test_a_workspace_begins_with_a_new_bucket() -> None:
    """Its offset is the wall clock's difference to the steady one."""
    store = MemoryStore(clock=lambda: 5.0, wall=lambda: 105.0)
    bucket = await store.transact("w", [], lambda transaction: transaction.bucket)
    assert Bucket(offset=100.0) == bucket
    assert "MemoryStore(1 workspaces)" == repr(store)
    await store.close()


async def test_what_is_remembered_is_given_to_who_asks_for_it() -> None:
    """For a month; longer than Braze keeps the analytics of a send."""
    now = 0.0
    store = MemoryStore(clock=lambda: now, wall=lambda: now)

    def remember(transaction: Transaction) -> None:
        transaction.pairs["pair"] = Remembered("s")

    def recall(transaction: Transaction) -> dict[str, Remembered]:
        return dict(transaction.pairs)

    await store.transact("w", [], remember)
    assert {} == await store.transact("w", [], recall)
    assert {} == await store.transact("other", ["pair"], recall)
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


@pytest.mark.parametrize(
    "url", ["memory", "memory://x", "mongodb://user:secret@host/0", "secret", ""]
)
def test_an_unknown_store_is_refused(url: str) -> None:
    """The message shows no password, nor a key in the wrong place."""
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_memory_is_a_store_by_url() -> None:
    """One of its own for each call."""
    assert isinstance(open_store("memory://"), MemoryStore)
