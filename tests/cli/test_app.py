"""The commands, run in this process against an emulator."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from braze_sends import (
    APITimeoutError,
    BadRequestError,
    ConfigurationError,
    MemoryStore,
    QuotaExhaustedError,
    SendsClient,
    cli,
)
from braze_sends.cli import common
from braze_sends.testing import FakeBraze, Fault
from tests.cli.conftest import KEY, Run


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A store that outlives a command, as one on disk does."""
    store = MemoryStore()
    monkeypatch.setattr("braze_sends.client.open_store", lambda url: store)
    return store


# --- create --------------------------------------------------------------------------------------


def test_create_prints_the_send_id_alone(run: Run, fake: FakeBraze) -> None:
    """The output of a create is the send ID and nothing else, for use in a script."""
    result = run("create", "c", "--send-id", "story-1")

    assert (0, "story-1\n", "") == (result.exit_code, result.stdout, result.stderr)
    assert [("c", "story-1")] == fake.created


def test_create_names_the_send(run: Run, fake: FakeBraze) -> None:
    """A send that was not named gets a new name."""
    result = run("create", "c")

    assert 0 == result.exit_code
    assert [("c", result.stdout.strip())] == fake.created


def test_create_prints_json(run: Run) -> None:
    """``--json`` prints one object with all that is known of the send."""
    told = json.loads(run("create", "c", "--send-id", "s", "--json").stdout)

    resets_at = datetime.fromisoformat(told["rate_limit"].pop("resets_at"))
    assert timedelta(0) == resets_at.utcoffset()
    assert told.pop("request_id")
    assert {
        "campaign_id": "c",
        "send_id": "s",
        "status": "created",
        "attempts": 1,
        "rate_limit": {"limit": 2, "remaining": 1},
    } == told


def test_json_without_headers(run: Run, fake: FakeBraze) -> None:
    """Where Braze told no rate limit, ``rate_limit`` is null."""
    fake.script(Fault(headers="missing"))

    assert json.loads(run("create", "c", "--json").stdout)["rate_limit"] is None


