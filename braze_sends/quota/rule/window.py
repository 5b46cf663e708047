"""What the rate-limit headers say, and whether to believe them.

All times are Braze's epoch seconds, but for ``learned``, ``seen``, ``told``, ``dismissed_until``,
``begun`` and ``now``, which are on the steady clock.
"""

from __future__ import annotations

import math

import attrs

from braze_sends.headers import LONGEST_WAIT
from braze_sends.quota.rule.messages import Reading

#: https://www.braze.com/docs/api/endpoints/messaging/send_messages/post_create_send_ids/
ASSUMED_LIMIT = 100
DAY = 86_400.0
#: The reset second itself can still be refused.
RESET_MARGIN = 1.0
#: Resets this close are the same window: the headers have whole seconds.
SAME_RESET = 2.0
#: A window with less than this left may have ended already, by the clock of whoever answered.
CLOSING = 5.0


@attrs.frozen
class Sighting:
    """The sighting of a limit higher than ours.

    Attributes:
        window: what the answers said, the one that counted most.
        seen: when the first of them came.
        told: when that one came.
    """

    window: Reading
    seen: float
    told: float = math.inf


@attrs.define(slots=False)
class Window:
    """The day's window.

    No header alone raises the limit, since it may be another bucket's:
    https://www.braze.com/docs/api/api_limits/ has one of 250,000 an hour. A create beyond the old
    limit that succeeds does.

    Attributes:
        used: the most that headers have shown in this window; within one it only grows.
        reset: when it ends; ``None`` until a believed answer came.
        learned: when the last believed answer was taken in.
        sighting: a limit higher than ours that headers show.
        trusting: the next answer's limit is ours, since the quota was to be forgotten.
        dismissed: a limit that was sighted, but a create beyond ours was refused, by no bucket that
            has this limit. It is not believed for a day, or until the window ends.
    """

    limit: int = ASSUMED_LIMIT
    used: int = 0
    reset: float | None = None
    learned: float = -math.inf
    sighting: Sighting | None = None
    trusting: bool = False
    dismissed: int = 0
    dismissed_until: float = -math.inf

    def is_over(self, braze_now: float) -> bool:
        """Whether the window has ended."""
        return self.reset is not None and braze_now >= self.reset + RESET_MARGIN

    def is_other(self, reset: float) -> bool:
        """Whether ``reset`` is that of another window than ours."""
        return self.reset is None or abs(reset - self.reset) > SAME_RESET

    def is_credible(self, reading: Reading, begun: float, braze_now: float) -> bool:
        """Whether the headers are of a window that has not ended, and not of another bucket."""
        if not braze_now - RESET_MARGIN < reading.reset <= braze_now + LONGEST_WAIT:
            return False
        if self.reset is not None and reading.reset > self.reset + SAME_RESET:
            # Windows are fixed: while ours is still ahead, a later one is another bucket's, or a
            # proxy's clock. A lower limit tells that *ours* was: the daily bucket is the small one.
            return braze_now > self.reset - CLOSING or reading.limit < self.limit
        if self.reset is not None and reading.reset < self.reset - SAME_RESET:
            # An earlier reset is an old window's, or another bucket's, unless the request began
            # after all that we know: then ours was wrong.
            return begun >= self.learned and reading.limit == self.limit
        return True

    def believe(self, reading: Reading, begun: float, now: float) -> None:
        """Merge what is believed: of our window, or of the one that replaces it."""
        if self.is_other(reading.reset):
            self.limit, self.used, self.reset = reading.limit, reading.used, reading.reset
        else:
            # Within a window ``used`` only grows, so a higher one is a later truth.
            if begun >= self.learned or reading.used > self.used:
                self.limit = reading.limit
            self.used = max(self.used, reading.used)
        self.learned, self.trusting = now, False
        if self.sighting is not None and begun >= self.sighting.seen:
            self.sighting = None  # a later answer names our limit

    def sight(self, reading: Reading, now: float) -> bool:
        """Note a limit higher than ours, unless a create beyond ours was refused already."""
        if reading.limit == self.dismissed and now < self.dismissed_until:
            return False
        seen = self.sighting
        if seen is None or seen.window.limit != reading.limit:
            self.sighting = Sighting(reading, now, now)
        else:
            later = reading.reset - seen.window.reset
            if later > SAME_RESET or (later >= -SAME_RESET and reading.used > seen.window.used):
                self.sighting = Sighting(reading, seen.seen, now)
        return True

    def limit_asked(
        self, reading: Reading | None, now: float, *, created: bool, refused: bool
    ) -> None:
        """Take in how a create beyond our limit ended: it confirms a higher one, or dismisses it.

        The sighting of that very answer counts: the quota may have been forgotten before it.
        """
        seen = self.sighting
        higher = reading if reading is not None and reading.limit > self.limit else None
        if higher is None and seen is not None:
            higher = seen.window
        if higher is None:
            return
        if created or (reading is higher and higher.used == higher.limit):
            self.limit, self.sighting = higher.limit, None  # or that bucket itself has refused
        elif refused:
            self.dismissed, self.dismissed_until, self.sighting = higher.limit, now + DAY, None

    def end_sighting(self, braze_now: float) -> None:
        """Forget a sighting whose window has ended."""
        if self.sighting is not None and braze_now >= self.sighting.window.reset + RESET_MARGIN:
            self.sighting = None

    def begin_anew(self) -> None:
        """The window has ended; nothing is known of the next."""
        self.reset, self.dismissed, self.sighting = None, 0, None

    def forget_limit(self) -> None:
        """Forget what was learnt. ``used`` stays, since no raise lowers it."""
        self.limit, self.learned, self.sighting = ASSUMED_LIMIT, -math.inf, None
        self.dismissed, self.trusting = 0, True

    def next_end(self) -> float:
        """When the window, or that of a sighting, ends; infinite if that is not known."""
        ends = [self.reset, self.sighting.window.reset if self.sighting is not None else None]
        return min((end + RESET_MARGIN for end in ends if end is not None), default=math.inf)
