"""The network between the client and Braze: proxies of the environment, TLS that fails, trio."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trio

from braze_sends import APIConnectionError, ConfigurationError, SendsClient
from braze_sends.transport import proxy_of
from tests.test_secrets import everything_logged, everything_of, listen
from tests.test_transport import BODY, CERTIFICATE, CREATED, answer, client, serving
from tests.world import KEY

URL = "https://rest.iad-01.braze.com"
#: Of a user of a proxy, and as it stands in a URL.
PASSWORD, IN_URL = "open sésame/7f3d", "open%20s%C3%A9same%2F7f3d"


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Retry at once; an item for each retry."""
    pauses: list[object] = []

    def pause(state: object) -> float:
        pauses.append(state)
        return 0.0

    monkeypatch.setattr("braze_sends.retry._backoff", pause)
    return pauses


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client trusts the certificate of the tests, as SSL_CERT_FILE would have it."""
    context = ssl.create_default_context(cafile=CERTIFICATE)
    context.set_alpn_protocols(["http/1.1"])
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", context)


def tls() -> ssl.SSLContext:
    """Of a server with the certificate of the tests."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    return context


class Proxy:
    """An HTTP proxy on loopback.

    Attributes:
        url: where it listens.
        asked: the heads of the requests that it has read.
        refusal: what it answers in place of a tunnel, or ``None``.
    """

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.refusal: bytes | None = None

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        if self.refusal is not None:
            writer.write(self.refusal)
            writer.close()
            return
        host, _, port = head.split()[1].rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))

    def login(self, n: int = -1) -> str | None:
        """What a request carried as ``user:password``."""
        for line in self.asked[n].split("\r\n"):
            name, _, value = line.partition(": Basic ")
            if name == "Proxy-Authorization":
                return base64.b64decode(value).decode()
        return None


def with_login(proxy: Proxy) -> str:
    """The URL of a proxy as its user writes it."""
    return proxy.url.replace("://", f"://some%40body:{IN_URL}@")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def proxying(secure: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    """A proxy that runs."""
    proxy = Proxy()
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0, ssl=secure)
    proxy.url = "http{}://{}:{}".format("s" if secure else "", *server.sockets[0].getsockname())
    async with server:
        yield proxy


