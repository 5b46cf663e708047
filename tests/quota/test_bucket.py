"""The rule, sentence by sentence; ``test_bucket_machine`` has all of it in any order."""

from __future__ import annotations

import math

import attrs
import pytest

from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.ledger import LEASE_GRACE, Unconfirmed
from braze_sends.quota.rule.messages import Answer, Ask, Grant, Reading, Reason, Wait
from braze_sends.quota.rule.window import DAY

TIMEOUT = 10.0
RESET = 50_000.0


def ask(name: str, attempt: int = 1, **options: object) -> Ask:
    return attrs.evolve(Ask(name, attempt, f"pair-{name}", TIMEOUT), **options)  # type: ignore[arg-type]


def granted(bucket: Bucket, one: Ask, now: float) -> Grant:
    (decision,) = bucket.reserve([one], now)
    assert isinstance(decision, Grant)
    return decision


def told(used: int, limit: int = 100, reset: float = RESET, **options: object) -> Answer:
    return attrs.evolve(Answer(spent=True, window=Reading(limit, used, reset)), **options)  # type: ignore[arg-type]


def known(used: int = 1, limit: int = 100, now: float = 0.0) -> Bucket:
    """A bucket that a first answer has told of its window."""
    bucket = Bucket(offset=0.0, limit=limit)
    first = ask("first")
    bucket.finish(first, granted(bucket, first, now), told(used, limit), now)
    return bucket


def test_an_answer_tells_the_window() -> None:
    """Its numbers stand, and nothing is unconfirmed beyond them."""
    bucket = known(used=40)
    assert (60, 0, 0) == (bucket.free(ask("a")), len(bucket.leases), len(bucket.unconfirmed))
    assert (60, 40) == (bucket.status().remaining, bucket.status().used)


def test_asking_again_for_a_lease_gives_the_same() -> None:
    """A store's reply that got lost takes no second token."""
    bucket = known()
    first = granted(bucket, ask("a"), 5.0)
    assert first == granted(bucket, ask("a"), 6.0)
    assert 1 == len(bucket.leases)


@pytest.mark.parametrize("spent", [True, False, None])
@pytest.mark.parametrize("window", [None, Reading(100, 2, RESET)])
def test_an_attempt_that_is_finished_twice_counts_once(
    spent: bool | None, window: Reading | None
) -> None:
    """A retried command changes nothing."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    answer = Answer(spent=spent, window=window)
    bucket.finish(ask("a"), grant, answer, 6.0)
    once = attrs.evolve(bucket, unconfirmed=dict(bucket.unconfirmed))
    bucket.finish(ask("a"), grant, answer, 6.0)
    assert once == bucket


def test_a_dead_owner_leaves_an_unconfirmed_slot_at_its_deadline() -> None:
    """Not before it, and its pair is named."""
    bucket = known()
    granted(bucket, ask("a"), 5.0)
    deadline = 5.0 + TIMEOUT + LEASE_GRACE
    bucket.advance(deadline - 0.1)
    assert (1, {}) == (len(bucket.leases), bucket.unconfirmed)
    bucket.advance(deadline)
    assert {"a.1": Unconfirmed("pair-a", begun=5.0, ripe=5.0 + 3 * TIMEOUT)} == bucket.unconfirmed


def test_an_owner_that_dies_between_two_attempts_leaves_nothing_new() -> None:
    """Nothing was under way; the token is free again."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), grant, Answer(spent=False), 6.0, keep=True)
    assert 98 == bucket.free(ask("b"))
    bucket.advance(5.0 + TIMEOUT + LEASE_GRACE)
    assert (99, {}) == (bucket.free(ask("b")), bucket.unconfirmed)


