"""The values that callers hold. Plain data: no I/O, no key, nothing that changes."""

from __future__ import annotations

from datetime import datetime

import attrs

#: Braze: "A send ID is ASCII and at most 64 characters."
#: https://www.braze.com/docs/api/identifier_types/
MAX_SEND_ID_LENGTH = 64


@attrs.frozen
class RateLimit:
    """The three rate-limit headers of one answer.

    https://www.braze.com/docs/api/api_limits/

    Attributes:
        limit: requests allowed in the window.
        remaining: requests left in it, 0 to ``limit``.
        resets_at: when the window ends, UTC.
    """

    limit: int
    remaining: int
    resets_at: datetime

    @property
    def used(self) -> int:
        """What the window has cost so far: ``limit - remaining``."""
        return self.limit - self.remaining


@attrs.frozen
class CreateSendId:
    """What to create.

    Attributes:
        campaign_id: the campaign's API identifier.
        send_id: your name for the send, ASCII and 1 to 64 characters; ``None`` lets the client
            name it.
    """

    campaign_id: str
    send_id: str | None = None

    def check(self) -> CreateSendId:
        """The request itself, if Braze could accept it.

        Raises:
            ConfigurationError: an ID is empty, no string, not ASCII, too long, or has control
                characters or blanks around it.
        """
        from braze_sends.protocol import check_request

        return check_request(self)


@attrs.frozen
class SendId:
    """A send ID that exists, or that Braze has queued.

    Attributes:
        campaign_id: the campaign it belongs to.
        send_id: the send identifier, also what ``str()`` gives.
        queued: Braze answered 202: it has taken the request and will create the ID later.
        reused: it was created before; this call sent nothing and cost no quota.
        attempts: requests that this call made, 0 if ``reused`` at once; else those before it was
            found.
        request_id: Braze's ``X-Request-Id``, or ``None``.
        rate_limit: the rate-limit headers of the answer, or ``None`` if there were none.
    """

    campaign_id: str
    send_id: str
    queued: bool = False
    reused: bool = False
    attempts: int = 1
    request_id: str | None = None
    rate_limit: RateLimit | None = None

    def __str__(self) -> str:
        return self.send_id


@attrs.frozen
class Creations:
    """The sends of one campaign that were created in one hour.

    Attributes:
        campaign_id: the campaign, or empty: of all that are not told apart.
        hour: when the hour began, UTC.
        count: how many.
    """

    campaign_id: str
    hour: datetime
    count: int


@attrs.frozen
class QuotaStatus:
    """The quota as the store knows it at this moment.

    Attributes:
        limit: sends a window: Braze's number, or 100 until one was seen, or your ``daily_limit``
            where that is lower.
        remaining: slots that a create could still take.
        in_flight: creates that hold a slot and are under way.
        unconfirmed: attempts whose outcome nobody knows, each keeps a slot.
        resets_at: when the window ends, UTC, or ``None`` if unknown.
        known: whether Braze's headers stand behind these numbers.
        used: what Braze has counted in the window, as far as its headers told; by all who use the
            workspace.
        creations: what was created in the window through the store, by hour and campaign. A
            success alone counts, not what is unconfirmed. Neither compared nor printed.
    """

    limit: int
    remaining: int
    in_flight: int
    unconfirmed: int
    resets_at: datetime | None
    known: bool
    used: int = 0
    creations: tuple[Creations, ...] = attrs.field(default=(), eq=False, repr=False)


@attrs.frozen
class Ping:
    """What became of a request without the key, which costs no quota.

    Attributes:
        status_code: the status of the answer, or ``None`` if there was none.
        error: why there was no answer, as aiohttp or the system raised it, or ``None``.
        date: the server's clock, UTC, or ``None`` if the answer does not tell.
        cached: the answer is an old one, from a cache, and so is its ``date``.
        tls: the version of TLS, such as ``"TLSv1.3"``, or ``None`` without TLS.
        certificate_ends: when the server's certificate expires, UTC, or ``None`` without TLS.
            For https both tell that a connection was made, even if no answer came.
    """

    status_code: int | None
    error: Exception | None = None
    date: datetime | None = None
    cached: bool = False
    tls: str | None = None
    certificate_ends: datetime | None = None


@attrs.frozen
class Check:
    """Whether the store can be read, and the quota, for a health endpoint.

    Attributes:
        quota: the quota as the store knows it, or ``None`` if the store cannot be used. Its
            ``known`` tells whether Braze's headers stand behind the numbers.
        error: why the store cannot be used, in words without a password, or ``None``.
    """

    quota: QuotaStatus | None
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the store can be read. A quota that is used up is no fault of this process."""
        return self.error is None
