"""Who has to wait for whom, and what outlives what: found by faults that no test noticed.

The faults are in ``tests/mutants``. The rule comes first, then the limiter and the create.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from braze_sends import (
    APIResponseError,
    APITimeoutError,
    BadRequestError,
    MemoryStore,
    QuotaExhaustedError,
    SendId,
    StoreError,
)
from braze_sends.headers import LONGEST_WAIT, AnswerHeaders
from braze_sends.models import CreateSendId
from braze_sends.protocol import Reply
from braze_sends.quota.limiter import FIRST_LOOK, LONGEST_SLEEP, Limiter
from braze_sends.quota.line import Held, WaitBudget
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.gate import LONGEST_PAUSE, MOST_PROBES
from braze_sends.quota.rule.ledger import LEASE_GRACE
from braze_sends.quota.rule.messages import Answer, Ask, Grant, Reading, Reason, Wait
from braze_sends.settings import ApiKey
from braze_sends.stores.codec import dump, load_bucket
from braze_sends.stores.store import Remembered, steady
from braze_sends.testing import run_virtual
from braze_sends.verdict import Verdict, judge
from tests.quota.test_bucket import RESET, TIMEOUT, ask, granted, known, told
from tests.quota.test_limiter import KNOWN, LOST, GatedStore
from tests.world import BARE, KEY, Fate, World, gather, made, many, play


def test_a_second_probe_goes_when_the_owner_of_the_first_has_died() -> None:
    """After the first one's deadline, two may ask for the state at once."""
    bucket = Bucket(offset=0.0)
    granted(bucket, ask("dies"), 0.0)
    deadline = TIMEOUT + LEASE_GRACE
    bucket.advance(deadline)
    decisions = bucket.reserve([ask("a"), ask("b"), ask("c")], deadline)
    assert [Grant, Grant, Wait] == [type(decision) for decision in decisions]


def test_the_deadline_of_a_lease_is_a_change_of_its_own() -> None:
    """Who waits for the token of a process that died is looked at then."""
    bucket = known(used=99)
    granted(bucket, ask("dies"), 5.0)
    assert 5.0 + TIMEOUT + LEASE_GRACE == bucket.next_change(6.0)


def test_the_deadline_of_a_lease_that_has_ended_is_no_change() -> None:
    """Nothing happens then, so nobody looks."""
    bucket = known()
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), told(2), 6.0)
    assert RESET + 1.0 == bucket.next_change(6.0)


def test_a_further_attempt_has_a_deadline_of_its_own() -> None:
    """That of the attempt before ends nothing."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), grant, Answer(spent=False), 6.0, keep=True)
    granted(bucket, ask("a", attempt=2), 15.0)
    assert 15.0 + TIMEOUT + LEASE_GRACE == bucket.next_change(16.0)
    bucket.advance(5.0 + TIMEOUT + LEASE_GRACE)
    assert {"a"} == set(bucket.leases)


def test_two_attempts_that_have_the_same_deadline_leave_one_unconfirmed_slot() -> None:
    """The second began in the moment in which the first one ended."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), grant, Answer(spent=False), 5.0, keep=True)
    granted(bucket, ask("a", attempt=2), 5.0)
    bucket.advance(5.0 + TIMEOUT + LEASE_GRACE)
    assert ({}, ["a.2"]) == (bucket.leases, list(bucket.unconfirmed))


def test_leases_that_are_read_end_in_the_order_of_their_deadlines() -> None:
    """However they stand in the record."""
    bucket = known()
    for name, timeout in (("long", 60.0), ("longer", 90.0), ("short", 10.0)):
        granted(bucket, ask(name, timeout=timeout), 5.0)
    read = load_bucket(dump(bucket))
    assert 5.0 + 10.0 + LEASE_GRACE == read.next_change(6.0)
    read.advance(5.0 + 60.0 + LEASE_GRACE)
    assert {"longer"} == set(read.leases)


def test_a_pair_of_a_lease_that_is_read_is_under_way() -> None:
    """Another create of it waits, whoever had granted the first."""
    bucket = known()
    granted(bucket, ask("a"), 5.0)
    (decision,) = load_bucket(dump(bucket)).reserve([ask("b", pair="pair-a")], 6.0)
    assert Wait(Reason.PAIR, 5.0 + TIMEOUT + LEASE_GRACE) == decision


def test_a_pair_that_exists_is_not_waited_for() -> None:
    """Whether the lease of the create that asked for it is open, or has ended since."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    bucket.settle_pair("pair-a")
    granted(bucket, ask("b", pair="pair-a"), 6.0)
    bucket.close("b", 1)
    bucket.finish(ask("a"), grant, told(2), 7.0)
    assert Grant(8.0) == granted(bucket, ask("c", pair="pair-a"), 8.0)


def test_two_leases_of_one_pair_end_one_after_the_other() -> None:
    """No rule makes them, but a damaged record may have them."""
    bucket = known()
    granted(bucket, ask("a"), 5.0)
    lease = bucket.leases["a"]
    read = attrs.evolve(bucket, leases={"a": lease, "b": lease})
    read.close("a", 1)
    (decision,) = read.reserve([ask("c", pair="pair-a")], 6.0)
    assert isinstance(decision, Wait)
    read.close("b", 1)
    assert Grant(6.0) == granted(read, ask("c", pair="pair-a"), 6.0)


def test_a_damaged_lease_ends_no_other() -> None:
    """But those whose deadlines have passed."""
    bucket = known()
    for name, begun in (("dead", 5.0), ("damaged", 5.0), ("alive", 15.0)):
        granted(bucket, ask(name), begun)
    far = attrs.evolve(bucket.leases["damaged"], deadline=1e9)
    read = attrs.evolve(bucket, leases=bucket.leases | {"damaged": far})
    read.advance(5.0 + TIMEOUT + LEASE_GRACE)
    assert {"alive"} == set(read.leases)


def test_a_lease_that_no_attempt_can_have_ends_though_it_was_not_read() -> None:
    """It was granted for years, to who asked with a damaged timeout."""
    bucket = known()
    granted(bucket, ask("a", timeout=1e9), 5.0)
    bucket.advance(6.0)
    assert {} == bucket.leases


def test_an_own_limit_begins_anew_in_a_new_window() -> None:
    """Neither the creates of the last window nor its cleared slots count."""
    bucket = known()
    bucket.created, bucket.cleared = 3, 2
    bucket.advance(RESET + 1.0)
    assert 5 == bucket.free(ask("a", own_limit=5))


def test_an_own_limit_begins_anew_with_a_first_answer_of_a_later_window() -> None:
    """What was created before any header came counts in the window that the first one names."""
    bucket = known(now=0.0)
    bucket.advance(RESET + 1.0)
    bucket.created = 4
    one = ask("a")
    grant = granted(bucket, one, RESET + 2.0)
    bucket.finish(one, grant, told(1, reset=RESET + 86_400.0), RESET + 3.0)
    assert 1 == bucket.created


def test_an_own_limit_counts_on_when_a_reset_is_corrected() -> None:
    """An earlier reset of the same window forgets no create."""
    bucket = known()
    bucket.created = 4
    one = ask("a")
    bucket.finish(one, granted(bucket, one, 5.0), told(2, reset=RESET - 600.0), 6.0)
    assert RESET - 600.0 == bucket.reset
    assert 5 == bucket.created


def test_a_repeat_takes_no_token() -> None:
    """It creates nothing new, so it goes though nothing is left and another is out."""
    bucket = known(used=98)
    grant = granted(bucket, ask("lost"), 5.0)
    bucket.finish(ask("lost"), grant, Answer(spent=None, in_doubt=True), 6.0)
    granted(bucket, ask("out"), 6.0)
    assert 1 > bucket.free(ask("more"))
    assert Grant(7.0) == granted(bucket, ask("again", pair="pair-lost"), 7.0)


def test_a_pair_is_granted_once_in_one_step() -> None:
    """The second one that asks for it waits for the first one's lease."""
    bucket = known()
    first, second = bucket.reserve([ask("a"), ask("b", pair="pair-a")], 5.0)
    assert Grant(5.0) == first
    assert Wait(Reason.PAIR, 5.0 + TIMEOUT + LEASE_GRACE) == second


