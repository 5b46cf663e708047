"""Braze as the simulation has it: one workspace, its windows, and what its headers show."""

from __future__ import annotations

import random
from email.utils import formatdate

import attrs

from tests.simulation.mixes import Mix

DAY = 86_400.0


@attrs.define
class Answer:
    """What Braze, or something before it, says to one request."""

    status: int
    message: str
    headers: dict[str, str]


class Braze:
    """One workspace.

    Attributes:
        limit: slots of a window, as they are now.
        used: slots taken in each window, by its number.
        created: pairs created in each window, in order, by its number.
        refused: how many requests were refused for want of quota.
    """

    def __init__(self, mix: Mix, chance: random.Random, limit: int) -> None:
        self._mix, self._chance = mix, chance
        self.limit = limit
        self.used: dict[int, int] = {}
        self.created: dict[int, list[str]] = {}
        self.pairs: set[str] = set()
        self.refused = 0
        self._opens_late = chance.uniform(0, mix.opens_late)
        self._skew = chance.uniform(-mix.skew, mix.skew)

    def window(self, now: float) -> int:
        """The number of the window that counts at ``now``; one may open late."""
        return int((now - self._opens_late) // DAY)

    def remaining(self, now: float) -> int:
        """Slots that are left."""
        return max(0, self.limit - self.used.get(self.window(now), 0))

    def spend(self, now: float, count: int) -> None:
        """Others take slots, or what is left."""
        number = self.window(now)
        self.used[number] = self.used.get(number, 0) + min(count, self.remaining(now))

    def handle(self, pair: str, now: float) -> tuple[int, str, bool]:
        """Status, message, and whether it counted."""
        number = self.window(now)
        exists = pair in self.pairs
        if exists and self._mix.counts == "pairs":
            status = self._mix.duplicate
            return status, "Send ID already exists" if status == 400 else "success", False
        if not self.remaining(now):
            self.refused += 1
            return 429, "Rate limit exceeded", False
        self.used[number] = self.used.get(number, 0) + 1
        if exists:
            status = self._mix.duplicate
            return status, "Send ID already exists" if status == 400 else "success", True
        self.pairs.add(pair)
        self.created.setdefault(number, []).append(pair)
        return 201, "success", True

    def headers(self, status: int, now: float) -> dict[str, str]:
        """What an answer written at ``now`` shows."""
        mix, chance = self._mix, self._chance
        date = now + self._skew
        if chance.random() < mix.date_jumps:
            date += chance.uniform(-mix.date_jump, mix.date_jump)
        found = {"date": formatdate(date, usegmt=True), "content-type": "application/json"}
        if chance.random() < mix.no_headers or (status == 429 and mix.bare_429):
            return found
        number = self.window(now)
        limit, remaining, reset = self.limit, self.remaining(now), (number + 1) * DAY
        if chance.random() < mix.foreign:  # of Braze's general limit, 250,000 an hour
            limit, remaining = 250_000, 249_000 - len(self.pairs)
            reset = (now // 3600 + 1) * 3600
        texts = [str(limit), str(remaining), str(int(reset))]
        if chance.random() < mix.garbled:
            texts = chance.choice([["", "", ""], ["abc", "-5", ""], [texts[0], texts[1], "0"]])
        names = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
        return found | dict(zip(names, texts, strict=True))
