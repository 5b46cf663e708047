"""A pytest plugin with one fixture, ``fake_braze``. It needs pytest-asyncio.

pytest loads every installed plugin, so this file imports nothing that takes long.
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator

import pytest

try:
    from pytest_asyncio import fixture  # which pytest has loaded by itself, if it is there
except ImportError:
    # It must start for those who want no fixture of ours.
    fixture = pytest.fixture  # type: ignore[assignment]

if typing.TYPE_CHECKING:  # pragma: no cover
    from braze_sends.testing.fake import FakeBraze


@fixture
async def fake_braze() -> AsyncIterator[FakeBraze]:
    """A running :class:`FakeBraze` with the key ``test-key`` and 100 slots a day."""
    from braze_sends.testing.fake import FakeBraze

    async with FakeBraze() as fake:
        yield fake