def test_an_answer_after_the_deadline_settles_the_unconfirmed_slot() -> None:
    """The owner had only been stopped."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    bucket.advance(100.0)
    bucket.finish(ask("a"), grant, told(2), 100.0)
    assert (98, {}) == (bucket.free(ask("b")), bucket.unconfirmed)


def test_a_send_that_braze_was_to_name_leaves_a_slot_that_nobody_can_ask_for() -> None:
    """The send may exist, so an own limit counts it; its lease stands for its name."""
    bucket = known()
    granted(bucket, ask("a", pair=None), 5.0)
    bucket.advance(100.0)
    assert ["a"] == [slot.pair for slot in bucket.unconfirmed.values()]
    assert 3 == bucket.free(ask("b", own_limit=5))


def test_a_pair_under_way_elsewhere_is_waited_for() -> None:
    """Until its lease runs out at the latest; a kept lease holds it too."""
    bucket = known()
    granted(bucket, ask("a"), 5.0)
    (decision,) = bucket.reserve([ask("b", pair="pair-a")], 6.0)
    assert Wait(Reason.PAIR, 5.0 + TIMEOUT + LEASE_GRACE) == decision


def test_a_success_without_headers_is_cleared_by_any_later_answer() -> None:
    """A slot in doubt only by one that began three timeouts later."""
    bucket = known()
    sure, unsure = granted(bucket, ask("a"), 5.0), granted(bucket, ask("b"), 5.0)
    bucket.finish(ask("a"), sure, Answer(spent=True), 6.0)
    bucket.finish(ask("b"), unsure, Answer(spent=None, in_doubt=True), 6.0)
    assert {"a.1", "b.1"} == set(bucket.unconfirmed)
    for name, now, left in (("c", 6.0, {"b.1"}), ("d", 34.9, {"b.1"}), ("e", 35.0, set())):
        bucket.finish(ask(name), granted(bucket, ask(name), now), told(3), now + 1)
        assert left == set(bucket.unconfirmed)


def sighted(used: int = 99, limit: int = 900) -> Bucket:
    """A bucket with one slot left of 100, whose last answer showed a higher limit."""
    bucket = known(used=used)
    bucket.finish(ask("seen"), granted(bucket, ask("seen"), 5.0), told(used + 1, limit), 6.0)
    return bucket


def test_a_header_alone_does_not_raise_the_limit() -> None:
    """It may be another bucket's, which counts our own requests too, however often it is seen."""
    bucket = known(used=10)
    for n in range(20):
        grant = granted(bucket, ask(f"{n}"), 5.0 + n)
        bucket.finish(ask(f"{n}"), grant, told(11 + n, limit=250_000), 5.5 + n)
    assert (100, 10, 20) == (bucket.limit, bucket.used, len(bucket.unconfirmed))


def test_a_create_beyond_the_limit_that_succeeds_raises_it() -> None:
    """One goes when all is used up and a higher limit was seen; then the rest may."""
    bucket = sighted()
    others = [ask("x"), ask("y")]
    first, second = bucket.reserve([ask("probe"), ask("x")], 7.0)
    assert isinstance(first, Grant)
    assert Wait(Reason.PROBE) == second
    bucket.finish(ask("probe"), first, told(101, limit=900), 8.0)
    assert (900, 101) == (bucket.limit, bucket.used)
    assert all(isinstance(decision, Grant) for decision in bucket.reserve(others, 9.0))


def test_a_create_beyond_the_limit_that_is_refused_dismisses_the_sighting() -> None:
    """Until the window ends, another bucket's limit is not asked about again."""
    bucket = sighted(limit=250_000)
    grant = granted(bucket, ask("probe"), 7.0)
    refused = Answer(spent=False, refused=True, window=Reading(250_000, 9, RESET))
    bucket.finish(ask("probe"), grant, refused, 8.0)
    assert (100, None, 250_000) == (bucket.limit, bucket.sighting, bucket.dismissed)
    late = granted(known(), ask("late"), 9.0)
    bucket.finish(ask("late"), late, told(10, limit=250_000), 10.0)
    assert None is bucket.sighting
    bucket.advance(RESET + 2.0)
    assert 0 == bucket.dismissed


def test_no_create_goes_beyond_the_limit_while_an_unconfirmed_slot_may_be_in_vain() -> None:
    """Its success would show nothing of the limit."""
    bucket = known(used=98)
    lost = granted(bucket, ask("lost"), 5.0)
    bucket.finish(ask("lost"), lost, Answer(spent=None, in_doubt=True), 5.5)
    bucket.finish(ask("seen"), granted(bucket, ask("seen"), 5.6), told(99, limit=900), 6.0)
    (decision,) = bucket.reserve([ask("a")], 7.0)
    assert isinstance(decision, Wait)
    assert decision.reason is Reason.QUOTA


def test_a_later_answer_that_names_our_limit_ends_the_sighting() -> None:
    """One to a request from before does not."""
    bucket = known(used=10)
    early = granted(bucket, ask("early"), 4.0)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), told(60, limit=900), 6.0)
    bucket.finish(ask("early"), early, told(11), 7.0)
    assert bucket.sighting is not None
    bucket.finish(ask("b"), granted(bucket, ask("b"), 8.0), told(13), 9.0)
    assert None is bucket.sighting


def test_a_first_answer_of_a_higher_limit_is_shown_and_not_acted_upon() -> None:
    """Until a second repeats it."""
    bucket = Bucket(offset=0.0)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 0.0), told(30, limit=500), 1.0)
    assert (500, 470, 30, RESET) == (
        bucket.status().limit,
        bucket.status().remaining,
        bucket.status().used,
        bucket.status().reset,
    )
    assert 7 == bucket.status(own_limit=8).remaining
    assert 99 == bucket.free(ask("b"))


def test_a_lower_limit_is_believed_at_once() -> None:
    """What was used stays."""
    bucket = known(used=50)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), told(3, limit=60), 6.0)
    assert (60, 50) == (bucket.limit, bucket.used)