def test_create_tells_details_on_a_terminal(
    run: Run, fake: FakeBraze, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal stderr tells of attempts and what is left."""
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 0.0)
    fake.script(Fault(status=503))
    result = run("create", "c", "--send-id", "s", env={"FORCE_COLOR": "1"})

    assert "s\n" == result.stdout
    assert result.stderr.startswith("created, 2 attempts, 1 of 2 left until ")


def test_create_reuses(run: Run, lasting: MemoryStore, fake: FakeBraze) -> None:
    """With a store that lasts, asking again costs nothing."""
    args = ("create", "c", "--send-id", "s", "--store", "memory://")
    run(*args)

    assert "reused" == json.loads(run(*args, "--json").stdout)["status"]
    assert "reused\n" == run(*args, env={"FORCE_COLOR": "1"}).stderr
    assert 1 == len(fake.requests)


def test_create_may_be_queued(run: Run, fake: FakeBraze) -> None:
    """A send that Braze has only queued is told as such."""
    fake.script(Fault(status=202))

    assert "queued" == json.loads(run("create", "c", "--json").stdout)["status"]


def test_control_characters_do_not_reach_the_terminal(run: Run, fake: FakeBraze) -> None:
    """What the network says cannot steer the terminal."""
    fake.script(Fault(status=400, body=json.dumps({"message": "a\x1b[2Jb\nc"})))

    assert run("create", "c").stderr.startswith("error: 400: a\ufffd[2Jb\ufffdc (request ")


def test_used_up_quota_is_exit_code_75(run: Run, fake: FakeBraze) -> None:
    """Without quota the exit code says: come back later; and a line says when."""
    fake.spend(2)
    result = run("create", "c", "--max-wait", "0")

    assert (75, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("error: ")
    assert "; come back in 12 h 0 min" in result.stderr
    assert "(the quota resets " in result.stderr
    assert 1 == result.stderr.count("\n")


def test_a_quota_that_no_wait_brings_back_tells_only_its_reset() -> None:
    """Where the headroom keeps all slots, no duration is told."""
    resets_at = datetime(2026, 11, 26, tzinfo=UTC)
    line = common.error_line(QuotaExhaustedError("none left", resets_at=resets_at))
    assert f"none left (the quota resets {common.moment(resets_at)})" == line


def test_headroom_is_left(run: Run, lasting: MemoryStore, fake: FakeBraze) -> None:
    """Slots in the headroom are not touched."""
    args = ("create", "c", "--store", "memory://", "--headroom", "1", "--max-wait", "0")

    assert [0, 75] == [run(*args).exit_code for _ in range(2)]
    assert 1 == len(fake.requests)


def test_errors_as_json(run: Run, fake: FakeBraze) -> None:
    """With ``--json`` an error is an object on stdout too, with the time to come back."""
    fake.spend(2)
    result = run("create", "c", "--send-id", "s", "--max-wait", "0", "--json")
    told = json.loads(result.stdout)

    assert (75, "") == (result.exit_code, result.stderr)
    assert ("QuotaExhaustedError", False) == (told["error"], told["quota_spent"])
    assert ("c", "s") == (told["campaign_id"], told["send_id"])
    assert told["message"]
    assert told["retry_after"] > 0
    assert told["resets_at"].endswith("+00:00")


def test_a_429_that_says_nothing_is_come_back_later(run: Run, fake: FakeBraze) -> None:
    """Exit code 75, as for a quota that is known to be used up."""
    fake.fault_for = lambda request: Fault(status=429, headers="missing")
    result = run("create", "c", "--max-wait", "0")

    assert (75, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("error: 429: ")


def test_refused_key_is_an_error(run: Run) -> None:
    """A key that Braze refuses is exit code 1, and is not told, though Braze echoes it."""
    result = run("create", "c", env={"BRAZE_API_KEY": "another-s3cr3t"})

    assert (1, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith(
        "error: 401: Invalid API key: ***. A wrong key, or a key of another instance than "
    )


@pytest.mark.parametrize(
    "args",
    [
        ("create", "c", "--send-id", "ü"),
        ("create", "c", "--headroom", "-1"),
        ("create", "c", "--max-wait", "nan"),
        ("create", "c", "--base-url", "http://braze.example"),
        ("create", "c", "--workspace", " "),
        ("create", "c", "--store", "nowhere://"),
        ("create", "c", "--api-key", "no-such-option"),
        ("create",),
        ("quota", "--store", "nowhere://"),
        ("emulator", "--window", "0"),
        ("no-such-command",),
    ],
)
def test_wrong_usage_is_exit_code_2(run: Run, fake: FakeBraze, args: tuple[str, ...]) -> None:
    """What cannot be meant is exit code 2, and nothing is sent."""
    result = run(*args)

    assert (2, "", []) == (result.exit_code, result.stdout, fake.requests)
    assert result.stderr


@pytest.mark.parametrize("wait", [[], ["--max-wait", "inf"]])
def test_ctrl_c_ends_a_create(run: Run, monkeypatch: pytest.MonkeyPatch, wait: list[str]) -> None:
    """Ctrl-C is exit code 130, and tells how to find out what became of the send."""

    async def interrupted(*_: Any, **options: Any) -> None:
        assert (None if wait else 30.0) == options["max_rate_limit_wait"]
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()  # for ever

    monkeypatch.setattr(SendsClient, "create_send_id", interrupted)
    result = run("create", "c", "--send-id", "story-1", *wait)

    assert (130, "") == (result.exit_code, result.stdout)
    assert result.stderr.endswith("pass --send-id story-1\n")


# --- the API key ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_key_from_a_file(run: Run, fake: FakeBraze, tmp_path: Path, ending: str) -> None:
    """The key may be in a file, with or without a line break; it goes before the environment."""
    (tmp_path / "key").write_bytes(f"{KEY}{ending}".encode())
    env = {"BRAZE_API_KEY": "wrong"}
    result = run("create", "c", "--api-key-file", str(tmp_path / "key"), env=env)

    assert 0 == result.exit_code
    assert 1 == len(fake.created)


def test_key_from_standard_input(run: Run, fake: FakeBraze) -> None:
    """``-`` reads the key from standard input."""
    result = run("create", "c", "--api-key-file", "-", input=f"{KEY}\n", env={"BRAZE_API_KEY": ""})

    assert 0 == result.exit_code
    assert 1 == len(fake.created)


WARNING = "warning: key.txt can be read by others; chmod 600 it\n"


@pytest.mark.parametrize(
    ("mode", "told"),
    [(0o600, ""), (0o400, ""), (0o644, WARNING), (0o640, WARNING), (0o604, WARNING)],
)
def test_key_file_that_others_can_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, told: str
) -> None:
    """A key file that others can read draws one line on stderr, which is not in the JSON."""
    monkeypatch.chdir(tmp_path)
    Path("key.txt").write_text(KEY)
    Path("key.txt").chmod(mode)
    result = run("quota", "--api-key-file", "key.txt", "--json")

    assert (0, told) == (result.exit_code, result.stderr)
    assert json.loads(result.stdout)


def test_key_file_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who does not own a key file is not told to change its mode."""
    (tmp_path / "key.txt").write_text(KEY)
    (tmp_path / "key.txt").chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    assert KEY == common.api_key(str(tmp_path / "key.txt"))
    assert "" == capsys.readouterr().err


def test_key_file_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows has other permissions than a file's mode tells, so nothing is said there."""
    (tmp_path / "key.txt").write_text(KEY)
    (tmp_path / "key.txt").chmod(0o644)
    monkeypatch.delattr(os, "geteuid")
    monkeypatch.setattr(sys, "platform", "win32")

    assert KEY == common.api_key(str(tmp_path / "key.txt"))
    assert "" == capsys.readouterr().err


def test_key_through_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A named pipe keeps no key that others could read later, so its mode is not told."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    path.chmod(0o644)
    writer = threading.Thread(target=path.write_text, args=(KEY,))
    writer.start()

    assert KEY == common.api_key(str(path))
    writer.join()
    assert "" == capsys.readouterr().err


def test_key_given_as_a_path_is_not_told(run: Run) -> None:
    """A key in place of its file's path is wrong usage, and is not repeated."""
    result = run("create", "c", "--api-key-file", KEY)

    assert 2 == result.exit_code
    assert "error: --api-key-file cannot be read: No such file or directory\n" == result.stderr


def test_key_file_must_be_text(run: Run, tmp_path: Path) -> None:
    """A file that is no text holds no key."""
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    result = run("quota", "--api-key-file", str(tmp_path / "key"), "--json")

    assert 2 == result.exit_code
    assert "it is not text" in json.loads(result.stdout)["message"]


def test_no_key_is_wrong_usage(run: Run, fake: FakeBraze) -> None:
    """Without a key and without a terminal to ask on, it is said how to give one."""
    result = run("create", "c", env={"BRAZE_API_KEY": None})

    assert (2, []) == (result.exit_code, fake.requests)
    assert "set BRAZE_API_KEY" in result.stderr


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input is a terminal, and no key is in the environment."""
    monkeypatch.delenv("BRAZE_API_KEY", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)


@pytest.mark.usefixtures("terminal")
def test_key_from_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the key is asked for."""
    monkeypatch.setattr("getpass.getpass", lambda prompt: KEY)

    assert KEY == common.api_key(None)


@pytest.mark.usefixtures("terminal")
def test_empty_answer_to_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty answer is no key."""
    monkeypatch.setattr("getpass.getpass", lambda prompt: "")

    with pytest.raises(ConfigurationError, match="no API key"):
        common.api_key(None)


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_at_the_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C at the prompt ends its line, too."""

    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("getpass.getpass", interrupted)

    with pytest.raises(KeyboardInterrupt):
        common.api_key(None)
    assert ("", "\n") == capsys.readouterr()


# --- emulator ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_emulator_prints_its_url_first(
    run: Run, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    """The URL is all of stdout; being stopped is the normal end of an emulator."""

    def note_and_stop(line: str) -> None:
        note(line)
        if line == "Ctrl-C ends it.":
            signal.raise_signal(stop)

    note = common.note
    monkeypatch.setattr(common, "note", note_and_stop)
    result = run("emulator", "--api-key", "a key", "--daily-limit", "5")

    url = result.stdout.rstrip("\n")
    assert 0 == result.exit_code
    assert url.startswith("http://127.0.0.1:")
    assert f"  export BRAZE_BASE_URL={url}\n  export BRAZE_API_KEY='a key'\n" in result.stderr
    assert result.stderr.endswith("0 requests, 0 created, 0 over quota\n")


def test_emulator_needs_a_free_port(run: Run) -> None:
    """A port that is taken is an error in one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("emulator", "--port", str(port))

    assert (1, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith(f"error: cannot listen on port {port} of 127.0.0.1: ")
    assert 1 == result.stderr.count("\n")


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "words"),
    [("UTC0", "Mon 23 Nov 00:00 UTC"), ("CET-1", "Mon 23 Nov 01:00 CET = Mon 23 Nov 00:00 UTC")],
)
def test_times_are_local_and_utc(monkeypatch: pytest.MonkeyPatch, zone: str, words: str) -> None:
    """A time is shown by the user's clock, and in UTC if that is another."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        told = common.moment(datetime(2026, 11, 23, tzinfo=UTC))
    time.tzset()

    assert words == told


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (86399, "23 h 59 min")],
)
def test_durations(seconds: float, words: str) -> None:
    """A duration is told in its two largest units."""
    assert words == common.span(seconds)


