"""The quota in a file: what SQLite, other processes, forks and restarts do to it."""

# ruff: noqa: ASYNC240  # what they look at is a small local file

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from braze_sends import ConfigurationError, SendId, SendsClient, StoreError, open_store
from braze_sends.quota.rule.messages import Answer, Ask, Grant, Reading
from braze_sends.quota.rule.window import DAY
from braze_sends.stores import sqlite as module
from braze_sends.stores.sqlite import SQLiteStore
from braze_sends.stores.store import MEMORY, STATE_KEPT, Remembered, Transaction, steady
from braze_sends.testing import FakeBraze
from braze_sends.testing.store_conformance import increment, look, remembers
from tests.waiting import PATIENCE, until
from tests.world import KEY, MIDNIGHT, MORNING


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "quota.db"


@contextmanager
def outsider(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that is not the store's, and does not wait for locks."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def inside(store: SQLiteStore) -> sqlite3.Connection:
    """The store's own connection."""
    assert store._file is not None
    assert store._file._connection is not None
    return store._file._connection


#: On a busy machine, asyncio's debug mode would tell of slow steps.
NOTHING_IS_SLOW = """
import logging
logging.getLogger("asyncio").addFilter(lambda record: not record.msg.startswith("Executing "))
"""


def run(script: str, *arguments: object) -> str:
    """Run a Python script with all warnings as errors; what it printed, on stderr too."""
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]  # of a fork
    script = NOTHING_IS_SLOW + script
    command = [sys.executable, *warnings, "-X", "dev", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.stdout + done.stderr


# --- the file ---


async def test_the_file_is_its_owners_alone(path: Path) -> None:
    """And so are the files that SQLite puts beside it."""
    store = SQLiteStore(path)
    await store.transact("w", [], increment)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert {"quota.db": 0o600, "quota.db-wal": 0o600, "quota.db-shm": 0o600} == modes
    await store.close()
    assert ["quota.db"] == [file.name for file in path.parent.iterdir()]


@pytest.mark.parametrize("name", ["", ":memory:"])
def test_a_file_must_have_a_name(name: str) -> None:
    """SQLite would take these for a database of one connection."""
    with pytest.raises(ConfigurationError, match="take a MemoryStore"):
        SQLiteStore(name)


async def test_a_file_can_be_named_by_url(path: Path) -> None:
    """Nothing is opened before the first transaction."""
    store = open_store(f"sqlite:///{path}")
    assert isinstance(store, SQLiteStore)
    assert f"SQLiteStore({str(path)!r})" == repr(store)
    assert not path.exists()
    assert 1 == await store.transact("w", [], increment)
    assert path.exists()
    await store.close()


# --- what goes wrong with it ---


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (
            b"no database at all, but a text of some length\n" * 100,
            "not a database; .*move it away",
        ),
        (b"SQLite format 3\0" + b"\xff" * 4080, "move it away"),
    ],
)
async def test_a_damaged_file_is_told(path: Path, content: bytes, advice: str) -> None:
    """Each time anew; and when it has been moved away, the quota starts over."""
    path.write_bytes(content)
    store = SQLiteStore(path)
    for _ in range(2):
        with pytest.raises(StoreError, match=advice) as caught:
            await store.transact("w", [], increment)
        assert str(path) in str(caught.value)
    assert content == path.read_bytes()
    path.unlink()
    assert 1 == await store.transact("w", [], increment)
    await store.close()


async def test_a_file_that_is_damaged_further_down_is_told(path: Path) -> None:
    """As soon as what is damaged is read."""
    async with SendsClient(KEY, base_url="http://127.0.0.1:9", store=f"sqlite:///{path}") as braze:
        await braze.quota()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    store = SQLiteStore(path)
    with pytest.raises(StoreError, match=r"malformed; it is damaged; .*move it away"):
        await store.transact("w", ["pair"], increment)
    await store.close()


async def test_a_path_that_cannot_be_a_file_is_told(tmp_path: Path) -> None:
    """A folder, and a file in a folder that is not there."""
    for path, problem in (
        (tmp_path, "Is a directory"),
        (tmp_path / "missing" / "quota.db", "No such file or directory"),
    ):
        store = SQLiteStore(path)
        with pytest.raises(StoreError, match=f"{problem}; check that its folder exists"):
            await store.transact("w", [], increment)
        await store.close()