def test_a_wrong_window_of_ours_is_given_up_for_one_that_contradicts_it() -> None:
    """An earlier reset, the same limit, a request begun after all that we know."""
    bucket = known(used=10)
    earlier = RESET - 3600
    before = granted(bucket, ask("before"), -1.0)
    bucket.learned = 0.0
    bucket.finish(ask("before"), before, told(2, reset=earlier), 3.0)
    assert RESET == bucket.reset
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), told(12, reset=earlier), 6.0)
    assert (earlier, 12) == (bucket.reset, bucket.used)


def test_a_later_window_with_a_lower_limit_shows_that_ours_was_another_bucket() -> None:
    """The daily bucket is the small one; one with a higher limit is not believed."""
    bucket = known(used=10, limit=250_000)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), told(3, reset=RESET + 3600), 6.0)
    assert (100, 3, RESET + 3600) == (bucket.limit, bucket.used, bucket.reset)
    later = told(1, limit=900, reset=RESET + 9000)
    bucket.finish(ask("b"), granted(bucket, ask("b"), 7.0), later, 8.0)
    assert (100, RESET + 3600) == (bucket.limit, bucket.reset)


def test_a_lease_that_no_attempt_can_have_is_given_up() -> None:
    """Its record is damaged: nobody waits for it for years, and its slot ripens."""
    bucket = known()
    granted(bucket, ask("a"), 5.0)
    far = attrs.evolve(bucket.leases["a"], deadline=1e9, ripe=1e9)
    bucket = attrs.evolve(bucket, leases={"a": far})
    bucket.advance(6.0)
    assert {} == bucket.leases
    (slot,) = bucket.unconfirmed.values()
    assert slot.ripe < 6.0 + 86_400.0


def test_a_process_takes_its_share_while_others_want_tokens() -> None:
    """Two others asked in the last ten seconds: a third of what is free at a time, for each."""
    bucket = known(used=10)
    for name in ("p", "q"):
        assert isinstance(bucket.reserve([ask(name)], 5.0, name)[0], Grant)
    decisions = bucket.reserve([ask(f"{n}") for n in range(50)], 6.0, "r")
    granted_now = sum(isinstance(decision, Grant) for decision in decisions)
    assert (30, Wait(Reason.PROBE)) == (granted_now, decisions[-1])
    alone = bucket.reserve([ask(f"x{n}") for n in range(50)], 16.0, "s")
    assert 50 == sum(isinstance(decision, Grant) for decision in alone)


def test_a_process_without_others_takes_all_there_is_and_waits_for_the_window() -> None:
    """Who gets none waits for quota, not for the turn of others."""
    bucket = known(used=97)
    assert isinstance(bucket.reserve([ask("a")], 5.0, "p")[0], Grant)
    decisions = bucket.reserve([ask("b"), ask("c"), ask("d")], 6.0, "p")
    assert [Grant, Grant] == [type(decision) for decision in decisions[:2]]
    assert decisions[2] == Wait(Reason.QUOTA)


def test_a_repeat_takes_nothing_of_a_share() -> None:
    """It creates nothing new."""
    bucket = known(used=96)
    grant = granted(bucket, ask("lost"), 5.0)
    bucket.finish(ask("lost"), grant, Answer(spent=None, in_doubt=True), 6.0)
    bucket.reserve([ask("a")], 7.0, "p")
    asks = [ask("again", pair="pair-lost"), ask("b"), ask("c")]
    decisions = bucket.reserve(asks, 8.0, "q")
    assert [Grant, Grant, Wait] == [type(decision) for decision in decisions]


def test_who_waits_for_the_window_to_end_has_no_share() -> None:
    """Then nothing is to be shared, and a look at the quota is not written."""
    bucket = known(used=100)
    bucket.reserve([ask("a")], 5.0, "p")
    assert {} == bucket.present


def test_an_attempt_whose_end_could_not_be_kept_leaves_an_unconfirmed_slot() -> None:
    """The store failed: giving up the lease, or a further attempt, does not forget it."""
    bucket = known()
    granted(bucket, ask("a"), 5.0)
    bucket.close("a")
    assert {"a"} == set(bucket.leases)
    again = attrs.evolve(ask("a"), attempt=2)
    granted(bucket, again, 6.0)
    assert (["a.1"], ["pair-a"]) == ([*bucket.unconfirmed], [*bucket.doubted()])


def test_a_lease_that_was_granted_unheard_is_given_back() -> None:
    """Its caller was cancelled in the middle of the transaction; nothing was sent."""
    bucket = known()
    granted(bucket, ask("a"), 5.0)
    bucket.close("a", 1)
    assert ({}, {}) == (bucket.leases, bucket.unconfirmed)


def test_a_date_that_is_seconds_off_needs_a_second_witness() -> None:
    """Four seconds ahead, once: the window's end stays; twice: it moves."""
    bucket = known()
    for date, offset in ((9.0, 0.0), (11.0, 4.0)):
        now = date - 4.0
        grant = granted(bucket, ask(f"{date}"), now)
        bucket.finish(ask(f"{date}"), grant, told(2, date=date), now)
        assert offset == bucket.offset


