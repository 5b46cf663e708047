"""The objects for scripts have the keys that the documentation gives them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from braze_sends.testing import FakeBraze, Fault
from tests.cli.conftest import Run

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
STORE = ("--store", "sqlite:///quota.db")


def documented(shown: str) -> set[str]:
    """The keys in the row of the documentation's table that tells of an object."""
    (keys,) = re.findall(
        rf"^\| {shown} \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return set(re.findall(r"`(\w+)`", keys))


def keys(shown: object) -> Iterator[str]:
    """All keys in an object, at any depth."""
    if isinstance(shown, dict):
        yield from shown
    for inner in shown.values() if isinstance(shown, dict) else shown:  # type: ignore[attr-defined]
        if isinstance(inner, dict | list):
            yield from keys(inner)


@pytest.fixture
def told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in a folder of its own, which has a calendar; the object that it prints."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("campaign_id,send_id\nc,s1\nc,s2\n")
    Path("bad.csv").write_text("campaign_id,send_id\nc,\n")
    return lambda *args: json.loads(run(*args, "--json").stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("shown", "args"),
    [
        ("`create`", ("create", "c")),
        ("`batch`", ("batch", "rows.csv", "--output", "out", *STORE)),
        ("`batch --dry-run`", ("batch", "rows.csv", "--dry-run", *STORE)),
        ("`quota`", ("quota", *STORE)),
        ("`doctor`", ("doctor", *STORE)),
        ("bad rows of a `batch`", ("batch", "bad.csv")),
    ],
)
def test_objects_have_the_keys_that_are_documented(
    told: Any, shown: str, args: tuple[str, ...]
) -> None:
    """All of them, and no other."""
    told("create", "c", "--send-id", "s1", *STORE)

    assert documented(shown) == set(keys(told(*args)))


def test_errors_have_the_keys_that_are_documented(told: Any, fake: FakeBraze) -> None:
    """Always what to ask for again; the answer's and the quota's, where there are any."""
    fake.script(Fault(status=400))
    refused = told("create", "c")
    for _ in range(fake.daily_limit):
        told("create", "c", *STORE)
    exhausted = told("create", "c", "--max-wait", "0", *STORE)

    always = {"error", "message", "quota_spent", "campaign_id", "send_id"}
    assert always == refused.keys() & exhausted.keys()
    assert documented("an error") == refused.keys() | exhausted.keys()
