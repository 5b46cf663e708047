"""The key is looked for, and found nowhere: errors, logs, values and reprs."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import pickle
import re
import traceback
from collections.abc import Awaitable, Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import attrs
import pytest

from braze_sends import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BrazeSendsError,
    ConfigurationError,
    CreateSendId,
    InternalServerError,
    MemoryStore,
    NotFoundError,
    PermissionDeniedError,
    QuotaExhaustedError,
    RateLimit,
    RateLimitError,
    SendsClient,
    StoreError,
)
from braze_sends.protocol import NoReply
from braze_sends.stores.store import Transaction
from braze_sends.testing import Fault
from tests.conftest import StoppedClock
from tests.servers import braze as emulator
from tests.waiting import PATIENCE, until

T = TypeVar("T")

KEY = "d1f0A7c2-93be-4c58-8e61-5ab7740c29ef"

#: Any run of this many characters of the key gives it away.
PIECE = 8


def pieces_in(text: str) -> list[str]:
    """The pieces of the key that are in a text, in upper or lower case."""
    text = text.lower()
    starts = range(len(KEY) - PIECE + 1)
    return [KEY[n : n + PIECE] for n in starts if KEY[n : n + PIECE].lower() in text]


def family(error: BaseException) -> Iterator[BaseException]:
    """An error, and all that it came from, told or suppressed."""
    todo, seen = [error], set[int]()
    while todo:
        one = todo.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += [other for other in (one.__cause__, one.__context__) if other is not None]


def everything_of(error: BaseException) -> str:
    """All that a log, a debugger or another process could be shown of an error."""
    texts = []
    for one in family(error):
        texts += [str(one), repr(one), repr(one.args), repr(vars(one))]
        shown = traceback.TracebackException.from_exception(one, capture_locals=True)
        texts += shown.format()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        texts.append(pickle.dumps(error, protocol).decode("latin-1"))
    return "\n".join(texts)


def everything_logged(caplog: pytest.LogCaptureFixture) -> str:
    """All that a handler could make of the records."""
    texts = []
    for record in caplog.records:
        texts += [record.getMessage(), repr(vars(record))]
        if record.exc_info and record.exc_info[1]:
            texts.append(everything_of(record.exc_info[1]))
    return "\n".join(texts)


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def listen() -> None:
    """Let asyncio log each step that it takes."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0


class Case:
    """A way to fail, and the error that it gives.

    Attributes:
        kind: the error's class.
        faults: what the server does.
        send_id: what is asked for.
        workspace_key: the key that the server takes.
        closed: whether the client is.
        options: of the client.
    """

    def __init__(
        self,
        kind: type[BrazeSendsError],
        *faults: Fault,
        send_id: str | None = "asked",
        workspace_key: str = KEY,
        closed: bool = False,
        **options: Any,
    ) -> None:
        self.kind, self.faults, self.send_id = kind, faults, send_id
        self.workspace_key, self.closed, self.options = workspace_key, closed, options


ECHO = {"X-Request-Id": f"id-{KEY}", "X-Echo": KEY, "Server": KEY, "Location": f"/{KEY}"}
AUTHORIZATION = f"Authorization: Bearer {KEY}"