def test_a_date_and_a_reset_that_agree_end_our_window() -> None:
    """The host slept over the reset, and its clock did not: one answer is enough."""
    bucket = known(used=100)
    bucket.careful = True
    grant = granted(bucket, ask("a"), 5.0)
    later = RESET + 1800.0
    bucket.finish(ask("a"), grant, told(1, reset=RESET + 86_400, date=later), 5.0)
    assert (later - 5.0, 1, RESET + 86_400) == (bucket.offset, bucket.used, bucket.reset)


def test_a_pair_that_was_asked_for_twice_counts_once_against_an_own_limit() -> None:
    """Its first answer was lost: what is open of it is about Braze's quota alone."""
    bucket = known()
    bucket.created = 0
    lost = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), lost, Answer(spent=None, in_doubt=True), 5.5, keep=True)
    again = attrs.evolve(ask("a"), attempt=2)
    bucket.finish(again, granted(bucket, again, 6.0), told(2), 6.5)
    bucket.settle_pair("pair-a")
    assert (1, 4) == (len(bucket.unconfirmed), bucket.free(ask("b", own_limit=5)))


@pytest.mark.parametrize("reset", [-5.0, 49 * 3600.0])
def test_an_absurd_reset_counts_as_no_headers(reset: float) -> None:
    """One that is over, or more than two days ahead."""
    bucket = Bucket(offset=0.0)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 0.0), told(1, reset=reset), 1.0)
    assert (None, False) == (bucket.reset, bucket.known)


def test_a_date_corrects_the_clock_no_more_than_it_must() -> None:
    """Within what the answer's second allows nothing changes; outside, the lower bound."""
    bucket = Bucket(offset=1000.4)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 0.0), Answer(True, date=1000.0), 0.2)
    assert 1000.4 == bucket.offset
    bucket.finish(ask("b"), granted(bucket, ask("b"), 1.0), Answer(True, date=1041.0), 1.5)
    assert 1039.5 == bucket.offset


def test_all_who_hold_a_lease_between_attempts_give_it_up_in_a_pause() -> None:
    """Others see the token free while they wait."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), grant, Answer(spent=False), 6.0, keep=True)
    refused = granted(bucket, ask("b"), 6.0)
    bucket.finish(ask("b"), refused, Answer(spent=False, refused=True, retry_after=7), 7.0)
    (decision,) = bucket.reserve([ask("a", attempt=2)], 8.0)
    assert Wait(Reason.QUOTA, 14.0) == decision
    assert {} == bucket.leases


def test_a_refused_probe_keeps_the_unconfirmed_slots_until_the_window_ends() -> None:
    """A bare 429 to the one that asked; no second probe goes."""
    bucket = known(used=98)
    for name in "ab":
        grant = granted(bucket, ask(name), 5.0)
        bucket.finish(ask(name), grant, Answer(spent=None, in_doubt=True), 6.0)
    (wait,) = bucket.reserve([ask("c")], 7.0)
    assert Wait(Reason.QUOTA, 35.0) == wait
    probe = granted(bucket, ask("c"), 35.0)
    bucket.finish(ask("c"), probe, Answer(spent=False, refused=True), 36.0)
    assert [True, True] == [slot.asked for slot in bucket.unconfirmed.values()]
    (wait,) = bucket.reserve([ask("d")], 100.0)
    assert Wait(Reason.QUOTA, RESET + 1.0) == wait
    bucket.advance(RESET + 1.0)
    assert {} == bucket.unconfirmed


def test_a_refused_probe_says_nothing_of_an_unconfirmed_slot_that_was_too_young() -> None:
    """Braze could not yet have counted it."""
    bucket = known(used=98)
    for name, begun in (("old", 5.0), ("young", 30.0)):
        lost = Answer(spent=None, in_doubt=True)
        bucket.finish(ask(name), granted(bucket, ask(name), begun), lost, begun + 1.0)
    refused = Answer(spent=False, refused=True)
    bucket.finish(ask("probe"), granted(bucket, ask("probe"), 40.0), refused, 41.0)
    assert {"old.1": True, "young.1": False} == {
        name: slot.asked for name, slot in bucket.unconfirmed.items()
    }


def test_pauses_grow_with_each_429_and_a_burst_is_one() -> None:
    """2 s, 4 s … for those that say nothing; an answer that is none starts over."""
    bucket = known()
    grants = [granted(bucket, ask(f"burst{n}"), 5.0) for n in range(3)]
    for n, grant in enumerate(grants):
        bucket.finish(ask(f"burst{n}"), grant, Answer(spent=False, refused=True), 6.0)
    assert 8.0 == bucket.blocked_until
    bucket.finish(ask("next"), granted(bucket, ask("next"), 8.0), Answer(False, refused=True), 9.0)
    assert 13.0 == bucket.blocked_until
    bucket.finish(ask("good"), granted(bucket, ask("good"), 13.0), told(2), 14.0)
    assert 0 == bucket.refusals


def test_a_429_with_nothing_left_blocks_until_its_reset() -> None:
    """Also where the numbers are another bucket's: that one refused."""
    bucket = known()
    other = Answer(spent=False, refused=True, window=Reading(250_000, 250_000, 3600.0))
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), other, 6.0)
    assert (3601.0, 100) == (bucket.blocked_until, bucket.limit)


