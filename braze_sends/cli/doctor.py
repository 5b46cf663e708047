"""``braze-sends doctor``: looks at all that a create needs, without making one.

What is sent to Braze is one ``HEAD /`` without the key, which costs no quota; what is written to
the store is a record of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

import attrs
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import braze_sends
from braze_sends import ConfigurationError, Store, StoreError, headers, open_store
from braze_sends.cli.common import (
    ERROR,
    BaseUrlOption,
    JsonOption,
    KeyFileOption,
    StoreOption,
    WorkspaceOption,
    api_key,
    moment,
    now,
    print_json,
    printable,
    printing,
    span,
)
from braze_sends.quota.rule.ledger import Lease
from braze_sends.quota.rule.messages import Status
from braze_sends.settings import INSTANCES, ApiKey, Settings, checked_base_url
from braze_sends.stores.store import Transaction

T = TypeVar("T")

#: The workspace that is written to, never the real one.
SCRATCH: Final = "braze-sends doctor"
#: Seconds for one step on a socket, and for a whole check.
STEP, LONGEST = 3.0, 8.0
#: A certificate that ends within this is worth a warning; it would be renewed by then.
SOON = timedelta(days=14)
#: Seconds by which a clock may be off.
CLOCK_OFF = 5.0
#: How many addresses of a host are shown.
SHOWN = 3

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

#: What to do about a certificate, by OpenSSL's X509_V_ERR_…: not yet valid, expired, another name.
#: https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/
_CERTIFICATE = {
    9: "is this machine's clock right?",
    10: "is this machine's clock right?",
    62: "is the base URL right?",
    64: "is the base URL right?",
}
_UNTRUSTED = "if a proxy opens TLS here, name its CA's file in SSL_CERT_FILE"
_SERVER = "is the server up, and may this machine use it?"


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


_STYLES = {
    Verdict.OK: "green",
    Verdict.WARNING: "yellow",
    Verdict.FAILED: "bold red",
    Verdict.NOT_CHECKED: "dim",
}


@attrs.frozen
class Check:
    """What was looked at, how it ended, and what there is to say about it."""

    check: str
    status: Verdict
    detail: str


def doctor(
    as_json: JsonOption = False,
    base_url: BaseUrlOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Check the set-up: key, network, clock and store; costs no quota.

    The exit code is 1 if a check failed, and 0 otherwise, warnings or not.
    """
    console, checks = Console(), []
    for check in examine(base_url, store, workspace, api_key_file):
        checks.append(check)
        if not as_json:
            with printing():
                _show(check, console)
    healthy = all(check.status is not Verdict.FAILED for check in checks)
    if as_json:
        print_json({"ok": healthy, "checks": [attrs.asdict(check) for check in checks]})
    if not healthy:
        raise typer.Exit(ERROR)


def _show(check: Check, console: Console) -> None:
    if not console.is_terminal:  # one line each, however long
        typer.echo(f"{check.status:<13}{check.check:<10}{check.detail}")
        return
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=11)
    row.add_column(width=8)
    row.add_column(overflow="fold")
    style = _STYLES[check.status]
    row.add_row(Text(check.status, style), Text(check.check, "bold"), Text(check.detail))
    console.print(row)


def examine(
    base_url: str | None, store: str | None, workspace: str | None, key_file: str | None
) -> Iterator[Check]:
    """Every check in its order; one that fails stops none that can do without it."""
    key, first = _api_key(key_file)
    clean = str if key is None else ApiKey(key).scrub
    for check in chain([first], _after_key(key, base_url, store, workspace)):
        yield attrs.evolve(check, detail=printable(clean(check.detail)))


def _after_key(
    key: str | None, base_url: str | None, store: str | None, workspace: str | None
) -> Iterator[Check]:
    url, check = _instance(base_url)
    yield check
    if url is None:
        yield from _skipped("needs a base URL", "DNS", "TLS", "Server", "Clock")
    else:
        yield from _network(url)
    yield from _storage(store, lambda: _workspace(key, url, workspace))
    yield Check(
        "Access",
        Verdict.NOT_CHECKED,
        "the key, its permission sends.id.create and this address: only a create tells whether "
        "Braze accepts them, and that costs a slot",
    )