CASES = {
    "401 that echoes the key": Case(AuthenticationError, Fault(status=401)),
    "401 of another key's workspace": Case(AuthenticationError, workspace_key="another-key"),
    "401 in capitals": Case(
        AuthenticationError,
        Fault(status=401, body=json.dumps({"message": f"INVALID API KEY: {KEY.upper()}"})),
    ),
    "401 escaped": Case(
        AuthenticationError,
        Fault(
            status=401,
            body='{"message":"' + "".join(f"\\u{ord(letter):04x}" for letter in KEY) + '"}',
        ),
    ),
    "401 in HTML": Case(
        AuthenticationError,
        Fault(status=401, body=f"<html><body><p>{AUTHORIZATION}</p></body></html>"),
    ),
    "400 that lists the key": Case(
        BadRequestError,
        Fault(
            status=400,
            body=json.dumps(
                {"message": "no", "errors": [KEY, {"header": AUTHORIZATION}, [{KEY: [KEY]}]]}
            ),
        ),
    ),
    "400 with the key in headers": Case(BadRequestError, Fault(status=400, headers=ECHO)),
    "400 that is no object": Case(BadRequestError, Fault(status=400, body=json.dumps([KEY]))),
    "400 that is no UTF-8": Case(
        BadRequestError, Fault(status=400, body=b"\xff\xfe " + KEY.encode())
    ),
    "403": Case(PermissionDeniedError, Fault(status=403, body=AUTHORIZATION)),
    "404": Case(NotFoundError, Fault(status=404, body=json.dumps({"message": KEY}))),
    "413": Case(APIStatusError, Fault(status=413, body=AUTHORIZATION)),
    "302": Case(APIStatusError, Fault(status=302, headers=ECHO, body=KEY)),
    "429": Case(
        RateLimitError,
        Fault(status=429, body=json.dumps({"message": KEY}), headers=dict.fromkeys(ECHO, KEY)),
    ),
    "429 with Retry-After": Case(
        QuotaExhaustedError,
        Fault(status=429, body=json.dumps({"message": KEY}), headers={"Retry-After": "60"} | ECHO),
        max_rate_limit_wait=0,
    ),
    "502 in HTML": Case(InternalServerError, Fault(status=502, body=f"<p>{KEY}</p>")),
    "503": Case(InternalServerError, Fault(status=503, headers=ECHO, body=KEY)),
    "503 after a retry": Case(
        InternalServerError,
        Fault(status=503, body=AUTHORIZATION, headers=ECHO | {"Retry-After": "0"}),
        Fault(status=503, body=AUTHORIZATION, headers=ECHO),
        max_retries=1,
    ),
    "201 without a send ID": Case(
        APIResponseValidationError, Fault(body=json.dumps({"message": KEY, KEY: KEY}))
    ),
    "201 that is no JSON": Case(APIResponseValidationError, Fault(body=AUTHORIZATION)),
    "201 whose body is too long": Case(
        APIResponseValidationError, Fault(body=f"{KEY} " * 100_000, headers=ECHO)
    ),
    "cut before": Case(APIConnectionError, Fault(drop="before")),
    "cut after": Case(APIConnectionError, Fault(drop="after")),
    "no quota": Case(QuotaExhaustedError, daily_limit=0),
    "bad send ID": Case(ConfigurationError, send_id="\n"),
    "bad name from the factory": Case(
        ConfigurationError, send_id=None, send_id_factory=lambda: "é"
    ),
    "closed client": Case(ConfigurationError, closed=True),
}


