"""The emulator, as HTTP clients see it."""

from __future__ import annotations

import asyncio
import gc
import http.client
import importlib
import io
import json
import logging
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import attrs
import pytest
import pytest_asyncio

from braze_sends import MemoryStore, QuotaExhaustedError, SendsClient, testing
from braze_sends.quota.limiter import Limiter
from braze_sends.testing import FakeBraze, Fault, plugin
from braze_sends.testing.fake import Request
from braze_sends.testing.model import MAX_BODY, PATH, RATE_LIMIT_HEADERS, Reply
from tests.conftest import StoppedClock
from tests.servers import braze
from tests.waiting import PATIENCE, until, wait_until

GOOD = {"Authorization": "Bearer test-key", "Content-Type": "application/json"}
TRIPLE = [name.lower() for name in RATE_LIMIT_HEADERS]

fake_braze = plugin.fake_braze


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeBraze]:
    """A running emulator."""
    async with braze() as fake:
        yield fake


async def post(fake: FakeBraze, send_id: str = "s", *, headers: Mapping[str, str] = GOOD) -> Reply:
    """Ask for a pair, over a connection of its own."""
    content = json.dumps({"campaign_id": "c", "send_id": send_id})
    async with (
        aiohttp.ClientSession() as session,
        session.post(fake.base_url + PATH, data=content, headers=headers) as answer,
    ):
        found = {name.lower(): text for name, text in answer.headers.items()}
        return Reply(answer.status, found, await answer.read())


def triple(reply: Reply) -> list[str | None]:
    """The values of the three rate-limit headers."""
    return [reply.headers.get(name) for name in TRIPLE]


async def leave(fake: FakeBraze) -> None:
    """Ask for a pair, and hang up once the request has arrived."""
    asking = asyncio.create_task(post(fake))
    await until(lambda: fake.requests)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_pair_is_created(fake: FakeBraze) -> None:
    """A request over a real connection creates a pair, and the answer tells what remains."""
    reply = await post(fake)

    assert 201 == reply.status
    assert {"message": "success", "send_id": "s"} == json.loads(reply.body)
    assert "99" == triple(reply)[1]
    assert [("c", "s")] == fake.created
    assert 99 == fake.remaining


async def test_any_client_can_talk_to_it(fake: FakeBraze) -> None:
    """The standard library's client gets the header names as Braze was recorded to write them."""

    def ask() -> tuple[int, list[str]]:
        address = fake.base_url.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=PATIENCE)
        connection.request("POST", PATH, b'{"campaign_id": "c"}', GOOD)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, [name for name, _ in answer.getheaders()]

    status, names = await asyncio.to_thread(ask)

    assert 201 == status
    assert set(RATE_LIMIT_HEADERS) < set(names)


@pytest.mark.parametrize(
    ("version", "host_header"), [("1.0", ""), ("1.1", "host: rest.iad-01.braze.com\r\n")]
)
async def test_plain_bytes_on_a_socket_are_a_request(
    fake: FakeBraze, version: str, host_header: str
) -> None:
    """A client may call the host what it likes, and need not send more than what matters."""
    host, port = fake.base_url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST {PATH} HTTP/{version}\r\n{host_header}authorization: Bearer test-key\r\n"
        "connection: close\r\ncontent-type: application/json\r\ncontent-length: 19\r\n\r\n"
        '{"campaign_id":"c"}'.encode()
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()

    assert f"HTTP/{version} 201 ".encode() == answer[:13]
    assert 1 == len(fake.created)


async def test_the_arguments_reach_the_model() -> None:
    """All readings of the model can be chosen when the emulator is made."""
    async with braze(
        api_key="k",
        daily_limit=7,
        window=60.0,
        counts="requests",
        duplicate=400,
        counts_errors=True,
        headers_on_429=False,
        campaigns=frozenset({"c"}),
    ) as fake:
        model = attrs.asdict(fake.model)

    expected = {
        "api_key": "k",
        "daily_limit": 7,
        "window": 60.0,
        "counts": "requests",
        "duplicate": 400,
        "counts_errors": True,
        "headers_on_429": False,
        "campaigns": frozenset({"c"}),
    }
    assert expected == {name: model[name] for name in expected}


