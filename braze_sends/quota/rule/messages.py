"""What goes into the rule and what comes out, as frozen values."""

from __future__ import annotations

from enum import Enum

import attrs


class Reason(Enum):
    """What a create waits for."""

    QUOTA = "quota"  #: a token, or the end of a pause: counts as a wait for quota
    PROBE = "probe"  #: others go first: a probe, or another process's turn; no wait for quota
    PAIR = "pair"  #: the same pair is under way elsewhere: bounded by its lease


@attrs.frozen
class Ask:
    """One create that wants to make an attempt.

    Attributes:
        lease: the lease's ID, made by the client, the same for all attempts of one create.
        attempt: 1 for the first attempt.
        pair: names the pair to create; ``None`` if Braze is to name the send.
        timeout: seconds that the attempt may take.
        headroom: slots to leave untouched.
        own_limit: the caller's own limit a window, or ``None``.
        in_doubt: whether an attempt for the pair was in doubt once, though its slot may be settled.
        campaign: what it is counted under, once it is created.
    """

    lease: str
    attempt: int
    pair: str | None
    timeout: float
    headroom: int = 0
    own_limit: int | None = None
    in_doubt: bool = False
    campaign: str = ""


@attrs.frozen
class Grant:
    """Go: ``begun`` is when, on the steady clock."""

    begun: float


@attrs.frozen
class Wait:
    """Not now. ``until`` is the earliest time at which that changes, ``None`` if any moment may,
    and infinite if never."""

    reason: Reason
    until: float | None = None


@attrs.frozen
class Reading:
    """What the rate-limit headers of one answer say; ``reset`` in Braze's epoch seconds."""

    limit: int
    used: int
    reset: float


@attrs.frozen
class Answer:
    """How an attempt ended, as far as the quota is concerned.

    Attributes:
        spent: whether Braze counted it: ``True``, ``False``, or ``None`` for unknown.
        in_doubt: whether it may have created its pair, so that a repeat creates nothing new.
        window: the rate-limit headers, or ``None`` without usable ones.
        date: the answer's ``Date``, epoch seconds, or ``None``.
        refused: whether it was a 429.
        from_edge: whether something before Braze gave it.
        retry_after: seconds that the answer asks to wait, or ``None``.
        jitter: 0 to 1, drawn by the caller.
    """

    spent: bool | None
    in_doubt: bool = False
    window: Reading | None = None
    date: float | None = None
    refused: bool = False
    from_edge: bool = False
    retry_after: float | None = None
    jitter: float = 0.0


@attrs.frozen
class Status:
    """The numbers to show. ``reset`` is in Braze's epoch seconds."""

    limit: int
    remaining: int
    in_flight: int
    unconfirmed: int
    reset: float | None
    used: int
