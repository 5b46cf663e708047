"""The doctor: real sockets, real TLS and real stores, each of them well and each of them ill."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import socketserver
import sqlite3
import ssl
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
from redis.backoff import ExponentialBackoff

from braze_sends import SQLiteStore, StoreError
from braze_sends.cli import doctor as module
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.ledger import Lease
from braze_sends.stores.check import SCRATCH
from braze_sends.stores.store import Transaction
from braze_sends.testing import FakeBraze, Fault
from tests.cli.conftest import KEY, Run
from tests.clocks import NOON, SharedClock
from tests.servers import free_port
from tests.waiting import LOOK, PATIENCE

T = TypeVar("T")

#: Each a key and its certificate for 127.0.0.1 and localhost.
CERTIFICATES = Path(__file__).parent / "certificates"
GOOD, EXPIRED = (str(CERTIFICATES / f"{name}.pem") for name in ("good", "expired"))
NAMES = ["API key", "Instance", "DNS", "TLS", "Server", "Clock", "Store", "Quota", "Access"]
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n"

Told = dict[str, tuple[str, str]]


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment says how the network is to be dealt with."""
    for name in ("HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def examine(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Run the doctor; status and detail by the name of the check."""

    def examine(*args: str, **options: Any) -> Told:
        if trusted := options.get("env", {}).get("SSL_CERT_FILE"):  # aiohttp reads it at import
            context = ssl.create_default_context(cafile=trusted)
            monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", context)
        result = run("doctor", "--json", *args, **options)
        told = json.loads(result.stdout)
        found = {check["check"]: (check["status"], check["detail"]) for check in told["checks"]}
        well = all(status != "failed" for status, _ in found.values())
        assert NAMES == list(found)
        assert ("", well, 0 if well else 1) == (result.stderr, told["ok"], result.exit_code)
        return found

    return examine


class Canned(socketserver.TCPServer):
    """A server that gives the same bytes to whatever is asked, and keeps what was."""

    def __init__(self, reply: bytes, certificate: str | None = None) -> None:
        super().__init__(("0.0.0.0", 0), _Handler)  # noqa: S104  # all addresses of loopback
        self.reply, self.asked = reply, list[bytes]()
        self.port = self.socket.getsockname()[1]
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        """Who goes away in the middle is no error here."""


class _Handler(socketserver.BaseRequestHandler):
    server: Canned

    def handle(self) -> None:
        if asked := self.request.recv(65536):
            self.server.asked.append(asked)
            self.request.sendall(self.server.reply)


Serve = Callable[..., Canned]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers of canned answers."""
    started = []

    def serve(reply: bytes = NO_CONTENT + b"\r\n", certificate: str | None = None) -> Canned:
        server = Canned(reply, certificate)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        started.append((server, thread))
        return server

    yield serve
    for server, thread in started:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()


@pytest.fixture
def silent(clock: SharedClock) -> Iterator[int]:
    """The port of a server that takes connections, and never says anything while time passes."""

    def accept_and_say_nothing() -> None:
        with server.accept()[0]:
            while not ended.wait(LOOK):  # closing what was opened may take its time, too
                clock.advance(module.LONGEST)

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = threading.Thread(target=accept_and_say_nothing)
        accepting.start()
        yield server.getsockname()[1]
        ended.set()
        accepting.join(PATIENCE)


# --- the whole -----------------------------------------------------------------------------------


def test_doctor_spends_nothing(run: Run, fake: FakeBraze) -> None:
    """All that Braze sees is one request for nothing, without the key."""
    assert 0 == run("doctor").exit_code
    assert [("HEAD", "/", False, b"")] == [
        (request.method, request.path, request.authorized, request.body)
        for request in fake.requests
    ]
    assert ([], 2) == (fake.created, fake.remaining)


def test_no_authorization_at_all(examine: Callable[..., Told], serve: Serve) -> None:
    """The request has no header for a key, and tells who asks."""
    server = serve()
    examine("--base-url", f"http://127.0.0.1:{server.port}")

    (asked,) = server.asked
    assert b"authorization" not in asked.lower()
    assert b"User-Agent: braze_sends/0.1.0 " in asked


def test_plain_lines_in_a_pipe(run: Run, fake: FakeBraze) -> None:
    """A pipe gets one line for each check: status, name and detail, in columns."""
    lines = run("doctor").stdout.splitlines()

    assert NAMES == [line[13:23].rstrip() for line in lines]
    assert f"ok           Instance  {fake.base_url}, not one of the known instances" == lines[1]
    assert "not checked  TLS       plain http on loopback" == lines[3]
    assert lines[6].startswith("warning      Store     memory: ")


def test_colours_on_a_terminal(run: Run) -> None:
    """A terminal gets colours, and long details wrapped in their column."""
    result = run("doctor", env={"FORCE_COLOR": "1", "COLUMNS": "60"})

    assert "\x1b[32mok " in result.stdout
    assert "\x1b[33mwarning " in result.stdout
    assert "\n                       " in result.stdout


def test_no_color(run: Run) -> None:
    """``NO_COLOR`` is respected."""
    result = run("doctor", env={"FORCE_COLOR": "1", "NO_COLOR": "1"})

    assert "\x1b[3" not in result.stdout


def test_failures_do_not_hide_each_other(examine: Callable[..., Told]) -> None:
    """Without key, base URL and store, each is told, and the rest is not checked."""
    env = {"BRAZE_API_KEY": None, "BRAZE_BASE_URL": None}
    told = examine("--store", "nowhere://", env=env)

    assert ["API key", "Instance", "Store"] == [
        name for name, (status, _) in told.items() if status == "failed"
    ]
    assert "set BRAZE_API_KEY" in told["API key"][1]
    assert "set BRAZE_BASE_URL" in told["Instance"][1]
    assert "use memory://" in told["Store"][1]
    assert [("not checked", "needs a base URL")] * 4 == [
        told[name] for name in ("DNS", "TLS", "Server", "Clock")
    ]
    assert ("not checked", "needs Store") == told["Quota"]


def test_what_only_a_create_tells(examine: Callable[..., Told]) -> None:
    """That the key was accepted is never claimed."""
    status, detail = examine()["Access"]

    assert "not checked" == status
    assert "sends.id.create" in detail


def test_an_unknown_option(run: Run) -> None:
    """Is wrong usage."""
    assert 2 == run("doctor", "--no-such-option").exit_code


# --- key and instance ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "source"),
    [
        ([], "BRAZE_API_KEY"),
        (["--api-key-file", "-"], "standard input"),
        (["--api-key-file", "key"], "the file named by --api-key-file"),
    ],
)
def test_where_the_key_is_from(
    examine: Callable[..., Told],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    args: list[str],
    source: str,
) -> None:
    """It is told where the key came from; its shape is worth a note and no warning."""
    monkeypatch.chdir(tmp_path)
    Path("key").write_text(KEY)
    Path("key").chmod(0o600)

    assert ("ok", f"from {source}, but no UUID, as Braze's keys are") == examine(*args, input=KEY)[
        "API key"
    ]


def test_key_from_a_prompt(
    examine: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, fake: FakeBraze
) -> None:
    """A key that was typed is told as such."""
    monkeypatch.setattr("braze_sends.cli.common.api_key", lambda key_file: KEY)
    told = examine(env={"BRAZE_API_KEY": None})

    assert told["API key"][1].startswith("from the prompt, ")


def test_usual_key(examine: Callable[..., Told]) -> None:
    """A key of the usual form is told to be, and not shown."""
    key = "d1f0a7c2-93be-4c58-8e61-5ab7740c29ef"
    told = examine(env={"BRAZE_API_KEY": key})

    assert ("ok", "from BRAZE_API_KEY, of the usual form") == told["API key"]
    assert not [piece for piece in key.split("-") if piece in str(told)]


@pytest.mark.parametrize("key", [f"'{KEY}'", f"Bearer {KEY}"])
def test_bad_key(examine: Callable[..., Told], key: str) -> None:
    """A key of a form that Braze refuses fails, and the network is looked at all the same."""
    told = examine(env={"BRAZE_API_KEY": key})

    assert "failed" == told["API key"][0]
    assert "ok" == told["Server"][0]
    assert "not checked" == told["Quota"][0]


def test_key_in_the_wrong_place(run: Run, fake: FakeBraze) -> None:
    """A key given as URL, store or path is not repeated, in whole or in part."""
    for option in ("--base-url", "--store", "--api-key-file"):
        result = run("doctor", option, KEY)
        assert 1 == result.exit_code
        assert KEY[:8] not in result.output
    assert "/***, not one" in run("doctor", "--base-url", f"{fake.base_url}/{KEY}").stdout


# --- network -------------------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have every name mean the given addresses, at a port."""

    def names(port: int, *addresses: str) -> None:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)

    return names


