"""Who has to wait for whom, and what outlives a window: found by faults that no test noticed."""

from __future__ import annotations

import attrs

from braze_sends.headers import LONGEST_WAIT
from braze_sends.quota.bucket import LEASE_GRACE, Answer, Bucket, Grant, Lease, Reason, Wait, Window
from tests.quota.test_bucket import RESET, TIMEOUT, ask, granted, known, told


def test_a_second_canary_goes_when_the_owner_of_the_first_has_died() -> None:
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


def test_an_own_limit_begins_anew_in_a_new_window() -> None:
    """Neither the creates of the last window nor its cleared doubts count."""
    bucket = known()
    bucket.created, bucket.cleared = 3, 2
    bucket.advance(RESET + 1.0)
    assert 5 == bucket.free(ask("a", cap=5))


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
    granted(bucket, ask("out"), 6.0) if bucket.free(ask("out")) > 0 else None
    assert 1 > bucket.free(ask("more"))
    assert Grant(7.0) == granted(bucket, ask("again", pair="pair-lost"), 7.0)


def test_who_waits_for_the_canary_holds_up_all_behind() -> None:
    """One with another headroom does not pass, though its own probe could go."""
    bucket = Bucket(offset=0.0)
    granted(bucket, ask("canary"), 0.0)
    decisions = bucket.reserve([ask("a"), ask("b", headroom=1), ask("c", cap=0)], 1.0)
    assert [Wait(Reason.CANARY)] * 3 == decisions


def test_a_pair_is_granted_once_in_one_step() -> None:
    """The second one that asks for it waits for the first one's lease."""
    bucket = known()
    first, second = bucket.reserve([ask("a"), ask("b", pair="pair-a")], 5.0)
    assert Grant(5.0) == first
    assert Wait(Reason.PAIR, 5.0 + TIMEOUT + LEASE_GRACE) == second


def test_a_further_attempt_does_not_stand_behind_those_without_a_token() -> None:
    """It holds its token, though one that asks for the same before it finds nothing left."""
    bucket = known(used=99)
    grant = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), grant, Answer(spent=False), 6.0, keep=True)
    first, further = bucket.reserve([ask("b"), ask("a", attempt=2)], 7.0)
    assert isinstance(first, Wait)
    assert Grant(7.0) == further


def test_a_success_without_headers_is_no_doubt_of_its_pair() -> None:
    """Its charge counts, but the pair is known to exist."""
    bucket = known()
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), Answer(spent=True), 6.0)
    assert set() == bucket.doubted()


def test_the_attempt_after_one_whose_end_was_not_kept_takes_no_token() -> None:
    """The doubt of the attempt before fills the last slot; the repeat creates nothing new."""
    bucket = known(used=99)
    granted(bucket, ask("a"), 5.0)
    (again,) = bucket.reserve([ask("a", attempt=2)], 6.0)
    assert Grant(6.0) == again
    assert not bucket.leases["a"].asks_charges


def test_a_lease_between_two_attempts_is_no_canary() -> None:
    """It asks nothing while it backs off, so another may ask for the state."""
    bucket = Bucket(offset=0.0)
    grant = granted(bucket, ask("a"), 0.0)
    bucket.finish(ask("a"), grant, Answer(spent=False, from_edge=True), 1.0, keep=True)
    bucket.canaries = 1
    assert Grant(2.0) == granted(bucket, ask("b"), 2.0)


def test_what_a_believed_answer_leaves_in_doubt_counts_for_an_own_limit() -> None:
    """A create that Braze queued, with its headers, may be a send."""
    bucket = known(used=5)
    bucket.created = 3
    grant = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), grant, told(6, spent=None, in_doubt=True), 6.0)
    assert 10 - 3 - 1 == bucket.free(ask("b", cap=10))


def test_a_nameless_send_in_doubt_counts_for_an_own_limit() -> None:
    """Nobody can ask for it, but it may exist."""
    bucket = known()
    one = ask("a", pair=None)
    grant = granted(bucket, one, 5.0)
    bucket.finish(one, grant, Answer(spent=None, in_doubt=True), 6.0)
    assert {"a"} == bucket.doubted()


def test_a_denied_pair_is_in_no_doubt() -> None:
    """A 4xx may have been counted, and created nothing."""
    bucket = known()
    bucket.finish(ask("a"), granted(bucket, ask("a"), 5.0), Answer(spent=None), 6.0)
    assert 1 == len(bucket.charges)
    assert set() == bucket.doubted()


def test_a_refused_attempt_keeps_no_lease() -> None:
    """Even where its owner would make another attempt."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    bucket.finish(ask("a"), grant, Answer(spent=False, refused=True), 6.0, keep=True)
    assert {} == bucket.leases


def test_answers_to_requests_from_before_let_no_more_canaries_go() -> None:
    """They tell nothing of the state since the 429."""
    bucket = known()
    old, refused = granted(bucket, ask("old"), 5.0), granted(bucket, ask("refused"), 5.0)
    bucket.finish(ask("refused"), refused, Answer(spent=False, refused=True), 6.0)
    bucket.finish(ask("old"), old, Answer(spent=True), 7.0)
    assert 1 == bucket.canaries


def test_a_429_whose_reset_is_days_ahead_is_a_short_pause() -> None:
    """It is no reset of Braze's, but a clock that is wrong."""
    bucket = known()
    grant = granted(bucket, ask("a"), 5.0)
    far = Window(100, 100, 10 * LONGEST_WAIT)
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
    assert bucket.rumour is not None
    bucket.advance(3601.0)
    assert bucket.rumour is None


def test_a_probe_for_a_higher_limit_respects_cap_and_headroom() -> None:
    """Neither the caller's own cap nor the slots kept for others are risked."""
    bucket = known(used=99)
    bucket.finish(ask("seen"), granted(bucket, ask("seen"), 5.0), told(100, limit=102), 6.0)
    bucket.used = 100
    bucket.charges.clear()
    assert bucket._sighted(ask("a"))
    assert not bucket._sighted(ask("a", headroom=2))
    assert not bucket._sighted(ask("a", cap=bucket.created))


def test_who_asks_for_the_same_stands_behind_the_first_that_found_nothing() -> None:
    """A token that its own step frees goes to the first in the queue, not to the one behind."""
    bucket = known(used=99)
    bucket.leases["stuck"] = Lease("pair-stuck", 1, 1.0, 16.0, 31.0)
    first, freeing, second = bucket.reserve(
        [ask("first"), ask("stuck", attempt=2, pair=None), ask("second")], 5.0
    )
    assert isinstance(first, Wait)
    assert isinstance(second, Wait)
    assert isinstance(freeing, Grant | Wait)