def test_who_asks_with_less_headroom_passes_and_with_more_waits_behind() -> None:
    """The queue is served in its order otherwise."""
    bucket = known(used=98)
    decisions = bucket.reserve(
        [ask("bulk", headroom=2), ask("bulk2", headroom=2), ask("urgent"), ask("half", headroom=1)],
        5.0,
    )
    assert [Wait, Wait, Grant, Wait] == [type(decision) for decision in decisions]


def test_an_own_limit_that_is_used_up_holds_up_nobody_else() -> None:
    """Another client of the store may have a higher one, or none."""
    bucket = known(used=5)
    bucket.created = 5
    decisions = bucket.reserve(
        [ask("limited", own_limit=5), ask("free"), ask("wider", own_limit=7)], 5.0
    )
    assert [Wait, Grant, Grant] == [type(decision) for decision in decisions]


def test_a_cleared_slot_counts_for_an_own_limit_as_far_as_the_headers_allow() -> None:
    """It may have been a create."""
    bucket = known(used=5)
    bucket.created, bucket.cleared = 3, 9
    assert 10 - 3 - 2 == bucket.free(ask("a", own_limit=10))


def test_what_can_never_be_had_is_said_to_be_never() -> None:
    """As much headroom as there is limit, or an own limit of 0."""
    bucket = known()
    decisions = bucket.reserve([ask("a", headroom=100), ask("b", own_limit=0)], 5.0)
    assert [Wait(Reason.QUOTA, math.inf)] * 2 == decisions


def test_without_a_window_unconfirmed_slots_lapse_after_a_day() -> None:
    """A day after the last moment at which Braze may have counted them."""
    bucket = Bucket(offset=0.0, probes=1000)
    for n in range(100):
        one = ask(f"{n}")
        bucket.finish(one, granted(bucket, one, 0.0), Answer(spent=True), 1.0)
    (wait,) = bucket.reserve([ask("more")], 2.0)
    assert Wait(Reason.QUOTA, 1.0 + DAY) == wait
    assert 1.0 + DAY == bucket.next_change(2.0)
    bucket.advance(1.0 + DAY)
    assert 100 == bucket.free(ask("more"))


def test_nothing_changes_by_itself_in_a_new_bucket() -> None:
    """There is nothing to wait for."""
    assert math.inf == Bucket(offset=0.0).next_change(0.0)


def test_forgetting_keeps_leases_and_unconfirmed_slots_and_what_was_created() -> None:
    """The careful request goes, though others are out."""
    bucket = known(used=30)
    bucket.created = 30
    grant = granted(bucket, ask("lost"), 5.0)
    bucket.finish(ask("lost"), grant, Answer(spent=None, in_doubt=True), 6.0)
    old = granted(bucket, ask("out"), 6.0)
    bucket.forget(7.0)
    assert (100 - 30 - 2, RESET) == (bucket.free(ask("a")), bucket.reset)
    assert 100 - 30 - 2 == bucket.free(ask("a", own_limit=100))
    bucket.used = 100
    first, second = bucket.reserve([ask("a"), ask("b")], 7.0)
    assert (Grant(7.0), Wait(Reason.PROBE)) == (first, second)
    # What began before cannot tell what has been counted since.
    bucket.finish(ask("out"), old, told(31), 8.0)
    assert not bucket.known


def test_after_forgetting_the_next_answer_tells_the_limit() -> None:
    """One careful request goes though nothing is left, and only one."""
    bucket = known(used=100)
    bucket.forget(7.0)
    careful = granted(bucket, ask("careful"), 8.0)
    bucket.finish(ask("careful"), careful, Answer(spent=False), 9.0)
    (decision,) = bucket.reserve([ask("another")], 9.0)
    assert isinstance(decision, Wait)
    bucket.forget(10.0)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 10.0), told(101, limit=150), 11.0)
    assert (150, 49) == (bucket.limit, bucket.free(ask("b")))


def test_one_date_that_is_far_off_does_not_end_the_window() -> None:
    """A proxy's clock; a second one that agrees is believed, since this host may have slept."""
    bucket = known(used=99)
    for name, offset in (("a", 0.0), ("b", 86_390.0)):
        answer = Answer(spent=False, date=86_400.0)
        bucket.finish(ask(name), granted(bucket, ask(name), 9.0), answer, 10.0)
        assert offset == bucket.offset