def test_unknown_outcome_says_how_to_go_on() -> None:
    """Where a send may have been created, the line tells how to ask for it again."""
    lost = APITimeoutError("no answer within 10 s", quota_spent=None, send_id="story-1")

    assert (
        "no answer within 10 s; it may have been created: to ask again, pass --send-id story-1"
        == common.error_line(lost)
    )
    assert 1 == common.exit_code(lost)


def test_error_objects_hold_what_there_is() -> None:
    """Status and request ID are shown where an answer came, and are not where none did."""
    answered = common.error_object(BadRequestError("no", status_code=400, request_id="r"))
    exhausted = common.error_object(QuotaExhaustedError("none left"))

    assert (400, "r") == (answered["status_code"], answered["request_id"])
    assert exhausted.keys() == {"error", "message", "quota_spent", "campaign_id", "send_id"}


# --- the program ---------------------------------------------------------------------------------


def test_version(run: Run) -> None:
    """``--version`` prints the name and the version."""
    assert "braze-sends 0.1.0\n" == run("--version").stdout


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize(
    "command", [[], ["create"], ["batch"], ["quota"], ["doctor"], ["demo"], ["emulator"], ["track"]]
)
def test_help_has_an_example(run: Run, command: list[str], option: str) -> None:
    """Each help ends with an example."""
    result = run(*command, option)

    assert 0 == result.exit_code
    assert "Example: " in result.stdout