# --- proxies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
async def test_a_proxy_of_the_environment_is_gone_through(
    name: str, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a tunnel, which carries the key where the proxy cannot see it; one for all requests."""
    stay = answer("201 Created", b'{"message":"success","send_id":"asked"}')
    stay = stay.replace(b"Connection: close\r\n", b"")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(BODY))
            writer.write(stay)

    async with serving(serve, tls()) as server, proxying() as proxy:
        monkeypatch.setenv(name, proxy.url)
        async with client(server.url) as braze:
            await braze.create_send_id("campaign", "asked")
            await braze.create_send_id("campaign", "other")
            assert proxy.url == braze.proxy
    (head,) = proxy.asked
    assert head.startswith(f"CONNECT {server.url.removeprefix('https://')} ")
    assert "Authorization" not in head
    assert KEY not in head
    assert 1 == server.connections


async def test_a_proxy_that_speaks_tls_itself_is_gone_through(
    trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tunnel in a tunnel."""
    async with serving(CREATED, tls()) as server, proxying(tls()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with client(server.url) as braze:
            await braze.create_send_id("campaign", "asked")
    assert 1 == len(proxy.asked)


@pytest.mark.parametrize("name", ["127.0.0.1", "*", "elsewhere, 127.0.0.1:{port}"])
async def test_no_proxy_is_heeded(
    name: str, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a host, for all hosts, and for a host and port."""
    async with serving(CREATED, tls()) as server, proxying() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", name.format(port=server.url.rpartition(":")[2]))
        async with client(server.url) as braze:
            await braze.create_send_id("campaign", "asked")
            assert braze.proxy is None
    assert [] == proxy.asked


async def test_plain_http_goes_through_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for loopback, and a proxy elsewhere would see the key."""
    async with serving(CREATED) as server, proxying() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        async with client(server.url) as braze:
            await braze.create_send_id("campaign", "asked")
    assert [] == proxy.asked


async def test_a_session_of_the_caller_goes_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is for the client's own session; an unusable proxy is no matter."""
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy")
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=CERTIFICATE))
    async with (
        serving(CREATED, tls()) as server,
        aiohttp.ClientSession(connector=connector) as session,
        client(server.url, session=session) as braze,
    ):
        await braze.create_send_id("campaign", "asked")
        assert braze.proxy is None


async def test_credentials_of_a_proxy_reach_the_proxy_alone(
    trusted: None,
    no_pause: list[object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are in no log, error, traceback, pickle or ``repr``, and the server gets none."""
    caplog.set_level(logging.DEBUG)
    listen()
    async with serving(CREATED, tls()) as server, proxying() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", with_login(proxy))  # not in a local variable
        async with client(server.url) as braze:
            await braze.create_send_id("campaign", "asked")
            assert f"some@body:{PASSWORD}" == proxy.login()
            assert proxy.url == braze.proxy
            told = repr(braze) + repr(braze._transport) + repr(braze._settings)
        proxy.refusal = answer("407 Proxy Authentication Required", with_login(proxy).encode())
        async with client(server.url, max_retries=1) as braze:
            with pytest.raises(APIConnectionError) as refused:
                await braze.create_send_id("campaign", "asked")
            ping = await braze.ping()
            assert isinstance(ping.error, aiohttp.ClientHttpProxyError)
            told += repr(ping) + repr(vars(ping.error))
        proxy.refusal = b""  # it hangs up
        async with client(server.url, max_retries=1) as braze:
            with pytest.raises(APIConnectionError) as cut:
                await braze.create_send_id("campaign", "asked")
    async with client(server.url, max_retries=1) as braze:
        with pytest.raises(APIConnectionError) as gone:
            await braze.create_send_id("campaign", "asked")
    for error in (refused.value, cut.value, gone.value):
        told += everything_of(error)
    told += everything_logged(caplog)
    secret = base64.b64encode(f"some@body:{PASSWORD}".encode()).decode()
    assert [] == [one for one in (PASSWORD, IN_URL, secret, KEY) if one in told]
    assert b"Proxy-Authorization" not in server.requests[0]
    assert 1 == len(server.requests)


@pytest.mark.parametrize(("status", "final"), [(403, True), (407, True), (502, False)])
async def test_what_a_proxy_refuses_is_not_asked_for_again(
    status: int, final: bool, no_pause: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent, and the message tells the status; a proxy in trouble is asked again."""
    async with proxying() as proxy:
        proxy.refusal = answer(f"{status} No")
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with client(URL, max_retries=1) as braze:
            with pytest.raises(APIConnectionError, match=f"ClientHttpProxyError: {status}") as told:
                await braze.create_send_id("campaign", "asked")
    assert (False, final) == (told.value.quota_spent, told.value.permanent)
    assert final is ("check HTTPS_PROXY" in str(told.value))
    assert (1 if final else 2) == len(proxy.asked)


async def test_a_netrc_plays_no_part(
    trusted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its login for Braze is sent nor that for the proxy."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password netrc-password\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with serving(CREATED, tls()) as server, proxying() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        async with client(server.url) as braze:
            await braze.create_send_id("campaign", "asked")
    assert proxy.login() is None
    assert f"Authorization: Bearer {KEY}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize(
    ("given", "proxy"),
    [
        ("proxy:3128", "http://proxy:3128"),
        ("http://proxy", "http://proxy"),
        ("http://[::1]:3128/", "http://[::1]:3128"),
        ("", None),
    ],
)
def test_a_proxy_is_named_as_elsewhere(
    given: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With or without a scheme and a port; empty means none."""
    monkeypatch.setenv("HTTPS_PROXY", given)
    assert proxy == proxy_of(URL)[0]


NO_HTTP_PROXIES = ("socks5://me:sesame@proxy", "http://:sesame@", "sesame:port", "http://[::sesame")


@pytest.mark.parametrize("n", range(len(NO_HTTP_PROXIES)))
def test_what_is_no_http_proxy_is_refused(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, in words that show nothing of it, nor does the traceback."""
    monkeypatch.setenv("HTTPS_PROXY", NO_HTTP_PROXIES[n])
    with pytest.raises(ConfigurationError, match=r"^HTTPS_PROXY must be .*NO_PROXY$") as caught:
        SendsClient(KEY, base_url=URL)
    told = everything_of(caught.value)
    assert "sesame" not in told


@pytest.mark.process
async def test_the_command_heeds_a_proxy_and_a_ca_of_the_environment() -> None:
    """``HTTPS_PROXY`` with a password, which is not shown, and ``SSL_CERT_FILE``."""
    async with serving(CREATED, tls()) as server, proxying() as proxy:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "braze_sends.cli", "create", "campaign", "--send-id", "asked"),
            *("--base-url", server.url),
            env=os.environ
            | {
                "BRAZE_API_KEY": KEY,
                "HTTPS_PROXY": with_login(proxy),
                "SSL_CERT_FILE": str(CERTIFICATE),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        told, complaints = await process.communicate()
    assert (b"asked", b"") == (told.strip(), complaints)
    assert f"some@body:{PASSWORD}" == proxy.login()


# --- TLS -----------------------------------------------------------------------------------------


async def fails(url: str, **options: Any) -> APIConnectionError:
    """How a create ends that may be tried six times."""
    async with client(url, max_retries=5, **options) as braze:
        with pytest.raises(APIConnectionError) as caught:
            await braze.create_send_id("campaign", "asked")
    assert caught.value.quota_spent is False
    return caught.value


async def test_a_server_without_tls_is_final(no_pause: list[object]) -> None:
    """A port that answers in plain text will go on to do so."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(plain) as server:
        error = await fails(server.url.replace("http:", "https:"))
    assert error.permanent is True
    assert "ClientConnectorSSLError" in str(error)
    assert str(error).endswith("check the host and port of base_url")
    assert [] == no_pause


async def test_tls_versions_that_do_not_meet_are_final(no_pause: list[object]) -> None:
    """The session speaks TLS 1.2 at most, and the server 1.3 at least."""
    new = tls()
    new.minimum_version = ssl.TLSVersion.TLSv1_3
    old = ssl.create_default_context(cafile=CERTIFICATE)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def shake_hands() -> None:  # in a thread, since asyncio sends no alert
            connection = listening.accept()[0]
            with connection, contextlib.suppress(OSError):
                new.wrap_socket(connection, server_side=True)

        url = "https://{}:{}".format(*listening.getsockname())
        connector = aiohttp.TCPConnector(ssl=old)
        async with aiohttp.ClientSession(connector=connector) as session:
            error, _ = await asyncio.gather(
                fails(url, session=session), asyncio.to_thread(shake_hands)
            )
    assert error.permanent is True
    assert [] == no_pause


async def test_a_fingerprint_that_does_not_match_is_final(no_pause: list[object]) -> None:
    """The session asks for one certificate, and the server shows another."""
    connector = aiohttp.TCPConnector(ssl=aiohttp.Fingerprint(b"f" * 32))
    async with (
        serving(CREATED, tls()) as server,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        error = await fails(server.url, session=session)
    assert error.permanent is True
    assert "ServerFingerprintMismatch" in str(error)
    assert "certificate is not the one" in str(error)
    assert [] == no_pause


async def test_a_handshake_that_is_cut_is_tried_again(no_pause: list[object]) -> None:
    """A server that hangs up, or that has an error of its own, may be well the next time."""
    internal_error = b"\x15\x03\x03\x00\x02\x02\x50"
    answers = iter([b"", internal_error, b"", internal_error, b"", internal_error])

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(next(answers))

    async with serving(cut) as server:
        error = await fails(server.url.replace("http:", "https:"))
    assert error.permanent is False
    assert 6 == server.connections


# --- other event loops than asyncio's ------------------------------------------------------------


async def _created(braze: SendsClient) -> object:
    return await braze.create_send_id("campaign")


async def _entered(braze: SendsClient) -> object:
    async with braze:
        return None


async def _iterated(braze: SendsClient) -> object:
    return [outcome async for outcome in braze.iter_send_ids([])]


async def _closed(braze: SendsClient) -> object:
    async with braze.with_options():
        return None


@pytest.mark.parametrize("use", [_created, _entered, _iterated, _closed])
def test_trio_is_told_to_go_by_asyncio(use: Callable[[SendsClient], Any]) -> None:
    """A clear error in place of asyncio's own, and nothing was sent."""
    braze = SendsClient(KEY, base_url=URL)
    with pytest.raises(ConfigurationError, match=r"needs asyncio.*trio-asyncio.*anyio") as caught:
        trio.run(use, braze)
    assert caught.value.quota_spent is False
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_client_that_did_nothing_can_be_closed_under_trio() -> None:
    """So that a clean-up hides no other error."""
    trio.run(SendsClient(KEY, base_url=URL).close)
