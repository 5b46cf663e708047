"""What happens to a create, told as events. No event is built that nobody wants to hear."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Collection, Iterator
from typing import Protocol

from braze_sends.errors import QuotaExhaustedError, StoreError
from braze_sends.events import (
    AttemptEnded,
    AttemptStarted,
    CreateCancelled,
    CreateEvent,
    CreateFailed,
    CreateJoined,
    CreateLeft,
    CreateReused,
    CreateStarted,
    CreateSucceeded,
    QuotaRefused,
    QuotaWaitBegun,
    QuotaWaitEnded,
    RetryScheduled,
    SettlingFailed,
)
from braze_sends.headers import AnswerHeaders
from braze_sends.listeners import Listeners
from braze_sends.models import CreateSendId, SendId
from braze_sends.protocol import NoReply, Reply
from braze_sends.quota.rule.messages import Answer, Ask
from braze_sends.verdict import Verdict

_caller_numbers = itertools.count(1)


class Subject(Protocol):
    """What the events tell of a create; ``create.Create`` is one."""

    request: CreateSendId
    ask: Ask
    started: float
    attempts: int

    @property
    def callers(self) -> Collection[object]: ...


class Reports:
    """Tells the listeners of one client of its creates."""

    def __init__(self, listeners: Listeners, workspace: str, url: str) -> None:
        self._listeners = listeners
        self._workspace = workspace
        self._url = url

    def started(self, create: Subject) -> None:
        """A call has begun the create."""
        self._tell(CreateStarted, create)

    @contextlib.contextmanager
    def joined(self, create: Subject) -> Iterator[None]:
        """Another call shares the create, until the end of the ``with`` block."""
        caller = next(_caller_numbers)
        self._tell(CreateJoined, create, caller=caller)
        reason = None
        try:
            yield
        except BaseException as error:
            reason = type(error).__name__
            raise
        finally:
            self._tell(CreateLeft, create, caller=caller, reason=reason)

    def waits(self, create: Subject, seconds: float | None) -> None:
        """The create begins to wait (``seconds`` is ``None``), or has waited for ``seconds``."""
        if seconds is None:
            self._tell(QuotaWaitBegun, create)
        else:
            self._tell(QuotaWaitEnded, create, seconds=seconds)

    def attempt_started(self, create: Subject) -> None:
        """A request is about to be sent."""
        self._tell(AttemptStarted, create, attempt=create.ask.attempt, url=self._url)

    def attempt_ended(
        self,
        create: Subject,
        started: float,
        reply: Reply | NoReply,
        told: AnswerHeaders,
        verdict: Verdict,
    ) -> None:
        """A request has ended; it began at ``started``, loop time."""
        self._tell(
            AttemptEnded,
            create,
            attempt=create.ask.attempt,
            status=reply.status if isinstance(reply, Reply) else None,
            request_id=told.request_id,
            reason=_reason(verdict),
            quota_spent=verdict.answer.spent,
            seconds=_since(started),
        )

    def attempt_broke_off(
        self, create: Subject, started: float, error: BaseException, answer: Answer
    ) -> None:
        """A request ended without an answer to judge: it was called off, its loop is ending, or the
        session cannot be used."""
        self._tell(
            AttemptEnded,
            create,
            attempt=create.ask.attempt,
            status=None,
            request_id=None,
            reason=type(error).__name__,
            quota_spent=answer.spent,
            seconds=_since(started),
        )

    def retry(self, create: Subject, verdict: Verdict, seconds: float) -> None:
        """Another attempt follows in so many seconds."""
        self._tell(
            RetryScheduled,
            create,
            attempt=create.ask.attempt + 1,
            reason=_reason(verdict),
            seconds=seconds,
        )

    def settling_failed(self, create: Subject, error: StoreError) -> None:
        """The store could not keep how an attempt ended."""
        self._tell(SettlingFailed, create, message=str(error))

    def cancelled(self, create: Subject) -> None:
        """The create was called off, or its loop is ending."""
        self._tell(CreateCancelled, create, seconds=_since(create.started))

    def ended(self, create: Subject, outcome: SendId | Exception) -> None:
        """The create has its result, or its error."""
        if isinstance(outcome, Exception):
            self._failed(create, outcome)
        elif outcome.reused:
            self._tell(CreateReused, create, seconds=_since(create.started))
        else:
            self._tell(
                CreateSucceeded,
                create,
                attempts=create.attempts,
                request_id=outcome.request_id,
                queued=outcome.queued,
                seconds=_since(create.started),
            )

    def _failed(self, create: Subject, error: Exception) -> None:
        if isinstance(error, QuotaExhaustedError):
            self._tell(
                QuotaRefused,
                create,
                limit=error.limit,
                remaining=error.remaining,
                retry_after=error.retry_after,
                resets_at=error.resets_at,
            )
        self._tell(
            CreateFailed,
            create,
            reason=type(error).__name__,
            status=getattr(error, "status_code", None),
            attempts=create.attempts,
            request_id=getattr(error, "request_id", None),
            quota_spent=getattr(error, "quota_spent", None),
            seconds=_since(create.started),
            unattended=not create.callers,
        )

    def _tell(self, kind: type[CreateEvent], create: Subject, **fields: object) -> None:
        if self._listeners.want(kind.level):
            event = kind(
                workspace=self._workspace,
                create=create.ask.lease,
                campaign_id=create.request.campaign_id,
                send_id=create.request.send_id,
                **fields,
            )
            self._listeners.tell(event)


def _reason(verdict: Verdict) -> str | None:
    """The class of the error that an attempt ended with."""
    if verdict.answer.refused:
        return "RateLimitError"  # the caller may get a QuotaExhaustedError, see ``exhausted``
    return type(verdict.outcome).__name__ if isinstance(verdict.outcome, Exception) else None


def _since(then: float) -> float:
    return asyncio.get_running_loop().time() - then