def test_completion(run: Run) -> None:
    """A shell can complete the commands."""
    asked = {"_BRAZE_SENDS_COMPLETE": "complete_bash", "COMP_WORDS": "braze-sends cr"}
    result = run(env=asked | {"COMP_CWORD": "1"}, prog_name="braze-sends")

    assert "create" == result.stdout.strip()


def test_python_m(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m braze_sends.cli`` is the program."""
    monkeypatch.setattr(sys, "argv", ["braze-sends", "--version"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module("braze_sends.cli.__main__")

    assert not end.value.code
    assert "braze-sends 0.1.0\n" == capsys.readouterr().out


@pytest.mark.parametrize("missing", ["typer", "rich.console"])
def test_hint_without_the_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Without typer or rich, one line tells what to install."""
    forget_commands(monkeypatch)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit, match=r"pip install 'braze_sends\[cli\]'"):
        cli.main()


def test_other_missing_modules_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is missing for another reason is told as it is."""
    forget_commands(monkeypatch)
    monkeypatch.setitem(sys.modules, "braze_sends.cli.options", None)
    with pytest.raises(ModuleNotFoundError, match="options"):
        cli.main()


def test_ctrl_c_while_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the command has begun is exit code 130 too."""

    def interrupted(prog_name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "braze_sends.cli.app", SimpleNamespace(app=interrupted))
    with pytest.raises(SystemExit) as end:
        cli.main()

    assert 130 == end.value.code


def forget_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the modules of the commands imported anew."""
    for name in [name for name in sys.modules if name.startswith("braze_sends.cli.")]:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(cli, name.split(".")[2], raising=False)


COMMANDS = [
    (),
    ("create",),
    ("batch",),
    ("quota",),
    ("doctor",),
    ("demo",),
    ("emulator",),
    ("store",),
    ("store", "migrate"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_a_flag_as_a_flag(run: Run, command: tuple[str, ...]) -> None:
    """No option is shown with a value ``<bool>``, and ``-h`` shows the same help."""
    shown = run(*command, "--help").stdout
    assert "--help" in shown
    assert "bool" not in shown
    assert shown == run(*command, "-h").stdout


@pytest.mark.parametrize("command", ["create", "batch", "quota", "doctor"])
def test_help_shows_options_in_groups(run: Run, command: str) -> None:
    """What is for Braze and what is for the quota stand apart from the command's own options."""
    shown = run(command, "--help").stdout
    assert shown.index(" Options ") < shown.index(" Quota ") < shown.index("--store")
    assert shown.index(" Braze ") < shown.index("--base-url") < shown.index("--api-key-file")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--base-url", "US-01", "create", "c"), "braze-sends create --base-url ..."),
        (("--store=redis://:s3cret@host", "quota"), "braze-sends quota --store ..."),
        (("-o", "sends.jsonl"), "braze-sends COMMAND -o ..."),
    ],
)
def test_an_option_before_its_command_is_answered_with_where_it_goes(
    run: Run, args: tuple[str, ...], told: str
) -> None:
    """The message has the right order, and no value, which may hold a password."""
    result = run(*args)
    assert (2, "") == (result.exit_code, result.stdout)
    assert f"options go after the command: {told}" in result.stderr
    assert "s3cret" not in result.stderr


def test_an_option_that_no_command_has_is_unknown(run: Run) -> None:
    """Before a command, too."""
    result = run("--nonsense", "create", "c")
    assert 2 == result.exit_code
    assert "No such option: --nonsense" in result.stderr


def test_a_file_in_place_of_a_store_is_answered_with_its_url(run: Run) -> None:
    """A wrong usage, in which nothing was sent."""
    result = run("create", "c", "--store", "quota.db")
    assert (2, "") == (result.exit_code, result.stdout)
    assert "did you mean sqlite:///quota.db?" in result.stderr