def _skipped(reason: str, *names: str) -> Iterator[Check]:
    return (Check(name, Verdict.NOT_CHECKED, reason) for name in names)


# --- settings ------------------------------------------------------------------------------------


def _api_key(key_file: str | None) -> tuple[str | None, Check]:
    source = "the prompt"
    if key_file is not None:
        # Without the path: it may be the key, given there by mistake.
        source = "standard input" if key_file == "-" else "the file named by --api-key-file"
    elif os.environ.get("BRAZE_API_KEY"):
        source = "BRAZE_API_KEY"
    try:
        key = api_key(key_file)
        ApiKey(key)
    except ConfigurationError as error:
        return None, Check("API key", Verdict.FAILED, str(error))
    shape = "of the usual form" if _UUID.fullmatch(key) else "but no UUID, as Braze's keys are"
    return key, Check("API key", Verdict.OK, f"from {source}, {shape}")


def _instance(base_url: str | None) -> tuple[str | None, Check]:
    try:
        url = checked_base_url(base_url or "")
    except ConfigurationError as error:
        return None, Check("Instance", Verdict.FAILED, str(error))
    names = {known: name for name, known in INSTANCES.items()}
    name = names.get(url.lower(), "not one of the known instances")
    return url, Check("Instance", Verdict.OK, f"{url}, {name}")


def _workspace(key: str | None, url: str | None, workspace: str | None) -> str | None:
    if workspace is None and (key is None or url is None):
        return None
    return Settings.of(
        {},
        # Key and URL play no part where the workspace has a name.
        api_key=key or "none",
        base_url=url or "US-01",
        workspace=workspace,
        max_retries=0,
        max_rate_limit_wait=None,
        daily_limit=None,
        send_id_factory=None,
    ).workspace


# --- network -------------------------------------------------------------------------------------


@attrs.frozen
class _Server:
    """Where the base URL points to."""

    host: str
    port: int
    secure: bool

    @classmethod
    def of(cls, url: str) -> _Server:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        return cls(parts.hostname or "", parts.port or (443 if secure else 80), secure)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), STEP)

    def connect_securely(self) -> ssl.SSLSocket:
        context = ssl.create_default_context()  # with the next line, what aiohttp makes
        context.set_alpn_protocols(["http/1.1"])
        return context.wrap_socket(self.connect(), server_hostname=self.host.rstrip("."))


def _network(url: str) -> Iterator[Check]:
    server = _Server.of(url)
    dns = _dns(server)
    yield dns
    if dns.status is Verdict.FAILED:
        yield from _skipped("needs DNS", "TLS", "Server", "Clock")
        return
    tls = _tls(server)
    yield tls
    if tls.status is Verdict.FAILED:
        yield from _skipped("needs TLS", "Server", "Clock")
        return
    yield from _answer(server)


def _dns(server: _Server) -> Check:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(server.host)
        return Check("DNS", Verdict.NOT_CHECKED, f"nothing to look up: {server.host} is an address")
    # The values are not shown: they may hold a password.
    proxies = [name for name in os.environ if name.upper() in ("HTTPS_PROXY", "ALL_PROXY")]
    note = f"; {proxies[0]} is set, which the client does not use" if proxies else ""
    try:
        found = _bounded(
            lambda: socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        )
    except OSError as error:
        detail = f"{server.host}: {_why(error)}; check the base URL and the network{note}"
        return Check("DNS", Verdict.FAILED, detail)
    addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
    more = f" and {len(addresses) - SHOWN} more" if len(addresses) > SHOWN else ""
    detail = f"{server.host} is {', '.join(addresses[:SHOWN])}{more}{note}"
    return Check("DNS", Verdict.OK, detail)


