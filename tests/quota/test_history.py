"""What was created, by hour and by campaign."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from braze_sends import Creations
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.history import MOST_COUNTS, History
from braze_sends.stores.codec import dump

HOUR, DAY = 3600.0, 86_400.0


def history_of(*added: tuple[str, float]) -> History:
    history = History()
    for campaign, epoch in added:
        history = history.add(campaign, epoch)
    return history


def test_creations_are_told_by_hour_and_campaign() -> None:
    """In the order of the hours, then of the names; an hour is the one in which it was created."""
    history = history_of(("b", HOUR), ("a", 2 * HOUR - 1), ("b", 2 * HOUR), ("b", 2 * HOUR + 1))
    first, second = (datetime(1970, 1, 1, hour, tzinfo=UTC) for hour in (1, 2))
    assert (
        Creations("a", first, 1),
        Creations("b", first, 1),
        Creations("b", second, 2),
    ) == history.creations(3 * HOUR)


def test_a_history_never_changes() -> None:
    """What was made of it is another one, whether the hour was there or not."""
    history = history_of(("a", 0.0))
    history.add("a", 1.0)
    history.add("b", HOUR)
    assert history_of(("a", 0.0)) == history


def test_a_history_drops_what_is_older_than_a_day() -> None:
    """When something is added in a new hour; and it is not shown before that."""
    history = history_of(("a", HOUR - 1), ("b", HOUR))
    late = DAY + HOUR
    assert ["b"] == [one.campaign_id for one in history.creations(late)]
    assert history_of(("b", HOUR), ("c", late)) == history.add("c", late)


def test_an_hour_is_kept_until_all_of_it_is_older_than_a_day() -> None:
    """A day that does not begin with an hour is in 25 of them."""
    history = history_of(*(("a", hour * HOUR) for hour in range(100)))
    assert list(range(99 - 24, 100)) == [
        one.hour.timestamp() // HOUR for one in history.creations(99 * HOUR)
    ]


def test_a_history_stays_small() -> None:
    """Whoever finds no place is counted under no name; whoever has one is counted on."""
    names = [f"{n:036}" for n in range(5000)]
    history = history_of(*((name, 0.0) for name in names), (names[0], 1.0))
    counts = {one.campaign_id: one.count for one in history.creations(0.0)}
    assert (MOST_COUNTS + 1, 2) == (len(counts), counts[names[0]])
    assert len(names) - MOST_COUNTS == counts[""]
    for hour in range(24):
        for name in names[:1000]:
            history = history.add(name, hour * HOUR)
    assert len(dump(Bucket(offset=0.0, history=history))) < 12_000
    assert 5001 + 24_000 == sum(one.count for one in history.creations(DAY))


def test_all_creates_of_a_days_quota_find_their_place() -> None:
    """Each of the 100 of another campaign, in whatever hours."""
    history = history_of(*((f"{n}", n * 0.24 * HOUR) for n in range(100)))
    assert {f"{n}" for n in range(100)} == {one.campaign_id for one in history.creations(DAY)}


def test_an_hour_that_is_none_is_told() -> None:
    """Somebody has changed the record by hand."""
    with pytest.raises(ValueError, match="noon"):
        History({"noon": {"a": 1}}).creations(0.0)


@pytest.mark.parametrize("epoch", [-1e12, -1.0, 1e12, 1e300])
def test_a_clock_that_is_absurd_harms_nothing(epoch: float) -> None:
    """What it counts is shown in the first or last hour that can be named."""
    history = history_of(("a", epoch))
    (creations,) = history.creations(epoch)
    assert 1 == creations.count
