"""The two hot paths without a network, for a tool that counts instructions.

``python -m benchmarks.hot_paths create 200`` makes 200 creates in turn; the other is ``limiter``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import warnings
from collections.abc import AsyncIterator
from email.utils import formatdate
from types import TracebackType
from typing import Any, Self

import aiohttp
from multidict import CIMultiDict

from benchmarks import peers
from benchmarks.creates import client
from benchmarks.limiter import ready_limiter
from benchmarks.server import FAR

NAMES = ("create", "limiter")


class _Answer:
    """As much of a response as the client reads."""

    status = 201

    def __init__(self, headers: dict[str, str], body: bytes) -> None:
        self.headers = CIMultiDict(headers)
        self.content = self
        self._body = body
        self.content_length = len(body)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        yield self._body

    async def read(self) -> bytes:
        return self._body

    def release(self) -> None:
        """There is no connection."""

    close = release

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """There is no connection."""


def _stub() -> aiohttp.ClientSession:
    """A session that answers by itself, at once."""
    reset, used = int(time.time()) + 43_200, 0
    date = formatdate(usegmt=True)

    async def request(*args: Any, **options: Any) -> Any:
        nonlocal used
        used += 1
        headers = {
            "Content-Type": "application/json",
            "Date": date,
            "X-Request-Id": f"{used:032x}",
            "X-Ratelimit-Limit": str(FAR),
            "X-Ratelimit-Remaining": str(FAR - used),
            "X-Ratelimit-Reset": str(reset),
        }
        body = {"message": "success", "send_id": f"story-{used - 1}"}
        return _Answer(headers, json.dumps(body).encode())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # aiohttp's, of the inheritance

        class Stub(aiohttp.ClientSession):
            async def _request(self, *args: Any, **options: Any) -> Any:
                return await request()

    return Stub()


async def _create(count: int) -> None:
    async with _stub() as session, client(session, "http://127.0.0.1") as (_, create):
        await peers.in_turn(create, count)


async def _limiter(count: int) -> None:
    acquire, finish = await ready_limiter()
    for _ in range(count):
        await finish(await acquire())


if __name__ == "__main__":
    asyncio.run({"create": _create, "limiter": _limiter}[sys.argv[1]](int(sys.argv[2])))
