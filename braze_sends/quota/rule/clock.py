"""Braze's time, as its ``Date`` headers tell it."""

from __future__ import annotations

import attrs

#: A ``Date`` further than this from what we hold needs a second witness, in seconds.
ODD_DATE = 2.0


@attrs.define(slots=False)
class Clock:
    """The difference between two clocks.

    Attributes:
        offset: Braze's epoch seconds minus the steady clock.
        odd_offset: the offset by one ``Date`` that is far from ours. It is taken over when a second
            ``Date`` agrees.
    """

    offset: float = attrs.field(kw_only=True)
    odd_offset: float | None = None

    def braze_time(self, now: float) -> float:
        """Braze's epoch seconds at ``now`` on the steady clock."""
        return now + self.offset

    def correct(
        self, date: float, begun: float, now: float, *, guessed: bool, witnessed: bool
    ) -> None:
        """Take in the ``Date`` of an answer to a request that began at ``begun``.

        Args:
            date: epoch seconds.
            begun: when the request began, on the steady clock.
            now: the steady clock.
            guessed: whether our clock is no better than this host's.
            witnessed: whether the same answer shows in another way that this much time has passed.
        """
        # ``Date`` has whole seconds, and was written between ``begun`` and ``now``. An offset
        # beyond these bounds becomes the lower one: no window may be taken for over too early.
        low, high = date - now, date + 1.0 - begun
        if low <= self.offset <= high:
            self.odd_offset = None
            return
        # A ``Date`` is far if a proxy with a wrong clock wrote it, or if this host slept.
        far = not guessed and abs(low - self.offset) > ODD_DATE
        agrees = self.odd_offset is not None and abs(low - self.odd_offset) <= ODD_DATE
        if far and not witnessed and not agrees:
            self.odd_offset = low
            return
        self.offset, self.odd_offset = low, None
