"""One request over aiohttp, on real loopback sockets."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from braze_sends import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    RateLimit,
    SendsClient,
)
from braze_sends.protocol import MAX_BODY, NoReply, Reply
from braze_sends.settings import ApiKey
from braze_sends.testing import FakeBraze, Fault
from braze_sends.transport import Exchange, NotSentError, Transport, _read, checked_timeout
from tests.conftest import StoppedClock
from tests.servers import braze as emulator
from tests.servers import free_port
from tests.waiting import PATIENCE, until
from tests.world import KEY

BODY = b'{"campaign_id":"campaign","send_id":"asked"}'
#: Seconds after which an attempt ends by a stopped clock, and more than enough to get there.
LIMIT, PAST_LIMIT = 5.0, 10.0

#: A key and its certificate for 127.0.0.1, which no CA has signed.
CERTIFICATE = Path(__file__).parent / "cli" / "certificates" / "good.pem"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A raw server on loopback.

    Attributes:
        url: where it listens.
        connections: how many clients have connected.
        requests: the bytes of the requests that it has read.
        hung_up: set when a client has closed its connection.
    """

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.requests: list[bytes] = []
        self.hung_up = asyncio.Event()


@asynccontextmanager
async def serving(
    answer: bytes | Handler | None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Answer every request with these bytes and close; with a handler; or, ``None``, not at all."""
    told = Server()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.connections += 1
        try:
            if callable(answer):
                await answer(reader, writer)
            elif answer is not None:
                told.requests.append(await read_request(reader))
                writer.write(answer)
                await writer.drain()
            else:
                told.requests.append(await reader.read())
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            told.hung_up.set()
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    told.url = "http{}://{}:{}".format("s" if tls else "", *server.sockets[0].getsockname())
    async with server:
        yield told


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """A request's head and its body of the length of ``BODY``."""
    return await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(len(BODY))


def answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    """An answer as it goes over the wire."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


CREATED = answer("201 Created", b'{"message":"success","send_id":"asked"}')


@asynccontextmanager
async def transporting(
    url: str, *, limit: object = PATIENCE, session: aiohttp.ClientSession | None = None
) -> AsyncIterator[Transport]:
    """A transport that is closed at the end."""
    transport = Transport(url, ApiKey(KEY), checked_timeout(limit), session)
    try:
        yield transport
    finally:
        await transport.close()


def unanswered(fake: FakeBraze) -> asyncio.Event:
    """Let no request be answered; the event is set when one has arrived."""
    arrived = asyncio.Event()

    def stall(_: object) -> Fault:
        arrived.set()
        return Fault(stall=asyncio.Event())

    fake.fault_for = stall
    return arrived


def client(url: str, **options: Any) -> SendsClient:
    """A client that does not try again, nor give up because the machine is busy."""
    return SendsClient(KEY, base_url=url, **({"max_retries": 0, "timeout": PATIENCE} | options))


# --- the request ---------------------------------------------------------------------------------


async def test_the_request_is_the_documented_one() -> None:
    """POST, the path, the key as a bearer, JSON, and a User-Agent that names this package."""
    async with serving(CREATED) as server, transporting(server.url) as transport:
        reply = await transport.send(BODY, Exchange(inf))
    assert isinstance(reply, Reply)
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert "POST /sends/id/create HTTP/1.1" == start
    assert f"Bearer {KEY}" == headers["Authorization"]
    assert "application/json" == headers["Content-Type"]
    assert "application/json" == headers["Accept"]
    assert headers["User-Agent"].startswith(f"braze_sends/{version('braze_sends')} aiohttp/")
    assert BODY == body


async def test_the_path_of_a_base_url_is_kept() -> None:
    """A proxy may have Braze's endpoint below a path of its own."""
    async with serving(CREATED) as server, client(f"{server.url}/braze/") as braze:
        await braze.create_send_id("campaign", "asked")
    assert server.requests[0].startswith(b"POST /braze/sends/id/create HTTP/1.1\r\n")


async def test_connections_are_used_again(fake: FakeBraze) -> None:
    """Creates one after the other go over one connection of one session."""
    async with transporting(fake.base_url) as transport:
        await transport.send(BODY, Exchange(inf))
        first = transport._session
        await transport.send(BODY, Exchange(inf))
        assert first is transport._session


# --- the answer ----------------------------------------------------------------------------------


async def test_an_answer_is_plain_values() -> None:
    """Status, what is read of the headers, by lower-case name, and the body."""
    wire = answer("418 Teapot", b"short", "X-Request-ID: abc")
    async with serving(wire) as server, transporting(server.url) as transport:
        reply = await transport.send(BODY, Exchange(inf))
    assert Reply(418, {"x-request-id": "abc"}, b"short") == reply


async def test_headers_sent_twice_are_joined() -> None:
    """A header sent twice, in whichever case, is one text with a comma, as HTTP means it."""
    wire = answer("201 Created", b"", "X-Ratelimit-Limit: 100", "x-ratelimit-LIMIT: 200")
    async with serving(wire) as server, transporting(server.url) as transport:
        reply = await transport.send(BODY, Exchange(inf))
    assert "100, 200" == reply.headers["x-ratelimit-limit"]


@pytest.mark.parametrize(("extra", "too_long"), [(0, False), (1, True)])
async def test_a_body_of_a_mebibyte_is_read_and_no_more(extra: int, too_long: bool) -> None:
    """1 MiB is read whole; one byte more, and nothing of it is kept."""
    body = b"x" * (MAX_BODY + extra)
    async with serving(answer("200 OK", body)) as server, transporting(server.url) as transport:
        reply = await transport.send(BODY, Exchange(inf))
    assert isinstance(reply, Reply)
    assert (b"" if too_long else body) == reply.body
    assert too_long is reply.too_long


async def test_a_body_without_end_is_not_read_to_its_end() -> None:
    """The client hangs up on an answer that goes on and on, instead of filling its memory."""

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 201 Created\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    async with serving(pour) as server, client(server.url) as braze:
        with pytest.raises(APIResponseValidationError, match="not read to its end"):
            await braze.create_send_id("campaign", "asked")
        await server.hung_up.wait()


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_not_followed(status: str) -> None:
    """The key does not arrive at another host, and the caller learns of the redirect."""
    async with serving(CREATED) as target:
        wire = answer(status, b"", f"Location: {target.url}/sends/id/create")
        async with serving(wire) as server, client(server.url) as braze:
            with pytest.raises(APIStatusError, match="redirected"):
                await braze.create_send_id("campaign", "asked")
    assert 1 == len(server.requests)
    assert [] == target.requests


# --- no answer -----------------------------------------------------------------------------------


@asynccontextmanager
async def nobody() -> AsyncIterator[str]:
    """A URL where nobody listens."""
    async with serving(None) as server:
        url = server.url
    yield url


async def test_a_refused_connection_cost_nothing() -> None:
    """Where nobody listens, nothing was sent, and the message says so and names the host."""
    says = (
        r"^cannot connect to 127\.0\.0\.1 \(ClientConnectorError: .+\); nothing was sent; "
        r"to find the cause, run: braze-sends doctor$"
    )
    async with nobody() as url, client(url) as braze:
        with pytest.raises(APIConnectionError, match=says) as caught:
            await braze.create_send_id("campaign", "asked")
    assert APIConnectionError is type(caught.value)
    assert caught.value.quota_spent is False


class Nameless(aiohttp.abc.AbstractResolver):
    """A resolver that knows no name."""

    async def resolve(self, *_: object, **__: object) -> Any:
        raise OSError(-2, "Name or service not known")

    async def close(self) -> None: ...


async def test_a_host_that_has_no_address_is_named() -> None:
    """The message names the host, says that nothing was sent, and tells what finds the cause."""
    connector = aiohttp.TCPConnector(resolver=Nameless())
    says = (
        "cannot connect to rest.iad-99.braze.com (ClientConnectorDNSError: Name or service not "
        "known); nothing was sent; to find the cause, run: braze-sends doctor"
    )
    async with aiohttp.ClientSession(connector=connector) as session:
        braze = client("https://rest.iad-99.braze.com", session=session)
        with pytest.raises(APIConnectionError) as caught:
            await braze.create_send_id("campaign", "asked")
        await braze.close()
    assert says == str(caught.value)
    assert caught.value.quota_spent is False


@pytest.mark.parametrize("drop", ["before", "after"])
async def test_a_connection_cut_after_the_request_leaves_the_quota_unknown(
    fake: FakeBraze, drop: Any
) -> None:
    """Whether Braze handled the request before the cut cannot be told."""
    fake.script(Fault(drop=drop))
    async with client(fake.base_url) as braze:
        with pytest.raises(APIConnectionError) as caught:
            await braze.create_send_id("campaign", "asked")
    assert APIConnectionError is type(caught.value)
    assert caught.value.quota_spent is None
    assert "nothing was sent" not in str(caught.value)
    assert ("campaign", "asked") == (caught.value.campaign_id, caught.value.send_id)


async def test_an_answer_cut_after_its_head_still_tells_its_headers() -> None:
    """The body is lost, so there is no send ID; the rate limit of the head is not lost."""
    reset = int(datetime.now(UTC).timestamp()) + 3600
    head = (
        "HTTP/1.1 201 Created\r\nContent-Length: 100\r\nX-Ratelimit-Limit: 100\r\n"
        f"X-Ratelimit-Remaining: 37\r\nX-Ratelimit-Reset: {reset}\r\n\r\n"
    )
    async with serving(head.encode() + b'{"mess') as server, client(server.url) as braze:
        with pytest.raises(APIConnectionError) as caught:
            await braze.create_send_id("campaign", "asked")
        assert caught.value.quota_spent is None
        assert RateLimit(100, 37, datetime.fromtimestamp(reset, UTC)) == braze.rate_limit


async def test_what_is_not_http_is_a_connection_error() -> None:
    """Garbage instead of an answer came after the request, so the quota is unknown."""
    async with serving(b"SSH-2.0-OpenSSH\r\n\r\n") as server, client(server.url) as braze:
        with pytest.raises(APIConnectionError) as caught:
            await braze.create_send_id("campaign", "asked")
    assert caught.value.quota_spent is None


@pytest.mark.parametrize(
    "limit",
    [
        LIMIT,
        aiohttp.ClientTimeout(total=LIMIT),
        aiohttp.ClientTimeout(total=PATIENCE, sock_read=LIMIT),
        aiohttp.ClientTimeout(total=None, sock_read=LIMIT),
    ],
    ids=["seconds", "total", "sock_read", "no total"],
)
async def test_a_timeout_after_the_request_leaves_the_quota_unknown(
    fake: FakeBraze, limit: object, stopped_clock: StoppedClock
) -> None:
    """The request left and no answer came in time, by seconds or by any part of a ClientTimeout."""
    fake.script(Fault(stall=asyncio.Event()))
    async with client(fake.base_url, timeout=limit) as braze:
        create = asyncio.create_task(braze.create_send_id("campaign", "asked"))
        await until(lambda: fake.created)
        stopped_clock.advance(PAST_LIMIT)
        with pytest.raises(APITimeoutError, match="no answer within") as caught:
            await create
    assert caught.value.quota_spent is None
    assert isinstance(caught.value, TimeoutError)
    assert [("campaign", "asked")] == fake.created


async def test_a_certificate_that_is_not_trusted_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second attempt is made, nothing was sent, and the message says how to name a CA."""
    pauses: list[object] = []

    def pause(state: object) -> float:
        pauses.append(state)
        return 0.0

    monkeypatch.setattr("braze_sends.retry._backoff", pause)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATE)
    says = r"127\.0\.0\.1 .*self.signed.*; nothing was sent\. .*SSL_CERT_FILE .*session.*ssl"
    async with serving(CREATED, tls) as server, client(server.url, max_retries=5) as braze:
        with pytest.raises(APIConnectionError, match=says) as caught:
            await braze.create_send_id("campaign", "asked")
    assert caught.value.permanent is True
    assert caught.value.quota_spent is False
    assert [] == pauses
    assert [] == server.requests


async def test_a_certificate_that_the_session_trusts_is_fine() -> None:
    """A session whose connector trusts a CA of the caller's own reaches the server."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATE)
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=CERTIFICATE))
    async with (
        serving(CREATED, tls) as server,
        aiohttp.ClientSession(connector=connector) as session,
        client(server.url, session=session) as braze,
    ):
        assert "asked" == str(await braze.create_send_id("campaign", "asked"))