def test_a_further_attempt_does_not_stand_behind_those_without_a_token() -> None:
    """It holds its token, though one that asks for the same before it finds nothing left."""
    bucket = known(used=99)
    one = ask("a", pair=None)
    grant = granted(bucket, one, 5.0)
    bucket.finish(one, grant, Answer(spent=False), 6.0, keep=True)
    first, further = bucket.reserve([ask("b"), attrs.evolve(one, attempt=2)], 7.0)
    assert isinstance(first, Wait)
    assert Grant(7.0) == further


def test_a_success_without_headers_leaves_its_pair_in_no_doubt() -> None:
    """Its slot is unconfirmed, but the pair is known to exist."""
    bucket = known()
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), Answer(spent=True), 6.0)
    assert set() == bucket.doubted()


def test_the_attempt_after_one_whose_end_was_not_kept_takes_no_token() -> None:
    """The attempt before is unconfirmed and fills the last slot; the repeat creates nothing new."""
    bucket = known(used=99)
    granted(bucket, ask("a"), 5.0)
    (again,) = bucket.reserve([ask("a", attempt=2)], 6.0)
    assert Grant(6.0) == again
    assert not bucket.leases["a"].asks_unconfirmed


def test_a_lease_between_two_attempts_is_no_probe() -> None:
    """It asks nothing while it backs off, so another may ask for the state."""
    bucket = Bucket(offset=0.0)
    grant = granted(bucket, ask("a"), 0.0)
    bucket.finish(ask("a"), grant, Answer(spent=False, from_edge=True), 1.0, keep=True)
    bucket.probes = 1
    assert Grant(2.0) == granted(bucket, ask("b"), 2.0)


def test_what_a_believed_answer_leaves_in_doubt_counts_for_an_own_limit() -> None:
    """A create that Braze queued, with its headers, may be a send."""
    bucket = known(used=5)
    bucket.created = 3
    grant = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), grant, told(6, spent=None, in_doubt=True), 6.0)
    assert 10 - 3 - 1 == bucket.free(ask("b", own_limit=10))


@pytest.mark.parametrize("lost", [Answer(spent=None, in_doubt=True), Answer(spent=True)])
def test_what_a_later_answer_clears_counts_for_an_own_limit(lost: Answer) -> None:
    """It was counted, and may be, or is, a send of ours."""
    bucket = known(used=5)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), lost, 6.0)
    bucket.finish(ask("b"), granted(bucket, ask("b"), 40.0), told(7), 41.0)
    assert {} == bucket.unconfirmed
    assert 10 - 3 == bucket.free(ask("c", own_limit=10))


def test_no_probe_asks_about_a_success_that_the_numbers_cannot_include() -> None:
    """They are no more than what has told its headers, so it is not counted twice."""
    bucket = known(used=1, limit=3)
    silent, heard = granted(bucket, ask("a"), 5.0), granted(bucket, ask("b"), 5.0)
    bucket.finish(ask("a"), silent, Answer(spent=True), 6.0)
    bucket.finish(ask("b"), heard, told(2, limit=3), 7.0)
    assert [Wait(Reason.QUOTA, RESET + 1.0)] == bucket.reserve([ask("c")], 8.0)


def test_a_nameless_send_in_doubt_counts_for_an_own_limit() -> None:
    """Nobody can ask for it, but it may exist."""
    bucket = known()
    one = ask("a", pair=None)
    grant = granted(bucket, one, 5.0)
    bucket.finish(one, grant, Answer(spent=None, in_doubt=True), 6.0)
    assert 3 == bucket.free(ask("b", own_limit=5))


def test_a_denied_pair_is_in_no_doubt() -> None:
    """A 4xx may have been counted, and created nothing."""
    bucket = known()
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), Answer(spent=None), 6.0)
    assert 1 == len(bucket.unconfirmed)
    assert set() == bucket.doubted()


def test_answers_to_requests_from_before_let_no_more_probes_go() -> None:
    """They tell nothing of the state since the 429."""
    bucket = known()
    old, refused = granted(bucket, ask("old"), 5.0), granted(bucket, ask("refused"), 5.0)
    bucket.finish(ask("refused"), refused, Answer(spent=False, refused=True), 6.0)
    bucket.finish(ask("old"), old, Answer(spent=True), 7.0)
    assert 1 == bucket.probes


def test_a_429_whose_reset_is_days_ahead_is_a_short_pause() -> None:
    """It is no reset of Braze's, but a clock that is wrong."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    far = Reading(100, 100, 10 * LONGEST_WAIT)
    bucket.finish(ask("a"), grant, Answer(spent=False, refused=True, window=far), 6.0)
    assert bucket.blocked_until < 60.0


def test_a_late_answer_does_not_bring_back_the_limit_that_was() -> None:
    """It began before what we know, and shows no more used."""
    bucket = known(used=10)
    old = granted(bucket, ask("old"), 5.0)
    bucket.finish(ask("new"), granted(bucket, ask("new"), 6.0), told(12, limit=60), 7.0)
    bucket.finish(ask("old"), attrs.evolve(old, begun=5.0), told(11, limit=50), 8.0)
    assert 60 == bucket.limit


def test_a_later_window_of_the_same_limit_is_not_believed_while_ours_is_ahead() -> None:
    """It is another bucket's, or a proxy's clock."""
    bucket = known(used=10)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), told(1, reset=RESET + 3600.0), 6.0)
    assert (RESET, 10) == (bucket.reset, bucket.used)


def test_a_sighting_ends_with_its_window() -> None:
    """It bounds what is free until its own reset, and no longer."""
    bucket = Bucket(offset=0.0)
    one = ask("a")
    bucket.finish(one, granted(bucket, one, 0.0), told(895, limit=900, reset=3600.0), 1.0)
    assert bucket.sighting is not None
    bucket.advance(3601.0)
    assert bucket.sighting is None


def test_a_probe_for_a_higher_limit_respects_own_limit_and_headroom() -> None:
    """Neither the caller's own limit nor the slots kept for others are risked."""
    bucket = known(used=99)
    bucket.finish(ask("seen"), granted(bucket, ask("seen"), 5.0), told(100, limit=102), 6.0)
    bucket.used = 100
    bucket.unconfirmed.clear()
    asks = [ask("a", headroom=2), ask("a", own_limit=bucket.created), ask("a")]
    decisions = bucket.reserve(asks, 7.0)
    assert [Wait, Wait, Grant] == [type(decision) for decision in decisions]
    assert bucket.leases["a"].asks_limit


