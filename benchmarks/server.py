"""A stand-in for Braze in a process of its own, much faster than any client.

It answers each create with 201 and the headers that Braze sends. The API key names the quota:
``key(5000)`` is that of a new workspace with 5,000 slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import cast

#: More than any measurement uses.
FAR = 100_000_000
#: After so many creates the client believes that the limit is more than the usual 100.
BELIEVED = 110

_numbers = itertools.count()


def key(limit: int = FAR) -> str:
    """The key of a new workspace with ``limit`` slots."""
    return f"{limit}-{os.getpid()}-{next(_numbers)}"


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Run the server in another process; its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    with process:  # it ends with its input
        yield process.stdout.readline().strip() if process.stdout else ""


class _Connection(asyncio.Protocol):
    def __init__(self, used: Counter[bytes], reset: int) -> None:
        self._used = used
        self._reset = reset
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, rest = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        fields = {name.lower(): value for name, value in fields.items()}
        size = int(fields[b"content-length"])
        if len(rest) >= size:
            self._received = rest[size:]
            self._answer(fields[b"authorization"].removeprefix(b"Bearer "), rest[:size])

    def _answer(self, key: bytes, body: bytes) -> None:
        limit = int(key.partition(b"-")[0])
        self._used[key] += 1
        status = "201 Created" if self._used[key] <= limit else "429 Too Many Requests"
        send_id = json.loads(body)["send_id"]
        content = json.dumps({"message": "success", "send_id": send_id})
        self._transport.write(
            f"HTTP/1.1 {status}\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n"
            f"Date: {formatdate(usegmt=True)}\r\n"
            f"X-Request-Id: {self._used[key]:032x}\r\n"
            f"X-Ratelimit-Limit: {limit}\r\n"
            f"X-Ratelimit-Remaining: {max(0, limit - self._used[key])}\r\n"
            f"X-Ratelimit-Reset: {self._reset}\r\n"
            f"\r\n{content}".encode()
        )


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    used: Counter[bytes] = Counter()
    reset = int(time.time()) + 43_200  # the window does not end during a measurement
    server = await loop.create_server(
        lambda: _Connection(used, reset), "127.0.0.1", 0, backlog=4096
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve())
