"""The code blocks of the README and the docs run as tests, against an emulator in a thread."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from tests.servers import braze

KEY = "key-of-the-examples"

# Files of the tests are kept in memory, where that has room: on a disk that others keep busy an
# fsync can take a minute, longer than SQLiteStore waits for a lock.
MEMORY = Path("/dev/shm")  # noqa: S108  # pytest makes a folder of its own in it
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# Coverage is measured in the processes of pytest-xdist, and not in those that tests start and kill.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.fixture
def braze_for_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Braze, and the environment that points to it, for one block."""
    with braze(api_key=KEY) as fake:
        monkeypatch.setenv("BRAZE_API_KEY", KEY)
        monkeypatch.setenv("BRAZE_BASE_URL", fake.base_url)
        monkeypatch.chdir(tmp_path)  # they write files
        yield


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    fixtures=["braze_for_examples"],
).pytest()
