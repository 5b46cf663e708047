"""The Redis or Valkey server of the tests, for a benchmark; and a count of what is asked of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import attrs


@contextlib.contextmanager
def running() -> Iterator[str | None]:
    """Run one; its URL, or ``None`` if there is no binary of it here."""
    try:
        from tests.servers import RedisServer, binary

        binary()
    except (ImportError, AssertionError):
        yield None
        return
    with RedisServer() as server:
        yield server.url


@attrs.define
class Count:
    """What went over the connections.

    Attributes:
        round_trips: requests after which an answer was awaited.
        commands: commands that the client sent.
    """

    round_trips: int = 0
    commands: int = 0


@contextlib.asynccontextmanager
async def counted(url: str) -> AsyncIterator[tuple[str, Count]]:
    """A proxy before the server at ``url``: its URL, and its count."""
    parts = urlsplit(url)
    count = Count()
    ends: set[asyncio.StreamWriter] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port)
        ends.update((writer, far_writer))
        asking = False

        async def answers() -> None:
            nonlocal asking
            while data := await far_reader.read(1 << 20):
                asking = False
                writer.write(data)
            writer.close()

        back = asyncio.create_task(answers())
        while data := await reader.read(1 << 20):
            count.round_trips += not asking
            # Each command is an array of bulk strings, and none of ours holds such a line.
            count.commands += sum(
                line[:1] == b"*" and line[1:].isdigit() for line in data.split(b"\r\n")
            )
            asking = True
            far_writer.write(data)
        far_writer.close()
        await back

    proxy = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 20)
    try:
        yield f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}{parts.path}", count
    finally:
        for end in ends:
            end.close()
        proxy.close()
