"""What happens inside the client, as frozen values without secrets.

Pass a function, or several, as ``SendsClient(on_event=…)``. Each is called with each event, in the
loop of the client, and is never awaited. All events also go to the logger ``braze_sends``: the
message is the event's name with its fields, and the record has the fields too (``extra``).

The events of one create have the same value in ``create``. They come in this order; the lines in
the middle are repeated for each attempt::

    CreateStarted
        QuotaWaitBegun, QuotaWaitEnded            if the attempt has to wait, for quota or a pair
        AttemptStarted, AttemptEnded              for each request
        RetryScheduled                            before each further attempt
    CreateSucceeded, CreateReused, CreateFailed or CreateCancelled

A call that shares a create under way has ``CreateJoined`` and ``CreateLeft`` in between. The other
events are about the quota of the workspace, or about its store.
"""

from __future__ import annotations

import logging
import re
from datetime import datetime
from typing import ClassVar

import attrs


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened.

    Attributes:
        workspace: names the quota in the store.
    """

    #: The highest level at which such an event is logged.
    level: ClassVar[int] = logging.DEBUG

    workspace: str

    @property
    def severity(self) -> int:
        """The level at which this very event is logged."""
        return self.level

    @property
    def name(self) -> str:
        """The event's name in words, such as ``"create started"``."""
        return re.sub("(?<=[a-z])(?=[A-Z])", " ", type(self).__name__).lower()

    def fields(self) -> dict[str, object]:
        """The fields that have a value, by their names."""
        values = {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}
        return {name: value for name, value in values.items() if value is not None}


# --- creates -------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class CreateEvent(Event):
    """Something that happened to one create.

    Attributes:
        create: names the create; the same in all of its events.
        campaign_id: the campaign's API identifier.
        send_id: the name of the send, or ``None`` while Braze is to name it.
    """

    create: str
    campaign_id: str
    send_id: str | None


@attrs.frozen(kw_only=True)
class CreateStarted(CreateEvent):
    """A call began a create. The listener is called in the context of that call."""


@attrs.frozen(kw_only=True)
class CreateJoined(CreateEvent):
    """Another call shares the create. The listener is called in the context of that call.

    Attributes:
        caller: names the call.
    """

    caller: int


@attrs.frozen(kw_only=True)
class CreateLeft(CreateEvent):
    """A call that shared the create has its result, or was cancelled.

    Attributes:
        caller: names the call.
        reason: the class of the error that the call got, or ``None``.
    """

    caller: int
    reason: str | None = None


@attrs.frozen(kw_only=True)
class CreateSucceeded(CreateEvent):
    """The send ID was created.

    Attributes:
        attempts: how many requests it took.
        request_id: Braze's ``X-Request-Id``, or ``None``.
        queued: Braze has only queued it.
        seconds: from the start of the create.
    """

    attempts: int
    request_id: str | None
    queued: bool
    seconds: float


@attrs.frozen(kw_only=True)
class CreateReused(CreateEvent):
    """The pair exists already, as the store remembers. No request was needed.

    Attributes:
        seconds: from the start of the create.
    """

    seconds: float


@attrs.frozen(kw_only=True)
class CreateFailed(CreateEvent):
    """The create ended with an error.

    A 401 or 403 is logged as an error, an unusable store as a warning, anything else as
    information: the caller has the error.

    Attributes:
        reason: the class of the error.
        status: the HTTP status, or ``None`` without an answer.
        attempts: how many requests were made.
        request_id: Braze's ``X-Request-Id``, or ``None``.
        quota_spent: whether a slot of the quota is gone; ``None`` if nobody knows.
        seconds: from the start of the create.
        unattended: nobody waited for it any more.
    """

    level = logging.ERROR

    reason: str
    status: int | None
    attempts: int
    request_id: str | None
    quota_spent: bool | None
    seconds: float
    unattended: bool

    @property
    def severity(self) -> int:
        """See the class."""
        if self.status in {401, 403}:
            return logging.ERROR
        return logging.WARNING if self.reason == "StoreError" else logging.INFO


@attrs.frozen(kw_only=True)
class CreateCancelled(CreateEvent):
    """The create was called off: nobody waited for it any more, or the client was closed, and no
    request was on its way to Braze. Or the event loop ended.

    Attributes:
        seconds: from the start of the create.
    """

    seconds: float


@attrs.frozen(kw_only=True)
class AttemptStarted(CreateEvent):
    """A request is about to be sent.

    The listener is called in the task of the request, as for its ``AttemptEnded``.

    Attributes:
        attempt: 1 for the first.
        url: where to.
    """

    attempt: int
    url: str


