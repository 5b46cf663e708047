"""One request over aiohttp. No other file of the client sends through aiohttp."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from datetime import UTC, datetime
from functools import cache
from math import inf
from types import MappingProxyType
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import attrs
from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import BytesPayload

from braze_sends import headers as answer_headers
from braze_sends.errors import ConfigurationError
from braze_sends.headers import NAMES
from braze_sends.models import Ping
from braze_sends.protocol import MAX_BODY, PATH, NoReply, Reply
from braze_sends.quota.rule.ledger import LONGEST_TIMEOUT
from braze_sends.settings import ApiKey, checked_seconds
from braze_sends.stores.store import steady

#: aiohttp's own default, for a ``ClientTimeout`` that sets no total: an attempt has to end.
DEFAULT_TOTAL = 300.0

_JSON = {"Content-Type": "application/json"}
_NO_CONTENT_TYPE = ("Content-Type",)

_NETRC = (
    "the session passed has trust_env=True, and .netrc has credentials for this host; Braze takes "
    "the API key alone: remove the entry (a default entry is for every host), or pass a session "
    "without trust_env, with proxy=… if it needs one"
)

_UNTRUSTED = (
    ". If the certificate is that of a proxy or of a CA of your own, name the CA's file in "
    "SSL_CERT_FILE before the program starts, or pass a session whose connector has an ssl context "
    "that trusts it"
)

_FINGERPRINT = ". The server's certificate is not the one that the session passed asks for"

_NO_TLS = (
    ". The server, or a proxy before it, speaks no TLS that this client accepts: check the host "
    "and port of base_url"
)

#: Parts of OpenSSL's reasons for which another handshake would fail too. An internal error of the
#: server and a connection that is cut are not among them.
_FOR_EVER = (
    "CERTIFICATE",
    "HANDSHAKE_FAILURE",
    "NO_SHARED_CIPHER",
    "PROTOCOL",
    "UNKNOWN_CA",
    "UNRECOGNIZED_NAME",
    "WRONG_VERSION_NUMBER",
)

_PROXY_URL = (
    "HTTPS_PROXY must be the URL of an HTTP proxy, such as http://proxy.example:3128 (its value is "
    "not shown, since it may hold a password). For another kind of proxy pass a session; to use "
    "none, name the host of base_url in NO_PROXY"
)


class NotSentError(aiohttp.ClientError):
    """Raised where the first byte would have been written."""


@attrs.define
class Exchange:
    """One attempt's request, up to its first byte and past it.

    Attributes:
        deadline: loop time past which the lease is no longer ours: nothing may be sent on it then.
        ahead: see ``quota.line.Held``.
        called_off: nobody wants the answer any more. It is looked at just before the first byte.
        sent: whether the first byte was written. From then on Braze may know of the request.
        withheld: why the first byte was not written.
        timeout: of this attempt; ``None`` for the transport's.
    """

    deadline: float
    ahead: float = inf
    called_off: bool = False
    sent: bool = False
    withheld: str | None = None
    timeout: aiohttp.ClientTimeout | None = None

    def start(self) -> None:
        """Note that the request leaves, or refuse. Called just before the first byte is written.

        Raises:
            NotSentError: the first byte must not be written.
        """
        if self.called_off:
            self.withheld = "called off before it was sent"
        elif self._now() >= self.deadline:
            self.withheld = "the lease ran out before the request could be sent"
        if self.withheld:
            raise NotSentError(self.withheld)
        self.sent = True

    def _now(self) -> float:
        """Loop time, and the time that the host has slept since the lease was granted."""
        now = asyncio.get_running_loop().time()
        return now + max(0.0, steady() - now - self.ahead)


class _Body(BytesPayload):
    """A body that notes when it is written.

    aiohttp sends the head together with the first bytes of the body, so this is where a request
    leaves. The flag is right whatever exception follows.
    """

    def __init__(self, value: bytes, exchange: Exchange) -> None:
        super().__init__(value, content_type="application/json")
        self._exchange = exchange

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self._exchange.start()
        await super().write_with_length(writer, content_length)


class _Nothing(BytesPayload):
    """An empty body that notes which connection it is written to."""

    transport: asyncio.WriteTransport | None = None

    def __init__(self) -> None:
        super().__init__(b"")

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self.transport = writer.transport
        await super().write_with_length(writer, content_length)


def checked_timeout(value: object) -> aiohttp.ClientTimeout:
    """``timeout`` as aiohttp wants it, always with a total.

    Raises:
        ConfigurationError: it is no positive number of seconds and no ``ClientTimeout``.
    """
    if isinstance(value, aiohttp.ClientTimeout):
        if value.total is None:
            return attrs.evolve(value, total=DEFAULT_TOTAL)
        seconds = checked_seconds("timeout.total", value.total)
    else:
        seconds = checked_seconds("timeout", value)
        value = aiohttp.ClientTimeout(total=seconds)
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise ConfigurationError(
            f"timeout must be more than 0 and at most {LONGEST_TIMEOUT:.0f} seconds"
        )
    return value


def total_of(timeout: aiohttp.ClientTimeout) -> float:
    """The longest that an attempt can take, in seconds."""
    return timeout.total or DEFAULT_TOTAL


class Transport:
    """Sends requests to one instance of Braze.

    Its own session is opened by the first request and closed with ``close()``, or at the latest
    when its event loop ends.
    """

    def __init__(
        self,
        base_url: str,
        key: ApiKey,
        timeout: aiohttp.ClientTimeout,
        session: aiohttp.ClientSession | None,
        *,
        default_headers: Mapping[str, str] = MappingProxyType({}),
        user_agent: str | None = None,
    ) -> None:
        if session is not None and not isinstance(session, aiohttp.ClientSession):
            raise ConfigurationError(
                f"session must be an aiohttp.ClientSession, not {type(session).__name__}"
            )
        if getattr(session, "auth", None) is not None:  # gone in aiohttp 4
            raise ConfigurationError(
                "session has credentials of its own (auth=…); Braze takes the API key alone"
            )
        self._base_url = base_url
        self._host = urlsplit(base_url).hostname or ""
        self._key = key
        self._timeout = timeout
        self._given = session
        self._own: AsyncGenerator[aiohttp.ClientSession] | None = None
        self._session: aiohttp.ClientSession | None = session
        self._default_headers = default_headers
        self._suffix = "" if user_agent is None else f" {user_agent}"
        # Not ``trust_env``, with which aiohttp would also send what .netrc has for the host.
        self._proxy, self._proxy_headers = (None, None) if session else proxy_of(base_url)

    @property
    def proxy(self) -> str | None:
        """The proxy that its own session goes through, without credentials; ``None``: none."""
        return self._proxy

    @property
    def borrows_session(self) -> bool:
        """Whether the session is the caller's."""
        return self._given is not None

    @property
    def seconds(self) -> float:
        """The longest that one attempt can take."""
        return total_of(self._timeout)

    def send(self, body: bytes, exchange: Exchange) -> Coroutine[Any, Any, Reply | NoReply]:
        """Make one attempt of a create."""
        return self.request(hdrs.METH_POST, PATH, exchange, body=body)

    async def request(
        self,
        method: str,
        path: str,
        exchange: Exchange,
        *,
        body: bytes = b"",
        query: Mapping[str, str] | None = None,
    ) -> Reply | NoReply:
        """Make one attempt. Redirects are not followed: the key would go with them.

        Args:
            method: the HTTP method.
            path: the endpoint's path, with its leading slash.
            exchange: notes whether the request left, and may refuse that.
            body: JSON; empty for a request without a body.
            query: names and values, not yet encoded.

        Returns:
            the answer, or what kept it from coming.
        """
        session = self._session or await self._open()
        headers: dict[str, str] = {}
        reason, problem, timed_out, permanent = "", "", False, False
        try:
            async with session.request(
                method,
                self._base_url + path,
                params=query,
                data=_Body(body, exchange),
                headers={
                    **self._default_headers,
                    "Authorization": self._key.authorization(),
                    "User-Agent": self._user_agent(session),
                    "Accept": "application/json",
                    **(_JSON if body else {}),
                },
                skip_auto_headers=None if body else _NO_CONTENT_TYPE,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
                timeout=exchange.timeout or self._timeout,
                allow_redirects=False,
                raise_for_status=False,
            ) as response:
                exchange.sent = True  # an answer came, whatever was written
                headers = _joined(response)
                content, too_long = await _read(response)
                return Reply(response.status, headers, content, too_long, host=self._host)
        except TimeoutError as error:  # aiohttp's total timeout is no ClientError
            timed_out = True
            reason = _reason(error, "no answer within the timeout", exchange.sent)
        except (aiohttp.ClientError, OSError) as error:
            advice = _advice(error)
            permanent = bool(advice)
            reason = exchange.withheld or _reason(error, "the connection failed", exchange.sent)
            reason += advice or _diagnosis(error)
        except (RuntimeError, ValueError) as error:
            problem = _problem(error, session)
            if exchange.sent or not problem:
                raise
        # Raised outside of ``except``, our error does not carry aiohttp's error along, whose frames
        # hold the header with the key.
        if problem:
            raise ConfigurationError(problem)
        return NoReply(self._key.scrub(reason), exchange.sent, timed_out, headers, permanent)

    async def ping(self, timeout: aiohttp.ClientTimeout | None = None) -> Ping:  # noqa: ASYNC109
        """Ask for the head of ``/``, without the key and away from the path of a create."""
        session = self._session or await self._open()
        nothing, error = _Nothing(), None
        status, told, cached = None, "", False
        try:
            async with session.head(
                "{0.scheme}://{0.netloc}/".format(urlsplit(self._base_url)),
                data=nothing,
                headers={**self._default_headers, "User-Agent": self._user_agent(session)},
                skip_auto_headers=_NO_CONTENT_TYPE,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
                timeout=timeout or self._timeout,
                allow_redirects=False,
                raise_for_status=False,
            ) as response:
                status, told = response.status, response.headers.get("Date", "")
                cached = response.headers.get("Age", "0") != "0"
        except (aiohttp.ClientError, OSError) as failure:
            error = _bare(failure)
        date = answer_headers.read({"date": told}, time.time()).date
        tls = nothing.transport and nothing.transport.get_extra_info("ssl_object")
        ends = ssl.cert_time_to_seconds(tls.getpeercert()["notAfter"]) if tls else None
        return Ping(
            status,
            error=error,
            date=None if date is None else datetime.fromtimestamp(date, UTC),
            cached=cached,
            tls=tls.version() if tls else None,
            certificate_ends=None if ends is None else datetime.fromtimestamp(ends, UTC),
        )

    def detach(self) -> None:
        """Forget the session of an event loop that has ended."""
        self._own, self._session = None, self._given

    async def close(self) -> None:
        """Close the session, unless it is the caller's; idempotent."""
        own = self._own
        self.detach()
        if own is not None:
            await own.aclose()

    def _user_agent(self, session: aiohttp.ClientSession) -> str:
        return (session.headers.get(hdrs.USER_AGENT) or _user_agent()) + self._suffix

    async def _open(self) -> aiohttp.ClientSession:
        # Two first requests may come here at once; the generator does not suspend before its yield.
        self._own = _own_session()
        self._session = await anext(self._own)
        return self._session


