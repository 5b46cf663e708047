"""Profiles: settings by name in a file of the user's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from braze_sends.cli.profiles import path
from braze_sends.testing import FakeBraze
from tests.cli.conftest import KEY, Run

Write = Callable[[str], Path]

NO_ENVIRONMENT: dict[str, str | None] = {"BRAZE_API_KEY": None, "BRAZE_BASE_URL": None}


@pytest.fixture
def write() -> Write:
    """Write the file."""

    def write(text: str) -> Path:
        file = path()
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, "utf-8")
        return file

    return write


@pytest.fixture
def profile(fake: FakeBraze, write: Write, tmp_path: Path) -> Path:
    """A profile ``news`` that has all that a command needs; the folder of the file."""
    file = write(
        f'[profiles.news]\nbase_url = "{fake.base_url}"\nworkspace = "w"\n'
        f'store = "sqlite:///{tmp_path}/quota.db"\nkey_file = "key"\n'
    )
    key = file.parent / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    return file.parent


def test_a_profile_stands_in_for_options(run: Run, profile: Path, tmp_path: Path) -> None:
    """For the instance, the key, the store and the workspace; a relative key file is beside it."""
    result = run("create", "c", "--send-id", "s", "--profile", "news", env=NO_ENVIRONMENT)

    assert (0, "s\n", "") == (result.exit_code, result.stdout, result.stderr)
    assert (tmp_path / "quota.db").exists()
    quota = run("quota", "--profile", "news", env=NO_ENVIRONMENT)
    assert "Used          1\n" in quota.stdout


def test_the_environment_names_a_profile(run: Run, profile: Path, tmp_path: Path) -> None:
    """For every command that has one."""
    env = NO_ENVIRONMENT | {"BRAZE_SENDS_PROFILE": "news"}
    (tmp_path / "rows").write_text("campaign_id,send_id\nc,s\n")

    assert 0 == run("batch", str(tmp_path / "rows"), env=env).exit_code
    assert 0 == run("doctor", env=env).exit_code
    assert "needs no tables" in run("store", "migrate", env=env).stdout


def test_the_profile_default_needs_no_name(run: Run, fake: FakeBraze, write: Write) -> None:
    """Others do."""
    write(f'[profiles.default]\ninstance = "{fake.base_url}"\n[profiles.other]\n')
    env = {"BRAZE_BASE_URL": None}

    assert 0 == run("create", "c", env=env).exit_code
    assert 2 == run("create", "c", "--profile", "other", env=env).exit_code


def test_without_a_default_nothing_is_taken_from_the_file(run: Run, profile: Path) -> None:
    """So that a file does not change what a command did before."""
    result = run("create", "c", env=NO_ENVIRONMENT)

    assert 2 == result.exit_code
    assert "no API key" in result.stderr


def test_options_and_environment_go_before_a_profile(
    run: Run, fake: FakeBraze, write: Write, tmp_path: Path
) -> None:
    """Each for itself: what they do not tell is the profile's."""
    write(
        '[profiles.default]\nbase_url = "http://127.0.0.1:9"\nkey_file = "nowhere"\n'
        f'store = "sqlite:///{tmp_path}/profile.db"\n'
    )
    option = f"sqlite:///{tmp_path}/option.db"

    assert 0 == run("create", "c", "--store", option).exit_code  # URL and key: the environment
    assert ["option.db"] == [name for name in os.listdir(tmp_path) if name.endswith(".db")]
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    args = ("create", "c", "--api-key-file", str(key), "--base-url", fake.base_url)
    assert 0 == run(*args, env=NO_ENVIRONMENT).exit_code
    assert (tmp_path / "profile.db").exists()


def test_a_key_file_may_be_in_the_users_home(
    run: Run, fake: FakeBraze, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``~`` is that."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    write(f'[profiles.default]\ninstance = "{fake.base_url}"\nkey_file = "~/key"\n')

    assert 0 == run("create", "c", env=NO_ENVIRONMENT).exit_code


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_the_file_is_in_the_users_home_where_no_folder_is_named(
    home: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative ``XDG_CONFIG_HOME`` counts for none, as its specification has it."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    if home is not None:
        monkeypatch.setenv("XDG_CONFIG_HOME", home)

    assert Path("/home/me/.config/braze-sends/config.toml") == path()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[profiles.x]\nstore = \n", "is not TOML: Invalid value (at line 2, column 9)"),
        ("[default]\n", "default is unknown: settings stand in [profiles.NAME]"),
        ("profiles = 1\n", "profiles must be tables"),
        ("[profiles]\nx = 1\n", "profiles.x must be a table, [profiles.x]"),
        ("[profiles.x]\nurl = 'u'\n", "profiles.x.url is unknown: a profile has instance, base"),
        (f"[profiles.x]\napi_key = '{KEY}'\n", "the API key itself stays in the file that key_fi"),
        ("[profiles.x]\nworkspace = 1\n", "profiles.x.workspace must be a string that is not e"),
        ("[profiles.x]\nworkspace = ''\n", "profiles.x.workspace must be a string that is not e"),
        ("[profiles.x]\ninstance = 'US-01'\nbase_url = 'u'\n", "x has instance and base_url"),
        ("[profiles.x]\nstore = 'sqlite:///quota.db'\n", "x.store must have an absolute path"),
        ("[profiles.x]\n[profiles.y]\n", "there is no profile mine in "),
        ("", "it has: none"),
    ],
)
def test_mistakes_in_the_file_are_told(run: Run, write: Write, text: str, told: str) -> None:
    """With the file, and the line or the key, and never a value."""
    file = write(text)
    result = run("create", "c", "--profile", "mine")

    assert 2 == result.exit_code
    assert result.stderr.startswith("error: ")
    assert str(file) in result.stderr
    assert told in result.stderr


def test_a_file_that_is_missing_or_cannot_be_read_is_told(run: Run, write: Write) -> None:
    """If a profile is named, or the file is there."""
    missing = run("create", "c", "--profile", "mine")
    write("").write_bytes(b"\xff")
    binary = run("create", "c")
    path().unlink()
    path().mkdir()
    folder = run("create", "c")

    assert [2, 2, 2] == [result.exit_code for result in (missing, binary, folder)]
    assert "there is no profile mine: " in missing.stderr
    assert "cannot be read: it is not UTF-8" in binary.stderr
    assert "cannot be read: Is a directory" in folder.stderr


def test_completion_does_not_read_the_file(run: Run, write: Write) -> None:
    """A mistake in it must not end the completion of a command."""
    write("[default]\n")
    env = {"_BRAZE_SENDS_COMPLETE": "complete_bash", "COMP_WORDS": "x create --", "COMP_CWORD": "2"}
    result = run(env=env, prog_name="braze-sends")

    assert 0 == result.exit_code
    assert "error" not in result.output
