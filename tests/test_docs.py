"""The documentation names things that exist."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

TESTS = Path(__file__).parent
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
