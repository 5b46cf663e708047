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
from rich.table import Table
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
from braze_sends.cli.common import (
    ERROR,
    api_key,
    moment,
    now,
    print_json,
    printable,
    printing,
    span,
)

#: Seconds for a whole check.
LONGEST = 8.0
#: A certificate that ends within this is worth a warning; it would be renewed by then.
SOON = timedelta(days=14)
#: Seconds by which a clock may be off.
CLOCK_OFF = 5.0
#: How many addresses of a host are shown.
SHOWN = 3

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

#: What to do about a certificate, by OpenSSL's X509_V_ERR_…: not yet valid, expired, another name.
#: https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
_CERTIFICATE = dict.fromkeys((9, 10), "is this machine's clock right?")
_CERTIFICATE |= dict.fromkeys((62, 64), "is the base URL right?")
_UNTRUSTED = "if a proxy opens TLS here, name its CA's file in SSL_CERT_FILE"
_SERVER = "is the server up, and may this machine use it?"


OK, WARNING, FAILED, NOT_CHECKED = "ok", "warning", "failed", "not checked"
_STYLES: Final = {OK: "green", WARNING: "yellow", FAILED: "bold red", NOT_CHECKED: "dim"}


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
    doctor.tell(
        "Access",
        NOT_CHECKED,
        "the key, its permission sends.id.create and this address: only a create tells whether "
        "Braze accepts them, and that costs a slot",
    )
    healthy = all(check["status"] != FAILED for check in doctor.checks)
    if as_json:
        print_json({"ok": healthy, "checks": doctor.checks})
    if not healthy:
        raise typer.Exit(ERROR)


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
        detail = printable(detail)
        self.checks.append({"check": check, "status": status, "detail": detail})
        if self._console is None:
            return
        with printing():
            if not self._console.is_terminal:  # one line each, however long
                typer.echo(f"{status:<13}{check:<10}{detail}")
                return
            row = Table.grid(padding=(0, 2, 0, 0))
            row.add_column(width=11)
            row.add_column(width=8)
            row.add_column(overflow="fold")
            row.add_row(Text(status, _STYLES[status]), Text(check, "bold"), Text(detail))
            self._console.print(row)

    def skip(self, reason: str, *checks: str) -> None:
        """Tell what cannot be checked."""
        for check in checks:
            self.tell(check, NOT_CHECKED, reason)

    def look_at_key(self, key_file: str | None) -> None:
        """Where the key is from, and whether it can be one."""
        source = "the prompt"
        if key_file is not None:
            # Without the path: it may be the key, given there by mistake.
            source = "standard input" if key_file == "-" else "the file named by --api-key-file"
        elif os.environ.get("BRAZE_API_KEY"):
            source = "BRAZE_API_KEY"
        try:
            key = api_key(key_file)
            _client(key, None)
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
            braze = _client(None, base_url or "")
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
        if braze.proxy is not None or self._dns(host, port):
            self._answer(host, port, secure, *asyncio.run(_ping(braze)))
        else:
            self.skip("needs DNS", "TLS", "Server", "Clock")

    def _answer(
        self, host: str, port: int, secure: bool, ping: Ping, sent: float, received: float
    ) -> None:
        why = getattr(ping.error, "os_error", ping.error)  # without aiohttp's words around it
        words = f"{host} port {port}: {_why(why)}; check the base URL, the network and its firewall"
        if isinstance(ping.error, ClientProxyConnectionError):
            words = f"the proxy of HTTPS_PROXY cannot be reached: {_why(why)}; is it right?"
        elif isinstance(ping.error, ClientHttpProxyError):
            words = f"the proxy refuses with status {ping.error.status}; check HTTPS_PROXY"
        if not secure:
            self.tell("TLS", NOT_CHECKED, "plain http on loopback")
        elif ping.certificate_ends is None:
            self.tell("TLS", FAILED, _no_tls(why, port) or words)
            self.skip("needs TLS", "Server", "Clock")
            return
        else:
            left = ping.certificate_ends - now()
            until = f"{ping.certificate_ends:%d %b %Y}, in {left.days} days"
            status = WARNING if left < SOON else OK
            self.tell("TLS", status, f"{ping.tls}, certificate good until {until}")
        if ping.status_code is None:
            if isinstance(why, ClientResponseError):  # whose words quote what came
                words = "does not speak HTTP; is the base URL right?"
            self.tell("Server", FAILED, words)
            self.skip("needs Server", "Clock")
            return
        trouble = ping.status_code >= 500
        status = f"status {ping.status_code}"
        words = f"but with {status}; try again later"
        self.tell(
            "Server",
            WARNING if trouble else OK,
            f"answers in {1000 * (received - sent):.0f} ms"
            + (f", {words}" if trouble else f" ({status}; without a key any will do)"),
        )
        self._clock(ping, sent, received)

    def _dns(self, host: str, port: int) -> bool:
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            self.skip(f"nothing to look up: {host} is an address", "DNS")
            return True
        # The values are not shown: they may hold a password.
        proxies = [name for name in os.environ if name.upper() == "ALL_PROXY"]
        note = f"; {proxies[0]} is set, which the client does not use" if proxies else ""
        try:
            addresses = asyncio.run(_look_up(host, port))
        except OSError as error:
            detail = f"{host}: {_why(error)}; check the base URL and the network{note}"
            self.tell("DNS", FAILED, detail)
            return False
        more = f" and {len(addresses) - SHOWN} more" if len(addresses) > SHOWN else ""
        self.tell("DNS", OK, f"{host} is {', '.join(addresses[:SHOWN])}{more}{note}")
        return True

    def _clock(self, ping: Ping, sent: float, received: float) -> None:
        if ping.date is None or ping.cached:
            old, silent = (
                "the answer is an old one, from a cache",
                "the server does not tell the time",
            )
            self.skip(silent if ping.date is None else old, "Clock")
            return
        # Date has whole seconds and was written between ``sent`` and ``received``.
        date = ping.date.timestamp()
        ahead = max(sent - date - 1.0, min(0.0, received - date))
        told = "agrees with the server's"
        if round(ahead):
            told = f"{span(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the server's"
        if abs(ahead) > CLOCK_OFF:
            told += (
                "; the quota is safe, as the client goes by the server's, but set it right: TLS "
            )
            told += "and more depend on it"
        self.tell("Clock", WARNING if abs(ahead) > CLOCK_OFF else OK, told)

    # --- store -----------------------------------------------------------------------------------

    async def look_at_store(self, url: str, workspace: str | None) -> None:
        """The store, and what it knows of the quota."""
        try:
            if "://" not in url:  # not shown at all: it may be the key, given there by mistake
                raise ConfigurationError(
                    "no URL of a store: use memory://, sqlite:///file.db or redis://host/0"
                )
            store = open_store(url)
        except ConfigurationError as error:
            self.tell("Store", FAILED, str(error))
            self.skip("needs Store", "Quota")
            return
        try:
            if await self._in_time("Store", url, self._written(store, url)):
                await self._in_time("Quota", url, self._quota(store, workspace))
            else:
                self.skip("needs Store", "Quota")
        finally:
            await store.close()  # a locked SQLite file keeps this waiting, up to 30 s in all

    async def _in_time(self, name: str, url: str, check: Coroutine[Any, Any, None]) -> bool:
        """Whether a check came to its end in time; if not, that is told."""
        sqlite = url.startswith("sqlite:")
        try:
            async with asyncio.timeout(LONGEST):
                await check
        except TimeoutError:
            advice = "does another program hold its lock?" if sqlite else _SERVER
            detail = f"{_place(url)}: no answer within {LONGEST:g} s; {advice}"
        except StoreError as error:
            # SQLite's say what to do. If the store is well, the record is not, and so it is told.
            detail = str(error)
            if not sqlite and name != "Quota":
                detail = f"{detail.rstrip('.')}; {_SERVER}"
        except ConfigurationError as error:
            detail = str(error)
        else:
            return True
        self.tell(name, FAILED, detail)
        return False

    async def _written(self, store: Store, url: str) -> None:
        began = time.perf_counter()
        await check_store(store)
        took = 1000 * (time.perf_counter() - began)
        if url == "memory://":
            self.tell(
                "Store",
                WARNING,
                "memory: gone when a command ends, and shared with no other process; --store names "
                "one that lasts",
            )
        else:
            self.tell("Store", OK, f"{_place(url)}: written and read in {took:.0f} ms")

    async def _quota(self, store: Store, workspace: str | None) -> None:
        if workspace is None and (self._key is None or self._url is None):
            reason = "the workspace follows from key and base URL, or from --workspace"
            self.skip(reason, "Quota")
            return
        quota = await _client(self._key, self._url, store, workspace).quota()
        told = "nothing known yet: Braze tells it when a send ID is created"
        if quota.resets_at is not None:
            told = f"{quota.remaining} of {quota.limit} left until {moment(quota.resets_at)}"
        if quota.in_flight:
            told += f", {quota.in_flight} in flight"
        if quota.unconfirmed:
            told += f", {quota.unconfirmed} unconfirmed"
        self.tell("Quota", OK if quota.remaining else WARNING, told)


