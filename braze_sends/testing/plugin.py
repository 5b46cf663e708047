"""A pytest plugin with one fixture, ``fake_braze``. It needs pytest-asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

try:
    from pytest_asyncio import fixture
except ImportError:
    # pytest loads every installed plugin. It must start for those who want no fixture of ours.
    fixture = pytest.fixture  # type: ignore[assignment]

from braze_sends.testing.fake import FakeBraze


@fixture
async def fake_braze() -> AsyncIterator[FakeBraze]:
    """A running :class:`FakeBraze` with the key ``test-key`` and 100 slots a day."""
    async with FakeBraze() as fake:
        yield fake
