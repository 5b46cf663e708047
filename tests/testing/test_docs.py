"""The complete files of docs/testing.md, run as their readers would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

TEXT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text("utf-8")
FILES = dict(
    re.findall(r"^```python\n# (test_\w+\.py)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def run(folder: Path, *args: str) -> str:
    """Run Python in the folder, warnings being errors; what it printed."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert 0 == ran.returncode, ran.stdout
    return ran.stdout


PYTEST = ("pytest", "-q", "-o", "asyncio_default_fixture_loop_scope=function")


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_files_pass_in_both_modes_of_pytest_asyncio(folder: Path, mode: str) -> None:
    """Each file passes, whether asynchronous tests are marked or found by themselves."""
    assert "5 passed" in run(folder, *PYTEST, "-o", f"asyncio_mode={mode}")


def test_the_synchronous_files_pass_without_pytest_asyncio(folder: Path) -> None:
    """The fixture needs no other plugin."""
    told = run(folder, "pytest", "-q", "-p", "no:asyncio", "test_app.py", "test_case.py")
    assert "3 passed" in told


def test_the_file_for_unittest_passes_under_unittest(folder: Path) -> None:
    """The file needs no pytest."""
    assert "Ran 1 test" in run(folder, "unittest", "test_case.py")
