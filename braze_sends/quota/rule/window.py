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
    """Answers that show a limit higher than ours.

    Attributes:
        window: the headers of one of them: of the latest window, the ones that counted most.
        seen: when the first of these answers came.
        told: when the answer with ``window`` came.
    """

    window: Reading
    seen: float
    told: float = math.inf


@attrs.define(slots=False)
class Window:
    """The day's window.

    No header alone raises the limit, since it may be another bucket's:
    https://www.braze.com/docs/api/api_limits/ has one of 250,000 an hour. The limit is raised when
    a create beyond the old limit succeeds.

    Attributes:
        used: the most that headers have shown in this window; within one it only grows.
        reset: when it ends; ``None`` until a believed answer came.
        learned: when the last believed answer was taken in.
        sighting: a limit higher than ours that headers show.
        trusting: whether the next answer's limit is taken over, since ``forget`` was called.
        dismissed: a limit that was sighted in vain: a create beyond ours was refused, and not by
            the bucket that has the sighted limit. The sighted limit is not noted again for a day,
            or until the window ends.
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
            # Windows are fixed: while our window lasts, a later reset is that of another bucket, or
            # comes from a proxy's clock. But if the later reset has a lower limit, then *ours* was
            # that of another bucket: the daily bucket is the small one.
            return braze_now > self.reset - CLOSING or reading.limit < self.limit
        if self.reset is not None and reading.reset < self.reset - SAME_RESET:
            # An earlier reset is that of an old window or of another bucket. If the request began
            # after all that we know, and the limit is ours, then our reset was wrong.
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

        ``reading``, of that create's answer, goes before the sighting. The sighting may be gone,
        since ``forget`` was called meanwhile.
        """
        seen = self.sighting
        higher = reading if reading is not None and reading.limit > self.limit else None
        if higher is None and seen is not None:
            higher = seen.window
        if higher is None:
            return
        # The higher limit is ours if the create succeeded, or if its own bucket refused the create.
        if created or (reading is higher and higher.used == higher.limit):
            self.limit, self.sighting = higher.limit, None
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
