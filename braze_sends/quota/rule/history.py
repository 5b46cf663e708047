"""What was created in the window, by hour and campaign. To be shown; it decides nothing.

Pure: no clock, no I/O. A history never changes, so that copies of a state share it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

import attrs

from braze_sends.models import Creations

#: More than a quota of 100 can fill, and ten campaigns in each hour of a day. It bounds a history,
#: however high the limit is, to about 10 kB.
MOST_COUNTS = 240
#: An hour is shown for so many seconds, where no window's end clears the history before.
KEPT = 86_400.0
#: Hours that can be named, in epoch seconds, whatever a clock says.
_FIRST, _LAST = 0.0, 253_402_300_799.0


@attrs.frozen
class History:
    """How many sends were created.

    Attributes:
        hours: for each hour of Braze's clock, such as ``2026-11-22T05``, the number by campaign;
            under the empty name, of all that found no place.
    """

    hours: dict[str, dict[str, int]] = attrs.field(factory=dict)

    def add(self, campaign: str, epoch: float) -> History:
        """With one more, created at ``epoch`` by Braze's clock."""
        hour = _hour(epoch)
        hours = self.hours if hour in self.hours else self._kept(epoch)
        counts = hours.get(hour, {})
        if campaign not in counts and sum(map(len, hours.values())) >= MOST_COUNTS:
            campaign = ""
        return History(hours | {hour: counts | {campaign: counts.get(campaign, 0) + 1}})

    def creations(self, epoch: float) -> tuple[Creations, ...]:
        """What is to be shown at ``epoch`` by Braze's clock: by hour, then by campaign.

        Raises:
            ValueError: the name of an hour is damaged.
        """
        return tuple(
            Creations(campaign, datetime.fromisoformat(hour).replace(tzinfo=UTC), count)
            for hour, counts in sorted(self._kept(epoch).items())
            for campaign, count in sorted(counts.items())
        )

    def _kept(self, epoch: float) -> dict[str, dict[str, int]]:
        oldest = _hour(epoch - KEPT)
        return {hour: counts for hour, counts in self.hours.items() if hour >= oldest}


def _hour(epoch: float) -> str:
    return _name(int(min(max(epoch, _FIRST), _LAST) // 3600))


@lru_cache(maxsize=64)
def _name(hours: int) -> str:
    return datetime.fromtimestamp(hours * 3600, UTC).isoformat(timespec="hours")[:-6]
