"""A timekeeper for each test of worker processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_asyncio

from tests.processes.timekeeper import Timekeeper


@pytest_asyncio.fixture
async def timekeeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Timekeeper:
    """Time for workers and emulators."""
    return Timekeeper(tmp_path / "clock", monkeypatch)
