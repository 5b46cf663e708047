"""``braze_sends.sync``: the client without ``await``, shared by threads."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import pickle
import threading
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import aiohttp
import attrs
import pytest

import braze_sends
from braze_sends import (
    ConfigurationError,
    CreateSendId,
    MemoryStore,
    Outcome,
    QuotaExhaustedError,
    SendId,
    sync,
)
from braze_sends.sync import SendsClient
from braze_sends.testing import FakeBraze, Fault
from tests.servers import braze as emulator
from tests.servers import running
from tests.waiting import PATIENCE, wait_until
from tests.world import KEY


@attrs.frozen
class Server:
    """The emulator, in a thread of its own."""

    fake: FakeBraze
    loop: asyncio.AbstractEventLoop

    def client(self, **options: Any) -> SendsClient:
        """A client that does not give up because the machine is busy."""
        options = {"timeout": PATIENCE, "max_rate_limit_wait": PATIENCE} | options
        return SendsClient(KEY, base_url=self.fake.base_url, **options)

    def hold(self, **fault: Any) -> asyncio.Event:
        """The next request is handled at once, and answered after ``let``."""
        answer = asyncio.Event()
        self.fake.script(Fault(stall=answer, **fault))
        return answer

    def let(self, answer: asyncio.Event) -> None:
        self.loop.call_soon_threadsafe(answer.set)


@pytest.fixture
def server() -> Iterator[Server]:
    with running(fake := emulator(api_key=KEY)) as loop:
        yield Server(fake, loop)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: not ours())


def ours() -> list[threading.Thread]:
    """The threads of clients."""
    return [thread for thread in threading.enumerate() if thread.name == "braze_sends"]


def named(count: int) -> list[CreateSendId]:
    return [CreateSendId("campaign", f"s{n}") for n in range(count)]


def parameters(method: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(method).parameters.values())


def methods(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


def test_the_two_clients_have_the_same_methods_and_parameters() -> None:
    """What one has the other has, under the same name, with the same arguments and defaults."""
    here, there = methods(SendsClient), methods(braze_sends.SendsClient)
    assert there.keys() == here.keys()
    for name, value in there.items():
        assert isinstance(value, property) == isinstance(here[name], property)
        if not isinstance(value, property):
            assert parameters(value) == parameters(here[name]), name
            assert not inspect.iscoroutinefunction(here[name])
    assert parameters(braze_sends.SendsClient) == parameters(SendsClient)


def test_a_client_with_other_options_is_the_same_client(server: Server) -> None:
    """It shares thread, store and quota; options add up, and a call's own go before them."""
    with server.client() as braze:
        urgent = braze.with_options(max_rate_limit_wait=0).with_options(daily_limit=1)
        assert ["s0"] == [str(one.result) for one in urgent.create_send_ids(named(1))]
        assert (1, 99) == (urgent.quota().limit - urgent.quota().remaining, braze.quota().remaining)
        with pytest.raises(QuotaExhaustedError):
            urgent.create_send_id("campaign", "s1")
        assert "s1" == str(braze.create_send_id("campaign", "s1"))
        assert 1 == len(ours())


def test_closing_a_client_with_other_options_leaves_the_first_open(server: Server) -> None:
    """The closed one is told so."""
    with server.client() as braze:
        with braze.with_options(max_retries=0) as view:
            view.create_send_id("campaign", "s0")
        with pytest.raises(ConfigurationError, match="this client is closed"):
            view.quota()
        assert "s1" == str(braze.create_send_id("campaign", "s1"))


def test_an_unusable_option_is_refused_at_once(server: Server) -> None:
    """As the async client does."""
    with server.client() as braze, pytest.raises(ConfigurationError, match="max_retries"):
        braze.with_options(max_retries=-1)


def test_a_health_check_tells_the_quota(server: Server) -> None:
    """And which proxy there is."""
    with server.client() as braze:
        braze.create_send_id("campaign", "s0")
        check = braze.check()
        assert check.ok
        assert check.quota is not None
        assert 99 == check.quota.remaining
        assert None is braze.proxy


def test_eight_threads_share_a_client_and_a_quota_of_100(server: Server) -> None:
    """Of 400 creates exactly 100 come about, 300 are refused here, and Braze refuses none."""

    def create(number: int) -> type:
        try:
            return type(braze.create_send_id("campaign", f"s{number}"))
        except QuotaExhaustedError as error:
            return type(error)

    with server.client() as braze, ThreadPoolExecutor(8) as pool:
        kinds = Counter(pool.map(create, range(400)))
    assert {SendId: 100, QuotaExhaustedError: 300} == kinds
    assert (100, 0) == (len(server.fake.created), server.fake.refused)