def _tls(server: _Server) -> Check:
    if not server.secure:
        return Check("TLS", Verdict.NOT_CHECKED, "plain http on loopback")

    def shake_hands() -> tuple[str, float]:
        with server.connect_securely() as line:
            certificate = line.getpeercert() or {}
            end = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
            return line.version() or "", end

    try:
        version, end = _bounded(shake_hands)
    except ssl.SSLCertVerificationError as error:
        advice = _CERTIFICATE.get(error.verify_code, _UNTRUSTED)
        detail = f"certificate: {error.verify_message.rstrip('.')}; {advice}"
        return Check("TLS", Verdict.FAILED, detail)
    except ssl.SSLError as error:
        reason = str(error.reason).replace("_", " ").lower()
        detail = f"no TLS on port {server.port} ({reason}); is the base URL right?"
        return Check("TLS", Verdict.FAILED, detail)
    except OSError as error:
        return Check("TLS", Verdict.FAILED, _unreachable(server, error))
    until = datetime.fromtimestamp(end, UTC)
    left = until - now()
    return Check(
        "TLS",
        Verdict.WARNING if left < SOON else Verdict.OK,
        f"{version}, certificate good until {until:%d %b %Y}, in {left.days} days",
    )


def _answer(server: _Server) -> Iterator[Check]:
    try:
        status, took, clock = _bounded(lambda: _ask(server))
    except OSError as error:
        yield Check("Server", Verdict.FAILED, _unreachable(server, error))
    except HTTPException:
        # Without its words: they quote what came.
        yield Check("Server", Verdict.FAILED, "does not speak HTTP; is the base URL right?")
    else:
        answers = f"answers in {1000 * took:.0f} ms"
        if status >= 500:
            detail = f"{answers}, but with status {status}; try again later"
            yield Check("Server", Verdict.WARNING, detail)
        else:
            detail = f"{answers} (status {status}; without a key any will do)"
            yield Check("Server", Verdict.OK, detail)
        yield clock
        return
    yield from _skipped("needs Server", "Clock")


def _ask(server: _Server) -> tuple[int, float, Check]:
    """Status, seconds for the round trip, and what the answer says of our clock."""
    with contextlib.closing(HTTPConnection(server.host, server.port)) as connection:
        connection.sock = server.connect_securely() if server.secure else server.connect()
        sent, began = time.time(), time.perf_counter()
        # Without the key and away from the path of a create, it can cost nothing.
        agent = f"braze_sends/{braze_sends.__version__}"
        connection.request("HEAD", "/", headers={"User-Agent": agent})
        with connection.getresponse() as response:
            took = time.perf_counter() - began
            return response.status, took, _clock(response, sent, time.time())


def _clock(response: HTTPResponse, sent: float, received: float) -> Check:
    date = headers.read({"date": response.getheader("Date", "")}, received).date
    if date is None:
        return Check("Clock", Verdict.NOT_CHECKED, "the server does not tell the time")
    if response.getheader("Age", "0") != "0":
        return Check("Clock", Verdict.NOT_CHECKED, "the answer is an old one, from a cache")
    # Date has whole seconds and was written between ``sent`` and ``received``.
    ahead = max(sent - date - 1.0, min(0.0, received - date))
    if not round(ahead):
        return Check("Clock", Verdict.OK, "agrees with the server's")
    off = f"{span(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the server's"
    if abs(ahead) <= CLOCK_OFF:
        return Check("Clock", Verdict.OK, off)
    return Check(
        "Clock",
        Verdict.WARNING,
        f"{off}; the quota is safe, as the client goes by the server's, but set it right: TLS and "
        "more depend on it",
    )


def _bounded(probe: Callable[[], T]) -> T:
    """What ``probe`` gives, within ``LONGEST``.

    In a thread that is left behind otherwise: a lookup knows no timeout, and a server that sends a
    byte a second never meets that of a socket.

    Raises:
        TimeoutError: it took longer.
    """
    future = Future[T]()

    def run() -> None:
        try:
            future.set_result(probe())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(LONGEST)


def _unreachable(server: _Server, error: OSError) -> str:
    return (
        f"{server.host} port {server.port}: {_why(error)}; check the base URL, the network and its "
        "firewall"
    )


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error)


# --- store ---------------------------------------------------------------------------------------


