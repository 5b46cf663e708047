"""The client without ``await`` in processes that fork, exit and are interrupted."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from braze_sends.sync import SendsClient
from braze_sends.testing import FakeBraze, Fault
from tests.servers import braze as emulator
from tests.servers import running
from tests.waiting import PATIENCE, wait_until
from tests.world import KEY

#: What each script begins with. Python 3.12 warns of every fork in a process that has threads.
BEGIN = f"""
import multiprocessing, os, sys, threading, warnings
from braze_sends import ConfigurationError, CreateSendId
from braze_sends.sync import SendsClient

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def client(**options):
    options = {{"timeout": {PATIENCE}, "max_rate_limit_wait": {PATIENCE}}} | options
    return SendsClient({KEY!r}, base_url=sys.argv[1], **options)

"""


@attrs.frozen
class Server:
    """The emulator, in a thread of its own."""

    fake: FakeBraze
    loop: asyncio.AbstractEventLoop

    def start(self, script: str) -> subprocess.Popen[str]:
        """Run a script; any warning in it is printed."""
        return subprocess.Popen(
            [sys.executable, "-W", "always", "-c", BEGIN + script, self.fake.base_url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str) -> str:
        """What a script prints; on stderr it prints nothing."""
        return ended(self.start(script))

    def created(self) -> list[str]:
        return sorted(name for _, name in self.fake.created)


def ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=PATIENCE)
    assert ("", 0) == (err, process.returncode)
    return out


@pytest.fixture
def server() -> Iterator[Server]:
    with running(fake := emulator(api_key=KEY)) as loop:
        yield Server(fake, loop)


@pytest.mark.parametrize("store", ["memory://", "sqlite:///quota.db"])
def test_a_client_that_was_used_works_in_a_fork(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """The child knows what the parent had created, both go on, and both exit in silence."""
    monkeypatch.chdir(tmp_path)
    told = server.run(f"""
braze = client(store={store!r})
braze.create_send_id("campaign", "before")
if (child := os.fork()) == 0:
    assert braze.create_send_id("campaign", "before").reused
    assert not braze.create_send_id("campaign", "child").reused
    sys.exit()
braze.create_send_id("campaign", "parent")
assert os.waitpid(child, 0)[1] == 0
braze.create_send_id("campaign", "after")
print(braze.create_send_id("campaign", "child").reused)
""")
    assert ["after", "before", "child", "parent"] == server.created()
    assert ("sqlite" in store) is (told == "True\n")


def test_processes_are_forked_while_threads_create(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the fork meets the client's thread, no child hangs, and no quota is overrun."""
    monkeypatch.chdir(tmp_path)
    server.run("""
shared, own = client(store="sqlite:///quota.db"), client()

def create(who, count):
    for n in range(count):
        shared.create_send_id("campaign", f"{who}-{n}")
        own.find_send_id("campaign", f"{who}-{n}")

threads = [threading.Thread(target=create, args=(f"t{t}", 8)) for t in range(4)]
for thread in threads:
    thread.start()
fork = multiprocessing.get_context("fork")
children = [fork.Process(target=create, args=(f"c{c}", 4)) for c in range(12)]
for child in children:
    child.start()
for one in [*threads, *children]:
    one.join()
assert [0] * 12 == [child.exitcode for child in children]
""")
    assert (4 * 8 + 12 * 4, 0) == (len(server.fake.created), server.fake.refused)


def test_the_loops_rest_before_the_files_of_sqlite_are_held() -> None:
    """Else a loop could open another file meanwhile, and the fork's copy of SQLite be locked."""
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os\n"
            "def told(**hooks): print(getattr(hooks.get('before'), '__module__', ''))\n"
            "os.register_at_fork = told\n"
            "import braze_sends.sync",
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    # They run in reverse order.
    ours = [name for name in told.stdout.split() if name.startswith("braze_sends")]
    assert ["braze_sends.stores.sqlite", "braze_sends.sync"] == ours