async def test_interim_answers_without_end_do_not_outlast_the_timeout(
    stopped_clock: StoppedClock,
) -> None:
    """A server that goes on and on to say ``100 Continue`` is given up at the timeout."""
    poured = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal poured
        await read_request(reader)
        while True:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
            await writer.drain()
            await asyncio.sleep(0)
            poured += 100

    async with serving(pour) as server, client(server.url, timeout=LIMIT) as braze:
        create = asyncio.create_task(braze.create_send_id("campaign", "asked"))
        await until(lambda: poured > 10_000)
        stopped_clock.advance(PAST_LIMIT)
        with pytest.raises(APITimeoutError) as caught:
            await create
        await server.hung_up.wait()
    assert caught.value.quota_spent is None


async def test_a_timeout_within_the_answer_leaves_the_quota_unknown(
    stopped_clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that stops halfway is a timeout too."""
    reading: list[aiohttp.ClientResponse] = []

    async def noted(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
        reading.append(response)
        return await _read(response)

    monkeypatch.setattr("braze_sends.transport._read", noted)

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b'HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{"mess')
        await reader.read()

    async with serving(stall) as server, client(server.url, timeout=LIMIT) as braze:
        create = asyncio.create_task(braze.create_send_id("campaign", "asked"))
        await until(lambda: reading)
        stopped_clock.advance(PAST_LIMIT)
        with pytest.raises(APITimeoutError) as caught:
            await create
    assert caught.value.quota_spent is None


async def test_a_timeout_while_connecting_cost_nothing(stopped_clock: StoppedClock) -> None:
    """A TLS handshake that hangs is before the first byte of the request."""
    async with serving(None) as server:
        url = server.url.replace("http:", "https:")
        async with client(url, timeout=LIMIT) as braze:
            create = asyncio.create_task(braze.create_send_id("campaign", "asked"))
            await until(lambda: server.connections)
            stopped_clock.advance(PAST_LIMIT)
            with pytest.raises(APITimeoutError) as caught:
                await create
    assert caught.value.quota_spent is False


async def test_a_timeout_in_the_queue_for_a_connection_cost_nothing(
    fake: FakeBraze, stopped_clock: StoppedClock
) -> None:
    """A request that waited for a connection of a full pool until its time was up never left."""
    arrived = unanswered(fake)
    connector = aiohttp.TCPConnector(limit=1)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        transporting(fake.base_url, session=session) as long,
        transporting(fake.base_url, session=session, limit=LIMIT) as short,
    ):
        first = asyncio.create_task(long.send(BODY, Exchange(inf)))
        await arrived.wait()
        second = asyncio.create_task(short.send(BODY, Exchange(inf)))
        await until(lambda: connector._waiters)
        stopped_clock.advance(PAST_LIMIT)
        reply = await second
        first.cancel()
        await asyncio.wait([first])
    assert isinstance(reply, NoReply)
    assert (False, True) == (reply.sent, reply.timed_out)
    assert 1 == len(fake.requests)


# --- nothing leaves that should not --------------------------------------------------------------


@pytest.mark.parametrize("called_off", [True, False], ids=["called off", "past its deadline"])
async def test_an_exchange_that_must_not_start_writes_nothing(called_off: bool) -> None:
    """Not even the head arrives, with the key in it; and that is surely known."""
    deadline = inf if called_off else asyncio.get_running_loop().time()
    exchange = Exchange(deadline, called_off=called_off)
    async with serving(None) as server:
        async with transporting(server.url) as transport:
            reply = await transport.send(BODY, exchange)
        await server.hung_up.wait()
    assert isinstance(reply, NoReply)
    assert (False, False) == (reply.sent, exchange.sent)
    assert ("called off" if called_off else "the lease ran out") in reply.reason
    assert [b""] == server.requests


async def test_an_exchange_in_time_is_marked_as_sent() -> None:
    """The mark is set just before the first byte, and stays."""
    exchange = Exchange(inf)
    assert exchange.sent is False
    exchange.start()
    assert exchange.sent is True


async def test_an_answer_shows_that_the_request_left() -> None:
    """A server that answers before it has asked for the body knows of the request all the same."""

    async def answer_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer("413 Payload Too Large"))
        await reader.read()

    exchange = Exchange(inf)
    async with (
        serving(answer_early) as server,
        aiohttp.ClientSession(headers={"Expect": "100-continue"}) as session,
        transporting(server.url, session=session) as transport,
    ):
        reply = await transport.send(BODY, exchange)
    assert isinstance(reply, Reply)
    assert 413 == reply.status
    assert exchange.sent is True


async def test_the_deadline_itself_is_too_late() -> None:
    """A lease ends at its deadline, not after it."""
    exchange = Exchange(asyncio.get_running_loop().time())
    with pytest.raises(NotSentError, match="ran out"):
        exchange.start()
    assert exchange.sent is False


async def test_an_exchange_that_is_cancelled_before_it_connects_writes_nothing() -> None:
    """A caller that goes away while the connection is made leaves no trace at the server."""
    exchange = Exchange(inf)
    async with serving(None) as server, transporting(server.url) as transport:
        sending = asyncio.create_task(transport.send(BODY, exchange))
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled()
    assert exchange.sent is False
    assert {b""} >= set(server.requests)


# --- the user's session --------------------------------------------------------------------------


async def test_the_users_session_is_not_closed(fake: FakeBraze) -> None:
    """The client closes only what it opened."""
    async with aiohttp.ClientSession() as session:
        async with client(fake.base_url, session=session) as braze:
            await braze.create_send_id("campaign", "asked")
        assert not session.closed
        async with client(fake.base_url, session=session) as braze:
            assert "other" == str(await braze.create_send_id("campaign", "other"))


async def test_the_users_raise_for_status_does_no_harm(fake: FakeBraze) -> None:
    """A session that raises for each bad status still gives our errors, with Braze's words."""
    fake.script(Fault(status=401))
    async with (
        aiohttp.ClientSession(raise_for_status=True) as session,
        client(fake.base_url, session=session) as braze,
    ):
        with pytest.raises(AuthenticationError, match=r"Invalid API key: \*\*\*"):
            await braze.create_send_id("campaign", "asked")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "A wrong key, or a key of another instance than 127.0.0.1: compare BRAZE_API_KEY"),
        (403, "The key needs the permission sends.id.create"),
        (404, "127.0.0.1 has no such path: check that the base URL is a REST endpoint of Braze"),
    ],
)
async def test_a_refusal_tells_the_next_step(fake: FakeBraze, status: int, says: str) -> None:
    """Braze's own words come first, and then the host that was asked and what to check."""
    fake.script(Fault(status=status, body='{"message":"in Braze\'s words"}'))
    async with client(fake.base_url) as braze:
        with pytest.raises(APIStatusError) as caught:
            await braze.create_send_id("campaign", "asked")
    assert caught.value.message.startswith(f"in Braze's words. {says}")


