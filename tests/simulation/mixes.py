"""Mixes of faults: what each simulated day is made of."""

from __future__ import annotations

from typing import Literal

import attrs

#: Of the clients themselves, where they have one.
OWN_LIMIT = 5


@attrs.frozen(kw_only=True)
class Mix:
    """How often what goes wrong. All but the first six are probabilities unless told otherwise.

    Attributes:
        name: names the mix.
        lone: whether a 429 has to be one of the documented kinds: nobody else uses the workspace,
            and Braze tells the truth.
        limits: the daily limits to choose from.
        processes: the most processes on one store.
        counts, duplicate: what Braze counts, and what it says to a pair that exists.
        own_limit: whether the clients have a limit of their own.
        refused: the connection is refused.
        lost: the request is lost on its way.
        unanswered: the answer is lost on its way.
        late: Braze handles the request late, within three timeouts of its beginning.
        slow: the answer takes seconds, sometimes more than the attempt has.
        broken: a 5xx or a page of the edge in place of handling.
        broken_after: the same after handling.
        edge_429: a 429 of the edge without a word, in place of handling.
        no_headers, garbled, foreign: what becomes of the rate-limit headers.
        bare_429: whether a 429 for want of quota has no headers.
        skew: seconds by which Braze's ``Date`` may be off, all day.
        date_jumps, date_jump: how often a ``Date`` is off by up to so many seconds.
        opens_late: seconds by which a window may open late.
        others: slots a day that others take.
        limits_move: how often a day the limit is raised or lowered.
        store_fails, store_lags: the store's transaction fails, before it is applied or after; and
            takes seconds.
        crashes, freezes: how often a day a process dies, or stands still past its lease.
        sleeps: how often a day the host sleeps; one process, whose steady clock counts on.
        cancels: a caller is cancelled.
        batches: a burst is a batch.
        outages: how often a day Braze is away for a minute.
    """

    name: str
    lone: bool = True
    limits: tuple[int, ...] = (3, 8, 20)
    processes: int = 1
    counts: Literal["pairs", "requests"] = "pairs"
    duplicate: Literal[201, 400] = 201
    own_limit: bool = False
    refused: float = 0.0
    lost: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    slow: float = 0.0
    broken: float = 0.0
    broken_after: float = 0.0
    edge_429: float = 0.0
    no_headers: float = 0.0
    garbled: float = 0.0
    foreign: float = 0.0
    bare_429: bool = False
    skew: float = 0.0
    date_jumps: float = 0.0
    date_jump: float = 0.0
    opens_late: float = 0.0
    others: int = 0
    limits_move: float = 0.0
    store_fails: float = 0.0
    store_lags: float = 0.0
    crashes: float = 0.0
    freezes: float = 0.0
    sleeps: float = 0.0
    cancels: float = 0.0
    batches: float = 0.2
    outages: float = 0.0


_LOSSY = Mix(name="lossy", refused=0.03, lost=0.05, unanswered=0.05, slow=0.03)

MIXES = {
    mix.name: mix
    for mix in (
        Mix(name="clean"),
        Mix(name="workers", processes=3, slow=0.05),
        _LOSSY,
        attrs.evolve(_LOSSY, name="lossy requests", counts="requests", duplicate=400),
        Mix(name="late", late=0.08, slow=0.05, unanswered=0.02),
        Mix(name="errors", broken=0.06, broken_after=0.04, processes=2),
        Mix(name="outages", outages=2, unanswered=0.02, processes=2),
        Mix(name="edge", edge_429=0.05),
        Mix(name="crashes", crashes=2, unanswered=0.03, slow=0.1, processes=3),
        Mix(name="freezes", freezes=2, slow=0.05, processes=2),
        Mix(name="store", store_fails=0.03, store_lags=0.05, unanswered=0.03, processes=2),
        Mix(name="cancels", cancels=0.2, slow=0.1, unanswered=0.03, processes=2),
        Mix(name="own limit", own_limit=True, unanswered=0.04, garbled=0.05, processes=2),
        Mix(name="garbled", garbled=0.1, no_headers=0.1, unanswered=0.02),
        Mix(name="dates", skew=1.0, date_jumps=0.1, date_jump=30.0, slow=0.05),
        Mix(name="sleep", sleeps=2, slow=0.05),
        Mix(name="own sleep", sleeps=2, slow=0.05, own_limit=True),
        Mix(name="late windows", lone=False, opens_late=8.0),
        Mix(name="no headers", lone=False, no_headers=1.0, bare_429=True),
        Mix(name="foreign", foreign=0.3),
        Mix(name="wrong bucket", lone=False, foreign=1.0),
        Mix(name="others", lone=False, others=6, slow=0.05, processes=2),
        Mix(name="limits move", lone=False, limits_move=2, processes=2),
        Mix(
            name="chaos", lone=False, processes=3, refused=0.02, lost=0.02, unanswered=0.04,
            late=0.03, slow=0.05, broken=0.02, broken_after=0.02, edge_429=0.01, garbled=0.03,
            foreign=0.02, date_jumps=0.03, date_jump=20.0, crashes=1, freezes=1, store_fails=0.01,
            store_lags=0.02, cancels=0.05, own_limit=True,
        ),
    )
}  # fmt: skip