def test_other_name_in_the_certificate(
    examine: Callable[..., Told], serve: Serve, names: Callable[..., None]
) -> None:
    """A known instance is named, with some of its addresses; who answers there has to be it."""
    names(serve(certificate=GOOD).port, *(f"127.0.0.{n}" for n in range(1, 6)))
    told = examine("--base-url", "us-01", env={"SSL_CERT_FILE": GOOD})

    assert ("ok", "https://rest.iad-01.braze.com, US-01") == told["Instance"]
    assert "rest.iad-01.braze.com is 127.0.0.1, 127.0.0.2, 127.0.0.3 and 2 more" == told["DNS"][1]
    assert "failed" == told["TLS"][0]
    assert "Hostname mismatch" in told["TLS"][1]
    assert told["TLS"][1].endswith("; is the base URL right?")


def test_unknown_host(examine: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that cannot be looked up fails, and what needs it is not checked."""

    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    told = examine("--base-url", "EU-01")

    detail = "rest.fra-01.braze.eu: Name or service not known; check the base URL and the network"
    assert ("failed", detail) == told["DNS"]
    assert [("not checked", "needs DNS")] * 3 == [told[n] for n in ("TLS", "Server", "Clock")]
    assert "ok" == told["Quota"][0]


def test_lookup_that_hangs(
    examine: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, clock: SharedClock
) -> None:
    """A lookup, which knows no timeout, is given up."""
    ended = threading.Event()
    closed = asyncio.BaseEventLoop.shutdown_default_executor

    def look_up(*_: Any, **__: Any) -> None:
        while not ended.wait(LOOK):
            clock.advance(module.LONGEST)

    async def end_and_close(loop: asyncio.BaseEventLoop, *args: Any) -> None:
        ended.set()
        await closed(loop, *args)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(asyncio.BaseEventLoop, "shutdown_default_executor", end_and_close)
    told = examine("--base-url", "US-01")

    assert "failed" == told["DNS"][0]
    assert ": no answer in time; " in told["DNS"][1]


def test_a_proxy_that_refuses_is_told(examine: Callable[..., Told], serve: Serve) -> None:
    """The host is looked up by the proxy, whose password is not shown."""
    proxy = serve(b"HTTP/1.1 407 Who are you\r\n\r\n")
    url = f"http://me:pa55@127.0.0.1:{proxy.port}"
    told = examine("--base-url", "US-01", env={"HTTPS_PROXY": url})

    left = f"left to http://127.0.0.1:{proxy.port}, the proxy of HTTPS_PROXY"
    assert ("not checked", left) == told["DNS"]
    assert ("failed", "the proxy refuses with status 407; check HTTPS_PROXY") == told["TLS"]
    assert proxy.asked[0].startswith(b"CONNECT rest.iad-01.braze.com:443 ")


def test_a_proxy_that_cannot_be_reached_is_told(examine: Callable[..., Told]) -> None:
    """It is told from Braze, and its password is not shown."""
    url = f"me:pa55@127.0.0.1:{free_port()}"
    status, detail = examine("--base-url", "US-01", env={"HTTPS_PROXY": url})["TLS"]

    assert "failed" == status
    assert detail.startswith("the proxy of HTTPS_PROXY cannot be reached: Connection refused")


def test_a_proxy_that_is_none_is_told(examine: Callable[..., Told]) -> None:
    """Nothing is asked of anybody, and the value is not shown."""
    url = "socks5://me:pa55@127.0.0.1"
    status, detail = examine("--base-url", "US-01", env={"HTTPS_PROXY": url})["Instance"]

    assert "failed" == status
    assert detail.startswith("HTTPS_PROXY must be the URL of an HTTP proxy")
    assert "pa55" not in detail


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy"])
def test_proxies_for_all_are_not_used(
    examine: Callable[..., Told], fake: FakeBraze, name: str
) -> None:
    """A proxy in the environment is worth a note, without its password."""
    url = fake.base_url.replace("127.0.0.1", "localhost")
    status, detail = examine("--base-url", url, env={name: "http://me:pa55@proxy:1"})["DNS"]

    assert "ok" == status
    assert detail.startswith("localhost is ")
    assert detail.endswith(f"; {name} is set, which the client does not use")


def test_addresses_need_no_lookup(examine: Callable[..., Told]) -> None:
    """For an address there is nothing to look up, and for plain http no TLS."""
    told = examine()

    assert ("not checked", "nothing to look up: 127.0.0.1 is an address") == told["DNS"]
    assert ("not checked", "plain http on loopback") == told["TLS"]


def test_good_certificate(examine: Callable[..., Told], serve: Serve) -> None:
    """A certificate that is trusted is told with its end, and the server is asked over TLS."""
    url = f"https://127.0.0.1:{serve(certificate=GOOD).port}"
    told = examine("--base-url", url, env={"SSL_CERT_FILE": GOOD})

    assert "ok" == told["TLS"][0]
    assert told["TLS"][1].startswith("TLSv1.3, certificate good until 01 Jan 2120, ")
    assert "ok" == told["Server"][0]


def test_certificate_that_ends_soon(
    examine: Callable[..., Told], serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate near its end is a warning."""
    monkeypatch.setattr(module, "SOON", timedelta(days=100_000))
    url = f"https://127.0.0.1:{serve(certificate=GOOD).port}"
    told = examine("--base-url", url, env={"SSL_CERT_FILE": GOOD})

    assert "warning" == told["TLS"][0]
    assert "until 01 Jan 2120" in told["TLS"][1]


@pytest.mark.parametrize(
    ("certificate", "trusted", "problem", "advice"),
    [
        ("good", "expired", "self.signed", "; if a proxy opens TLS here, "),
        ("expired", "expired", "expired", "; is this machine's clock right?"),
    ],
)
def test_bad_certificate(
    examine: Callable[..., Told],
    serve: Serve,
    certificate: str,
    trusted: str,
    problem: str,
    advice: str,
) -> None:
    """A certificate that aiohttp would refuse fails, and nothing is asked of that server."""
    server = serve(certificate=str(CERTIFICATES / f"{certificate}.pem"))
    env = {"SSL_CERT_FILE": str(CERTIFICATES / f"{trusted}.pem")}
    told = examine("--base-url", f"https://127.0.0.1:{server.port}", env=env)

    assert "failed" == told["TLS"][0]
    assert re.search(f"certificate: .*{problem}", told["TLS"][1])
    assert advice in told["TLS"][1]
    assert [("not checked", "needs TLS")] * 2 == [told["Server"], told["Clock"]]
    assert [] == server.asked


def test_no_tls_there(examine: Callable[..., Told], fake: FakeBraze) -> None:
    """A port without TLS is told apart from a bad certificate."""
    status, detail = examine("--base-url", fake.base_url.replace("http:", "https:"))["TLS"]

    assert "failed" == status
    assert detail.startswith("no TLS on port ")
    assert "_" not in detail


@pytest.mark.parametrize(("scheme", "check"), [("https", "TLS"), ("http", "Server")])
def test_nothing_listens(examine: Callable[..., Told], scheme: str, check: str) -> None:
    """A port that nobody listens on fails with what to look at."""
    port = free_port()
    told = examine("--base-url", f"{scheme}://127.0.0.1:{port}")

    assert "failed" == told[check][0]
    assert told[check][1].startswith(f"127.0.0.1 port {port}: Connection refused; check ")
    assert ("not checked", f"needs {check}") == told["Clock"]


@pytest.mark.parametrize(("scheme", "check"), [("https", "TLS"), ("http", "Server")])
def test_never_an_answer(
    examine: Callable[..., Told], silent: int, scheme: str, check: str
) -> None:
    """A server that says nothing does not hold up the rest."""
    told = examine("--base-url", f"{scheme}://127.0.0.1:{silent}")

    assert "failed" == told[check][0]
    assert f"127.0.0.1 port {silent}: no answer in time; " in told[check][1]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"SSH-2.0-\x1b[2J\r\n", "does not speak HTTP; is the base URL right?"),
        (b"", ": Server disconnected; "),
    ],
)
def test_no_http_there(
    examine: Callable[..., Told], serve: Serve, reply: bytes, words: str
) -> None:
    """What is not HTTP is told so, and not repeated."""
    told = examine("--base-url", f"http://127.0.0.1:{serve(reply).port}")

    assert "failed" == told["Server"][0]
    assert words in told["Server"][1]
    assert "SSH" not in told["Server"][1]