async def test_the_users_default_headers_do_not_replace_ours() -> None:
    """Key, Accept and Content-Type are ours, whatever the session sends elsewhere."""
    theirs = {"Authorization": "Basic x", "Content-Type": "theirs", "Accept": "text/plain"}
    async with (
        serving(CREATED) as server,
        aiohttp.ClientSession(headers=theirs) as session,
        client(server.url, session=session) as braze,
    ):
        await braze.create_send_id("campaign", "asked")
    assert b"theirs" not in server.requests[0]
    assert b"Basic" not in server.requests[0]
    assert b"text/plain" not in server.requests[0]


async def test_a_closed_session_is_a_configuration_error(fake: FakeBraze) -> None:
    """A session that its owner has closed is told as such; nothing was sent."""
    async with aiohttp.ClientSession() as session:
        pass
    async with client(fake.base_url, session=session) as braze:
        with pytest.raises(ConfigurationError, match=r"session .* is closed") as caught:
            await braze.create_send_id("campaign", "asked")
    assert caught.value.quota_spent is False
    assert ("campaign", "asked") == (caught.value.campaign_id, caught.value.send_id)
    assert [] == fake.requests


@pytest.mark.parametrize("entry", ["default", "machine 127.0.0.1"])
async def test_a_session_that_takes_credentials_from_netrc_is_a_configuration_error(
    entry: str, fake: FakeBraze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp would put them in place of the key; the message says what to do, nothing was sent."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f"{entry} login somebody password netrc-password\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with (
        aiohttp.ClientSession(trust_env=True) as session,
        client(fake.base_url, session=session) as braze,
    ):
        with pytest.raises(ConfigurationError, match=r"\.netrc .*remove the entry") as caught:
            await braze.create_send_id("campaign", "asked")
    assert caught.value.quota_spent is False
    assert caught.value.__context__ is None
    assert [] == fake.requests


async def test_a_session_closed_under_way_leaves_the_quota_unknown(fake: FakeBraze) -> None:
    """The owner closes the session while an answer is awaited: the request had left."""
    arrived = unanswered(fake)
    async with aiohttp.ClientSession() as session, client(fake.base_url, session=session) as braze:
        create = asyncio.create_task(braze.create_send_id("campaign", "asked"))
        await arrived.wait()
        await session.close()
        with pytest.raises(APIConnectionError) as caught:
            await create
    assert caught.value.quota_spent is None


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
async def test_an_error_of_the_users_own_tracing_is_theirs_to_see(
    kind: type[Exception], fake: FakeBraze
) -> None:
    """What is neither the network's nor the session's is not taken for it."""

    async def fail(*_: object) -> None:
        raise kind("their bug")

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(fail)
    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as session,
        transporting(fake.base_url, session=session) as transport,
    ):
        with pytest.raises(kind, match="their bug"):
            await transport.send(BODY, Exchange(inf))