def test_a_date_that_is_right_again_clears_the_odd_one() -> None:
    """Two proxies that disagree with us and each other are not believed."""
    bucket = known(used=9)
    for name, date in (("a", 86_400.0), ("b", 9.5), ("c", 86_400.0), ("d", 40_000.0)):
        bucket.finish(ask(name), granted(bucket, ask(name), 9.0), Answer(False, date=date), 10.0)
        assert 0.0 == bucket.offset


def test_a_429_of_the_edge_says_nothing_of_the_unconfirmed_slots() -> None:
    """The probe asks again after the pause."""
    bucket = known(used=99)
    grant = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), grant, Answer(spent=None, in_doubt=True), 6.0)
    edge = Answer(spent=False, refused=True, from_edge=True)
    bucket.finish(ask("b"), granted(bucket, ask("b"), 40.0), edge, 41.0)
    granted(bucket, ask("c"), 60.0)
    assert bucket.leases["c"].asks_unconfirmed


def test_each_create_waits_for_what_it_asks_for_itself() -> None:
    """One whose own limit is used up does not tell the one behind, which has none, how long."""
    bucket = known(used=60)
    for n in range(40):
        one = ask(f"{n}")
        bucket.finish(one, granted(bucket, one, 5.0), Answer(spent=None, in_doubt=True), 6.0)
    limited, never, free = bucket.reserve(
        [ask("a", own_limit=40), ask("b", own_limit=10, headroom=10), ask("c")], 7.0
    )
    assert [RESET + 1.0, math.inf, 35.0] == [
        wait.until for wait in (limited, never, free) if isinstance(wait, Wait)
    ]


def test_a_headroom_beyond_an_assumed_limit_is_judged_by_an_answer() -> None:
    """One at a time may ask for the limit, but not against the caller's own limit."""
    bucket = Bucket(offset=0.0)
    bold, limited = ask("bold", headroom=150), ask("limited", headroom=150, own_limit=150)
    grant = granted(bucket, bold, 5.0)
    behind, never = bucket.reserve([ask("behind", headroom=150), limited], 5.0)
    assert [Wait(Reason.PROBE), Wait(Reason.PROBE)] == [behind, never]
    bucket.finish(bold, grant, told(1), 6.0)
    assert [Wait(Reason.QUOTA, math.inf)] == bucket.reserve([ask("more", headroom=150)], 7.0)

    bucket = Bucket(offset=0.0)
    assert [Wait(Reason.QUOTA, math.inf)] == bucket.reserve([limited], 5.0)

    # Without headers: two probes may be out then, but one alone against a headroom.
    bucket.finish(bold, granted(bucket, bold, 5.0), Answer(spent=True), 6.0)
    first, second = bucket.reserve([ask(name, headroom=150) for name in "ab"], 7.0)
    assert [Grant(7.0), Wait(Reason.QUOTA)] == [first, second]


def test_a_send_in_doubt_that_braze_was_to_name_is_not_handed_on() -> None:
    """Nobody can ask for a send that Braze was to name."""
    bucket = known()
    nameless = ask("a", pair=None)
    bucket.finish(nameless, granted(bucket, nameless, 5.0), Answer(spent=None, in_doubt=True), 6.0)
    assert {"a"} == bucket.doubted()
    bucket.finish(ask("c"), granted(bucket, ask("c"), 40.0), told(4), 41.0)
    assert [] == bucket.unsettled


def test_a_pair_whose_slot_was_cleared_without_its_answer_is_handed_on() -> None:
    """For who keeps the state to remember; not what is known to exist."""
    bucket = known()
    for name in "ab":
        grant = granted(bucket, ask(name), 5.0)
        bucket.finish(ask(name), grant, Answer(spent=None, in_doubt=True), 6.0)
    bucket.settle_pair("pair-b")
    bucket.finish(ask("c"), granted(bucket, ask("c"), 40.0), told(4), 41.0)
    assert ["pair-a"] == bucket.unsettled


def test_an_unconfirmed_slot_that_was_ripe_before_the_reset_ends_with_its_window() -> None:
    """It was counted there or never; a younger one may be counted in the new window."""
    bucket = known()
    for name, begun in (("old", RESET - 60.0), ("young", RESET - 20.0)):
        grant = granted(bucket, ask(name), begun)
        bucket.finish(ask(name), grant, Answer(spent=None, in_doubt=True), begun + 1)
    bucket.advance(RESET + 1.0)
    assert {"young.1"} == set(bucket.unconfirmed)


def test_a_lowered_limit_is_taken_from_the_answer_that_counts_more() -> None:
    """Though a request that began with it was answered before."""
    bucket = known(used=50)
    first, second = granted(bucket, ask("first"), 5.0), granted(bucket, ask("second"), 5.0)
    bucket.finish(ask("first"), first, told(51), 6.0)
    bucket.finish(ask("second"), second, told(52, limit=60), 7.0)
    assert 60 == bucket.limit


