"""The documentation names things that exist."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

TESTS = Path(__file__).parent
SECURITY = TESTS.parent / "docs" / "security.md"


def test_each_promise_about_secrets_names_tests_that_exist() -> None:
    """Each row of the tables in docs/security.md names a test, and each named test is there."""
    rows = re.findall(r"^\| (?!Promise|---)(.*) \|$", SECURITY.read_text("utf-8"), re.MULTILINE)
    named = [re.findall(r"`([\w/]+\.py)::(test_\w+)`", row) for row in rows]
    assert len(rows) > 10
    assert all(named)
    missing = [
        f"{file}::{name}"
        for file, name in chain.from_iterable(named)
        if not re.search(
            rf"^(async )?def {name}\(", (TESTS / file).read_text("utf-8"), re.MULTILINE
        )
    ]
    assert [] == missing
