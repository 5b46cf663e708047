"""The emulator for other machines and containers, and a client that asks it over plain http."""

from __future__ import annotations

import re
import shlex
import signal
import socket
from typing import Any

import pytest

from braze_sends.cli import common
from tests.cli.conftest import ROOT, Run, Start

COMPOSE = re.findall(
    r"^```yaml\n# compose\.yaml\n(.*?)^```$",
    (ROOT / "docs" / "testing.md").read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)[0]


def services() -> dict[str, str]:
    """The services of compose.yaml, by name."""
    parts = re.split(r"^  ([\w-]+):$", COMPOSE, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_compose_file_fits_together(
    start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the file's command and environment, a client creates a send ID at the service's name."""
    name = "braze-emulator"
    told = services()
    assert {name, "app"} == {*told}
    command = re.findall(r"command: braze-sends (.*)", told[name])[0]
    variables = dict(re.findall(r"^      (BRAZE_\w+): (.*)$", told["app"], re.MULTILINE))
    assert "--port 8080" in command
    assert f"http://{name}:8080" == variables["BRAZE_BASE_URL"]
    assert "'127.0.0.1', 8080" in told[name]
    # Port 8080 may be taken here, and no name server here knows the service.
    emulator = start(*shlex.split(command.replace("--port 8080", "--port 0")))
    assert emulator.stdout is not None
    port = emulator.stdout.readline().rstrip("\n").rpartition(":")[2]
    variables["BRAZE_BASE_URL"] = f"http://{name}:{port}"
    look_up = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        return look_up("127.0.0.1" if host == name else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    created = run("create", "c", "--send-id", "s", env=variables)
    examined = run("doctor", env=variables)
    emulator.terminate()
    _, err = emulator.communicate()

    assert (0, "s\n") == (created.exit_code, created.stdout)
    unencrypted = f"warning      TLS       plain http: the key travels unencrypted to {name}"
    assert unencrypted in examined.stdout.splitlines()
    assert err.startswith("warning: it listens on 0.0.0.0 without TLS.")
    assert f"  export BRAZE_BASE_URL=http://NAME:{port}\n" in err
    assert "1 created, 0 over quota\n" in err


@pytest.mark.parametrize(
    ("host", "warns"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("pc", True)],  # noqa: S104
)
def test_only_loopback_is_surely_this_machine(host: str, warns: bool) -> None:
    """All other addresses and names let others in."""
    assert warns is not common.is_loopback(host)


@pytest.mark.parametrize(("host", "warns"), [("localhost", False), ("0.0.0.0", True)])  # noqa: S104
def test_only_an_emulator_that_others_can_reach_warns(
    run: Run, monkeypatch: pytest.MonkeyPatch, host: str, warns: bool
) -> None:
    """The warning tells how others use it; on loopback there is none."""

    def note_and_stop(line: str) -> None:
        note(line)
        if line == "Ctrl-C ends it.":
            signal.raise_signal(signal.SIGTERM)

    note = common.note
    monkeypatch.setattr(common, "note", note_and_stop)
    result = run("emulator", "--host", host)

    assert 0 == result.exit_code
    assert warns is (f"warning: it listens on {host} without TLS." in result.stderr)
    assert warns is ("export BRAZE_SENDS_ALLOW_HTTP_HOST=NAME" in result.stderr)


def test_an_empty_host_is_refused(run: Run) -> None:
    """An empty address, such as an unset variable of a script, does not mean all addresses."""
    result = run("emulator", "--host", "")

    assert 2 == result.exit_code
    assert "give an address such as 127.0.0.1" in result.output


def test_an_address_of_another_machine_is_an_error_in_one_line(run: Run) -> None:
    """The message names the address."""
    result = run("emulator", "--host", "192.0.2.1")

    assert (1, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("error: cannot listen on port 0 of 192.0.2.1: ")
    assert 1 == result.stderr.count("\n")
