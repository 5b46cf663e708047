"""The code blocks of the README and the docs run as tests, against an emulator in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from braze_sends.testing import FakeBraze

KEY = "key-of-the-examples"


@pytest.fixture(scope="module")
def braze_for_examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Braze, and the environment that points to it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    fake = FakeBraze(api_key=KEY)
    asyncio.run_coroutine_threadsafe(fake.__aenter__(), loop).result()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRAZE_API_KEY", KEY)
        patch.setenv("BRAZE_BASE_URL", fake.base_url)
        patch.chdir(tmp_path_factory.mktemp("examples"))  # they write files
        yield
    asyncio.run_coroutine_threadsafe(fake.__aexit__(None, None, None), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    fixtures=["braze_for_examples"],
).pytest()