@attrs.frozen(kw_only=True)
class AttemptEnded(CreateEvent):
    """A request has ended.

    Attributes:
        attempt: 1 for the first.
        status: the HTTP status, or ``None`` without an answer.
        request_id: Braze's ``X-Request-Id``, or ``None``.
        reason: the class of the error, or ``None`` after a success.
        quota_spent: whether Braze counted it; ``None`` if nobody knows.
        seconds: from the start of the attempt.
    """

    attempt: int
    status: int | None
    request_id: str | None
    reason: str | None
    quota_spent: bool | None
    seconds: float


@attrs.frozen(kw_only=True)
class RetryScheduled(CreateEvent):
    """Another attempt follows.

    Attributes:
        attempt: the number of the coming one.
        reason: the class of the error that the last one ended with.
        seconds: the wait before it, without the wait for quota.
    """

    level = logging.INFO

    attempt: int
    reason: str
    seconds: float


@attrs.frozen(kw_only=True)
class QuotaWaitBegun(CreateEvent):
    """The create waits: for quota, for a probe, or for its own pair that is under way elsewhere."""


@attrs.frozen(kw_only=True)
class QuotaWaitEnded(CreateEvent):
    """The wait has ended, in whatever way.

    Attributes:
        seconds: how long it was.
    """

    seconds: float


@attrs.frozen(kw_only=True)
class QuotaRefused(CreateEvent):
    """No quota was left within the wait allowed; nothing was sent.

    Attributes:
        limit: sends a window, as far as known.
        remaining: slots left, more than 0 where ``headroom`` keeps them or in a pause.
        retry_after: seconds until trying again makes sense, or ``None`` if nothing is known.
        resets_at: when the window ends (UTC), or ``None`` if Braze has not said.
    """

    level = logging.INFO

    limit: int | None
    remaining: int | None
    retry_after: float | None
    resets_at: datetime | None


@attrs.frozen(kw_only=True)
class SettlingFailed(CreateEvent):
    """An attempt has ended, and the store could not keep that.

    What was created is returned all the same. The lease becomes a doubt at its deadline.

    Attributes:
        message: what happened, in words.
    """

    level = logging.WARNING

    message: str


# --- the quota -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class QuotaLearnt(Event):
    """The numbers of the quota have changed.

    Attributes:
        limit: sends a window.
        used: sends that Braze's headers have counted.
        remaining: slots that are free.
        in_flight: creates under way.
        unconfirmed: attempts of which nobody knows whether Braze counted them.
        resets_at: when the window ends (UTC), or ``None`` if Braze has not said.
    """

    limit: int
    used: int
    remaining: int
    in_flight: int
    unconfirmed: int
    resets_at: datetime | None


@attrs.frozen(kw_only=True)
class WindowEnded(Event):
    """The window rolled over: the quota is whole again.

    Attributes:
        resets_at: when the window that has ended was to end (UTC).
    """

    resets_at: datetime


@attrs.frozen(kw_only=True)
class LimitChanged(Event):
    """Braze allows another number of sends a window.

    Attributes:
        before: what was allowed, or assumed.
        limit: what is allowed now.
    """

    level = logging.INFO

    before: int
    limit: int


@attrs.frozen(kw_only=True)
class ClockCorrected(Event):
    """A ``Date`` header showed that Braze's clock is not where it was thought to be.

    Attributes:
        seconds: by how much; more than 0 if it is ahead.
    """

    seconds: float


@attrs.frozen(kw_only=True)
class HeadersNotBelieved(Event):
    """The rate-limit headers of an answer contradict what is known, and were not taken over.

    Attributes:
        limit: what they say.
        used: what they say.
        resets_at: what they say (UTC).
    """

    limit: int
    used: int
    resets_at: datetime


@attrs.frozen(kw_only=True)
class DoubtOpened(Event):
    """Nobody knows whether an attempt was counted. Its slot is kept until an answer tells, or the
    window ends.

    Attributes:
        unconfirmed: how many such attempts there are now.
    """

    unconfirmed: int


@attrs.frozen(kw_only=True)
class DoubtCleared(Event):
    """An answer, or the end of the window, told of attempts in doubt.

    Attributes:
        unconfirmed: how many such attempts are left.
    """

    unconfirmed: int


# --- the store -----------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class StoreUsed(Event):
    """A transaction of the store has ended well.

    Attributes:
        seconds: how long it took.
    """

    seconds: float


@attrs.frozen(kw_only=True)
class StoreFailed(Event):
    """The store cannot be used. Told for each transaction of those who wait that fails.

    Attributes:
        message: what happened, in words.
    """

    level = logging.WARNING

    message: str


@attrs.frozen(kw_only=True)
class StoreRecovered(Event):
    """The store can be used again.

    Attributes:
        seconds: since its first failure.
    """

    level = logging.WARNING

    seconds: float
