"""Whether anything may start now: the state may be unknown, and Braze may ask for a pause."""

from __future__ import annotations

import math

import attrs

#: The first pause after a 429 that does not say how long, and the longest; doubled in between.
#: Two seconds, so that a window that opens six seconds late draws two refusals and not eight.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 64.0
#: The shortest pause, in seconds.
SHORTEST_PAUSE = 1.0
#: More probes are never out.
MOST_PROBES = 1 << 20
#: More refusals in a row make no pause longer.
MOST_REFUSALS = 16


@attrs.define(slots=False)
class Gate:
    """All times are on the steady clock.

    Attributes:
        known: whether the state is good enough for more than a probe.
        unknown_since: attempts begun before this are no probes.
        probes: how many attempts may be out while the state is unknown.
        blocked_until: nothing starts before.
        refusals: 429s in a row that did not say how long to wait.
        careful: one request may go though nothing is left, since the quota was to be forgotten.
    """

    known: bool = False
    unknown_since: float = -math.inf
    probes: int = 1
    blocked_until: float = -math.inf
    refusals: int = 0
    careful: bool = False

    def forget_state(self, now: float) -> None:
        """From now on one attempt goes first, to ask for the state."""
        self.known, self.unknown_since, self.probes = False, now, 1

    def is_probe(self, begun: float) -> bool:
        """Whether an attempt can tell the state: it began after the state became unknown."""
        return begun >= self.unknown_since

    def probe_ended(self, begun: float) -> None:
        """An attempt ended and told nothing.

        Twice as many may ask, so that a hanging pair, a dead process or a vendor without headers
        does not hold up the rest.
        """
        if not self.known and self.is_probe(begun):
            self.probes = min(2 * self.probes, MOST_PROBES)

    def block(self, until: float, now: float) -> None:
        """After a 429: nothing starts before ``until``, and then one attempt."""
        self.blocked_until = max(self.blocked_until, until)
        self.forget_state(now)

    def pause(self, begun: float) -> float | None:
        """How long to pause after a 429 that does not say; ``None`` if everybody pauses already."""
        if not self.is_probe(begun):
            return None  # one of a burst; its first 429 has made everybody back off
        pause: float = min(FIRST_PAUSE * 2**self.refusals, LONGEST_PAUSE)
        self.refusals = min(self.refusals + 1, MOST_REFUSALS)
        return pause

    def open_carefully(self) -> None:
        """Nothing is blocked, and one request may go though nothing is left."""
        self.blocked_until, self.refusals, self.careful = -math.inf, 0, True