def test_any_status_is_an_answer(examine: Callable[..., Told]) -> None:
    """Without a key, a 404 is as good as any status, and the round trip is told."""
    status, detail = examine()["Server"]

    assert "ok" == status
    assert re.search(r"answers in \d+ ms \(status 404; asked without a key, .* is fine\)", detail)


def test_server_in_trouble(examine: Callable[..., Told], fake: FakeBraze) -> None:
    """A 5xx is a warning."""
    fake.script(Fault(status=503))
    status, detail = examine()["Server"]

    assert "warning" == status
    assert "status 503; try again later" in detail


# --- clock ---------------------------------------------------------------------------------------


def test_clocks_agree(examine: Callable[..., Told]) -> None:
    """Clocks that differ by less than a Date can tell agree."""
    assert ("ok", "agrees with the server's") == examine()["Clock"]


@pytest.mark.parametrize(
    ("offset", "status", "words"),
    [
        (-3602, "warning", "1 h 0 min ahead of the server's; the quota is safe"),
        (3602, "warning", "1 h 0 min behind the server's; the quota is safe"),
        # A Date has whole seconds: it may have been written up to one second after its time.
        (-6, "ok", "^5 s ahead of the server's$"),
        (-7, "warning", "^6 s ahead of the server's; "),
        (5, "ok", "^5 s behind the server's$"),
        (6, "warning", "^6 s behind the server's; "),
    ],
)
def test_clocks_that_differ(
    examine: Callable[..., Told], fake: FakeBraze, offset: float, status: str, words: str
) -> None:
    """A clock that is off by more than five seconds is a warning, and which way is told."""
    fake.clock_offset = offset
    told, detail = examine()["Clock"]

    assert status == told
    assert re.search(words, detail)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (b"", "the server does not tell the time"),
        (b"Date: \x1byesterday\r\n", "the server does not tell the time"),
        (
            f"Date: {formatdate(NOON, usegmt=True)}\r\nAge: 9\r\n".encode(),
            "the answer is an old one, from a cache",
        ),
    ],
)
def test_no_time_told(
    examine: Callable[..., Told], serve: Serve, headers: bytes, reason: str
) -> None:
    """Without a Date of this moment there is nothing to hold our clock against."""
    server = serve(NO_CONTENT + headers + b"\r\n")
    told = examine("--base-url", f"http://127.0.0.1:{server.port}")

    assert ("not checked", reason) == told["Clock"]


