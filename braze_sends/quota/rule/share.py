"""Fairness: a process that shares the store takes its part of what is free, while others ask."""

from __future__ import annotations

import math

import attrs

#: A process that asked within so many seconds has its share.
PRESENT = 10.0


@attrs.define(slots=False)
class Share:
    """All times are on the steady clock.

    Attributes:
        present: the processes that share the store and want tokens, and when each asked last.
    """

    present: dict[str, float] = attrs.field(factory=dict)

    def share(self, process: str | None, room: int, now: float) -> float:
        """How many of the ``room`` tokens that are free a process may take at a time."""
        others = sum(
            name != process and now - asked < PRESENT for name, asked in self.present.items()
        )
        if process is None or not others:
            return math.inf
        return max(1, math.ceil(room / (1 + others)))

    def note_presence(self, process: str, now: float) -> None:
        """Note that a process wants tokens; seldom, since each note makes a store write."""
        if now - self.present.get(process, -math.inf) > PRESENT / 2:
            self.present = {
                name: asked for name, asked in self.present.items() if now - asked < PRESENT
            } | {process: now}