def test_it_is_made_outside_of_a_loop() -> None:
    """An emulator made without a loop works in one."""
    fake = braze(daily_limit=1)

    async def main() -> list[int]:
        async with fake:
            return [(await post(fake, "s1")).status, (await post(fake, "s2")).status]

    assert "" == fake.base_url
    assert [201, 429] == asyncio.run(main())
    assert 1 == fake.refused


async def test_a_port_can_be_chosen(fake: FakeBraze) -> None:
    """A chosen port is used, and one that is taken is an error."""
    port = int(fake.base_url.rpartition(":")[2])
    with pytest.raises(OSError, match="address already in use"):
        async with FakeBraze(port=port):
            pass

    gc.collect()


async def test_requests_are_recorded(fake: FakeBraze) -> None:
    """A request is recorded with what was sent and answered, but without its key."""
    begun = fake.now
    await post(fake)
    await post(fake, headers={"Authorization": "Bearer other"})
    good, bad = fake.requests

    assert ("POST", PATH, True, 201) == (good.method, good.path, good.authorized, good.status)
    assert {"campaign_id": "c", "send_id": "s"} == json.loads(good.body)
    assert "application/json" == good.headers["Content-Type"]
    assert begun <= good.at <= bad.at <= fake.now
    assert (False, 401) == (bad.authorized, bad.status)
    assert "test-key" not in repr(attrs.asdict(good))
    with pytest.raises(attrs.exceptions.FrozenAttributeError):
        good.path = "/"


async def test_nothing_is_logged(fake: FakeBraze, caplog: pytest.LogCaptureFixture) -> None:
    """No request is logged, at any level."""
    caplog.set_level(logging.DEBUG)
    fake.script(None, Fault(drop="after"))
    await post(fake)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post(fake)

    assert [] == [record for record in caplog.records if record.name.startswith("aiohttp")]


@pytest.mark.parametrize(("size", "status"), [(MAX_BODY, 201), (3 * MAX_BODY, 413)])
async def test_a_body_over_a_mebibyte_is_answered_413(
    fake: FakeBraze, size: int, status: int
) -> None:
    """A body over 1 MiB is answered 413, and just the first byte above is kept."""
    content = io.BytesIO(b'{"campaign_id": "c"}'.ljust(size))
    async with (
        aiohttp.ClientSession() as session,
        session.post(fake.base_url + PATH, data=content, headers=GOOD) as answer,
    ):
        assert status == answer.status

    assert min(size, MAX_BODY + 1) == len(fake.requests[0].body)


async def test_what_others_spend_and_a_new_limit_show_in_the_next_answer(fake: FakeBraze) -> None:
    """What others take and a new limit show in the next answer."""
    fake.spend(90)
    fake.daily_limit = 95

    assert 95 == fake.daily_limit
    assert ["95", "4"] == triple(await post(fake))[:2]