async def _own_session() -> AsyncGenerator[aiohttp.ClientSession]:
    # An async generator, since asyncio closes those that are open when a loop ends: a client that
    # nobody closed leaves no "Unclosed client session" behind, and lives on in the next loop.
    # No limit of connections: the leases bound how many there are. A wait for a connection would
    # use up the timeout, and the request would leave with too little time left for its answer.
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    try:
        yield session
    finally:
        await session.close()


def proxy_of(base_url: str) -> tuple[str | None, Mapping[str, str] | None]:
    """The proxy that the environment names for a URL, and the headers to send to it.

    Read as most programs do: ``HTTPS_PROXY`` and ``NO_PROXY``, in upper or lower case, or else the
    settings of macOS or Windows. Plain http has no proxy: it is for loopback, and would show the
    key to the proxy.

    Raises:
        ConfigurationError: it is no URL of an HTTP proxy.
    """
    target = urlsplit(base_url)
    given = getproxies().get("https") if target.scheme == "https" else None
    if not given or proxy_bypass(target.netloc) or proxy_bypass(target.hostname or ""):
        return None, None
    proxy = _http_proxy(given)
    del given  # some tools print the locals of a traceback
    if proxy is None:
        raise ConfigurationError(_PROXY_URL)
    host, port, headers = proxy.hostname or "", proxy.port, {}
    if proxy.username is not None:
        login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(login).decode()}"
    place = f"[{host}]" if ":" in host else host
    return f"{proxy.scheme}://{place}" + (f":{port}" if port else ""), headers