def test_a_pause_is_not_shortened_by_another_429() -> None:
    """A 429 that asks for less than an earlier one does not open the way."""
    bucket = known()
    first, second = granted(bucket, ask("a"), 5.0), granted(bucket, ask("b"), 5.0)
    for name, grant, pause in (("a", first, 60), ("b", second, 5)):
        refused = Answer(spent=False, refused=True, retry_after=pause)
        bucket.finish(ask(name), grant, refused, 6.0)
    assert 66.0 == bucket.blocked_until


def test_a_pair_once_in_doubt_is_asked_for_though_nothing_is_left() -> None:
    """But not while others are out, whose slot it could take."""
    bucket = known(used=99)
    grant = granted(bucket, ask("last"), 5.0)
    lost = ask("lost", in_doubt=True)
    (decision,) = bucket.reserve([lost], 6.0)
    assert Wait(Reason.QUOTA) == decision
    bucket.finish(ask("last"), grant, told(100), 7.0)
    decisions = bucket.reserve([ask("new"), lost], 7.0)
    assert [Wait(Reason.QUOTA, RESET + 1.0), Grant(7.0)] == decisions


def test_each_end_of_a_probe_without_headers_lets_twice_as_many_go() -> None:
    """One, two, four; an answer that tells the window lets all go."""
    bucket = Bucket(offset=0.0)
    for n, width in enumerate((1, 2, 4)):
        asks = [ask(f"{n}-{i}") for i in range(8)]
        decisions = bucket.reserve(asks, 10.0 * n)
        assert width == sum(isinstance(decision, Grant) for decision in decisions)
        grant = decisions[0]
        assert isinstance(grant, Grant)
        bucket.finish(asks[0], grant, Answer(spent=False), 10.0 * n + 1)
        for one in asks[1:]:
            bucket.close(one.lease, one.attempt)


def test_a_probe_asks_about_successes_without_headers_that_used_may_include() -> None:
    """Every other answer of a burst had none: the slots that are left are not lost to the day."""
    bucket = known(used=1)
    names = [f"{n}" for n in range(79)]
    grants = {name: granted(bucket, ask(name), 5.0) for name in names}
    for n, name in enumerate(names):
        answer = told(n + 2) if n % 2 else Answer(spent=True)
        bucket.finish(ask(name), grants[name], answer, 6.0 + n)
    assert bucket.free(ask("a")) < 1
    probe = granted(bucket, ask("a"), 100.0)
    bucket.finish(ask("a"), probe, told(81), 101.0)
    assert 19 == bucket.free(ask("b"))


def test_no_probe_asks_about_a_success_without_headers_that_came_later() -> None:
    """They are counted for sure."""
    bucket = known(used=99)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), Answer(spent=True), 6.0)
    (decision,) = bucket.reserve([ask("b")], 100.0)
    assert Wait(Reason.QUOTA, RESET + 1.0) == decision


def test_no_probe_risks_an_own_limit() -> None:
    """Unconfirmed slots that fill it stay, since Braze would create one more."""
    bucket = known(used=1)
    bucket.created = 1
    for name in "ab":
        grant = granted(bucket, ask(name), 5.0)
        bucket.finish(ask(name), grant, Answer(spent=None, in_doubt=True), 6.0)
    decisions = bucket.reserve(
        [ask("c", own_limit=3), ask("lost", own_limit=3, in_doubt=True)], 100.0
    )
    assert [Wait(Reason.QUOTA, RESET + 1.0)] * 2 == decisions


def test_forgetting_does_not_loosen_an_own_limit() -> None:
    """What was cleared may have been created, as long as no header tells."""
    bucket = known(used=5)
    bucket.created, bucket.cleared = 3, 2
    bucket.forget(7.0)
    assert 0 == bucket.free(ask("a", own_limit=5))


def test_a_pair_under_way_is_waited_for_behind_others_that_find_nothing_left() -> None:
    """Its caller is not told that nothing was sent."""
    bucket = known(used=99)
    granted(bucket, ask("a"), 5.0)
    decisions = bucket.reserve([ask("new"), ask("again", pair="pair-a")], 6.0)
    assert [Wait(Reason.QUOTA), Wait(Reason.PAIR, 5.0 + TIMEOUT + LEASE_GRACE)] == decisions


# --- the history ---------------------------------------------------------------------------------


def created_by_hour(bucket: Bucket) -> list[tuple[str, float, int]]:
    """Campaign, hour and number of what would be shown, ever."""
    return [
        (one.campaign_id, one.hour.timestamp() / 3600, one.count)
        for one in bucket.history.creations(0.0)
    ]


def test_a_create_is_in_the_history_under_its_hour_by_brazes_clock() -> None:
    """Under its campaign, whether its answer has headers or not."""
    bucket = Bucket(offset=7200.0)
    for name, campaign, answer in (
        ("a", "news", told(1)),
        ("b", "shop", Answer(spent=True)),
        ("c", "news", told(3)),
    ):
        one = ask(name, campaign=campaign)
        bucket.finish(one, granted(bucket, one, 3599.0), answer, 3600.0)
    assert [("news", 3, 2), ("shop", 3, 1)] == created_by_hour(bucket)