def _storage(url: str | None, workspace: Callable[[], str | None]) -> Iterator[Check]:
    if url is None:
        url = "memory://"
    try:
        if "://" not in url:  # not shown at all: it may be the key, given there by mistake
            raise ConfigurationError(
                "no URL of a store: use memory://, sqlite:///file.db or redis://host/0"
            )
        store = open_store(url)
    except ConfigurationError as error:
        yield Check("Store", Verdict.FAILED, str(error))
        yield from _skipped("needs Store", "Quota")
    else:
        yield from asyncio.run(_look_at(store, url, workspace))


async def _look_at(store: Store, url: str, workspace: Callable[[], str | None]) -> list[Check]:
    try:
        told = await _in_time("Store", url, _written(store, url))
        if told.status is Verdict.FAILED:
            return [told, *_skipped("needs Store", "Quota")]
        return [told, await _in_time("Quota", url, _quota(store, workspace))]
    finally:
        await store.close()  # a locked SQLite file keeps this waiting, up to 30 s in all


async def _in_time(name: str, url: str, check: Coroutine[None, None, Check]) -> Check:
    sqlite = url.startswith("sqlite:")
    try:
        async with asyncio.timeout(LONGEST):
            return await check
    except TimeoutError:
        advice = "does another program hold its lock?" if sqlite else _SERVER
        detail = f"{_place(url)}: no answer within {LONGEST:g} s; {advice}"
    except StoreError as error:
        # SQLite's say what to do. If the store is well, the record is not, and the error says so.
        detail = f"{error}" if sqlite or name == "Quota" else f"{str(error).rstrip('.')}; {_SERVER}"
    except ConfigurationError as error:
        detail = str(error)
    return Check(name, Verdict.FAILED, detail)


async def _written(store: Store, url: str) -> Check:
    lease = uuid.uuid4().hex  # its own, so that two doctors at once do no harm

    def write(transaction: Transaction) -> None:
        now, bucket = transaction.now, transaction.bucket
        bucket.advance(now)  # drops what a doctor left that was killed
        bucket.leases[lease] = Lease(
            pair=None, attempt=None, begun=now, deadline=now + LONGEST, ripe=now
        )

    def take_back(transaction: Transaction) -> bool:
        return transaction.bucket.leases.pop(lease, None) is not None

    began = time.perf_counter()
    await store.transact(SCRATCH, (), write)
    if not await store.transact(SCRATCH, (), take_back):
        raise StoreError(f"{_place(url)}: what was written is not there when read")
    took = 1000 * (time.perf_counter() - began)
    if url == "memory://":
        return Check(
            "Store",
            Verdict.WARNING,
            "memory: gone when a command ends, and shared with no other process; --store names one "
            "that lasts",
        )
    return Check("Store", Verdict.OK, f"{_place(url)}: written and read in {took:.0f} ms")


async def _quota(store: Store, workspace: Callable[[], str | None]) -> Check:
    name = workspace()
    if name is None:
        reason = "the workspace follows from key and base URL, or from --workspace"
        return Check("Quota", Verdict.NOT_CHECKED, reason)

    def look(transaction: Transaction) -> Status:
        bucket = transaction.bucket.copy()  # not kept, so that nothing is written
        bucket.advance(transaction.now)
        return bucket.status()

    status = await store.transact(name, (), look)
    told = "nothing known yet: Braze tells it when a send ID is created"
    if status.reset is not None:
        resets_at = datetime.fromtimestamp(status.reset, UTC)
        told = f"{status.remaining} of {status.limit} left until {moment(resets_at)}"
    if status.in_flight:
        told += f", {status.in_flight} in flight"
    if status.unconfirmed:
        told += f", {status.unconfirmed} unconfirmed"
    return Check("Quota", Verdict.OK if status.remaining else Verdict.WARNING, told)


def _place(url: str) -> str:
    """The store in words, without what may be a password."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return f"SQLite {Path(url.removeprefix('sqlite:///')).absolute()}"
    return f"{parts.scheme}://{(parts.netloc + parts.path).rpartition('@')[2]}"