def test_a_fork_may_leave_a_loop_over_outcomes(server: Server) -> None:
    """The child has no part in the parent's batch, and exits without waiting for it."""
    server.run("""
braze = client()
for outcome in braze.iter_send_ids([CreateSendId("campaign", f"s{n}") for n in range(6)]):
    if (child := os.fork()) == 0:
        try:
            for another in (braze.create_send_id("campaign", str(outcome.result)) for _ in "1"):
                assert another.reused
        finally:
            sys.exit()
    assert os.waitpid(child, 0)[1] == 0
""")
    assert 6 == len(server.fake.created)


@pytest.mark.parametrize("store", ["memory://", "sqlite:///quota.db"])
def test_a_client_that_nobody_closed_exits_in_silence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """No warning, no hang; a multiprocessing child too, and a batch that was left open."""
    monkeypatch.chdir(tmp_path)
    server.run(f"""
braze = client(store={store!r})
outcomes = braze.iter_send_ids(CreateSendId("campaign", f"s{{n}}") for n in range(50))
next(outcomes)
child = multiprocessing.get_context("fork").Process(target=braze.create_send_id, args=("c", "x"))
child.start()
child.join()
assert child.exitcode == 0
""")


def test_what_has_left_is_settled_at_the_exit(server: Server, tmp_path: Path) -> None:
    """A request that nobody waits for any more is remembered before the process ends."""
    answer = asyncio.Event()
    server.fake.script(Fault(stall=answer))
    url = f"sqlite:///{tmp_path / 'quota.db'}"
    process = server.start(f"""
braze = client(store={url!r})
try:
    braze.create_send_id("campaign", "s")
except KeyboardInterrupt:
    print("interrupted", flush=True)
""")
    wait_until(lambda: server.fake.created)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert "interrupted\n" == process.stdout.readline()
    assert process.poll() is None  # it waits for the answer
    server.loop.call_soon_threadsafe(answer.set)
    ended(process)
    with SendsClient(KEY, base_url=server.fake.base_url, store=url) as braze:
        found = braze.find_send_id("campaign", "s")
    assert found is not None
    assert 1 == len(server.fake.requests)


def test_ctrl_c_calls_off_a_create_that_waits(server: Server) -> None:
    """``KeyboardInterrupt`` comes at once, nothing is sent, and no thread is left."""
    server.fake.daily_limit = 1
    process = server.start("""
import time

def tell():
    while not braze._client._creates_of_loop.running:
        time.sleep(0.001)
    print("waits", flush=True)

with client(max_rate_limit_wait=None) as braze:
    braze.create_send_id("campaign", "s0")
    told = threading.Thread(target=tell)
    told.start()
    try:
        braze.create_send_id("campaign", "s1")
    except KeyboardInterrupt:
        print("interrupted")
told.join()
assert [threading.main_thread()] == threading.enumerate(), threading.enumerate()
""")
    assert process.stdout is not None
    assert "waits\n" == process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "interrupted\n" == ended(process)
    assert ["s0"] == server.created()
    assert 1 == len(server.fake.requests)


def test_ctrl_c_ends_a_batch(server: Server) -> None:
    """What has left is waited for, and the rest is called off."""
    answer = asyncio.Event()
    server.fake.script(Fault(stall=answer))
    process = server.start("""
with client() as braze:
    try:
        braze.create_send_ids(CreateSendId("campaign", f"s{n}") for n in range(50))
    except KeyboardInterrupt:
        print("interrupted", braze.quota().in_flight, braze.find_send_id("campaign", "s0"))
""")
    wait_until(lambda: server.fake.created)
    process.send_signal(signal.SIGINT)
    server.loop.call_soon_threadsafe(answer.set)
    # Before or after the batch has noticed, the first one is known.
    assert "interrupted 0 s0\n" == ended(process)
    assert len(server.fake.created) < 50