async def test_a_file_that_cannot_be_written_is_told(path: Path) -> None:
    """It can still be read; what could not be kept left nothing behind."""
    store = SQLiteStore(path)
    await store.transact("w", [], increment)
    inside(store).execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="readonly database; make the file and its folder wri"):
        await store.transact("w", [], increment)
    assert 1 == (await look(store, "w")).bucket.created
    inside(store).execute("PRAGMA query_only = OFF")
    assert 2 == await store.transact("w", [], increment)
    await store.close()


async def test_a_full_disk_is_told(path: Path) -> None:
    """What could not be kept left nothing behind; with space it goes on."""
    store = SQLiteStore(path)
    await store.transact("w", [], increment)
    inside(store).execute("PRAGMA max_page_count = 1")  # which SQLite raises to what there is
    many = {f"pair-{n}": Remembered("s" * 64) for n in range(1000)}
    with pytest.raises(StoreError, match="disk is full; free some space"):
        await store.transact("w", [], remembers(many))
    assert {} == (await look(store, "w", many)).pairs
    inside(store).execute("PRAGMA max_page_count = 1000000")
    await store.transact("w", [], remembers(many))
    assert many == (await look(store, "w", many)).pairs
    await store.close()


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
async def test_a_lock_that_is_held_too_long_is_told(
    path: Path, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And when it is gone, all is well."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 0.0)
    store = SQLiteStore(path)
    await store.transact("w", [], increment)
    with outsider(path) as other:
        other.execute(lock)
        with pytest.raises(StoreError, match="locked; another program holds its lock; end that"):
            await store.transact("w", [], increment)
    assert 2 == await store.transact("w", [], increment)
    await store.close()


async def test_a_wait_for_a_lock_is_told_while_it_lasts(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says which file is waited for, and how long at most; then the wait goes on."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT", PATIENCE)
    monkeypatch.setattr(module, "TOLD_AFTER", 0.0)
    store = SQLiteStore(path)
    await store.transact("w", [], increment)
    with outsider(path) as other:
        other.execute("BEGIN IMMEDIATE")
        waits = asyncio.create_task(store.transact("w", [], increment))
        await until(lambda: bool(caplog.messages))
        assert not waits.done()
        other.execute("ROLLBACK")
        assert 2 == await waits
    says = f"{path}: another program holds its lock; waiting for it, up to {PATIENCE:.0f} s"
    assert [says] == caplog.messages
    await store.close()


async def test_a_file_that_others_write_is_waited_for_before_it_is_ours(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it writes ahead it must be ours alone for a moment, which SQLite does not wait for."""
    looks: list[float] = []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        time.sleep(seconds)

    clocks = SimpleNamespace(monotonic=lambda: 0.0, sleep=pause)  # which never is too long
    monkeypatch.setattr(module, "time", clocks)
    store = SQLiteStore(path)
    with outsider(path) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN IMMEDIATE")
        waits = asyncio.create_task(store.transact("w", [], increment))
        await until(lambda: len(looks) > 2)
        assert not waits.done()
        other.execute("ROLLBACK")
        assert 1 == await waits
    await store.close()


async def test_a_file_that_never_is_ours_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time that is allowed for a lock."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 0.0)
    store = SQLiteStore(path)
    with outsider(path) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked; another program holds its lock; end that"):
            await store.transact("w", [], increment)
    assert 1 == await store.transact("w", [], increment)
    await store.close()


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("UPDATE quota SET state = '{\"offset\":'", "bucket"),
        ("UPDATE quota SET state = 'x'", "bucket"),
        ("UPDATE pair SET memory = '[]'", "remembered"),
    ],
)
async def test_a_damaged_text_is_told(path: Path, damage: str, kind: str) -> None:
    """It harms no other workspace, and once deleted the quota starts over."""
    store = SQLiteStore(path)
    await store.transact("w", [], increment)
    await store.transact("w", [], remembers({"pair": Remembered("s")}))
    with outsider(path) as other:
        other.execute(damage)
        with pytest.raises(StoreError, match=f"holds a damaged {kind}: delete it there"):
            await store.transact("w", ["pair"], increment)
        assert 1 == await store.transact("other", ["pair"], increment)
        other.execute("DELETE FROM quota WHERE workspace = 'w'")
        other.execute("DELETE FROM pair")
    assert 1 == await store.transact("w", ["pair"], increment)
    await store.close()


async def test_a_file_that_cannot_be_made_is_told_why(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what helps: space, rights, or fewer files."""

    def fail(number: int) -> Callable[..., int]:
        def opened(*arguments: object) -> int:
            raise OSError(number, os.strerror(number))

        return opened

    store = SQLiteStore(path)
    for number, advice in (
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EDQUOT, "; free some space"),
        (errno.EACCES, "Permission denied; make the file and its folder writable"),
        (errno.EROFS, "; make the file and its folder writable"),
        (errno.EMFILE, "; let fewer files be open at once"),
        (errno.ENOENT, "No such file or directory; check that its folder exists"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fail(number))
            with pytest.raises(StoreError, match=advice):
                await store.transact("w", [], increment)
    assert 1 == await store.transact("w", [], increment)
    await store.close()


# --- a file that is another, or old ---


def knows(transaction: Transaction) -> None:
    """A state that is believed."""
    bucket = transaction.bucket
    bucket.used, bucket.known, bucket.probes = 3, True, 4


async def distrusts(store: SQLiteStore) -> bool:
    """Whether the store gives a state that is not believed."""
    transaction = await look(store, "w")
    assert 3 == transaction.bucket.used
    if transaction.bucket.known:
        return False
    assert 1 == transaction.bucket.probes
    assert transaction.now - PATIENCE < transaction.bucket.unknown_since <= transaction.now
    return True


def forsake(path: Path) -> None:
    """Delete the file and those beside it."""
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


@pytest.mark.parametrize("beside", [True, False], ids=["all three", "the file alone"])
async def test_a_file_that_was_deleted_is_left(path: Path, beside: bool) -> None:
    """By all who have it open: they go on together, in a new one."""
    stores = [SQLiteStore(path) for _ in range(3)]
    for store in stores:
        await store.transact("w", [], knows)
    forsake(path) if beside else path.unlink()
    numbers = [await store.transact("w", [], increment) for store in stores * 2]
    assert [1, 2, 3, 4, 5, 6] == numbers
    assert 0 == (await look(stores[0], "w")).bucket.used
    for store in stores:
        await store.close()
    assert ["quota.db"] == [file.name for file in path.parent.iterdir()]
    last = SQLiteStore(path)
    assert 7 == await last.transact("w", [], increment)
    await last.close()


async def test_a_deleted_file_is_no_second_quota(fake: FakeBraze, path: Path) -> None:
    """A process that has it open, and one that comes later, keep to one quota."""
    async with AsyncExitStack() as stack:

        async def client() -> SendsClient:
            options = {"store": f"sqlite:///{path}", "max_rate_limit_wait": 0, "timeout": PATIENCE}
            return await stack.enter_async_context(
                SendsClient(KEY, base_url=fake.base_url, **options)  # type: ignore[arg-type]
            )

        async def create(braze: SendsClient, names: Iterable[int]) -> None:
            creates = (braze.create_send_id("campaign", f"s{name}") for name in names)
            await asyncio.gather(*creates, return_exceptions=True)

        before = await client()
        await create(before, range(40))
        forsake(path)
        later = await client()
        await create(later, range(100, 120))
        await asyncio.gather(create(before, range(200, 260)), create(later, range(300, 360)))
        assert (100, 0) == (len(fake.created), fake.refused)


async def test_a_file_that_goes_while_it_is_written_is_written_anew(path: Path) -> None:
    """What was granted is known to those who come later."""
    store, other = SQLiteStore(path), SQLiteStore(path)
    await store.transact("w", [], knows)
    runs = 0

    def change(transaction: Transaction) -> int:
        nonlocal runs
        runs += 1
        if runs == 2:  # under the lock
            forsake(path)
        return increment(transaction)

    assert 1 == await store.transact("w", [], change)
    assert 4 == runs
    assert 1 == (await look(other, "w")).bucket.created
    await store.close()
    await other.close()


async def test_a_file_that_is_replaced_again_and_again_is_told(path: Path) -> None:
    """The transaction ends."""
    store = SQLiteStore(path)

    def change(transaction: Transaction) -> int:
        forsake(path)
        return increment(transaction)

    with pytest.raises(StoreError, match="the file is replaced again and again"):
        await store.transact("w", [], change)
    assert 1 == await store.transact("w", [], increment)
    await store.close()


async def test_a_copy_that_was_put_in_the_files_place_is_distrusted_once(path: Path) -> None:
    """Once, by whoever opens it first, a process that lives on or a new one."""
    store = SQLiteStore(path)
    await store.transact("w", [], knows)
    await store.close()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    for living in (True, False):
        assert not await distrusts(store)
        forsake(path)
        path.write_bytes(copy.read_bytes())
        if not living:
            await store.close()
            store = SQLiteStore(path)
        other = SQLiteStore(path)
        assert await distrusts(store)
        assert await distrusts(other)
        await other.transact("w", [], knows)
        assert not await distrusts(store)
        await other.close()
        await store.close()


async def test_a_backup_that_was_restored_into_the_file_is_distrusted(path: Path) -> None:
    """By a process that has seen more; the file is the same, and nobody has closed it."""
    store = SQLiteStore(path)
    await store.transact("w", [], knows)
    with outsider(path) as other, outsider(path.with_name("backup")) as backup:
        other.backup(backup)
        for _ in range(3):
            await store.transact("w", [], increment)
        backup.backup(other)
    assert await distrusts(store)
    await store.transact("w", [], knows)
    assert not await distrusts(store)
    await store.close()


async def test_a_file_of_an_older_release_is_distrusted_once(path: Path) -> None:
    """It does not say which file it is; and an older release can go on with it."""
    with outsider(path) as old:
        old.executescript(OLDER)
        store = SQLiteStore(path)
        assert await distrusts(store)
        await store.transact("w", [], knows)
        old.execute("INSERT OR IGNORE INTO clock VALUES ('boot', 5.0)")
        state = '{"offset":0,"used":3,"known":true}'
        old.execute("INSERT OR REPLACE INTO quota VALUES ('w', ?, 1e12)", (state,))
        old.execute("INSERT OR REPLACE INTO pair VALUES ('w', 'p', '{\"send_id\":\"s\"}', 1e12)")
        assert not await distrusts(store)
        assert {"p": Remembered("s")} == (await look(store, "w", ["p"])).pairs
        old.execute("DROP TABLE file")  # its backup was restored
        assert await distrusts(store)
        await store.close()


OLDER = """
CREATE TABLE clock (boot TEXT PRIMARY KEY, origin REAL NOT NULL);
CREATE TABLE quota (workspace TEXT PRIMARY KEY, state TEXT NOT NULL, expires REAL NOT NULL);
CREATE TABLE pair (
    workspace TEXT, pair TEXT, memory TEXT NOT NULL, expires REAL NOT NULL,
    PRIMARY KEY (workspace, pair)
);
INSERT INTO quota VALUES ('w', '{"offset":0,"used":3,"known":true,"canaries":4}', 1e12);
INSERT INTO quota VALUES ('damaged', '{', 1e12);
"""


@pytest.mark.parametrize(
    "damage", ["file SET time = 1e300", "file SET writes = 'x'", "clock SET origin = 'x'"]
)
async def test_a_damaged_time_in_the_file_is_told(path: Path, damage: str) -> None:
    """As ``StoreError``, which says what to do."""
    store = SQLiteStore(path)
    await store.transact("w", [], increment)
    await store.close()
    with outsider(path) as other:
        other.execute(f"UPDATE {damage}")
    with pytest.raises(StoreError, match="holds a damaged time: stop all workers and move the fi"):
        await store.transact("w", [], increment)
    await store.close()


async def test_a_store_keeps_to_its_file_in_another_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is relative means the folder of the first transaction."""
    monkeypatch.chdir(path.parent)
    store = SQLiteStore(path.name)
    await store.transact("w", [], increment)
    (path.parent / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert 2 == await store.transact("w", [], increment)
    await store.close()
    assert [] == list((path.parent / "elsewhere").iterdir())


OPENS_AND_CLOSES = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("SELECT * FROM quota").fetchall()
connection.close()
"""


@pytest.mark.process
async def test_a_second_store_of_a_process_does_not_unlock_the_first(path: Path) -> None:
    """Else another process that closes the file would take away what both write ahead."""
    stores = SQLiteStore(path), SQLiteStore(path)
    for n, store in enumerate(stores):
        assert n + 1 == await store.transact("w", [], increment)
    assert "" == run(OPENS_AND_CLOSES, path)
    assert path.with_name("quota.db-wal").exists()
    assert [3, 4] == [await store.transact("w", [], increment) for store in stores]
    for store in stores:
        await store.close()


# --- others at the file ---


async def test_what_changes_nothing_only_reads(path: Path) -> None:
    """It goes on while another process writes, and leaves nothing for others to read again."""
    store = SQLiteStore(path)
    await store.transact("w", [], increment)
    await store.transact("w", [], remembers({"pair": Remembered("s")}))
    log = path.with_name("quota.db-wal")
    with outsider(path) as other:
        before = other.execute("PRAGMA data_version").fetchone(), log.stat().st_size
        other.execute("BEGIN IMMEDIATE")
        assert 1 == (await look(store, "w", ["pair"])).bucket.created
        assert 0 == (await look(store, "never heard of")).bucket.created
        await store.transact("w", ["pair"], remembers({"pair": Remembered("s")}))
        other.execute("ROLLBACK")
        assert before == (other.execute("PRAGMA data_version").fetchone(), log.stat().st_size)
        await store.transact("w", [], increment)
        assert before[0] != other.execute("PRAGMA data_version").fetchone()
    await store.close()


HOLDS_THE_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.mark.process
async def test_a_lock_of_another_process_does_not_stop_the_loop(
    fake: FakeBraze, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a process holds it, a client with another store creates; then it goes on."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT", PATIENCE)
    store = SQLiteStore(path)
    async with (
        SendsClient(KEY, base_url=fake.base_url, timeout=PATIENCE, store=store) as braze,
        SendsClient(KEY, base_url=fake.base_url, timeout=PATIENCE) as other,
    ):
        await braze.create_send_id("campaign", "first")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", HOLDS_THE_LOCK, str(path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert b"held\n" == await process.stdout.readline()
        create = asyncio.create_task(braze.create_send_id("campaign", "second"))
        file = store._file
        assert file is not None
        await until(file.lock.locked)
        await other.create_send_id("campaign", "meanwhile")
        assert (True, False) == (file.lock.locked(), create.done())
        assert ["first", "meanwhile"] == [send_id for _, send_id in fake.created]
        await process.communicate(b"end\n")
        assert 0 == process.returncode
        assert isinstance(await create, SendId)
    assert ["first", "meanwhile", "second"] == [send_id for _, send_id in fake.created]
    await store.close()


async def test_what_another_wrote_before_the_lock_is_read_again(path: Path) -> None:
    """What was read before the lock is old, and is read again under it."""
    store, other = SQLiteStore(path), SQLiteStore(path)
    await store.transact("w", [], increment)
    runs: list[int] = []

    def change(transaction: Transaction) -> int:
        if not runs:
            with outsider(path) as connection:
                connection.execute("UPDATE quota SET state = json_set(state, '$.created', 41)")
        runs.append(transaction.bucket.created)
        return increment(transaction)

    assert 42 == await store.transact("w", [], change)
    assert [1, 41] == runs
    assert 42 == (await look(other, "w")).bucket.created
    await store.close()
    await other.close()


# --- processes ---

FORK = """
import asyncio, os, sys
from braze_sends.stores.sqlite import SQLiteStore
from braze_sends.testing.store_conformance import increment

store = SQLiteStore(sys.argv[1])
print(asyncio.run(store.transact("w", [], increment)), flush=True)
child = os.fork()
if child == 0:
    print("child", asyncio.run(store.transact("w", [], increment)), flush=True)
    grandchild = os.fork()
    if grandchild == 0:
        print("grandchild", asyncio.run(store.transact("w", [], increment)), flush=True)
        os._exit(0)
    os.waitpid(grandchild, 0)
    print("child", asyncio.run(store.transact("w", [], increment)), flush=True)
    asyncio.run(store.close())
    if sys.argv[2] == "exit":
        sys.exit(0)
    os._exit(0)
print("status", os.waitpid(child, 0)[1], flush=True)
print("parent", asyncio.run(store.transact("w", [], increment)), flush=True)
child = os.fork()
if child == 0:
    asyncio.run(store.close())  # which is not its own
    os._exit(0)
os.waitpid(child, 0)
print("parent", asyncio.run(store.transact("w", [], increment)), flush=True)
asyncio.run(store.close())
"""


@pytest.mark.process
@pytest.mark.parametrize("end", ["_exit", "exit"])
def test_a_fork_opens_the_file_for_itself(path: Path, end: str) -> None:
    """The child goes on with what its parent left, and the parent with what the child did."""
    told = ["1", "child 2", "grandchild 3", "child 4", "status 0", "parent 5", "parent 6"]
    assert told == run(FORK, path, end).splitlines()


OUTLIVES = """
import asyncio, os, sys
from braze_sends.stores.sqlite import SQLiteStore
from braze_sends.testing.store_conformance import increment

store = SQLiteStore(sys.argv[1])
print(asyncio.run(store.transact("w", [], increment)), flush=True)
to_parent, of_child = os.pipe()
to_child, of_parent = os.pipe()
child = os.fork()
if child == 0:
    print("child", asyncio.run(store.transact("w", [], increment)), flush=True)
    os.write(of_child, b"x")
    os.read(to_child, 1)
    print("child", asyncio.run(store.transact("w", [], increment)), flush=True)
    asyncio.run(store.close())
    os._exit(0)
os.read(to_parent, 1)
asyncio.run(store.close())
store = SQLiteStore(sys.argv[1])
print("parent", asyncio.run(store.transact("w", [], increment)), flush=True)
os.write(of_parent, b"x")
os.waitpid(child, 0)
print("parent", asyncio.run(store.transact("w", [], increment)), flush=True)
asyncio.run(store.close())
"""


@pytest.mark.process
def test_a_child_outlives_its_parents_store(path: Path) -> None:
    """SQLite counts a process's locks for itself; a child must not count on those of its parent."""
    lines = ["1", "child 2", "parent 3", "child 4", "parent 5"]
    assert lines == run(OUTLIVES, path).splitlines()


BUSY = """
import asyncio, os, signal, sqlite3, sys, threading, time

# Hooks run in the reverse order: this one after the store's, and ``ending.start`` before it.
os.register_at_fork(before=lambda: ending.join())
from braze_sends.stores.sqlite import SQLiteStore
from braze_sends.testing.store_conformance import increment


def end():
    main = threading.main_thread().ident
    while sys._current_frames()[main].f_code.co_name != "_before_fork":
        time.sleep(0.001)
    other.execute("ROLLBACK")


ending = threading.Thread(target=end)
store = SQLiteStore(sys.argv[1])
loop = asyncio.new_event_loop()
thread = threading.Thread(target=loop.run_forever)
thread.start()


def run(coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, loop)


run(store.transact("w", [], increment)).result()
other = sqlite3.connect(sys.argv[1], isolation_level=None, check_same_thread=False)
other.execute("BEGIN IMMEDIATE")
begun = threading.Event()
waits = run(store.transact("w", [], lambda transaction: begun.set() or increment(transaction)))
begun.wait()
os.register_at_fork(before=ending.start)
child = os.fork()
if child == 0:
    signal.alarm(int(sys.argv[2]))
    asyncio.run(store.transact("other", [], increment))
    os._exit(0)  # ``other`` is not its to close
print("status", os.waitpid(child, 0)[1])
print(waits.result())
other.close()
run(store.close()).result()
loop.call_soon_threadsafe(loop.stop)
thread.join()
loop.close()
"""


@pytest.mark.process
def test_a_fork_in_the_middle_of_a_transaction_harms_nobody(path: Path) -> None:
    """The thread that holds SQLite's own locks is not there in the child."""
    assert ["status 0", "2"] == run(BUSY, path, int(PATIENCE / 2)).splitlines()


NEVER_CLOSED = """
import asyncio, gc, sys
from braze_sends.stores.sqlite import SQLiteStore
from braze_sends.testing.store_conformance import increment

store = SQLiteStore(sys.argv[1])
print(asyncio.run(store.transact("w", [], increment)))
store = SQLiteStore(sys.argv[1])
gc.collect()
print(asyncio.run(store.transact("w", [], increment)))
"""


@pytest.mark.process
def test_a_store_may_be_left_open(path: Path) -> None:
    """Dropped or open to the end of the process: no warning, no hanging, nothing lost."""
    assert ["1", "2"] == run(NEVER_CLOSED, path).splitlines()
    assert not path.with_name("quota.db-wal").exists()


# --- time ---


class Host:
    """A host's clocks; a start sets the steady one back."""

    def __init__(self) -> None:
        self.boot = "first"
        self.started = 0.0
        self.time = MORNING

    def restart(self, boot: str) -> None:
        self.boot, self.started = boot, self.time

    def store(self, path: Path) -> SQLiteStore:
        return SQLiteStore(path, clock=lambda: self.time - self.started, wall=lambda: self.time)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(module, "_boot", lambda clock: host.boot)
    return host


async def test_times_go_on_over_a_restart(path: Path, host: Host) -> None:
    """Over a restart of the process, and of the host, whose steady clock then begins anew."""
    times = []
    for restart in (None, None, "second", "third", None):
        host.time += 5
        if restart is not None:
            host.restart(restart)
        store = host.store(path)
        times.append((await look(store, "w")).now)
        await store.close()
    assert [5.0, 5.0, 5.0, 5.0] == [b - a for a, b in itertools.pairwise(times)]


async def test_a_wall_clock_that_is_set_does_not_move_the_times(path: Path, host: Host) -> None:
    """Within one start of the host they go by the steady clock alone."""
    first = host.store(path)
    before = (await look(first, "w")).now
    wrong = SQLiteStore(path, clock=lambda: host.time + 1, wall=lambda: host.time + 9999)
    host.started = 0.0
    assert before + 1 == (await look(wrong, "w")).now
    await first.close()
    await wrong.close()


def test_a_start_of_the_host_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's; where that has none, the time of it."""
    assert Path("/proc/sys/kernel/random/boot_id").read_text().strip() == module._boot(steady)

    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: 6000.0 + 1234.0))
    assert "10" == module._boot(lambda: 1234.0)