def _http_proxy(url: str) -> SplitResult | None:
    """The parts of a proxy's URL, whose scheme may be left out; ``None`` if it is no HTTP proxy."""
    try:
        proxy = urlsplit(url if "://" in url else f"http://{url}")
        known = proxy.scheme in ("http", "https") and proxy.hostname and proxy.port != 0
    except ValueError:
        return None
    return proxy if known else None


@cache
def _user_agent() -> str:
    from importlib.metadata import version  # it is slow to import

    return f"braze_sends/{version('braze_sends')} aiohttp/{aiohttp.__version__}"


def _joined(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers that are read; a header sent twice is joined, RFC 9110 section 5.3."""
    found = ((name, response.headers.getall(name, ())) for name in NAMES)
    return {name: ", ".join(values) for name, values in found if values}


async def _read(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    length = response.content_length
    if length is not None and length <= MAX_BODY and hdrs.CONTENT_ENCODING not in response.headers:
        return await response.read(), False
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(65_536):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY:
            response.close()
            return b"", True
    return b"".join(chunks), False


def _problem(error: Exception, session: aiohttp.ClientSession) -> str:
    """What is wrong with the session passed, if aiohttp refuses to send with it; else empty."""
    # aiohttp has no classes for these errors, hence their words. With ``trust_env`` it looks for
    # the host in .netrc. Only a middleware could put our header over that, and a middleware that
    # is passed with a request replaces those of the session.
    if isinstance(error, ValueError):
        return _NETRC if str(error).startswith("Cannot combine AUTHORIZATION header") else ""
    if session.closed or str(error) == "Event loop is closed":
        return "the session passed is closed, or its event loop has ended; pass an open one"
    return ""


def _advice(error: Exception) -> str:
    """What to do about a failure that another attempt would meet too; empty for any other."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _UNTRUSTED
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return _FINGERPRINT
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status in (403, 407):
        return f". The proxy refused with status {error.status}: check HTTPS_PROXY and its login"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        reason = str(getattr(error.os_error, "reason", None))
        return _NO_TLS if any(part in reason for part in _FOR_EVER) else ""
    return ""


def _diagnosis(error: Exception) -> str:
    """How to find out why a host cannot be reached; empty for a connection that was there."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return ""
    return "; to find the cause, run: braze-sends doctor"


def _bare(error: Exception) -> Exception:
    """An error of aiohttp's without what was sent, which may be a password of the proxy."""
    if isinstance(error, aiohttp.ClientResponseError):
        info = error.request_info
        sent = info.headers.copy()
        sent.clear()
        bare = aiohttp.RequestInfo(info.url, info.method, type(info.headers)(sent), info.url)
        return type(error)(bare, (), status=error.status, message=error.message)
    return error.with_traceback(None)


def _reason(error: BaseException, what: str, sent: bool) -> str:
    # Only the system's words are told: aiohttp's may quote an answer, or a proxy's password.
    said = [type(error).__name__]
    if isinstance(error, aiohttp.ClientConnectorError):
        what = f"cannot connect to {error.host}"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        said.append(str(error.status))
    if isinstance(error, OSError) and error.strerror:
        said.append(error.strerror)
    return f"{what} ({': '.join(said)}){'' if sent else '; nothing was sent'}"