async def test_a_transport_knows_whose_session_it_has() -> None:
    """A borrowed session is told from one of its own."""
    async with (
        aiohttp.ClientSession() as session,
        transporting("http://127.0.0.1:9", session=session) as borrowing,
        transporting("http://127.0.0.1:9") as owning,
    ):
        assert borrowing.borrows_session
        assert not owning.borrows_session


# --- its own session -----------------------------------------------------------------------------


async def test_its_own_session_is_closed_and_only_once(fake: FakeBraze) -> None:
    """``close()`` closes what the first request opened, and does no harm again or before."""
    async with transporting(fake.base_url) as transport:
        await transport.close()
        await transport.send(BODY, Exchange(inf))
        session = transport._session
        assert session is not None
        assert not session.closed
        await transport.close()
        assert session.closed
        await transport.close()


async def test_its_own_session_makes_no_request_wait_for_a_connection(fake: FakeBraze) -> None:
    """aiohttp allows 100 by itself, and the wait for one would use up the attempt's timeout."""
    unanswered(fake)
    async with transporting(fake.base_url) as transport:
        sends = [asyncio.create_task(transport.send(BODY, Exchange(inf))) for _ in range(110)]
        await until(lambda: 110 == fake.in_flight)
        for send in sends:
            send.cancel()
        ended = await asyncio.gather(*sends, return_exceptions=True)
        assert {asyncio.CancelledError} == set(map(type, ended))