@pytest.mark.parametrize("spent", [False, None])
@pytest.mark.parametrize("window", [None, Reading(100, 2, RESET)])
def test_what_is_not_known_to_be_created_is_not_in_the_history(
    spent: bool | None, window: Reading | None
) -> None:
    """Nor is one in doubt when its slot is cleared."""
    bucket = Bucket(offset=0.0)
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), Answer(spent, window=window), 6.0)
    bucket.finish(ask("b"), granted(bucket, ask("b"), 60.0), Answer(False, window=window), 61.0)
    assert [] == created_by_hour(bucket)


@pytest.mark.parametrize("answer", [told(2), Answer(spent=True)])
def test_a_create_answered_after_its_deadline_is_in_the_history_once(answer: Answer) -> None:
    """Though its lease had become an unconfirmed slot, and though it is told again."""
    bucket = known()
    before = created_by_hour(bucket)
    one = ask("a", campaign="late")
    grant = granted(bucket, one, 5.0)
    bucket.advance(100.0)
    for now in (100.0, 101.0):
        bucket.finish(one, grant, answer, now)
        assert [*before, ("late", 0, 1)] == created_by_hour(bucket)


def test_the_history_ends_with_its_window() -> None:
    """What was created in it but answered late does not begin the next one's."""
    bucket = known()
    late = granted(bucket, ask("late"), RESET - 1.0)
    bucket.advance(RESET + 1.0)
    assert [] == created_by_hour(bucket)
    bucket.finish(ask("late"), late, told(2), RESET + 2.0)
    assert [] == created_by_hour(bucket)


@pytest.mark.parametrize("answered", [RESET - 1.0, RESET + 0.5, RESET + 2.0])
def test_the_create_that_tells_of_a_new_window_is_in_its_history(answered: float) -> None:
    """And nothing else, whether our clock has seen the old one end or not."""
    bucket = known()
    one = ask("a", campaign="first")
    grant = granted(bucket, one, RESET - 4.0)
    bucket.advance(answered)
    bucket.finish(one, grant, told(1, reset=RESET + DAY), answered)
    assert [("first", answered // 3600, 1)] == created_by_hour(bucket)


def test_creates_before_the_window_is_known_are_in_its_history() -> None:
    """They had no headers; the first that come do not lose them."""
    bucket = known()
    bucket.advance(RESET + 1.0)
    for name, answer in (("a", Answer(spent=True)), ("b", told(2, reset=RESET + DAY))):
        one = ask(name, campaign=name)
        bucket.finish(one, granted(bucket, one, RESET + 5.0), answer, RESET + 6.0)
    assert [("a", 13, 1), ("b", 13, 1)] == created_by_hour(bucket)


def test_without_a_window_the_history_is_that_of_a_day() -> None:
    """No window's end clears it."""
    bucket = Bucket(offset=0.0)
    for n in range(50):
        one, now = ask(f"{n}"), n * 3600.0
        bucket.advance(now)
        bucket.finish(one, granted(bucket, one, now), Answer(spent=True), now + 1)
    assert [("", hour, 1) for hour in range(25, 50)] == created_by_hour(bucket)


def test_forgetting_keeps_the_history() -> None:
    """What was created was created."""
    bucket = known()
    before = created_by_hour(bucket)
    bucket.forget(7.0)
    assert [("", 0, 1)] == before == created_by_hour(bucket)


def test_the_history_decides_nothing() -> None:
    """With any other one, the rule does the same."""
    plain, full = known(), known()
    for n in range(200):
        full.history = full.history.add(f"{n}", 0.0)
    for bucket in (plain, full):
        for name, answer in (("a", told(7)), ("b", Answer(None)), ("c", Answer(True))):
            bucket.finish(ask(name), granted(bucket, ask(name), 5.0), answer, 6.0)
    assert plain.status() == full.status()
    assert attrs.evolve(plain, history=full.history) == full


def test_a_careful_request_that_shows_no_limit_changes_none() -> None:
    """The quota was to be forgotten; its answer has no headers."""
    bucket = known(used=100)
    bucket.forget(7.0)
    grant = granted(bucket, ask("careful"), 8.0)
    bucket.finish(ask("careful"), grant, Answer(spent=True), 9.0)
    assert (100, None) == (bucket.limit, bucket.sighting)


def test_a_create_beyond_the_limit_that_was_not_looked_at_leaves_the_sighting() -> None:
    """A 401 says nothing of the limit: another may ask."""
    bucket = sighted()
    bucket.finish(ask("probe"), granted(bucket, ask("probe"), 7.0), Answer(spent=False), 8.0)
    assert bucket.sighting is not None
    assert isinstance(bucket.reserve([ask("next")], 9.0)[0], Grant)