def test_who_asks_for_the_same_stands_behind_the_first_that_found_nothing() -> None:
    """A probe that becomes possible in the same step is not for the one behind."""
    bucket = known(used=98)
    lost = granted(bucket, ask("lost"), 5.0)
    bucket.finish(ask("lost"), lost, Answer(spent=None), 6.0)
    granted(bucket, ask("kept", pair=None), 30.0)
    # Its first attempt could not be settled. Now nobody is out, and the first slot is ripe.
    further = ask("kept", attempt=2, pair=None, headroom=5)
    decisions = bucket.reserve([ask("first"), further, ask("second")], 36.0)
    assert [Wait, Wait, Wait] == [type(decision) for decision in decisions]


def test_who_waits_for_the_probe_is_not_passed_by_the_one_behind() -> None:
    """A second probe that becomes possible in the same step is not for the one behind."""
    bucket = Bucket(offset=0.0)
    granted(bucket, ask("kept"), 0.0)
    decisions = bucket.reserve([ask("first"), ask("kept", attempt=2), ask("second")], 5.0)
    assert [Wait, Grant, Wait] == [type(decision) for decision in decisions]


def test_an_unconfirmed_slot_that_ripens_about_the_reset_stays_after_it() -> None:
    """Braze's time is known to two seconds, so it may be counted in the new window."""
    bucket = known()
    begun = RESET - 1.0 - 3 * TIMEOUT
    grant = granted(bucket, ask("a"), begun)
    bucket.finish(ask("a"), grant, Answer(spent=None), begun + 1.0)
    bucket.advance(RESET + 1.0)
    assert ["a.1"] == list(bucket.unconfirmed)


def test_a_sighting_ends_with_our_window_too() -> None:
    """What was seen in it tells nothing of the next one."""
    bucket = known()
    later = told(2, limit=900, reset=RESET + 3.0)
    bucket.finish(ask("a"), granted(bucket, ask("a"), RESET - 4.0), later, RESET - 3.0)
    assert bucket.sighting is not None
    bucket.advance(RESET + 1.0)
    assert bucket.sighting is None


def test_one_probe_goes_into_a_new_window() -> None:
    """However many were out in the one before."""
    bucket = known()
    bucket.probes = 64
    bucket.advance(RESET + 1.0)
    assert 1 == bucket.probes


def sighting(used: int) -> Bucket:
    """A new bucket whose first answer showed 900, of which ``used`` were used, until 3600."""
    bucket = Bucket(offset=0.0)
    one = ask("seen")
    answer = told(used, limit=900, reset=3600.0)
    bucket.finish(one, granted(bucket, one, 0.0), answer, 1.0)
    return bucket


def test_a_sighting_bounds_what_is_free() -> None:
    """Less what became unconfirmed since, but not what it had counted; and it ends the unknown."""
    bucket = sighting(895)
    assert bucket.known
    assert 5 == bucket.free(ask("a"))
    bucket.finish(ask("a"), granted(bucket, ask("a"), 4.0), Answer(spent=True), 5.0)
    assert 4 == bucket.free(ask("b"))


def test_the_end_of_a_sighting_is_waited_for() -> None:
    """Where it leaves nothing, its reset is when to come back."""
    bucket = sighting(900)
    (decision,) = bucket.reserve([ask("a")], 5.0)
    assert Wait(Reason.QUOTA, 3601.0) == decision
    assert 3601.0 == bucket.next_change(100.0)


def test_the_latest_sighting_of_a_limit_counts() -> None:
    """The one with the most used, or the one of a later window."""
    bucket = sighting(100)
    for used, reset in ((200, 3600.0), (150, 3600.0), (3, 7200.0), (900, 3600.0)):
        grant = granted(bucket, ask(f"{used}"), 5.0)
        bucket.finish(ask(f"{used}"), grant, told(used, limit=900, reset=reset), 6.0)
        if used == 150:
            assert bucket.sighting is not None
            assert 200 == bucket.sighting.window.used
    assert bucket.sighting is not None
    assert Reading(900, 3, 7200.0) == bucket.sighting.window


@pytest.mark.parametrize(
    ("begun", "limit", "unconfirmed"),
    [(RESET - 5.0, 100, 0), (RESET + 2.0, 100, 1), (RESET - 5.0, 900, 1)],
)
def test_a_success_with_headers_of_an_ended_window_is_unconfirmed_unless_counted_there(
    begun: float, limit: int, unconfirmed: int
) -> None:
    """It was if it began before the end; another bucket's window tells nothing of ours."""
    bucket = known()
    granted(bucket, ask("a"), begun)
    bucket.advance(RESET + 1.5)
    bucket.finish(ask("a"), Grant(begun), told(50, limit=limit), RESET + 4.0)
    assert unconfirmed == len(bucket.unconfirmed)


