"""A pytest plugin with one fixture, ``fake_braze``, for synchronous and asynchronous tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from braze_sends.testing.fake import FakeBraze


@pytest.fixture
def fake_braze() -> Iterator[FakeBraze]:
    """A running :class:`FakeBraze` with the key ``test-key`` and 100 slots a day.

    It runs in a thread of its own. By its clock a test begins at noon of the current UTC day, so no
    day ends by itself while the test runs.
    """
    # Imported here, since pytest loads every installed plugin.
    from braze_sends.testing.fake import FakeBraze

    fake = FakeBraze()
    fake.clock_offset = 43_200.0 - time.time() % 86_400.0
    with fake:
        yield fake