async def test_the_window_can_be_ended(fake: FakeBraze) -> None:
    """When the window is ended, all slots are back and Braze's clock is at the next window."""
    before = await post(fake, "s1")
    fake.end_window()
    after = await post(fake, "s2")

    assert "99" == triple(after)[1]
    assert triple(before)[2] == str(int(fake.now) // 86400 * 86400)
    assert int(triple(before)[2] or 0) <= parsedate_to_datetime(after.headers["date"]).timestamp()


async def test_brazes_clock_may_be_off(fake: FakeBraze) -> None:
    """Braze's date and reset follow its own clock."""
    fake.clock_offset = 10 * 86400.0
    before = time.time()
    reply = await post(fake)
    after = time.time()
    date = parsedate_to_datetime(reply.headers["date"]).timestamp()

    assert before - 1 < date - 10 * 86400 <= after  # in whole seconds
    assert before < float(triple(reply)[2] or 0) - 10 * 86400 <= after + 86400


async def test_an_answer_has_the_date_of_its_sending(fake: FakeBraze) -> None:
    """The date is that of the moment of answering, not of the effect."""
    answer = asyncio.Event()
    fake.script(Fault(stall=answer))
    asking = asyncio.create_task(post(fake))
    await until(lambda: fake.created)
    fake.clock_offset += 1000.0
    sent = fake.now
    answer.set()
    reply = await asking

    assert sent - 1 < parsedate_to_datetime(reply.headers["date"]).timestamp()  # in whole seconds


@pytest.mark.parametrize("latency", [30.0, lambda: 30.0], ids=["number", "function"])
async def test_an_answer_takes_the_latency_of_the_moment(
    fake: FakeBraze, latency: Any, stopped_clock: StoppedClock
) -> None:
    """An answer takes the latency of the moment, be it a number or a function."""
    fake.latency = latency
    asking = asyncio.create_task(post(fake))
    await until(lambda: fake.created)
    for seconds in (0, 29):
        stopped_clock.advance(seconds)
        fake.latency = 0.0
        other = f"meanwhile {seconds}"
        assert other == json.loads((await post(fake, other)).body)["send_id"]
        assert (False, None) == (asking.done(), fake.requests[0].status)
    stopped_clock.advance(1)

    assert 201 == (await asking).status


async def test_requests_in_flight_are_counted(fake: FakeBraze) -> None:
    """Requests under way at once are counted, and their highest number is kept."""
    answer = asyncio.Event()
    fake.script(*[Fault(stall=answer)] * 5)
    posts = [asyncio.create_task(post(fake, f"s{n}")) for n in range(5)]
    await until(lambda: 5 == fake.in_flight)
    answer.set()
    await asyncio.gather(*posts)

    await until(lambda: 0 == fake.in_flight)
    await post(fake)
    assert 5 == fake.peak_in_flight


async def test_faults_are_used_up_in_order(fake: FakeBraze) -> None:
    """Each request uses up one scripted fault, ``None`` being none; then all is well again."""
    fake.script(Fault(status=500), None)
    fake.script(Fault(status=403))

    assert [500, 201, 403, 201] == [(await post(fake, f"s{n}")).status for n in range(4)]
    assert [("c", "s1"), ("c", "s3")] == fake.created
    assert [500, 201, 403, 201] == [request.status for request in fake.requests]


async def test_a_rule_for_faults_sees_each_request_that_the_script_leaves(fake: FakeBraze) -> None:
    """A rule sees each request that the script leaves to it."""

    def rule(request: Request) -> Fault | None:
        return Fault(status=429) if b"bad" in request.body else None

    fake.fault_for = rule
    fake.script(None)

    assert [201, 429, 201] == [(await post(fake, s)).status for s in ("bad0", "bad1", "good")]
    assert 0 == fake.refused


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_failure_of_the_edge_has_nothing_of_braze(fake: FakeBraze, status: int) -> None:
    """A failure of the edge is HTML and has nothing of Braze in it."""
    fake.script(Fault(status=status))
    reply = await post(fake)

    assert status == reply.status
    assert "text/html" == reply.headers["content-type"]
    assert reply.body.startswith(b"<html><body><h1>%d " % status)
    assert [None] * 4 == [*triple(reply), reply.headers.get("x-request-id")]
    assert [] == fake.created


@pytest.mark.parametrize(
    ("fault", "content_type", "body"),
    [
        (Fault(status=503, body='{"message":"Service Unavailable"}'), "application/json", b'{"m'),
        (Fault(status=403, body=b"<html>"), "text/html", b"<ht"),
        (Fault(body="<p>"), "text/html", b"<p>"),
    ],
)
async def test_a_body_tells_its_type(
    fake: FakeBraze, fault: Fault, content_type: str, body: bytes
) -> None:
    """A body of your own is sent as HTML or JSON by its look, and HTML is the edge's."""
    fake.script(fault)
    reply = await post(fake)

    assert content_type == reply.headers["content-type"]
    assert body == reply.body[:3]
    assert [None, None, None] == triple(reply)


async def test_a_body_alone_leaves_the_effect(fake: FakeBraze) -> None:
    """A fault of the body alone spoils the answer to a pair that was created."""
    fake.script(Fault(body=b""))
    reply = await post(fake)

    assert (201, b"", "99") == (reply.status, reply.body, triple(reply)[1])
    assert [("c", "s")] == fake.created


async def test_a_committed_failure_creates_the_pair_all_the_same(fake: FakeBraze) -> None:
    """A failure that is committed is one to the client only: the pair exists and is counted."""
    fake.script(Fault(status=504, commit=True))

    assert 504 == (await post(fake)).status
    assert [("c", "s")] == fake.created
    assert 99 == fake.remaining


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("blank", ["", "", ""]),
        ("missing", [None, None, None]),
        ("garbled", ["abc", "-5", ""]),
        ({"x-ratelimit-remaining": "7"}, ["100", "7", "reset"]),
        ({**dict.fromkeys(RATE_LIMIT_HEADERS), "Retry-After": "7"}, [None, None, None]),
    ],
)
async def test_rate_limit_headers_can_be_spoilt(
    fake: FakeBraze, how: Any, expected: list[str | None]
) -> None:
    """Rate-limit headers can be blank, missing, garbled, or whatever a mapping says."""
    fake.script(Fault(headers=how))
    reply = await post(fake)
    reset = str((int(fake.requests[0].at) // 86400 + 1) * 86400)

    assert [reset if text == "reset" else text for text in expected] == triple(reply)
    assert ("7" if "Retry-After" in how else None) == reply.headers.get("retry-after")
    assert [("c", "s")] == fake.created


async def test_a_header_of_your_own_stands_on_every_answer(fake: FakeBraze) -> None:
    """A mapping has the last word, also about the date and at the edge."""
    date = "Fri, 04 Oct 2024 12:00:00 GMT"
    fake.script(Fault(status=503, headers={"Date": date, "Retry-After": "1"}))
    reply = await post(fake)

    assert (date, "1") == (reply.headers["date"], reply.headers["retry-after"])


@pytest.mark.parametrize(
    ("fault", "created"),
    [(Fault(drop="before"), []), (Fault(drop="after"), [("c", "s")])],
)
async def test_a_dropped_connection_gives_no_answer(
    fake: FakeBraze, fault: Fault, created: list[tuple[str, str]]
) -> None:
    """A dropped connection gives no answer, and the pair exists if it was dropped after that."""
    fake.script(fault)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await post(fake)

    assert created == fake.created
    assert [None] == [request.status for request in fake.requests]


@pytest.mark.parametrize(("pause", "created"), [("delay", []), ("stall", ["s"])])
async def test_a_pause_may_last_until_an_event(
    fake: FakeBraze, pause: str, created: list[str]
) -> None:
    """A request is held before its effect, or before its answer, until the event is set."""
    event = asyncio.Event()
    fake.script(Fault(**{pause: event}))  # type: ignore[arg-type]
    asking = asyncio.create_task(post(fake, "s"))
    await until(lambda: fake.requests)

    assert 201 == (await post(fake, "meanwhile")).status
    assert [*created, "meanwhile"] == [send_id for _, send_id in fake.created]
    assert (False, None) == (asking.done(), fake.requests[0].status)
    event.set()
    assert 201 == (await asking).status
    assert ["meanwhile", "s"] == sorted(send_id for _, send_id in fake.created)


@pytest.mark.parametrize(
    ("fault", "created"),
    [
        (Fault(delay=60), []),
        (Fault(delay=asyncio.Event()), []),
        (Fault(stall=60), [("c", "s")]),
        (Fault(stall=asyncio.Event()), [("c", "s")]),
    ],
    ids=["delay", "delay by event", "stall", "stall by event"],
)
@pytest.mark.usefixtures("stopped_clock")
async def test_a_client_that_leaves_does_not_hold_up_the_end(
    fault: Fault, created: list[tuple[str, str]]
) -> None:
    """A delay is before the effect and a stall after it; neither holds up the end."""
    async with braze() as fake:
        fake.script(fault)
        await leave(fake)
        await until(lambda: created == fake.created)
        assert 1 == fake.in_flight

    assert 0 == fake.in_flight
    assert [None] == [request.status for request in fake.requests]


@pytest.mark.parametrize("drop", [None, "after"])
async def test_a_delayed_request_is_handled_though_its_client_has_gone(
    fake: FakeBraze, drop: Any
) -> None:
    """A delayed request is handled though its client has gone, and no later one is harmed."""
    handled = asyncio.Event()
    fake.script(Fault(delay=handled, drop=drop))
    await leave(fake)
    server = fake._runner.server
    assert server is not None
    await until(lambda: all(connection.transport is None for connection in server.connections))
    assert [] == fake.created
    handled.set()
    await until(lambda: 0 == fake.in_flight)

    assert [("c", "s")] == fake.created
    assert 201 == (await post(fake, "s2")).status


async def test_a_waiting_client_is_cut_off_at_the_end() -> None:
    """A client that still waits when the emulator ends loses its connection."""
    async with braze() as fake:
        fake.script(Fault(stall=asyncio.Event()))
        waiting = asyncio.create_task(post(fake))
        await until(lambda: fake.created)

    with pytest.raises(aiohttp.ServerDisconnectedError):
        await waiting


@pytest.mark.usefixtures("stopped_clock")
async def test_an_idle_connection_does_not_hold_up_the_end() -> None:
    """A client that keeps its connection open does not hold up the end."""
    async with aiohttp.ClientSession() as session:
        async with braze() as fake:
            async with session.post(fake.base_url + PATH, data=b"{}", headers=GOOD) as answer:
                await answer.read()
            server = fake._runner.server
            assert server is not None
            assert 1 == len(server.connections)

        assert [] == server.connections


# --- in a thread of its own ----------------------------------------------------------------------


def ask(fake: FakeBraze, send_id: str) -> int:
    """Ask for a pair, and stand still until the answer comes; its status."""
    content = json.dumps({"campaign_id": "c", "send_id": send_id}).encode()
    request = urllib.request.Request(fake.base_url + PATH, content, GOOD)  # noqa: S310  # http
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_the_fixture_answers_while_a_synchronous_test_waits(fake_braze: FakeBraze) -> None:
    """A synchronous test can script the emulator, ask it, and look at what it did."""
    fake_braze.script(None, Fault(status=500))
    fake_braze.spend(98)

    assert [201, 500, 201, 429] == [ask(fake_braze, f"s{n}") for n in range(4)]
    assert [("c", "s0"), ("c", "s2")] == fake_braze.created
    assert [201, 500, 201, 429] == [request.status for request in fake_braze.requests]
    assert (1, 0, 0) == (fake_braze.refused, fake_braze.remaining, fake_braze.in_flight)


async def test_the_fixture_answers_in_an_asynchronous_test(fake_braze: FakeBraze) -> None:
    """An asynchronous test can use the same fixture, from its own event loop."""
    assert 201 == (await post(fake_braze)).status


def test_a_test_with_the_fixture_begins_at_noon(fake_braze: FakeBraze) -> None:
    """Twelve hours are left of the day, and it is today's."""
    day, seconds = divmod(fake_braze.now, 86_400.0)

    assert 43_200 <= seconds < 43_200 + PATIENCE
    assert day in {time.time() // 86_400.0, (time.time() - PATIENCE) // 86_400.0}


def test_many_threads_use_it_at_once(fake_braze: FakeBraze) -> None:
    """Whatever threads do at once, each slot is counted."""

    def use(n: int) -> int:
        fake_braze.spend(1)
        return ask(fake_braze, f"s{n}")

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(use, range(40)))

    assert {201} == set(statuses)
    assert (40, 20) == (len(set(fake_braze.created)), fake_braze.remaining)


@pytest.mark.parametrize("pause", ["delay", "stall"])
async def test_the_fixture_waits_for_an_event_of_the_test(
    fake_braze: FakeBraze, pause: str
) -> None:
    """An asyncio event that the test's own loop sets lets the request go on."""
    event = asyncio.Event()
    fake_braze.script(Fault(**{pause: event}))  # type: ignore[arg-type]
    asking = asyncio.create_task(post(fake_braze, "s"))
    await until(lambda: fake_braze.requests)
    assert 201 == (await post(fake_braze, "meanwhile")).status
    assert not asking.done()
    event.set()

    assert 201 == (await asking).status


async def test_a_threading_event_is_waited_for_on_the_running_loop(fake: FakeBraze) -> None:
    """Under ``async with``, a request that waits for a thread's event holds up no other."""
    event = threading.Event()
    fake.script(Fault(delay=event))
    asking = asyncio.create_task(post(fake, "s"))
    await until(lambda: fake.requests)
    assert 201 == (await post(fake, "meanwhile")).status
    event.set()

    assert 201 == (await asking).status


def test_a_waiting_request_does_not_hold_up_the_end_of_the_thread() -> None:
    """When the block ends, the client that still waits is cut off, and the thread has ended."""
    with ThreadPoolExecutor(1) as pool:
        with braze() as fake:
            fake.script(Fault(delay=threading.Event()))
            waiting = pool.submit(ask, fake, "s")
            wait_until(lambda: fake.requests)

        assert isinstance(waiting.exception(PATIENCE), http.client.RemoteDisconnected)
        assert "FakeBraze" not in {thread.name for thread in threading.enumerate()}


def test_a_port_that_is_taken_is_an_error_in_the_callers_thread(fake_braze: FakeBraze) -> None:
    """The error is raised where the emulator was started."""
    port = int(fake_braze.base_url.rpartition(":")[2])
    with pytest.raises(OSError, match="address already in use"), FakeBraze(port=port):
        pass

    gc.collect()


def test_on_all_addresses_its_url_is_that_of_loopback() -> None:
    """The URL can be used on this machine, also by a client that refuses http to others."""
    with braze(host="0.0.0.0") as fake:  # noqa: S104
        assert fake.base_url.startswith("http://127.0.0.1:")
        assert 201 == ask(fake, "s")


# --- the end of a window, as a client sees it ----------------------------------------------------


def client(fake: FakeBraze, store: MemoryStore | None = None, **options: Any) -> SendsClient:
    """A client of the emulator, by default with its store."""
    store = fake.store if store is None else store
    return SendsClient("test-key", base_url=fake.base_url, store=store, **options)


async def test_a_client_with_its_store_notices_the_end_of_the_window(
    fake_braze: FakeBraze,
) -> None:
    """100 are created, the 101st is refused, and after the end of the window the next succeeds."""
    async with client(fake_braze) as sends:
        for _ in range(3):
            await asyncio.gather(*(sends.create_send_id("c") for _ in range(100)))
            with pytest.raises(QuotaExhaustedError):
                await sends.create_send_id("c")
            fake_braze.end_window()

    assert (300, 0) == (len(fake_braze.created), fake_braze.refused)


async def test_a_create_that_waits_goes_on_when_the_window_is_ended(
    fake_braze: FakeBraze,
) -> None:
    """A create that would wait until midnight is served, though no time has passed."""
    fake_braze.daily_limit = 1
    async with client(fake_braze, max_rate_limit_wait=None) as sends:
        await sends.create_send_id("c", "first")
        waiting = asyncio.create_task(sends.create_send_id("c", "second"))
        await until(lambda: Limiter.of(fake_braze.store, sends._settings.workspace).waiting)
        fake_braze.end_window()

        assert "second" == (await waiting).send_id
    fake_braze.assert_created("c", "first", "second")


def test_a_window_is_ended_after_the_loop_of_a_client(fake_braze: FakeBraze) -> None:
    """A synchronous test can end the window between two event loops that use one client."""
    fake_braze.daily_limit = 1
    sends = client(fake_braze)
    asyncio.run(sends.create_send_id("c", "first"))
    fake_braze.end_window()
    asyncio.run(sends.create_send_id("c", "second"))
    asyncio.run(sends.close())

    fake_braze.assert_created("c", "first", "second")


async def test_a_client_with_another_store_notices_it_when_it_has_forgotten(
    fake_braze: FakeBraze,
) -> None:
    """A client by its own clock is still refused, and no more after ``forget_quota``."""
    fake_braze.daily_limit = 1
    async with client(fake_braze, MemoryStore()) as sends:
        await sends.create_send_id("c", "first")
        fake_braze.end_window()
        with pytest.raises(QuotaExhaustedError):
            await sends.create_send_id("c", "second")
        await sends.forget_quota()
        await sends.create_send_id("c", "second")

    assert 2 == len(fake_braze.requests)


def test_a_short_window_is_ended_in_the_middle_of_the_next() -> None:
    """The clock never jumps over a window."""
    fake = FakeBraze(window=1.0)
    before = fake.now // 1.0
    fake.end_window()

    assert before + 1.0 <= fake.now // 1.0
    assert fake.model.skip < 2.0


# --- assertions ----------------------------------------------------------------------------------


def test_what_was_created_can_be_asserted(fake_braze: FakeBraze) -> None:
    """The send IDs of one campaign are compared in any order, and none can be expected."""
    for send_id in ("one", "two"):
        ask(fake_braze, send_id)

    fake_braze.assert_created("c", "two", "one")
    fake_braze.assert_created("another")


def test_a_failed_assertion_shows_what_was_created_refused_and_asked(
    fake_braze: FakeBraze,
) -> None:
    """The message tells the difference and every request, and shows no key."""
    fake_braze.daily_limit = 1
    fake_braze.script(None, None, Fault(drop="before"))
    ask(fake_braze, "one")
    ask(fake_braze, "two")
    with pytest.raises(http.client.RemoteDisconnected):
        ask(fake_braze, "three")
    long = urllib.request.Request(  # noqa: S310  # http
        f"{fake_braze.base_url}/other", b"x" * 200, {"Authorization": "Bearer s3cret"}
    )
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        urllib.request.urlopen(long, timeout=PATIENCE)  # noqa: S310
    refused.value.close()
    with pytest.raises(AssertionError) as failed:
        fake_braze.assert_created("c", "two")

    body = '{"campaign_id": "c", "send_id": "%s"}'
    assert str(failed.value).splitlines() == [
        "the send IDs of campaign 'c' are not the expected ones",
        "  missing: 'two'",
        "  not expected: 'one'",
        "  created: ('c', 'one')",
        "  refused, because the quota was used up: 1",
        "  asked: 4",
        f"    POST {PATH} {body % 'one'!r}: status 201",
        f"    POST {PATH} {body % 'two'!r}: status 429",
        f"    POST {PATH} {body % 'three'!r}: no answer",
        f"    POST /other {'x' * 120!r}…: status 404, not the key of this emulator",
    ]


def test_a_failed_assertion_shows_the_last_twenty_requests(fake_braze: FakeBraze) -> None:
    """Of many requests the message counts the earlier ones."""
    for n in range(22):
        ask(fake_braze, f"s{n}")
    with pytest.raises(AssertionError) as failed:
        fake_braze.assert_created("c")

    lines = str(failed.value).splitlines()
    assert ["  asked: 22", "    (2 earlier ones)"] == lines[5:7]
    assert 20 == len(lines[7:])


# --- the plugin ----------------------------------------------------------------------------------


@pytest.mark.process
def test_the_plugin_imports_little() -> None:
    """pytest loads the plugin in every run: it imports neither asyncio nor aiohttp nor attrs."""
    script = "import sys, braze_sends.testing.plugin; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()

    assert "braze_sends.testing.plugin" in told
    assert not {"aiohttp", "asyncio", "attrs", "cattrs", "pytest_asyncio"} & {*told}


def test_the_package_has_the_names_that_it_lists() -> None:
    """Each public name can be imported, ``dir`` shows it, and another is an ``AttributeError``."""
    package = importlib.import_module("braze_sends.testing")

    assert {*testing.__all__} <= {*dir(package)}
    assert all(hasattr(package, name) for name in testing.__all__)
    assert not hasattr(package, "Fake")
