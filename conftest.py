"""The code blocks of the README and the docs run as tests, against an emulator in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from tests.servers import braze, running

KEY = "key-of-the-examples"


@pytest.fixture
def braze_for_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Braze, and the environment that points to it, for one block."""
    with running(fake := braze(api_key=KEY)):
        monkeypatch.setenv("BRAZE_API_KEY", KEY)
        monkeypatch.setenv("BRAZE_BASE_URL", fake.base_url)
        monkeypatch.chdir(tmp_path)  # they write files
        yield


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    fixtures=["braze_for_examples"],
).pytest()
