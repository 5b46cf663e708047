"""What goes into the rule and what comes out, as frozen values."""

from __future__ import annotations

from enum import Enum

import attrs


class Reason(Enum):
    """What a create waits for."""

    QUOTA = "quota"  #: a token, or the end of a pause: the wait budget pays for it
    PROBE = "probe"  #: others go first: a probe, or another process; the budget does not pay
    PAIR = "pair"  #: the end of another create of its pair, at the latest of that one's lease


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
        campaign: the campaign under which the history counts the send.
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
    """The attempt may be made. ``begun``: when that was decided, on the steady clock."""

    begun: float


@attrs.frozen
class Wait:
    """Not now. ``until``: the earliest time at which that may change, on the steady clock; ``None``
    if it may change at any moment; infinite if it never does."""

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
        in_doubt: whether nobody knows if it created its pair. A repeat may then create nothing new.
        window: the rate-limit headers, or ``None`` without usable ones.
        date: the answer's ``Date``, epoch seconds, or ``None``.
        refused: whether it was a 429.
        from_edge: whether a 429 came from a CDN or proxy in front of Braze.
        retry_after: seconds that the answer asks to wait, or ``None``.
        jitter: a random number from 0 to 1, drawn by the caller; it lengthens a pause.
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