# --- store ---------------------------------------------------------------------------------------


def change(path: Path, workspace: str, do: Callable[[Transaction], T]) -> T:
    """Change a workspace in an SQLite file."""

    async def transact() -> T:
        store = SQLiteStore(path)
        try:
            return await store.transact(workspace, (), do)
        finally:
            await store.close()

    return asyncio.run(transact())


def rows(path: Path) -> list[tuple[Any, ...]]:
    """All that is kept for workspaces in an SQLite file, but for the scratch one's state."""
    with closing(sqlite3.connect(path)) as file:
        found = file.execute(
            "SELECT workspace, state, expires FROM quota WHERE workspace <> ?", (SCRATCH,)
        ).fetchall()
        return found + file.execute("SELECT * FROM pair").fetchall()


def test_memory_is_a_warning(examine: Callable[..., Told]) -> None:
    """Memory works, but does not last."""
    told = examine()

    assert "warning" == told["Store"][0]
    assert told["Store"][1].startswith("memory: gone when a command ends, ")
    assert ("ok", "nothing known yet: Braze tells it when a send ID is created") == told["Quota"]


def test_store_that_lasts(
    run: Run, examine: Callable[..., Told], fake: FakeBraze, store_url: str
) -> None:
    """A store is written to and read from, and tells the quota."""
    args = ("--store", store_url, "--workspace", f"of {fake.base_url}")
    run("create", "c", *args)
    told = examine(*args)

    place = store_url.replace("sqlite:///", "SQLite ").replace("postgres@", "")
    assert "ok" == told["Store"][0]
    assert re.search(f"{place}: written and read in \\d+ ms$", told["Store"][1])
    assert "ok" == told["Quota"][0]
    assert told["Quota"][1].startswith("1 of 2 left until ")