async def test_a_clock_that_is_behind_or_ahead_moves_nobodys_time(path: Path, host: Host) -> None:
    """Whoever comes with one goes by the wall clock once, and then on by its own, as all do."""
    store = host.store(path)
    await store.transact("w", [], increment)
    for off in (-3 * 3600.0, 3 * 3600.0):
        host.time += 100
        wrong = SQLiteStore(path, clock=lambda off=off: host.time + off, wall=lambda: host.time)  # type: ignore[misc]
        for passes in (0, 5, 5):
            host.time += passes
            for one in (wrong, store, wrong):
                await one.transact("w", [], increment)
                assert MORNING < host.time == (await look(one, "w")).now
        await wrong.close()
    await store.close()


async def test_time_does_not_go_back_for_anybody(path: Path, host: Host) -> None:
    """Should a clock go back, time stands still for a moment and goes on from there."""
    store = host.store(path)
    await store.transact("w", [], increment)
    before = host.time
    host.time -= 3600
    assert before == (await look(store, "w")).now
    host.time += 5
    assert before + 5 == (await look(store, "w")).now
    await store.close()


@pytest.mark.parametrize("first", ["older", "newer"])
async def test_processes_of_two_releases_agree_on_the_time(
    path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Whichever opens the file first; the time of the newer goes on while the host sleeps."""
    monotonic, slept, wall = 1000.0, 200.0, MORNING
    clocks = SimpleNamespace(
        time=lambda: wall, monotonic=lambda: monotonic, clock_gettime=lambda _: monotonic + slept
    )
    monkeypatch.setattr(module, "time", clocks)
    monkeypatch.setattr("braze_sends.stores.store.time", clocks)
    with outsider(path) as old:

        def of_older() -> float:
            """The time of an older release, which stands still while the host sleeps."""
            start = (module._boot(clocks.monotonic), wall - monotonic)
            old.execute("INSERT OR IGNORE INTO clock VALUES (?, ?)", start)
            select = "SELECT origin FROM clock WHERE boot = ?"
            (origin,) = old.execute(select, start[:1]).fetchone()
            return float(monotonic + origin)

        async def of_newer() -> float:
            store = SQLiteStore(path, wall=clocks.time)
            now = (await look(store, "w")).now
            await store.close()
            return now

        if first == "older":
            old.executescript(OLDER)
            before = of_older()
        else:
            before = await of_newer()
        wall += 10_000  # somebody sets it
        assert [before] * 2 == [of_older(), await of_newer()]
        slept += 3600
        wall += 3600
        assert [before, before + 3600] == [of_older(), await of_newer()]


async def test_what_is_old_is_deleted(path: Path, host: Host) -> None:
    """A memory after a month, a workspace that nobody touched after four days."""
    store = host.store(path)
    await store.transact("old", [], increment)
    await store.transact("w", [], remembers({"a": Remembered("a")}))
    host.time += STATE_KEPT
    await store.transact("w", [], remembers({"b": Remembered("b")}))
    with outsider(path) as other:
        count = "SELECT (SELECT count(*) FROM quota), (SELECT count(*) FROM pair)"
        assert (1, 2) == other.execute(count).fetchone()
        assert 0 == (await look(store, "old")).bucket.created
        host.time += MEMORY - STATE_KEPT
        # Given to nobody any more, though nothing has been written yet.
        assert ["b"] == list((await look(store, "w", ["a", "b"])).pairs)
        await store.transact("w", [], increment)
        assert (1, 1) == other.execute(count).fetchone()
    await store.close()


@pytest.mark.parametrize("days", [90, pytest.param(365, marks=pytest.mark.long)])
async def test_use_does_not_let_the_file_grow(path: Path, host: Host, days: int) -> None:
    """100 creates a day, in groups of 25: what is kept is that of the last month."""
    host.time = MIDNIGHT + 60
    store = host.store(path)
    sizes = []
    with outsider(path) as other:
        for day in range(days):
            for group in range(4):
                await store.transact(
                    "w", [], creates(day, group, reset=host.time // DAY * DAY + DAY)
                )
                inside(store).execute("PRAGMA synchronous = OFF")  # only to be done sooner
                host.time += DAY / 4
            sizes.append(sum(file.stat().st_size for file in path.parent.iterdir()))
        (pairs,) = other.execute("SELECT count(*) FROM pair").fetchone()
        (states, state) = other.execute("SELECT count(*), max(length(state)) FROM quota").fetchone()
        (starts,) = other.execute("SELECT count(*) FROM clock").fetchone()
    assert 3000 <= pairs <= 3100
    assert (1, 1) == (states, starts)
    assert state < 300
    assert max(sizes[45:]) <= 1.1 * max(sizes[:45])
    assert max(sizes) < 10_000_000
    await store.close()


def creates(day: int, group: int, reset: float) -> Callable[[Transaction], None]:
    """A group of creates, from the lease to what is remembered."""

    def change(transaction: Transaction) -> None:
        bucket, now = transaction.bucket, transaction.now
        bucket.advance(now)
        for n in range(25 * group, 25 * group + 25):
            ask = Ask(f"{day}.{n}", 1, f"pair-{day}-{n}", 10.0)
            (grant,) = bucket.reserve([ask], now)
            assert isinstance(grant, Grant)
            bucket.finish(ask, grant, Answer(True, window=Reading(100, n + 1, reset)), now)
            transaction.pairs[f"pair-{day}-{n}"] = Remembered(f"story-{day}-{n}")

    return change


async def test_no_connection_is_open_while_the_process_forks(path: Path) -> None:
    """It is opened again afterwards, and a second fork finds none to close."""
    store = SQLiteStore(path)
    assert 1 == await store.transact("w", [], increment)
    assert store._file is not None
    for _ in range(2):
        module._before_fork()
        assert None is store._file._connection
        assert store._file.lock.locked()
        module._after_fork()
    assert 2 == await store.transact("w", [], increment)
    await store.close()


async def test_a_file_that_goes_while_it_is_opened_is_opened_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has put another in its place between the two."""
    there = module._File._is_there
    looks: list[bool] = []

    def look(file: module._File) -> bool:
        looks.append(there(file))
        return len(looks) > 1 and looks[-1]

    store = SQLiteStore(path)
    monkeypatch.setattr(module._File, "_is_there", look)
    assert 1 == await store.transact("w", [], increment)
    assert len(looks) > 1
    await store.close()


def test_a_file_that_was_not_opened_is_not_there(path: Path) -> None:
    """Nothing is known of it yet."""
    assert not module._File(path, lambda: 0.0, lambda: 0.0)._is_there()


def test_what_sqlite_says_of_the_time_is_passed_on(path: Path) -> None:
    """An error of the disk is no sign of an older release."""

    class Broken:
        def execute(self, _: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(sqlite3.OperationalError, match="disk I/O"):
        module._File(path, lambda: 0.0, lambda: 0.0)._now(Broken())  # type: ignore[arg-type]
