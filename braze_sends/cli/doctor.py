"""What the doctor looks at: the settings, one request by the client, and the store.

The request is a ``HEAD /`` without the key, which costs no quota. What is written to the store is a
record of the doctor's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import typer
from aiohttp import ClientHttpProxyError, ClientProxyConnectionError, ClientResponseError
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from braze_sends import (
    ConfigurationError,
    MemoryStore,
    Ping,
    SendsClient,
    Store,
    StoreError,
    check_store,
    open_store,
)
from braze_sends.cli import common

LONGEST = 8.0  # seconds for a whole check
SOON = timedelta(days=14)  # a certificate would be renewed before so little is left of it
CLOCK_OFF = 5.0  # seconds by which a clock may be off
SHOWN = 3  # addresses of a host

OK, WARNING, FAILED, NOT_CHECKED = "ok", "warning", "failed", "not checked"
_STYLES: Final = {OK: "green", WARNING: "yellow", FAILED: "bold red", NOT_CHECKED: "dim"}

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

#: What to do about a certificate, by OpenSSL's X509_V_ERR_…: not yet valid, expired, another name.
#: https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
_CERTIFICATE = {
    **dict.fromkeys((9, 10), "is this machine's clock right?"),
    **dict.fromkeys((62, 64), "is the base URL right?"),
}
_UNTRUSTED = "if a proxy opens TLS here, name its CA's file in SSL_CERT_FILE"
_SERVER = "is the server up, and may this machine use it?"


def examine(
    base_url: str | None,
    store: str | None,
    workspace: str | None,
    key_file: str | None,
    as_json: bool,
) -> None:
    """Make every check in its order, and exit with 1 if one failed."""
    doctor = _Doctor(as_json)
    doctor.look_at_key(key_file)
    doctor.look_at_instance(base_url)
    asyncio.run(doctor.look_at_store(store or "memory://", workspace))
    doctor.skip(
        "the key, its permission sends.id.create and this address: only a create tells whether "
        "Braze accepts them, and that costs a slot",
        "Access",
    )
    healthy = all(check["status"] != FAILED for check in doctor.checks)
    if as_json:
        common.print_json({"ok": healthy, "checks": doctor.checks})
    if not healthy:
        raise typer.Exit(common.ERROR)


class _Doctor:
    """The checks; one that fails stops none that can do without it."""

    def __init__(self, as_json: bool) -> None:
        self.checks: list[dict[str, str]] = []
        self._console = None if as_json else Console()
        self._key: str | None = None
        self._url: str | None = None

    def tell(self, check: str, status: str, detail: str) -> None:
        """Note, and show, how a check ended."""
        if self._key is not None:  # it may have been given in another's place
            detail = re.sub(re.escape(self._key), "***", detail, flags=re.IGNORECASE)
        detail = common.printable(detail)
        self.checks.append({"check": check, "status": status, "detail": detail})
        if self._console is None:
            return
        with common.printing():
            if not self._console.is_terminal:  # one line each, however long
                typer.echo(f"{status:<13}{check:<10}{detail}")
                return
            columns = Column(width=11), Column(width=8), Column(overflow="fold")
            row = Table.grid(*columns, padding=(0, 2, 0, 0))
            row.add_row(Text(status, _STYLES[status]), Text(check, "bold"), Text(detail))
            self._console.print(row)

    def skip(self, reason: str, *checks: str) -> None:
        """Tell what is not checked."""
        for check in checks:
            self.tell(check, NOT_CHECKED, reason)

    def look_at_key(self, key_file: str | None) -> None:
        """Where the key is from, and whether it can be one."""
        if key_file == "-":
            source = "standard input"
        elif key_file is not None:  # without the path: it may be the key, given there by mistake
            source = "the file named by --api-key-file"
        else:
            source = "BRAZE_API_KEY" if os.environ.get("BRAZE_API_KEY") else "the prompt"
        try:
            key = common.api_key(key_file)
            SendsClient(key, base_url="US-01", store=MemoryStore())
        except ConfigurationError as error:
            self.tell("API key", FAILED, str(error))
            return
        self._key = key
        shape = "of the usual form" if _UUID.fullmatch(key) else "but no UUID, as Braze's keys are"
        self.tell("API key", OK, f"from {source}, {shape}")

    # --- network ---------------------------------------------------------------------------------

    def look_at_instance(self, base_url: str | None) -> None:
        """The base URL, and what one request to it tells."""
        try:
            memory = MemoryStore()
            braze = SendsClient("none", base_url=base_url or "", store=memory, timeout=LONGEST)
        except ConfigurationError as error:
            self.tell("Instance", FAILED, str(error))
            self.skip("needs a base URL", "DNS", "TLS", "Server", "Clock")
            return
        self._url = braze.base_url
        name = braze.instance or "not one of the known instances"
        self.tell("Instance", OK, f"{braze.base_url}, {name}")
        parts = urlsplit(braze.base_url)
        secure = parts.scheme == "https"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        if braze.proxy is not None:
            self.skip(f"left to {braze.proxy}, the proxy of HTTPS_PROXY", "DNS")
        if braze.proxy is not None or self._look_up(host, port):
            asyncio.run(self._ping(braze, host, port, secure))
        else:
            self.skip("needs DNS", "TLS", "Server", "Clock")

    def _look_up(self, host: str, port: int) -> bool:
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            self.skip(f"nothing to look up: {host} is an address", "DNS")
            return True
        # The values are not shown: they may hold a password.
        proxies = [name for name in os.environ if name.upper() == "ALL_PROXY"]
        note = f"; {proxies[0]} is set, which the client does not use" if proxies else ""
        try:
            found = asyncio.run(_addresses(host, port))
        except OSError as error:
            detail = f"{host}: {_why(error)}; check the base URL and the network{note}"
            self.tell("DNS", FAILED, detail)
            return False
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        self.tell("DNS", OK, f"{host} is {', '.join(found[:SHOWN])}{more}{note}")
        return True

    async def _ping(self, braze: SendsClient, host: str, port: int, secure: bool) -> None:
        async with braze:
            sent = time.time()
            ping = await braze.ping()
            received = time.time()
        if not secure and common.is_loopback(host):
            self.skip("plain http on loopback", "TLS")
        elif not secure:
            self.tell("TLS", WARNING, f"plain http: the key travels unencrypted to {host}")
        elif ping.certificate_ends is None:
            self.tell("TLS", FAILED, _no_answer(ping.error, host, port))
            self.skip("needs TLS", "Server", "Clock")
            return
        else:
            left = ping.certificate_ends - common.now()
            until = f"{ping.certificate_ends:%d %b %Y}, in {left.days} days"
            status = WARNING if left < SOON else OK
            self.tell("TLS", status, f"{ping.tls}, certificate good until {until}")
        if ping.status_code is None:
            self.tell("Server", FAILED, _no_answer(ping.error, host, port))
            self.skip("needs Server", "Clock")
            return
        took = f"answers in {1000 * (received - sent):.0f} ms"
        code = f"status {ping.status_code}"
        if ping.status_code >= 500:
            self.tell("Server", WARNING, f"{took}, but with {code}; try again later")
        else:
            self.tell("Server", OK, f"{took} ({code}; asked without a key, so any status is fine)")
        self._clock(ping, sent, received)

    def _clock(self, ping: Ping, sent: float, received: float) -> None:
        if ping.date is None:
            self.skip("the server does not tell the time", "Clock")
            return
        if ping.cached:
            self.skip("the answer is an old one, from a cache", "Clock")
            return
        # Date has whole seconds and was written between ``sent`` and ``received``.
        date = ping.date.timestamp()
        ahead = max(sent - date - 1.0, min(0.0, received - date))
        told = "agrees with the server's"
        if round(ahead):
            way = "ahead of" if ahead > 0 else "behind"
            told = f"{common.span(abs(ahead))} {way} the server's"
        if abs(ahead) <= CLOCK_OFF:
            self.tell("Clock", OK, told)
        else:
            safe = "the quota is safe, as the client goes by the server's"
            advice = "set it right: TLS and more depend on it"
            self.tell("Clock", WARNING, f"{told}; {safe}, but {advice}")

    # --- store -----------------------------------------------------------------------------------

    async def look_at_store(self, url: str, workspace: str | None) -> None:
        """The store, and what it knows of the quota."""
        try:
            if "://" not in url:  # not shown at all: it may be the key, given there by mistake
                raise ConfigurationError(
                    "no URL of a store: use memory://, sqlite:///file.db, redis://host/0 or "
                    "postgresql://host/database"
                )
            store = open_store(url)
        except ConfigurationError as error:
            self.tell("Store", FAILED, str(error))
            self.skip("needs Store", "Quota")
            return
        began = time.perf_counter()
        try:
            if not await self._in_time("Store", url, check_store(store)):
                self.skip("needs Store", "Quota")
                return
            took = 1000 * (time.perf_counter() - began)
            if url == "memory://":
                lost = "gone when a command ends, and shared with no other process"
                self.tell("Store", WARNING, f"memory: {lost}; --store names one that lasts")
            else:
                self.tell("Store", OK, f"{_place(url)}: written and read in {took:.0f} ms")
            await self._in_time("Quota", url, self._quota(store, workspace))
        finally:
            await store.close()  # a locked SQLite file keeps this waiting, up to 30 s in all

    async def _in_time(self, name: str, url: str, check: Coroutine[Any, Any, None]) -> bool:
        """Whether a check came to its end in time; if not, that is told."""
        sqlite = url.startswith("sqlite:")
        try:
            async with asyncio.timeout(LONGEST):
                await check
            return True
        except TimeoutError:
            advice = "does another program hold its lock?" if sqlite else _SERVER
            detail = f"{_place(url)}: no answer within {LONGEST:g} s; {advice}"
        except (StoreError, ConfigurationError) as error:
            detail = str(error)  # which says what to do
        else:
            return True
        self.tell(name, FAILED, detail)
        return False

    async def _quota(self, store: Store, workspace: str | None) -> None:
        if workspace is None and (self._key is None or self._url is None):
            self.skip("the workspace follows from key and base URL, or from --workspace", "Quota")
            return
        # Where the workspace has a name, key and URL play no part.
        key, url = self._key or "none", self._url or "US-01"
        quota = await SendsClient(key, base_url=url, store=store, workspace=workspace).quota()
        told = "nothing known yet: Braze tells it when a send ID is created"
        if quota.resets_at is not None:
            until = common.moment(quota.resets_at)
            told = f"{quota.remaining} of {quota.limit} left until {until}"
        if quota.in_flight:
            told += f", {quota.in_flight} in flight"
        if quota.unconfirmed:
            told += f", {quota.unconfirmed} unconfirmed"
        self.tell("Quota", OK if quota.remaining else WARNING, told)


async def _addresses(host: str, port: int) -> list[str]:
    async with asyncio.timeout(LONGEST):
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def _no_answer(error: Exception | None, host: str, port: int) -> str:
    """Why there was no answer, and what to do about it."""
    if isinstance(error, ClientProxyConnectionError):
        return f"the proxy of HTTPS_PROXY cannot be reached: {_why(error.os_error)}; is it right?"
    if isinstance(error, ClientHttpProxyError):
        return f"the proxy refuses with status {error.status}; check HTTPS_PROXY"
    error = getattr(error, "os_error", error)  # without aiohttp's words around it
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = _CERTIFICATE.get(error.verify_code, _UNTRUSTED)
        return f"certificate: {error.verify_message.rstrip('.')}; {advice}"
    if isinstance(error, ssl.SSLError):
        reason = str(error.reason).replace("_", " ").lower()
        return f"no TLS on port {port} ({reason}); is the base URL right?"
    if isinstance(error, ClientResponseError):  # whose words quote what came
        return "does not speak HTTP; is the base URL right?"
    return f"{host} port {port}: {_why(error)}; check the base URL, the network and its firewall"


def _why(error: Exception | None) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    # asyncio's words for a refused connection repeat the address; lookups have numbers below 0.
    return os.strerror(error.errno) if error.errno > 0 else error.strerror or str(error)


def _place(url: str) -> str:
    """The store in words, without what may be a password."""
    if path := common.file_of(url):
        return f"SQLite {Path(path).absolute()}"
    parts = urlsplit(url)
    return f"{parts.scheme}://{(parts.netloc + parts.path).rpartition('@')[2]}"