async def test_two_first_requests_share_one_session(fake: FakeBraze) -> None:
    """Requests that start together open one session, not two."""
    async with transporting(fake.base_url) as transport:
        opened = []

        async def send() -> None:
            await transport.send(BODY, Exchange(inf))
            opened.append(transport._session)

        await asyncio.gather(send(), send(), send())
        assert 1 == len(set(opened))


def test_a_client_that_nobody_closed_leaves_no_warning_and_works_in_the_next_loop() -> None:
    """The session ends with its loop; the client opens another in the next."""
    created: list[tuple[str, str]] = []

    async def create(braze: SendsClient | None, name: str) -> SendsClient:
        async with emulator(api_key=KEY, port=port) as fake:
            braze = braze or client(fake.base_url)
            await braze.create_send_id("campaign", name)
            created.extend(fake.created)
            return braze

    port = free_port()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        braze = asyncio.run(create(None, "one"))
        asyncio.run(create(braze, "two"))
        del braze
        gc.collect()
    assert [("campaign", "one"), ("campaign", "two")] == created
    assert [] == [str(warning.message) for warning in caught]


# --- timeouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        (2, 2.0),
        (aiohttp.ClientTimeout(total=3), 3.0),
        (aiohttp.ClientTimeout(sock_connect=1), 300.0),
    ],
)
async def test_an_attempt_always_has_an_end(limit: object, seconds: float) -> None:
    """The longest that an attempt can take is its total, five minutes if none is set."""
    async with transporting("http://127.0.0.1:9", limit=limit) as transport:
        assert seconds == transport.seconds


async def test_a_long_timeout_does_not_hold_up_a_fast_answer(fake: FakeBraze) -> None:
    """A ClientTimeout without a total is accepted, and the create succeeds."""
    timeout = aiohttp.ClientTimeout(total=None, connect=PATIENCE)
    async with client(fake.base_url, timeout=timeout) as braze:
        await braze.create_send_id("campaign", "asked")
    assert BODY == fake.requests[0].body
    assert {"campaign_id": "campaign", "send_id": "asked"} == json.loads(fake.requests[0].body)


async def test_nothing_is_sent_on_a_lease_that_ran_out_while_the_host_slept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event loop's clock stood still meanwhile; the steady clock did not."""
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr("braze_sends.transport.steady", lambda: now + 1000.0)
    awake, slept = (Exchange(now + 3600.0, ahead=1000.0 - s) for s in (0.0, 3700.0))
    awake.start()
    with pytest.raises(NotSentError, match="the lease ran out"):
        slept.start()
    assert (True, False) == (awake.sent, slept.sent)