def test_each_method_does_what_the_async_one_does(server: Server) -> None:
    """One call each, without a loop."""
    with server.client() as braze:
        assert (server.fake.base_url, None, None) == (
            braze.base_url,
            braze.instance,
            braze.rate_limit,
        )
        assert braze.find_send_id("campaign", "s") is None
        send = braze.create_send_id("campaign", "s")
        assert braze.rate_limit == send.rate_limit
        found = braze.find_send_id("campaign", "s")
        assert found is not None
        assert found.reused
        assert (99, True) == ((status := braze.quota()).remaining, status.known)
        assert braze.ping().status_code is not None


def test_a_raised_limit_is_used_after_the_quota_was_forgotten(server: Server) -> None:
    """A day that was used up goes on."""
    server.fake.daily_limit = 1
    with server.client(max_rate_limit_wait=0) as braze:
        braze.create_send_id("campaign", "s0")
        server.fake.daily_limit = 2
        with pytest.raises(QuotaExhaustedError):
            braze.create_send_id("campaign", "s1")
        braze.forget_quota()
        braze.create_send_id("campaign", "s1")


def test_outcomes_come_in_the_order_of_the_requests(server: Server) -> None:
    """The list has an outcome for each request, whatever the order in which they were answered."""
    server.fake.latency = iter([0.0, 0.02, 0.0, 0.01] * 5).__next__
    with server.client() as braze:
        outcomes = braze.create_send_ids(named(12), concurrency=5)
    assert named(12) == [outcome.request for outcome in outcomes]
    assert all(outcome.result for outcome in outcomes)


def test_requests_and_on_outcome_run_in_the_thread_of_the_caller(server: Server) -> None:
    """A database connection that belongs to this thread can be used in both."""
    threads: list[threading.Thread] = []

    def requests() -> Iterator[CreateSendId]:
        for request in named(3):
            threads.append(threading.current_thread())
            yield request

    with server.client() as braze:
        braze.create_send_ids(
            requests(), on_outcome=lambda _: threads.append(threading.current_thread())
        )
    assert [threading.current_thread()] * 6 == threads


def test_a_bad_argument_of_a_batch_raises_before_anything_is_taken(server: Server) -> None:
    """Each is told as the async client tells it, and ``requests`` is not touched."""
    requests = iter(named(1))

    async def awaits(outcome: Outcome) -> None:
        raise AssertionError

    with server.client() as braze:
        with pytest.raises(ConfigurationError, match="on_outcome must be a plain function"):
            braze.create_send_ids(requests, on_outcome=awaits)
        with pytest.raises(ConfigurationError, match="concurrency must be 1 or more"):
            braze.create_send_ids(requests, concurrency=0)
        with pytest.raises(ConfigurationError, match="an iterable of CreateSendId, not int"):
            braze.iter_send_ids(7)  # type: ignore[arg-type]
    assert 1 == len(list(requests))
    assert [] == server.fake.requests


def test_an_iterator_takes_requests_as_it_goes(server: Server) -> None:
    """Of endless requests it takes those that it needs."""
    taken: list[int] = []

    def requests() -> Iterator[CreateSendId]:
        while True:
            taken.append(len(taken))
            yield CreateSendId("campaign", f"s{len(taken)}")

    with (
        server.client() as braze,
        closing(braze.iter_send_ids(requests(), concurrency=1)) as outcomes,
    ):
        assert [] == taken
        first = next(outcomes)
        assert ("s1", True) == (first.request.send_id, first.result is not None)
        assert len(taken) <= 2
        assert "s2" == next(outcomes).request.send_id
        assert len(taken) <= 3


def test_leaving_a_loop_ends_the_batch_and_waits_for_what_has_left(server: Server) -> None:
    """What was sent is remembered, though its outcome was not taken; nothing else is sent."""
    with server.client() as braze:
        braze.create_send_id("campaign", "warm")
        server.fake.latency = lambda: 0.0 if len(server.fake.requests) < 3 else 0.05
        with closing(braze.iter_send_ids(named(90), concurrency=4)) as outcomes:
            next(outcomes)
        sent = len(server.fake.requests)
        assert 1 < sent <= 6
        for _, name in server.fake.created:
            assert braze.find_send_id("campaign", name)
        assert (sent, 0) == (len(server.fake.requests), braze.quota().in_flight)


def test_an_error_of_the_requests_is_raised(server: Server) -> None:
    """After what is under way, as in the async client."""

    def requests() -> Iterator[CreateSendId]:
        yield from named(2)
        raise LookupError("the database is away")

    told: list[Outcome] = []
    with server.client() as braze, pytest.raises(LookupError, match="the database is away"):
        braze.create_send_ids(requests(), on_outcome=told.append)
    assert 2 == len(told)


