"""What a create costs beyond its request: the client against bare aiohttp, in the same run.

Both send the same POSTs to the same server on loopback, alternating round by round. The figure is
the ratio of their medians, so that the machine falls out of it.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable

import aiohttp

from braze_sends import SendsClient
from braze_sends.testing import FakeBraze

KEY = "benchmark-key"
ROUNDS = 15


async def _round(create: Callable[[int], Awaitable[object]], first: int, size: int) -> float:
    begun = time.perf_counter()
    await asyncio.gather(*(create(first + n) for n in range(size)))
    return (time.perf_counter() - begun) / size


async def _measure(size: int) -> tuple[float, float]:
    async with (
        FakeBraze(api_key=KEY, daily_limit=1_000_000) as fake,
        aiohttp.ClientSession() as session,
        SendsClient(KEY, base_url=fake.base_url) as braze,
    ):

        async def bare(n: int) -> None:
            async with session.post(
                f"{fake.base_url}/sends/id/create",
                json={"campaign_id": "campaign", "send_id": f"bare-{n}"},
                headers={"Authorization": f"Bearer {KEY}"},
            ) as response:
                json.loads(await response.read())

        async def ours(n: int) -> None:
            await braze.create_send_id("campaign", f"ours-{n}")

        await _round(bare, 10_000_000, 10)
        await _round(ours, 10_000_000, 10)
        pairs = [
            (await _round(bare, n * size, size), await _round(ours, n * size, size))
            for n in range(ROUNDS)
        ]
    return tuple(statistics.median(side) for side in zip(*pairs, strict=True))


def main() -> None:
    """Print a line for each size of a gather."""
    print("gathered   bare aiohttp   braze_sends   ratio")
    for size in (1, 10, 100):
        bare, ours = asyncio.run(_measure(size))
        print(f"{size:8}   {bare * 1e6:9.0f} µs   {ours * 1e6:8.0f} µs   {ours / bare:5.2f}")


if __name__ == "__main__":
    main()