def _client(
    key: str | None, url: str | None, store: Store | None = None, workspace: str | None = None
) -> SendsClient:
    """A client of what is known; of the rest it takes what plays no part."""
    return SendsClient(
        "none" if key is None else key,
        base_url="US-01" if url is None else url,
        store=store or MemoryStore(),
        workspace=workspace,
        timeout=LONGEST,
    )


async def _look_up(host: str, port: int) -> list[str]:
    async with asyncio.timeout(LONGEST):
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


async def _ping(braze: SendsClient) -> tuple[Ping, float, float]:
    """With the times before and after."""
    async with braze:
        sent = time.time()
        return await braze.ping(), sent, time.time()


def _no_tls(error: Exception | None, port: int) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = _CERTIFICATE.get(error.verify_code, _UNTRUSTED)
        return f"certificate: {error.verify_message.rstrip('.')}; {advice}"
    if isinstance(error, ssl.SSLError):
        reason = str(error.reason).replace("_", " ").lower()
        return f"no TLS on port {port} ({reason}); is the base URL right?"
    return None


def _why(error: Exception | None) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    # asyncio's words for a refused connection repeat the address; lookups have numbers below 0.
    return os.strerror(error.errno) if error.errno > 0 else error.strerror or str(error)


def _place(url: str) -> str:
    """The store in words, without what may be a password."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return f"SQLite {Path(url.removeprefix('sqlite:///')).absolute()}"
    return f"{parts.scheme}://{(parts.netloc + parts.path).rpartition('@')[2]}"
