"""The pytest plugin, as a run of pytest meets it that has the package installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import braze_sends.testing

UNRELATED = """
import sys

def test_unrelated(pytestconfig):
    assert pytestconfig.pluginmanager.get_plugin("braze_sends")
    loaded = {"aiohttp", "attrs", "cattrs", "braze_sends.testing.fake", "braze_sends.client"}
    assert not loaded & {*sys.modules}
"""

USES_THE_FIXTURE = """
import pytest

@pytest.mark.asyncio
async def test_fixture(fake_braze):
    assert fake_braze.base_url.startswith("http://127.0.0.1:")
"""


@pytest.mark.process
@pytest.mark.parametrize("text", [UNRELATED, USES_THE_FIXTURE], ids=["unrelated", "fixture"])
def test_a_run_that_does_not_use_the_fixture_imports_nothing_heavy(
    text: str, tmp_path: Path
) -> None:
    """The plugin is loaded in every run; aiohttp and the emulator only where they are used."""
    (tmp_path / "test_it.py").write_text(text)
    # Plugins of the tests are left out: some import attrs.
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "braze_sends", "-p", "asyncio", tmp_path],
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in told.stdout, told.stdout + told.stderr


def test_an_unknown_name_of_the_testing_tools_is_told() -> None:
    """A name that the package does not have is an AttributeError that says so."""
    with pytest.raises(AttributeError, match=r"'braze_sends\.testing' has no attribute 'nonsense'"):
        _ = braze_sends.testing.nonsense