def test_forgetting_the_quota_ends_a_pause() -> None:
    """A block that a wrong 429 had set ends, and its count starts over."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), grant, Answer(spent=False, refused=True, retry_after=9000.0), 6.0)
    bucket.forget(7.0)
    assert Grant(8.0) == granted(bucket, ask("b"), 8.0)


def test_forgetting_a_limit_begins_with_the_assumed_one() -> None:
    """Neither what was believed nor what was sighted bounds what is free."""
    bucket = known(used=1, limit=60)
    bucket.forget(7.0)
    assert 99 == bucket.free(ask("a"))
    bucket = sighting(895)
    bucket.forget(7.0)
    assert 99 == bucket.free(ask("a"))


def test_after_forgetting_one_answer_is_trusted() -> None:
    """The limit that the next one names is a sighting again."""
    bucket = known(used=10)
    bucket.forget(7.0)
    for name, limit, now in (("a", 150, 8.0), ("b", 900, 10.0)):
        bucket.finish(ask(name), granted(bucket, ask(name), now), told(12, limit=limit), now + 1.0)
        assert 150 == bucket.limit


def test_after_forgetting_one_answer_ends_the_care() -> None:
    """It has told that nothing is left, so no request goes to ask for that."""
    bucket = known(used=99)
    bucket.forget(7.0)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 8.0), told(100), 9.0)
    assert [Wait(Reason.QUOTA, RESET + 1.0)] == bucket.reserve([ask("b")], 10.0)


def test_after_forgetting_a_limit_that_was_dismissed_is_sighted_again() -> None:
    """It may be ours by now."""
    bucket = known(used=10)
    bucket.dismissed, bucket.dismissed_until = 900, RESET
    bucket.forget(7.0)
    for name, limit in (("a", 100), ("b", 900)):
        bucket.finish(ask(name), granted(bucket, ask(name), 8.0), told(11, limit=limit), 9.0)
    assert bucket.sighting is not None


def test_a_higher_limit_that_is_used_up_refuses_and_is_ours() -> None:
    """The create beyond our limit was counted by that bucket, and by no other."""
    bucket = known(used=99)
    bucket.finish(ask("seen"), granted(bucket, ask("seen"), 5.0), told(100, limit=150), 6.0)
    refused = Answer(spent=False, refused=True, window=Reading(150, 150, RESET))
    bucket.finish(ask("a"), granted(bucket, ask("a"), 7.0), refused, 8.0)
    assert (150, 150, 0) == (bucket.limit, bucket.used, bucket.dismissed)


def test_a_reset_that_is_a_second_off_is_that_of_the_same_window() -> None:
    """Headers have whole seconds; what was used stays."""
    bucket = known(used=10)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), told(9, reset=RESET + 1.0), 6.0)
    assert (RESET, 10) == (bucket.reset, bucket.used)


def test_a_thousand_refusals_in_a_row_pause_for_a_minute_each() -> None:
    """However many have come before."""
    bucket, now = known(), 5.0
    for n in range(1100):
        grant = granted(bucket, ask(f"{n}"), now)
        bucket.finish(ask(f"{n}"), grant, Answer(spent=False, refused=True), now)
        begun, now = now, bucket.blocked_until
    assert LONGEST_PAUSE == now - begun


def test_the_number_of_probes_stays_small() -> None:
    """Braze tells nothing for months."""
    bucket = Bucket(offset=0.0)
    for n in range(100):
        bucket.finish(ask(f"{n}"), granted(bucket, ask(f"{n}"), 5.0), Answer(spent=False), 6.0)
    assert MOST_PROBES == bucket.probes


def test_a_state_that_may_be_old_is_asked_for_and_counts_all_against_an_own_limit() -> None:
    """Each send that Braze counts may be one of ours that was lost."""
    bucket = known(used=5)
    bucket.distrust(7.0)
    assert 5 == bucket.free(ask("a", own_limit=10))
    assert [Grant(8.0), Wait(Reason.PROBE)] == bucket.reserve([ask("a"), ask("b")], 8.0)


def test_a_state_without_a_window_that_may_be_old_loosens_and_tightens_no_own_limit() -> None:
    """No header tells how many were counted."""
    bucket = Bucket(offset=0.0)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 0.0), Answer(spent=True), 1.0)
    bucket.distrust(7.0)
    assert 9 == bucket.free(ask("b", own_limit=10))


def answered(used: int, seconds: float = 3600.0) -> Answer:
    """A success whose headers show ``used`` of 100 until ``seconds`` from the start."""
    return Answer(True, window=Reading(100, used, 1e9 + seconds))


def test_a_pair_whose_unconfirmed_slot_an_answer_cleared_is_remembered_in_doubt() -> None:
    """Its owner has died, so nobody else remembers that the pair may exist."""

    async def main() -> None:
        limiter = Limiter.of(GatedStore(), "w")
        assert isinstance(await limiter.acquire(ask("dies"), WaitBudget(0)), Held)
        await asyncio.sleep(60.0)
        held = await limiter.acquire(ask("a"), WaitBudget(0))
        assert isinstance(held, Held)
        await limiter.finish(ask("a"), held.grant, answered(2))
        assert 0 == (await limiter.status(None)).unconfirmed
        again = attrs.evolve(ask("again"), pair="pair-dies")
        assert isinstance(await limiter.acquire(again, budget := WaitBudget(0)), Held)
        assert budget.in_doubt

    run_virtual(main())


def test_a_further_attempt_for_a_pair_that_exists_gives_its_lease_back() -> None:
    """Another process has created the pair while this create backed off."""

    async def main() -> None:
        limiter = Limiter.of(GatedStore(), "w")
        budget = WaitBudget(0)
        held = await limiter.acquire(ask("a"), budget)
        assert isinstance(held, Held)
        await limiter.finish(ask("a"), held.grant, Answer(False), keep=True)
        other = attrs.evolve(ask("other"), pair="pair-a")
        await limiter.finish(other, held.grant, answered(1), created=KNOWN)
        assert KNOWN == await limiter.acquire(attrs.evolve(ask("a"), attempt=2), budget)
        assert 0 == (await limiter.status(None)).in_flight

    run_virtual(main())


def test_a_create_whose_lease_ran_out_unsent_is_not_in_doubt() -> None:
    """Others take its pair for one in doubt; its owner knows that nothing was sent."""

    async def main() -> None:
        limiter = Limiter.of(GatedStore(), "w")
        budget = WaitBudget(0)
        held = await limiter.acquire(ask("a"), budget)
        assert isinstance(held, Held)
        await asyncio.sleep(20.0)
        assert 1 == (await limiter.status(None)).unconfirmed
        again = attrs.evolve(ask("a"), attempt=2)
        assert isinstance(await limiter.acquire(again, budget), Held)
        assert not budget.in_doubt

    run_virtual(main())


def test_a_repeat_of_a_pair_in_doubt_stays_in_doubt() -> None:
    """Its own attempt that was never sent does not make it a new create."""

    async def main() -> None:
        limiter = Limiter.of(GatedStore(), "w")
        held = await limiter.acquire(ask("first"), WaitBudget(0))
        assert isinstance(held, Held)
        await limiter.finish(ask("first"), held.grant, LOST)
        again = attrs.evolve(ask("again"), pair="pair-first")
        assert isinstance(await limiter.acquire(again, budget := WaitBudget(0)), Held)
        assert budget.in_doubt
        assert not budget.undoubted

    run_virtual(main())


def test_a_further_attempt_keeps_its_place_in_the_queue() -> None:
    """It has asked first, so the next token is its own."""

    async def main() -> None:
        limiter = Limiter.of(GatedStore(), "w")
        first, second = WaitBudget(4000), WaitBudget(4000)
        held = await limiter.acquire(ask("first"), WaitBudget(0))
        assert isinstance(held, Held)
        await limiter.finish(ask("first"), held.grant, answered(100, seconds=300))
        later = asyncio.create_task(limiter.acquire(ask("later"), second))
        await asyncio.sleep(1)
        further = asyncio.create_task(
            limiter.acquire(attrs.evolve(ask("earlier"), attempt=2), first)
        )
        await asyncio.sleep(1)
        assert [first.ticket, second.ticket] == limiter.waiting
        later.cancel()
        further.cancel()
        await asyncio.gather(later, further, return_exceptions=True)

    run_virtual(main())


def test_polling_begins_anew_once_somebody_is_served() -> None:
    """Those behind look soon again, though the first had waited long."""

    async def main() -> None:
        limiter = Limiter.of(GatedStore(), "w")
        held = await limiter.acquire(ask("first"), WaitBudget(0))
        assert isinstance(held, Held)
        await limiter.finish(ask("first"), held.grant, answered(100, seconds=60))
        waits = [
            asyncio.create_task(limiter.acquire(ask(name), WaitBudget(4000))) for name in ("a", "b")
        ]
        await asyncio.sleep(50)
        assert limiter._pause > FIRST_LOOK
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        assert FIRST_LOOK == limiter._pause
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    run_virtual(main())


def test_a_call_that_may_not_wait_shares_no_create_with_one_that_may() -> None:
    """The quota is used up: one is told so at once, the other waits for the next window."""

    async def schedule(world: World) -> None:
        client = world.client()
        assert 3 == made(await gather(many(client, range(3))))
        waits = asyncio.create_task(
            client.create_send_id("campaign", "s", max_rate_limit_wait=None)
        )
        await asyncio.sleep(1)
        with pytest.raises(QuotaExhaustedError):
            await client.create_send_id("campaign", "s", max_rate_limit_wait=0)
        assert not waits.done()
        assert isinstance(await waits, SendId)

    play(schedule, daily_limit=3)


def test_sends_that_braze_is_to_name_share_no_create() -> None:
    """Two calls at once make two sends."""

    async def schedule(world: World) -> None:
        client = world.client(send_id_factory=None)
        await gather(client.create_send_id("campaign") for _ in range(2))
        assert 2 == len(world.asked)

    play(schedule)


def test_a_client_that_is_being_closed_makes_no_further_attempt() -> None:
    """The request that is out is answered with a 503, which would be repeated otherwise."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(status=503, latency=5.0)
        client = world.client()
        create = asyncio.create_task(client.create_send_id("campaign", "s"))
        await asyncio.sleep(1)
        await client.close()
        with pytest.raises(APIResponseError):
            await create
        assert ["s"] == world.asked

    play(schedule)