def test_relative_paths_are_told_whole(
    examine: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a path that depends on the current folder it is told where it leads."""
    monkeypatch.chdir(tmp_path)
    told = examine("--store", "sqlite:///quota.db")

    assert told["Store"][1].startswith(f"SQLite {Path.cwd() / 'quota.db'}: ")


def test_real_quota_is_not_touched(run: Run, tmp_path: Path) -> None:
    """What is written is a record of the doctor's own, and what it wrote is taken back."""
    path = tmp_path / "quota.db"
    store = ("--store", f"sqlite:///{path}")
    run("create", "c", *store)
    before = rows(path)
    run("doctor", *store)

    assert 2 == len(before)
    assert before == rows(path)
    assert {} == change(path, SCRATCH, lambda transaction: transaction.bucket.leases)


def test_used_up_quota(run: Run, examine: Callable[..., Told], tmp_path: Path) -> None:
    """A quota with nothing left is a warning."""
    store = ("--store", f"sqlite:///{tmp_path / 'quota.db'}")
    run("create", "c", *store)
    run("create", "c", *store)
    status, detail = examine(*store)["Quota"]

    assert "warning" == status
    assert detail.startswith("0 of 2 left until ")


def test_what_is_under_way(examine: Callable[..., Told], tmp_path: Path) -> None:
    """Creates under way and in doubt are counted, and are still there afterwards."""
    path = tmp_path / "quota.db"

    def be_busy(transaction: Transaction) -> None:
        now = transaction.now
        transaction.bucket.leases["one"] = Lease(None, 1, now, now + 60, now + 60)
        # Its owner is dead, so that it counts as in doubt.
        transaction.bucket.leases["two"] = Lease(None, 1, now, now - 1, now + 60)

    change(path, "w", be_busy)
    for _ in range(2):
        told = examine("--store", f"sqlite:///{path}", "--workspace", "w")
        assert told["Quota"][1].endswith("created, 1 in flight, 1 unconfirmed")


def test_workspace_without_a_key(examine: Callable[..., Told], tmp_path: Path) -> None:
    """A workspace that has a name needs no key, and one without needs it."""
    store, no_key = f"sqlite:///{tmp_path / 'quota.db'}", {"BRAZE_API_KEY": None}
    named = examine("--store", store, "--workspace", "w", env=no_key)
    unnamed = examine("--store", store, env=no_key)

    assert ("ok", "ok") == (named["Store"][0], named["Quota"][0])
    assert ("ok", "not checked") == (unnamed["Store"][0], unnamed["Quota"][0])
    assert "--workspace" in unnamed["Quota"][1]


def test_bad_workspace(examine: Callable[..., Told]) -> None:
    """A workspace that cannot be one fails."""
    told = examine("--workspace", " ")

    assert (
        "failed",
        "workspace must be a non-empty printable string; leave it out for one of each key",
    ) == told["Quota"]


def test_redis_that_is_not_there(
    examine: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that cannot be reached is told without its password, and what to look at."""
    # Between its attempts the store does not pause, which would take time.
    monkeypatch.setattr(ExponentialBackoff, "compute", lambda backoff, failures: 0.0)
    port = free_port()
    told = examine("--store", f"redis://:pa55@127.0.0.1:{port}/0")

    assert "failed" == told["Store"][0]
    assert told["Store"][1].startswith(f"redis://127.0.0.1:{port}/0: ")
    assert told["Store"][1].endswith(
        f": cannot reach Redis at 127.0.0.1:{port} (connection refused): check that the server "
        "runs, and the host and port in the URL"
    )
    assert "pa55" not in str(told)
    assert ("not checked", "needs Store") == told["Quota"]


def test_redis_that_is_silent(examine: Callable[..., Told], silent: int) -> None:
    """A Redis that says nothing is given up."""
    told = examine("--store", f"redis://:pa55@127.0.0.1:{silent}/0")

    detail = f"redis://127.0.0.1:{silent}/0: no answer within 8 s; is the server up, "
    assert told["Store"][1].startswith(detail)


def test_postgres_without_tables(examine: Callable[..., Told], blank_url: str) -> None:
    """A database without tables fails, with the command that makes them."""
    told = examine("--store", blank_url)

    assert "failed" == told["Store"][0]
    assert told["Store"][1].endswith("; run braze-sends store migrate, or await store.migrate()")


def test_folder_that_is_not_there(examine: Callable[..., Told], tmp_path: Path) -> None:
    """A file in no folder cannot be made, and nothing is."""
    told = examine("--store", f"sqlite:///{tmp_path / 'folder' / 'quota.db'}")

    assert "failed" == told["Store"][0]
    assert told["Store"][1].endswith("; check that its folder exists and is writable")
    assert [] == list(tmp_path.iterdir())


def test_read_only_file(examine: Callable[..., Told], tmp_path: Path) -> None:
    """A database that cannot be written to fails, for root too."""
    path = tmp_path / "quota.db"
    change(path, "w", lambda transaction: None)
    # A format that is too new to be written: https://www.sqlite.org/fileformat.html section 1.3.3
    content = bytearray(path.read_bytes())
    content[18] = 3
    path.write_bytes(content)
    told = examine("--store", f"sqlite:///{path}")

    assert "failed" == told["Store"][0]
    assert "readonly" in told["Store"][1]
    assert told["Store"][1].endswith("; make the file and its folder writable")


def test_locked_file(
    examine: Callable[..., Told],
    monkeypatch: pytest.MonkeyPatch,
    clock: SharedClock,
    tmp_path: Path,
) -> None:
    """A file that another program has locked is told as such."""
    path = tmp_path / "quota.db"
    change(path, "w", lambda transaction: None)
    transact, close = SQLiteStore.transact, SQLiteStore.close
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")

        def transact_for_long(*args: Any) -> Any:
            clock.advance(module.LONGEST)
            return transact(*args)

        async def close_unlocked(store: SQLiteStore) -> None:
            other.rollback()  # it waits for the lock
            await close(store)

        monkeypatch.setattr(SQLiteStore, "transact", transact_for_long)
        monkeypatch.setattr(SQLiteStore, "close", close_unlocked)
        told = examine("--store", f"sqlite:///{path}")

    detail = f"SQLite {path}: no answer within 8 s; does another program hold its lock?"
    assert ("failed", detail) == told["Store"]


def test_damaged_record(examine: Callable[..., Told], tmp_path: Path) -> None:
    """A quota that cannot be read fails by itself, where the store is well."""
    path = tmp_path / "quota.db"
    change(path, "w", lambda transaction: setattr(transaction.bucket, "used", 1))
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE quota SET state = '{'")
    told = examine("--store", f"sqlite:///{path}", "--workspace", "w")

    assert ("ok", "failed") == (told["Store"][0], told["Quota"][0])
    assert told["Quota"][1].endswith("the quota starts over with one careful request")


@attrs.frozen
class Odd:
    """A store that forgets, or that fails with words of the network's."""

    error: str | None = None
    shared = True

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """Nothing is kept."""
        if self.error is not None:
            raise StoreError(self.error)
        return change(Transaction(0.0, Bucket(offset=0.0), {}))

    async def close(self) -> None:
        """Nothing was opened."""


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (
            Odd(),
            "what was written to the store is not there when read: check that nothing else "
            "deletes from it, and that reads go to the server that takes the writes",
        ),
        (Odd(f"\x1b[2J{KEY}"), "\ufffd[2J***"),
    ],
)
def test_odd_stores(
    examine: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, store: Odd, words: str
) -> None:
    """A store that forgets fails; no words of the network's steer the terminal or tell the key."""
    monkeypatch.setattr(module, "open_store", lambda url: store)
    status, detail = examine("--store", "redis://h/0")["Store"]

    assert "failed" == status
    assert detail.startswith(words)