def test_an_interrupt_within_the_requests_ends_the_batch(server: Server) -> None:
    """Ctrl-C while the caller's own code runs leaves nothing under way."""

    def requests() -> Iterator[CreateSendId]:
        yield from named(2)
        raise KeyboardInterrupt

    with server.client() as braze:
        with pytest.raises(KeyboardInterrupt):
            list(braze.iter_send_ids(requests()))
        assert 0 == braze.quota().in_flight


def test_an_async_iterable_is_taken_too(server: Server) -> None:
    """It runs in the client's thread, where its loop is."""
    threads: set[str] = set()

    async def requests() -> AsyncIterator[CreateSendId]:
        for request in named(3):
            await asyncio.sleep(0)
            threads.add(threading.current_thread().name)
            yield request

    with server.client() as braze:
        assert 3 == len(list(braze.iter_send_ids(requests())))
    assert {"braze_sends"} == threads


def test_an_iterator_that_was_not_begun_costs_nothing(server: Server) -> None:
    """It is a plain generator; closing it sends nothing."""
    with server.client() as braze:
        outcomes = braze.iter_send_ids(named(3))
        assert inspect.isgenerator(outcomes)
        outcomes.close()
    assert [] == server.fake.requests


def test_requests_that_cannot_be_iterated_raise(server: Server) -> None:
    """An error of their ``__iter__`` is the caller's to see."""

    class Refuses(list[CreateSendId]):
        def __iter__(self) -> Any:
            raise LookupError("no rows")

    with server.client() as braze, pytest.raises(LookupError, match="no rows"):
        braze.create_send_ids(Refuses())


async def test_it_works_where_a_loop_is_running(server: Server) -> None:
    """In a notebook the main thread always has a running loop."""
    with server.client() as braze:
        assert "s" == str(braze.create_send_id("campaign", "s"))


def test_the_clients_own_thread_cannot_call_it(server: Server) -> None:
    """It would wait for itself for ever; the error says what to use there."""

    def factory() -> str:
        return str(braze.quota())

    with (
        server.client(send_id_factory=factory) as braze,
        pytest.raises(ConfigurationError, match=r"use braze_sends\.SendsClient there"),
    ):
        braze.create_send_id("campaign")