def test_a_pair_that_somebody_else_made_is_an_error_where_nothing_was_in_doubt() -> None:
    """The 400 says that it exists, but no attempt of ours has made it."""

    async def schedule(world: World) -> None:
        await world.client().create_send_id("campaign", "s")
        with pytest.raises(BadRequestError):
            await world.client().create_send_id("campaign", "s")

    play(schedule, duplicate=400)


def answering(
    world: World, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    """Braze handles the first request, and answers with something else.

    Args:
        headers: besides its own; or in place of them, if there are none.
    """
    handle = world.model.handle

    def other(*args: Any) -> Any:
        world.handle = handle
        reply = handle(*args)
        told = {} if headers == {} else reply.headers | (headers or {})
        return attrs.evolve(reply, status=status, body=body, headers=told)

    world.handle = other  # type: ignore[assignment]


def test_a_pair_is_in_doubt_after_a_500_though_its_headers_tell_that_it_was_counted() -> None:
    """No slot is left to say so, but what is remembered does: the 400 is then a success."""

    async def schedule(world: World) -> None:
        answering(world, 500, b'{"message": "Internal Server Error"}')
        client = world.client(max_retries=0)
        with pytest.raises(APIResponseError):
            await client.create_send_id("campaign", "s")
        assert 0 == (await client.quota()).unconfirmed
        assert "s" == (await client.create_send_id("campaign", "s")).send_id

    play(schedule, duplicate=400)


def test_a_create_that_braze_queued_counts_for_an_own_limit() -> None:
    """It may be made, and its headers show that it was counted."""

    async def schedule(world: World) -> None:
        answering(world, 202, b'{"message": "queued"}')
        client = world.client(daily_limit=1)
        assert (await client.create_send_id("campaign", "s")).queued
        with pytest.raises(QuotaExhaustedError):
            await client.create_send_id("campaign", "t", max_rate_limit_wait=0)

    play(schedule)


def test_a_call_joins_no_create_that_was_just_called_off() -> None:
    """The only caller that waited is cancelled; a new call in the same moment waits by itself."""

    async def schedule(world: World) -> None:
        client = world.client(max_rate_limit_wait=None)
        assert 3 == made(await gather(many(client, range(3))))
        waits = asyncio.create_task(client.create_send_id("campaign", "s"))
        await asyncio.sleep(1)
        waits.cancel()
        again = asyncio.create_task(client.create_send_id("campaign", "s"))
        assert isinstance(await again, SendId)

    play(schedule, daily_limit=3)


def test_a_call_with_less_headroom_shares_no_create_with_one_that_waits() -> None:
    """The urgent call for the same pair goes at once."""

    async def schedule(world: World) -> None:
        client = world.client(max_rate_limit_wait=None)
        await client.create_send_id("campaign", "first")
        bulk = asyncio.create_task(client.create_send_id("campaign", "s", headroom=2))
        await asyncio.sleep(1)
        urgent = asyncio.create_task(client.create_send_id("campaign", "s"))
        await asyncio.sleep(10)
        assert urgent.done()
        await gather([client.create_send_id("campaign", "s")])
        assert isinstance(await bulk, SendId)

    play(schedule, daily_limit=3)


def test_the_rate_limit_seen_last_outlives_an_answer_without_headers() -> None:
    """What was shown before is still the best that is known."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(headers=BARE if n else None)
        client = world.client()
        await client.create_send_id("campaign", "a")
        seen = client.rate_limit
        assert seen is not None
        await client.create_send_id("campaign", "b")
        assert seen == client.rate_limit

    play(schedule)


def test_a_create_in_doubt_goes_on_though_its_lease_ran_out_and_nothing_is_left() -> None:
    """Braze asks for a pause that is longer than the lease; the send may exist."""

    async def schedule(world: World) -> None:
        client = world.client(max_rate_limit_wait=200)
        assert 2 == made(await gather(many(client, "ab")))
        answering(world, 500, b'{"message": "Internal Server Error"}', {"retry-after": "100"})
        assert 2 == (await client.create_send_id("campaign", "s")).attempts
        assert 0 == world.over

    play(schedule, daily_limit=3, duplicate=400)


def test_a_wait_for_quota_ends_when_it_has_been_as_long_as_allowed() -> None:
    """Not when the next lease ends, or whatever else is looked at."""

    async def schedule(world: World) -> None:
        client = world.client()
        assert 2 == made(await gather(many(client, "ab")))
        world.fate = lambda n, send_id: Fate(latency=9)
        out = asyncio.create_task(client.create_send_id("campaign", "c"))
        await asyncio.sleep(0.01)
        began = world.loop.time()
        with pytest.raises(QuotaExhaustedError):
            await client.create_send_id("campaign", "d", max_rate_limit_wait=5)
        assert 5 == pytest.approx(world.loop.time() - began, abs=0.001)
        await out

    play(schedule, daily_limit=3)


def test_a_create_that_braze_queued_is_unconfirmed() -> None:
    """Without headers nobody knows whether it is counted by now."""

    async def schedule(world: World) -> None:
        client = world.client()
        await client.create_send_id("campaign", "first")
        answering(world, 202, b'{"message": "queued"}', {})
        assert (await client.create_send_id("campaign", "s")).queued
        quota = await client.quota()
        assert (1, 1) == (quota.unconfirmed, sum(hour.count for hour in quota.creations))

    play(schedule)


def test_a_probe_that_the_edge_refuses_is_made_again() -> None:
    """Its 429 says nothing of the slot that a lost request may have taken."""

    async def schedule(world: World) -> None:
        client = world.client(max_retries=0)
        assert 2 == made(await gather(many(client, "ab")))
        never = Fate(answer=False, counted_after=math.inf)
        world.fate = lambda n, send_id: (
            never if n == 2 else Fate(status=429, counted_after=math.inf)
        )
        assert isinstance(
            (await gather([client.create_send_id("campaign", "c")]))[0], APITimeoutError
        )
        await asyncio.sleep(100)
        assert 0 == made(await gather([client.create_send_id("campaign", "d")]))
        world.fate = lambda n, send_id: Fate()
        assert "e" == (await client.create_send_id("campaign", "e")).send_id

    play(schedule, daily_limit=3)


@pytest.mark.parametrize(("drawn", "seconds"), [(0.0, 2.0), (1.0, 2.2)])
def test_processes_come_back_from_a_pause_at_different_times(
    drawn: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to a tenth later than they were asked to."""
    monkeypatch.setattr("random.random", lambda: drawn)
    asked = list[float]()

    async def schedule(world: World) -> None:
        def fate(n: int, send_id: str) -> Fate:
            asked.append(world.loop.time())
            return Fate(status=None if n else 429)

        world.fate = fate
        await world.client().create_send_id("campaign", "s")

    play(schedule)
    first, second = asked
    assert seconds + 0.1 == pytest.approx(second - first, abs=0.1)  # a request takes 0.1


class LoneStore(GatedStore):
    """Nobody else uses it, so nothing is looked at but for a reason."""

    shared = False


def in_place() -> MemoryStore:
    """A store that is run in place."""
    loop = asyncio.get_running_loop()
    return MemoryStore(clock=loop.time, wall=lambda: 1e9 + loop.time())


def out(name: str, pair: str | None = None) -> Ask:
    """An ask whose lease outlasts the test."""
    return attrs.evolve(ask(name), timeout=1000.0, pair=f"pair-{pair or name}")


async def leased(limiter: Limiter, asked: Ask, budget: WaitBudget | None = None) -> Grant:
    lease = await limiter.acquire(asked, budget or WaitBudget(0))
    assert isinstance(lease, Held)
    return lease.grant


async def left(limiter: Limiter, free: int, seconds: float = 3600.0) -> None:
    """See to it that so many are free, until ``seconds`` from the start; ``pair-k`` exists."""
    answer = answered(100 - free, seconds=seconds)
    await limiter.finish(ask("k"), await leased(limiter, ask("k")), answer, created=KNOWN)


def line(
    limiter: Limiter, *asks: Ask, budget: float = 4000.0
) -> list[asyncio.Task[Held | Remembered]]:
    return [asyncio.create_task(limiter.acquire(one, WaitBudget(budget))) for one in asks]


async def end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


UNSPENT = Answer(spent=False)


def test_who_is_cancelled_in_the_middle_of_a_line_stands_there_no_more() -> None:
    """Though nobody looks at it before its turn."""

    async def main() -> None:
        limiter = Limiter.of(in_place(), "w")
        await left(limiter, 0)
        waits = line(limiter, ask("a"), ask("b"))
        await asyncio.sleep(1)
        first, _ = limiter.waiting
        await end(waits[1])
        assert [first] == limiter.waiting
        await end(*waits)

    run_virtual(main())


def test_a_status_shows_no_window_that_has_ended() -> None:
    """Nobody waits, so nobody else has seen its end."""

    async def main() -> None:
        limiter = Limiter.of(in_place(), "w")
        await left(limiter, 50, seconds=60)
        await asyncio.sleep(100)
        assert 0 == (await limiter.status(None)).used

    run_virtual(main())


def test_who_waits_wakes_a_minute_after_its_host_did() -> None:
    """The loop's clock stood still while the host slept; the store's did not."""

    async def main() -> None:
        loop, slept = asyncio.get_running_loop(), [0.0]
        store = MemoryStore(
            clock=lambda: loop.time() + slept[0], wall=lambda: 1e9 + loop.time() + slept[0]
        )
        limiter = Limiter.of(store, "w")
        await left(limiter, 0)
        waits = line(limiter, ask("a"), budget=5000)
        await asyncio.sleep(10)
        slept[0] = 3600.0
        await asyncio.sleep(LONGEST_SLEEP)
        assert waits[0].done()

    run_virtual(main())


def test_who_joins_a_line_pays_for_no_wait_of_others() -> None:
    """Its budget is longer than what is left to wait, though not than what was waited."""

    async def main() -> None:
        limiter = Limiter.of(in_place(), "w")
        await left(limiter, 0, seconds=140)
        first = line(limiter, ask("a"))
        await asyncio.sleep(100)
        second = line(limiter, ask("b"), budget=50)
        await asyncio.sleep(10)
        assert not second[0].done()
        await end(*first, *second)

    run_virtual(main())


def test_a_second_wait_in_the_same_line_ends_with_what_the_first_has_left() -> None:
    """The end of the first is still noted there, behind that of another."""

    async def main() -> None:
        limiter, loop = Limiter.of(in_place(), "w"), asyncio.get_running_loop()
        await left(limiter, 2)
        grant = await leased(limiter, out("x"))
        await leased(limiter, out("y"))
        budget = WaitBudget(20)
        first = asyncio.create_task(limiter.acquire(out("a"), budget))
        await asyncio.sleep(0)
        other = line(limiter, out("b"), budget=15)
        await asyncio.sleep(10)
        await limiter.finish(out("x"), grant, UNSPENT)
        taken = await first
        assert isinstance(taken, Held)
        await asyncio.sleep(2)
        await limiter.finish(out("a"), taken.grant, answered(99))
        with pytest.raises(QuotaExhaustedError):
            await limiter.acquire(out("again"), budget)
        assert 22 == pytest.approx(loop.time(), abs=0.1)
        await end(*other)

    run_virtual(main())


def test_the_first_of_all_lines_is_served_first() -> None:
    """The line of the last one is older, but not the last one itself."""

    async def main() -> None:
        limiter = Limiter.of(in_place(), "w")
        await left(limiter, 1)
        grant = await leased(limiter, out("x"))
        first, second, third = line(limiter, ask("a"), ask("b", own_limit=90), ask("c"))
        await asyncio.sleep(1)
        await end(first)
        await limiter.finish(out("x"), grant, UNSPENT)
        await asyncio.sleep(0.01)
        assert (True, False) == (second.done(), third.done())
        await end(second, third)

    run_virtual(main())


@pytest.mark.parametrize("pair", ["another", "x"])
def test_who_waits_for_an_answer_waits_for_no_store(pair: str) -> None:
    """That of a probe, or that for its own pair: no budget would end the wait."""

    async def main() -> None:
        store = GatedStore()
        limiter = Limiter.of(store, "w")
        await leased(limiter, out("x"))
        (waits,) = line(limiter, out("a", pair=pair))
        await asyncio.sleep(1)
        assert not waits.done()
        store.error = StoreError("down")
        await asyncio.sleep(10)
        assert waits.done()
        assert isinstance(waits.exception(), StoreError)

    run_virtual(main())


def test_a_repeat_that_takes_no_token_waits_behind_nobody_when_a_pause_ends() -> None:
    """Neither behind one that asks for something new, nor behind one whose slot is gone."""

    async def main() -> None:
        limiter = Limiter.of(in_place(), "w")
        await left(limiter, 10)
        await limiter.finish(out("a"), await leased(limiter, out("a")), LOST)
        await asyncio.sleep(3000)
        await limiter.finish(ask("c"), await leased(limiter, ask("c")), answered(96))
        assert 0 == (await limiter.status(None)).unconfirmed
        await limiter.finish(out("b"), await leased(limiter, out("b")), LOST)
        await leased(limiter, out("x"))
        refused = await leased(limiter, ask("y"))
        pause = Answer(False, refused=True, retry_after=30.0, window=Reading(100, 98, 1e9 + 3600))
        await limiter.finish(ask("y"), refused, pause)
        new, gone, repeat = line(
            limiter, out("n"), out("again-a", pair="a"), out("again-b", pair="b"), budget=500
        )
        await asyncio.sleep(29)
        assert not repeat.done()
        await asyncio.sleep(4)
        assert (False, False, True) == (new.done(), gone.done(), repeat.done())
        await end(new, gone, repeat)

    run_virtual(main())


def test_who_comes_when_tokens_come_back_stands_behind_all_in_line() -> None:
    """Two come back in one transaction, in which the front is one; all in line are served."""

    async def main() -> None:
        store = LoneStore()
        limiter = Limiter.of(store, "w")
        await left(limiter, 2)
        asks = out("x"), out("y")
        grants = [await leased(limiter, one) for one in asks]
        a, b = line(limiter, out("a"), out("b"))
        await asyncio.sleep(1)
        store.gate.clear()
        status = asyncio.create_task(limiter.status(None))
        await asyncio.sleep(1)
        told = [
            asyncio.create_task(limiter.finish(one, grant, UNSPENT))
            for one, grant in zip(asks, grants, strict=True)
        ]
        (c,) = line(limiter, out("c"))
        await asyncio.sleep(1)
        store.gate.set()
        await asyncio.gather(status, *told)
        await asyncio.sleep(0.01)
        assert (True, True, False) == (a.done(), b.done(), c.done())
        await end(a, b, c)

    run_virtual(main())


def test_who_asks_for_a_pair_that_exists_stands_in_no_line() -> None:
    """It is looked up at once."""

    async def main() -> None:
        limiter = Limiter.of(LoneStore(), "w")
        await left(limiter, 0)
        waits, known = line(limiter, ask("a"), out("b", pair="k"))
        await asyncio.sleep(1)
        assert KNOWN == known.result()
        await end(waits)

    run_virtual(main())


def test_who_comes_as_a_loop_ends_is_looked_up_all_the_same() -> None:
    """The task of the transaction is cancelled in the middle: it is run again."""

    async def main() -> None:
        store = LoneStore()
        limiter = Limiter.of(store, "w")
        await left(limiter, 0)
        (waits,) = line(limiter, ask("a"))
        await asyncio.sleep(1)
        store.gate.clear()
        (known,) = line(limiter, out("b", pair="k"))
        await asyncio.sleep(1)
        assert limiter._committing is not None
        limiter._committing.cancel()
        store.gate.set()
        await asyncio.sleep(1)
        assert known.done()
        await end(waits)

    run_virtual(main())


def test_who_waits_for_a_dead_owner_is_looked_at_though_a_loop_ends() -> None:
    """The transaction of the timer is cancelled in the middle: it is run again."""

    async def main() -> None:
        store = LoneStore()
        there = Limiter(store, "w", asyncio.get_running_loop())
        await leased(there, ask("dies"))
        limiter = Limiter.of(store, "w")
        (waits,) = line(limiter, out("a", pair="dies"))
        await asyncio.sleep(1)
        store.gate.clear()
        await asyncio.sleep(10 + LEASE_GRACE)
        assert limiter._committing is not None
        limiter._committing.cancel()
        store.gate.set()
        await asyncio.sleep(1)
        assert waits.done()
        await end(waits)

    run_virtual(main())


def test_who_is_gone_before_anybody_looked_is_granted_nothing() -> None:
    """A repeat would be looked at by itself."""

    async def main() -> None:
        store = LoneStore()
        limiter = Limiter.of(store, "w")
        await limiter.finish(out("x"), await leased(limiter, out("x")), LOST)
        store.gate.clear()
        status = asyncio.create_task(limiter.status(None))
        await asyncio.sleep(1)
        (gone,) = line(limiter, out("again", pair="x"))
        await asyncio.sleep(1)
        gone.cancel()
        await asyncio.sleep(1)
        store.gate.set()
        await asyncio.gather(status, gone, return_exceptions=True)
        assert 0 == (await limiter.status(None)).in_flight

    run_virtual(main())


def test_who_is_gone_ends_no_transaction() -> None:
    """The first in line is cancelled, and does not know yet."""

    async def main() -> None:
        limiter = Limiter.of(in_place(), "w")
        await left(limiter, 0)
        waits = line(limiter, ask("a"), ask("b"))
        await asyncio.sleep(1)
        waits[0].cancel()
        assert 0 == (await limiter.status(None)).in_flight
        await end(*waits)
        assert [] == limiter.waiting

    run_virtual(main())


def test_who_waited_for_its_pair_waits_for_quota_if_the_pair_was_given_up() -> None:
    """And is told that there is none."""

    async def main() -> None:
        limiter = Limiter.of(in_place(), "w")
        grant = await leased(limiter, out("x"))
        (waits,) = line(limiter, out("a", pair="x"), budget=5)
        await asyncio.sleep(10)
        assert not waits.done()
        await limiter.finish(out("x"), grant, attrs.evolve(answered(100), spent=False))
        with pytest.raises(QuotaExhaustedError):
            await asyncio.wait_for(waits, 1)

    run_virtual(main())


def test_who_waits_for_a_pair_is_served_when_its_create_is_cancelled() -> None:
    """In the transaction that granted its lease."""

    async def main() -> None:
        store = LoneStore()
        limiter = Limiter.of(store, "w")
        await left(limiter, 10)
        store.gate.clear()
        first, second = line(limiter, out("a"), out("b", pair="a"))
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.sleep(1)
        store.gate.set()
        await asyncio.sleep(1)
        assert isinstance(second.result(), Held)
        await end(first)

    run_virtual(main())


def test_who_waits_for_a_pair_is_served_when_its_create_gives_up() -> None:
    """Between two attempts."""

    async def main() -> None:
        limiter = Limiter.of(in_place(), "w")
        await left(limiter, 10)
        await limiter.finish(out("x"), await leased(limiter, out("x")), UNSPENT, keep=True)
        (waits,) = line(limiter, out("a", pair="x"))
        await asyncio.sleep(1)
        assert not waits.done()
        await limiter.close(out("x"))
        await asyncio.sleep(0.01)
        assert isinstance(waits.result(), Held)

    run_virtual(main())


def test_polling_begins_anew_once_nobody_waits() -> None:
    """The only one that waited is gone."""

    async def main() -> None:
        limiter = Limiter.of(GatedStore(), "w")
        await left(limiter, 0)
        waits = line(limiter, ask("a"))
        await asyncio.sleep(50)
        assert limiter._pause > FIRST_LOOK
        await end(*waits)
        assert FIRST_LOOK == limiter._pause

    run_virtual(main())


@pytest.mark.parametrize("store", [in_place, GatedStore])
def test_a_lease_knows_how_far_the_steady_clock_was_ahead(
    store: Callable[[], MemoryStore],
) -> None:
    """Else a host's sleep would not be seen."""

    async def main() -> None:
        lease = await Limiter.of(store(), "w").acquire(ask("a"), WaitBudget(0))
        assert isinstance(lease, Held)
        assert steady() - asyncio.get_running_loop().time() == pytest.approx(lease.ahead, abs=10)

    run_virtual(main())


def test_a_create_that_was_sent_is_joined_though_its_caller_left() -> None:
    """The second caller gets the answer of the first one's request."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(latency=5.0)
        client = world.client()
        first = asyncio.create_task(client.create_send_id("campaign", "s"))
        await asyncio.sleep(1)
        await end(first)
        assert not (await client.create_send_id("campaign", "s")).reused

    play(schedule)


def test_a_caller_that_is_cancelled_while_the_client_closes_is_cancelled() -> None:
    """It is no error of the client's."""

    async def schedule(world: World) -> None:
        client = world.client(max_rate_limit_wait=None)
        await client.create_send_id("campaign", "a")
        waits = asyncio.create_task(client.create_send_id("campaign", "b"))
        await asyncio.sleep(1)
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        waits.cancel()
        await closing
        await asyncio.wait([waits])
        assert waits.cancelled()

    play(schedule, daily_limit=1)


def test_a_failure_of_the_store_is_told_though_a_429_came_before() -> None:
    """The wait after the 429 outlives the store for a minute, and then ends with it."""

    async def schedule(world: World) -> None:
        broken = [False]

        def clock() -> float:
            if broken[0]:
                raise RuntimeError("no clock")
            return world.loop.time()

        world.fate = lambda n, send_id: Fate(status=429)
        client = world.client(
            store=MemoryStore(clock=clock, wall=world.now), max_rate_limit_wait=200
        )
        create = asyncio.create_task(client.create_send_id("campaign", "s"))
        await asyncio.sleep(1)
        assert ["s"] == world.asked
        broken[0] = True
        with pytest.raises(StoreError):
            await create

    play(schedule)


def test_a_token_is_kept_between_two_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one's request was not sent, and it backs off; who waits gets nothing."""
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 5.0)

    async def schedule(world: World) -> None:
        client = world.client(max_rate_limit_wait=10)
        await client.create_send_id("campaign", "a")
        tries = [Fate(refused=True), Fate()]
        world.fate = lambda n, send_id: tries.pop(0)
        first, second = await gather(many(client, "bc"))
        assert isinstance(first, SendId)
        assert isinstance(second, QuotaExhaustedError)

    play(schedule, daily_limit=2)


