"""The rule's machine on the real stores: what they keep is what they were given.

Time is the machine's. SQLite takes it as its clock; a server has its own, so there the machine's
time is put in place of it as each transition begins.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from braze_sends import MemoryStore, Store
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores.postgres import PostgresStore
from braze_sends.stores.redis import RedisStore
from braze_sends.stores.sqlite import SQLiteStore
from braze_sends.stores.store import Transaction
from tests.quota.machine import BucketMachine, assume
from tests.waiting import PATIENCE

T = TypeVar("T")


@attrs.define
class Time:
    """The time of the machine that runs."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class StoredMachine(BucketMachine):
    """A machine on a workspace of its own.

    Attributes:
        runner: the event loop.
        store: where the state is.
        time: the store's clock, where it can have one.
    """

    runner: asyncio.Runner
    store: Store
    time: Time

    def __init__(self) -> None:
        super().__init__()
        self.workspace = uuid.uuid4().hex

    def transact(self, change: Callable[[Bucket, float], T]) -> T:
        self.time.now = self.now
        return self.runner.run(
            self.store.transact(self.workspace, [], lambda t: change(t.bucket, self.at(t)))
        )

    def at(self, transaction: Transaction) -> float:
        """The time of a transition."""
        assert self.now == transaction.now
        return transaction.now


class FileMachine(StoredMachine):
    """A machine on a file of its own, since the time of a file never goes back."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        path = self.folder / f"{self.workspace}.db"
        self.store = SQLiteStore(path, clock=self.time, wall=self.time)

    def teardown(self) -> None:
        super().teardown()
        self.runner.run(self.store.close())


class ServerMachine(StoredMachine):
    """Its time is not the server's."""

    def at(self, transaction: Transaction) -> float:
        return self.now


def run(kind: type[StoredMachine], store: Store, time: Time, examples: int) -> None:
    """Run the machine on ``store``."""
    with asyncio.Runner() as runner:
        machine = type("Machine", (kind,), {"runner": runner, "store": store, "time": time})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )
        runner.run(store.close())


several = pytest.mark.parametrize("examples", [20, pytest.param(400, marks=pytest.mark.long)])


@several
def test_the_promises_hold_in_sqlite(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, examples: int
) -> None:
    """Each transition reads the file, and what changes something is written."""
    assume(monkeypatch)
    monkeypatch.setattr(FileMachine, "folder", tmp_path, raising=False)
    run(FileMachine, MemoryStore(), Time(), examples)


@several
def test_the_promises_hold_in_redis(
    monkeypatch: pytest.MonkeyPatch, redis_url: str, examples: int
) -> None:
    """Each transition asks the server, and what changes something is set there."""
    assume(monkeypatch)
    run(ServerMachine, RedisStore(redis_url), Time(), examples)


@several
def test_the_promises_hold_in_postgres(
    monkeypatch: pytest.MonkeyPatch, postgres_url: str, examples: int
) -> None:
    """Each transition is a statement that loads, and what changes something is another."""
    assume(monkeypatch)
    monkeypatch.setattr("braze_sends.stores.postgres.CONNECT_TIMEOUT", int(PATIENCE))
    run(ServerMachine, PostgresStore(postgres_url), Time(), examples)