async def test_a_session_is_refused() -> None:
    """It belongs to another event loop; the error names the client that takes one."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ConfigurationError, match=r"or use braze_sends\.SendsClient"):
            SendsClient(KEY, base_url="US-01", session=session)


def test_the_key_is_seen_nowhere() -> None:
    """Not in a repr, not among the locals of a traceback, and no pickle is made."""
    braze = SendsClient(KEY, base_url="US-01")
    assert KEY not in repr(braze)
    assert repr(braze).startswith("<sync SendsClient base_url='https://rest.iad-01.braze.com'")
    with pytest.raises(TypeError, match="not to be pickled"):
        pickle.dumps(braze)
    with pytest.raises(ConfigurationError) as caught:
        SendsClient(KEY, base_url="nowhere")
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    frames = [frame for frame in shown.stack if frame.filename.endswith("sync.py")]
    assert frames
    assert not any(KEY in text for frame in frames for text in (frame.locals or {}).values())
    assert "not made" in repr(SendsClient.__new__(SendsClient))


def test_a_closed_client_says_so(server: Server) -> None:
    """Every call raises; closing again does nothing."""
    braze = server.client()
    braze.create_send_id("campaign")
    braze.close()
    braze.close()
    assert repr(braze).endswith(" closed>")
    with pytest.raises(ConfigurationError, match="closed; make a new one"):
        braze.quota()
    with pytest.raises(ConfigurationError, match="closed; make a new one"), braze:
        pass


def test_a_client_that_was_never_used_can_be_closed() -> None:
    """Nothing was opened; afterwards it is closed."""
    braze = SendsClient(KEY, base_url="US-01")
    braze.close()
    with pytest.raises(ConfigurationError, match="closed; make a new one"):
        braze.quota()


def test_closing_ends_the_calls_of_other_threads(server: Server) -> None:
    """One that waits for quota is called off; one whose request has left gets its answer."""
    answer = server.hold()
    braze = server.client(max_rate_limit_wait=None, daily_limit=1)
    with ThreadPoolExecutor(3) as pool:
        sent = pool.submit(braze.create_send_id, "campaign", "sent")
        wait_until(lambda: server.fake.created)
        waits = pool.submit(braze.create_send_id, "campaign", "waits")
        creates = braze._client._creates_of_loop
        assert creates is not None
        wait_until(lambda: 2 == len(creates.running))
        closes = pool.submit(braze.close)
        error = waits.exception(PATIENCE)
        assert isinstance(error, ConfigurationError)
        assert (False, "waits") == (error.quota_spent, error.send_id)
        server.let(answer)
        assert "sent" == str(sent.result(PATIENCE))
        closes.result(PATIENCE)
    assert [("campaign", "sent")] == server.fake.created


def test_an_iterator_over_a_closed_client_says_so(server: Server) -> None:
    """It raises in place of waiting for a batch that is gone."""
    braze = server.client()
    outcomes = braze.iter_send_ids(named(3), concurrency=1)
    next(outcomes)
    braze.close()
    with pytest.raises(ConfigurationError, match="closed while the call waited") as caught:
        list(outcomes)
    assert caught.value.quota_spent is None


def test_an_interrupted_wait_calls_the_create_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt is raised at once, and a create that waits for quota is gone."""
    with server.client(max_rate_limit_wait=None, daily_limit=1) as braze:
        braze.create_send_id("campaign", "s0")

        def interrupted(future: object) -> object:
            wait_until(lambda: creates().running)
            raise KeyboardInterrupt

        def creates() -> Any:
            return braze._client._creates_of_loop

        with monkeypatch.context() as patch:
            patch.setattr(sync, "_result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                braze.create_send_id("campaign", "s1")
        wait_until(lambda: not creates().running)
    assert [("campaign", "s0")] == server.fake.created


def test_a_client_that_is_dropped_leaves_no_thread(server: Server) -> None:
    """Its thread ends by itself."""
    braze = server.client()
    braze.create_send_id("campaign")
    assert 1 == len(ours())
    del braze
    gc.collect()
    wait_until(lambda: not ours())


def test_closing_tells_what_went_wrong() -> None:
    """An error of the store's close is raised, also by a second close; the thread ends."""

    class Broken(MemoryStore):
        async def close(self) -> None:
            raise LookupError("the disk is away")

    braze = SendsClient(KEY, base_url="US-01", store=Broken())
    braze._client._owns_store = True
    for _ in range(2):
        with pytest.raises(LookupError, match="the disk is away"):
            braze.close()


# --- forks ----------------------------------------------------------------------------------------


def test_a_fork_gets_a_thread_of_its_own(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the memory store it goes on from a copy of what the parent knew."""
    braze = server.client()
    braze.create_send_id("campaign", "s0")
    outcomes = braze.iter_send_ids(named(3), concurrency=1)
    next(outcomes)
    parent, limit = braze._thread, braze.rate_limit
    assert parent is not None
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        assert limit == braze.rate_limit
        assert braze.create_send_id("campaign", "s0").reused
        assert not braze.create_send_id("campaign", "child").reused
        with pytest.raises(ConfigurationError, match="belongs to the process that forked"):
            next(outcomes)
        sync._at_exit()
        assert not parent.ending
        parent.end()  # as the finalizer would
        assert not parent.ended.done()
    parent.end()
    parent.ended.result(PATIENCE)


def test_a_client_closed_before_a_fork_is_closed_in_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing it there waits for nothing."""
    braze = server.client()
    braze.close()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    braze.close()
    with pytest.raises(ConfigurationError, match="closed; make a new one"):
        braze.quota()


def test_the_loops_rest_while_the_process_forks(server: Server) -> None:
    """No loop is in the midst of a step, so no lock of a store is held in the fork's copy."""
    with server.client() as braze:
        braze.quota()
        sync._before_fork()
        try:
            with ThreadPoolExecutor(1) as pool:
                assert braze._thread is not None
                future = asyncio.run_coroutine_threadsafe(
                    braze._client.quota(), braze._thread._loop
                )
                assert pool.submit(lambda: not future.done()).result()
                assert 1 == len(sync._resumed)
        finally:
            sync._after_in_parent()
        assert future.result(PATIENCE)
        assert [] == sync._resumed


def test_a_fork_takes_over_no_rest_of_its_parent(server: Server) -> None:
    """It has none of the threads that are at rest."""
    with server.client() as braze:
        braze.quota()
        sync._before_fork()
        resting = [*sync._resumed]
        sync._after_in_child()
        assert [] == sync._resumed
        for resumed in resting:
            resumed.set()
        assert braze.quota()


def test_a_fork_within_the_clients_thread_does_not_wait_for_itself(server: Server) -> None:
    """A ``send_id_factory`` may start a process."""

    def factory() -> str:
        sync._before_fork()
        sync._after_in_parent()
        return "made"

    with server.client(send_id_factory=factory) as braze:
        assert "made" == str(braze.create_send_id("campaign"))


def test_a_fork_does_not_wait_for_a_loop_that_has_ended(server: Server) -> None:
    """There is nothing to bring to rest."""
    braze = server.client()
    braze.quota()
    thread = braze._thread
    assert thread is not None
    braze.close()
    thread._thread.join()
    thread.rest(threading.Event())
