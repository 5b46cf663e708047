"""The documentation names things that exist."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SECURITY = TESTS.parent / "docs" / "security.md"


def test_each_promise_about_secrets_names_tests_that_exist() -> None:
    """Each promise in docs/security.md is followed by names of tests, and each of them is there."""
    promised, _, _ = SECURITY.read_text("utf-8").partition("## What is not promised")
    promises = re.split(r"^- ", promised, flags=re.MULTILINE)[1:]
    named = [re.findall(r"^  - `([\w/]+\.py)::(test_\w+)`$", one, re.MULTILINE) for one in promises]
    assert len(promises) > 10
    assert all(named)
    missing = [
        f"{file}::{name}"
        for file, name in chain.from_iterable(named)
        if not re.search(
            rf"^(async )?def {name}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE
        )
    ]
    assert [] == missing


def test_each_message_in_troubleshooting_is_one_that_the_code_prints() -> None:
    """Its words stand in the code, apart from the names and numbers that ``…`` stands for."""
    printed = "\n".join(chain.from_iterable(map(texts, ROOT.glob("braze_sends/**/*.py"))))
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    words = [part.strip(" :;,.") for message in messages for part in message.split("…")]
    assert len(messages) > 40
    assert [] == [part for part in words if part not in printed]


def texts(file: Path) -> Iterator[str]:
    """The strings of a program, those that stand side by side as one."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (one.value if isinstance(one, ast.Constant) else "\0" for one in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_each_picture_is_as_its_program_draws_it() -> None:
    """Nobody has changed one by hand, or the program without drawing anew."""
    program = runpy.run_path(str(ROOT / "docs" / "pictures" / "make.py"))
    assert len(program["PICTURES"]) >= 4
    for name, (height, parts) in program["PICTURES"].items():
        kept = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text("utf-8")
        assert program["drawing"](height, parts()) == kept, name