@pytest.mark.parametrize("name", CASES)
async def test_no_error_and_no_log_shows_the_key(
    name: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails, and whatever the answer echoes, the key is in nothing that can be seen."""
    listen()
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 0.0)
    case = CASES[name]
    store = MemoryStore()
    async with emulator(api_key=case.workspace_key) as fake:
        fake.script(*case.faults)
        options: dict[str, Any] = {"max_retries": 0, "timeout": PATIENCE} | case.options
        async with SendsClient(KEY, base_url=fake.base_url, store=store, **options) as braze:
            if case.closed:
                await braze.close()
            error = await failure(braze.create_send_id("campaign", case.send_id))
            texts = everything_of(error) + repr(braze) + repr(store._records)
        assert [] == list(fake._script)
    assert case.kind is type(error)
    assert [] == pieces_in(texts)
    assert [] == pieces_in(everything_logged(caplog))


async def failure(create: Awaitable[object]) -> BrazeSendsError:
    """The error of a create; here, and not in the test, so that only its own frames are shown."""
    with pytest.raises(BrazeSendsError) as caught:
        await create
    return caught.value


async def test_a_timeout_does_not_show_the_key(
    stopped_clock: StoppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The request arrived, and no answer came."""
    listen()
    async with (
        emulator(api_key=KEY) as fake,
        SendsClient(KEY, base_url=fake.base_url, timeout=5, max_retries=0) as braze,
    ):
        fake.script(Fault(stall=asyncio.Event()))
        create = asyncio.create_task(failure(braze.create_send_id("campaign", "asked")))
        await until(lambda: fake.created)
        stopped_clock.advance(10)
        error = await create
    assert APITimeoutError is type(error)
    assert [] == pieces_in(everything_of(error) + everything_logged(caplog))


async def test_a_refused_connection_does_not_show_the_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody listens at the URL."""
    listen()
    async with SendsClient(KEY, base_url="http://127.0.0.1:1", max_retries=0) as braze:
        error = await failure(braze.create_send_id("campaign", "asked"))
    assert APIConnectionError is type(error)
    assert [] == pieces_in(everything_of(error) + everything_logged(caplog))


@pytest.mark.parametrize(
    "wire",
    [
        f"HTTP/1.1 201 Created\r\nX-Echo: {KEY}\x00\r\n\r\n",
        f"HTTP/1.1 201 Created\r\n{KEY} : {KEY}\r\n\r\n",
        f"HTTP/9.9 {KEY}\r\n\r\n",
        f"{AUTHORIZATION}\r\n\r\n",
        f"HTTP/1.1 201 Created\r\nContent-Length: {KEY}\r\n\r\n",
    ],
    ids=["header value", "header name", "status line", "no HTTP", "length"],
)
async def test_a_malformed_answer_does_not_show_the_key(
    wire: str, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp quotes what it cannot parse; the key is taken out of the quotation."""
    listen()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(wire.encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    url = "http://{}:{}".format(*server.sockets[0].getsockname())
    async with server, SendsClient(KEY, base_url=url, max_retries=0) as braze:
        error = await failure(braze.create_send_id("campaign", "asked"))
    assert APIConnectionError is type(error)
    assert error.quota_spent is None
    assert [] == pieces_in(everything_of(error) + everything_logged(caplog))


async def test_a_closed_session_does_not_show_the_key(caplog: pytest.LogCaptureFixture) -> None:
    """The user's session was closed before the first request."""
    listen()
    async with aiohttp.ClientSession() as session:
        pass
    async with SendsClient(KEY, base_url="http://127.0.0.1:1", session=session) as braze:
        error = await failure(braze.create_send_id("campaign", "asked"))
    assert ConfigurationError is type(error)
    assert [] == pieces_in(everything_of(error) + everything_logged(caplog))


async def test_credentials_in_netrc_show_neither_the_key_nor_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """aiohttp's refusal to send with them leaves no frame of its own behind."""
    listen()
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password netrc-password\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with (
        aiohttp.ClientSession(trust_env=True) as session,
        SendsClient(KEY, base_url="http://127.0.0.1:1", session=session) as braze,
    ):
        error = await failure(braze.create_send_id("campaign", "asked"))
    assert ConfigurationError is type(error)
    text = everything_of(error) + everything_logged(caplog)
    assert "netrc-password" not in text
    assert [] == pieces_in(text)


#: Arguments that no client is made of, each with a key.
UNUSABLE: dict[str, dict[str, Any]] = {
    "quoted key": {"api_key": f'"{KEY}"'},
    "key with a line break": {"api_key": f"{KEY}\n"},
    "key in bytes": {"api_key": KEY.encode()},
    "key in a list": {"api_key": [KEY]},
    "no URL": {"api_key": KEY, "base_url": ""},
    "bad wait": {"api_key": KEY, "max_rate_limit_wait": -1},
    "bad store": {"api_key": KEY, "store": "oracle://host"},
    "bad timeout": {"api_key": KEY, "timeout": 0},
    "bad session": {"api_key": KEY, "session": 7},
    "key of the environment": {"base_url": ""},
    "quoted key of the environment": {"api_key": None},
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_client_that_is_not_made_does_not_show_the_key(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the frames of the error hold the key, nor does the client that is half made."""
    monkeypatch.setenv("BRAZE_API_KEY", f"'{KEY}'" if "quoted" in name else KEY)
    error = refusal(name)
    assert [] == pieces_in(everything_of(error))
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    halves = [frame.f_locals.get("self") for frame in frames]
    halves = [half for half in halves if isinstance(half, SendsClient)]
    assert ["<SendsClient that was not made: an argument is unusable>"] == list(map(repr, halves))


def refusal(name: str) -> BrazeSendsError:
    """The error of a client of ``UNUSABLE``; here, so that no frame of a test is shown."""
    with pytest.raises(ConfigurationError) as caught:
        SendsClient(**({"base_url": "US-01"} | UNUSABLE[name]))
    return caught.value


class BrokenStore(MemoryStore):
    """Fails, with its password in the message, as database drivers do."""

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        raise OSError("cannot reach redis://user:hunter2@host")


async def test_a_broken_store_shows_neither_the_key_nor_its_own_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The error of a store is told by its class, not in a driver's words."""
    listen()
    async with SendsClient(KEY, base_url="US-01", store=BrokenStore()) as braze:
        error = await failure(braze.create_send_id("campaign", "asked"))
    assert StoreError is type(error)
    text = "\n".join([str(error), repr(error), repr(vars(error)), everything_logged(caplog)])
    assert "hunter2" not in text
    assert [] == pieces_in(text + everything_of(error))


async def test_success_shows_the_key_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Creates that succeed, are joined or remembered leave the key in no log and no value."""
    listen()
    store = MemoryStore()
    async with (
        emulator(api_key=KEY) as fake,
        SendsClient(KEY, base_url=fake.base_url, store=store) as braze,
    ):
        sends = await asyncio.gather(
            *(braze.create_send_id("campaign", f"story-{n % 3}") for n in range(6)),
            braze.create_send_id("campaign"),
        )
        sends.append(await braze.create_send_id("campaign", "story-1"))
        values = [*sends, await braze.quota(), braze.rate_limit]
        texts = [repr(braze), repr(braze._settings), repr(braze._transport)]
        texts += [repr(store), repr(store._records)]
    for value in values:
        assert value is not None
        texts += [repr(value), str(value), repr(attrs.asdict(value)), repr(attrs.astuple(value))]
        texts.append(pickle.dumps(value).decode("latin-1"))
    assert 4 == len(fake.created)
    assert [] == pieces_in("\n".join(texts))
    assert [] == pieces_in(everything_logged(caplog))


async def test_cancelled_and_unattended_creates_show_the_key_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A create that nobody waits for any more fails in silence, as far as the key goes."""
    listen()
    async with emulator(api_key=KEY) as fake:
        answer = asyncio.Event()
        fake.script(Fault(status=401, stall=answer))
        async with SendsClient(KEY, base_url=fake.base_url, timeout=PATIENCE) as braze:
            create = asyncio.create_task(braze.create_send_id("campaign", "asked"))
            await until(lambda: fake.requests)
            create.cancel()
            await asyncio.wait([create])
            answer.set()
    gc.collect()
    logged = everything_logged(caplog)
    assert "create failed" in logged
    assert "unattended=True" in logged
    assert [] == pieces_in(logged)


def test_settings_hide_the_key_from_attrs() -> None:
    """Unlike a field that ``repr`` hides, the key is hidden from ``asdict`` too."""
    settings = SendsClient(KEY, base_url="US-01")._settings
    texts = [repr(settings), repr(attrs.asdict(settings)), repr(attrs.astuple(settings))]
    assert ["ApiKey(***)"] * 3 == [re.findall(r"ApiKey\(.*?\)", text)[0] for text in texts]
    assert [] == pieces_in("\n".join(texts))


def test_values_have_no_place_for_a_key() -> None:
    """The value classes hold what their fields say, and no field is for a key or a header."""
    fields = {
        field.name
        for kind in (CreateSendId, RateLimit, NoReply)
        for field in attrs.fields(kind)
        if "key" in field.name or "auth" in field.name
    }
    assert set() == fields


def test_a_client_cannot_be_pickled_with_its_key() -> None:
    """A client that is sent to another process by mistake takes no key there."""
    with pytest.raises(TypeError):
        pickle.dumps(SendsClient(KEY, base_url="US-01"))


def test_the_search_finds_what_it_looks_for(caplog: pytest.LogCaptureFixture) -> None:
    """A key in an error's notes, in what it came from, or in a log record would be found."""
    assert [] != pieces_in(f"x{KEY[3:14].upper()}x")
    assert [] == pieces_in(KEY[:7])

    def fail() -> None:
        try:
            raise ValueError(f"Bearer {KEY}")
        except ValueError:
            raise StoreError("words") from None

    with pytest.raises(StoreError) as caught:
        fail()
    assert [] != pieces_in(everything_of(caught.value))
    noted = StoreError("words")
    noted.add_note(KEY)
    assert [] != pieces_in(everything_of(noted))
    logging.getLogger("anything").debug("words", extra={"data": KEY})
    assert [] != pieces_in(everything_logged(caplog))