def test_a_caller_that_is_gone_keeps_no_other_from_hearing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is cancelled in the moment in which the answer is judged."""

    async def schedule(world: World) -> None:
        client = world.client()
        gone, stays = (
            asyncio.create_task(client.create_send_id("campaign", "s")) for _ in range(2)
        )

        def judged(*args: Any, **options: Any) -> Verdict:
            gone.cancel()
            return judge(*args, **options)

        monkeypatch.setattr("braze_sends.create.judge", judged)
        await asyncio.wait([gone, stays])
        assert (True, "s") == (gone.cancelled(), str(stays.result()))

    play(schedule)


def test_a_failure_that_a_caller_hears_is_not_unattended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says whether anybody was told."""
    caplog.set_level("INFO", "braze_sends")

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(status=403)
        with pytest.raises(APIResponseError):
            await world.client().create_send_id("campaign", "s")

    play(schedule)
    assert ["create failed"] == [record.event for record in caplog.records]  # type: ignore[attr-defined]  # an extra
    assert "unattended=False" in caplog.text


def test_a_pair_that_another_made_meanwhile_tells_our_attempts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One was lost; the other client made the next one."""
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 20.0)

    async def schedule(world: World) -> None:
        never = Fate(answer=False, counted_after=math.inf)
        world.fate = lambda n, send_id: Fate() if n else never
        store = world.store()
        first = asyncio.create_task(
            world.client(store=store, timeout=10).create_send_id("campaign", "s")
        )
        await asyncio.sleep(15)
        await world.client(store=store).create_send_id("campaign", "s", headroom=1)
        send = await first
        assert (True, 1) == (send.reused, send.attempts)

    play(schedule)


def test_a_further_attempt_is_served_before_those_who_came_later() -> None:
    """Though it joined the line after them."""

    async def main() -> None:
        limiter, earlier = Limiter.of(in_place(), "w"), WaitBudget(4000)
        await left(limiter, 1)
        grant = await leased(limiter, out("x"))
        (later,) = line(limiter, out("later"))
        await asyncio.sleep(1)
        further = asyncio.create_task(limiter.acquire(out("further"), earlier))
        await asyncio.sleep(1)
        await limiter.finish(out("x"), grant, UNSPENT)
        await asyncio.sleep(0.01)
        assert (True, False) == (further.done(), later.done())
        await end(further, later)

    run_virtual(main())


def test_who_stood_behind_is_looked_up_before_it_is_refused() -> None:
    """Another process has created its pair meanwhile."""

    async def main() -> None:
        store = GatedStore()
        there, limiter = Limiter(store, "w", asyncio.get_running_loop()), Limiter.of(store, "w")
        await left(limiter, 1)
        grant = await leased(there, out("x"))
        first, second = line(limiter, out("a")), line(limiter, out("b", pair="x2"), budget=20)
        await asyncio.sleep(5)
        await there.finish(out("x", pair="x2"), grant, answered(100), created=KNOWN)
        await asyncio.sleep(20)
        assert KNOWN == second[0].result()
        await end(*first, *second)

    run_virtual(main())


def test_a_pair_under_way_is_waited_for_from_behind_a_line() -> None:
    """It costs no budget, and its end is told."""

    async def main() -> None:
        limiter = Limiter.of(in_place(), "w")
        await left(limiter, 1)
        grant = await leased(limiter, out("x"))
        first, second = line(limiter, out("a")), line(limiter, out("b", pair="x"), budget=5)
        await asyncio.sleep(10)
        assert not second[0].done()
        await limiter.finish(out("x"), grant, answered(100), created=KNOWN)
        await asyncio.sleep(0.01)
        assert KNOWN == second[0].result()
        await end(*first, *second)

    run_virtual(main())


@pytest.mark.parametrize("status", [200, 429])
def test_each_answer_tells_its_date(status: int) -> None:
    """A clock that is off is corrected by failures too."""
    told = AnswerHeaders(date=5.0)
    reply = Reply(status, {}, b'{"send_id": "s", "message": "success"}')
    request, key = CreateSendId("campaign", "s"), ApiKey(KEY)
    verdict = judge(request, reply, told, key, attempt=1, in_doubt=False, now=0.0, jitter=0.0)
    assert (5.0, status == 429) == (verdict.answer.date, verdict.answer.refused)


@pytest.mark.parametrize("gated", [False, True])
def test_a_further_attempt_on_its_own_token_passes_those_before_it(gated: bool) -> None:
    """An earlier create has lost its token, and waits for one."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        plain = MemoryStore(clock=loop.time, wall=lambda: 1e9 + loop.time())
        limiter = Limiter.of(GatedStore() if gated else plain, "w")
        warm = await limiter.acquire(ask("warm"), WaitBudget(0))
        assert isinstance(warm, Held)
        await limiter.finish(ask("warm"), warm.grant, answered(98))
        early, late = WaitBudget(3000), WaitBudget(3000)
        slow = attrs.evolve(ask("late"), timeout=100.0)
        first, second = (
            await limiter.acquire(ask("early"), early),
            await limiter.acquire(slow, late),
        )
        assert isinstance(first, Held)
        assert isinstance(second, Held)
        await limiter.finish(ask("early"), first.grant, Answer(spent=False))
        await limiter.acquire(attrs.evolve(ask("other"), timeout=100.0), WaitBudget(0))
        waits = asyncio.create_task(limiter.acquire(attrs.evolve(ask("early"), attempt=2), early))
        await asyncio.sleep(1)
        await limiter.finish(slow, second.grant, Answer(spent=False), keep=True)
        assert isinstance(await limiter.acquire(attrs.evolve(slow, attempt=2), late), Held)
        assert not waits.done()
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)

    run_virtual(main())
