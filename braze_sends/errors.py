"""What can go wrong, as a tree to catch from.

::

    BrazeSendsError
    ├── ConfigurationError (ValueError)      a bad argument; nothing was sent
    ├── QuotaExhaustedError                  no quota within the wait allowed
    ├── StoreError                           the quota's store is unreachable or damaged
    ├── APIConnectionError                   no answer came
    │   └── APITimeoutError (TimeoutError)   not within the timeout of an attempt
    └── APIResponseError                     an answer came, and it is no send ID
        ├── APIStatusError                   outside 2xx
        │   ├── BadRequestError 400
        │   ├── AuthenticationError 401
        │   ├── PermissionDeniedError 403
        │   ├── NotFoundError 404
        │   ├── RateLimitError 429           only when nothing says when to come back
        │   └── InternalServerError 5xx
        └── APIResponseValidationError       a 2xx whose body is not what Braze documents

All of them pickle, and none holds a key, a request header or a live response: they are made of
text and numbers that have been cleaned of the key. ``to_dict`` and ``from_dict`` go through JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from braze_sends.models import RateLimit


class BrazeSendsError(Exception):
    """The root of every error this package raises.

    Args:
        message: what happened, in words.
        told: what ``to_dict`` of another error told. It takes the place of all other arguments. A
            field that is missing in it is unknown: ``quota_spent`` is then ``None``.

    Attributes:
        message: what happened, in words.
        args: the message and ``to_dict()``, so that ``type(error)(*error.args)``, by which some
            task queues rebuild an error, loses nothing.
        quota_spent: whether the *whole call*, all its attempts together, has cost a slot of the
            quota: ``False`` surely not, ``True`` surely, ``None`` unknown.
        campaign_id: the campaign of the create that failed, or ``None`` outside a create.
        send_id: the send ID that was asked for, also when the client made it, so that the same
            pair can be asked for again; ``None`` if Braze was to name the send.
    """

    # Optional keywords, and state in ``__dict__``: what ``BaseException.__reduce__`` carries
    # through a pickle without help.
    def __init__(
        self,
        message: str,
        told: object = None,
        *,
        quota_spent: bool | None = False,
        campaign_id: str | None = None,
        send_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.quota_spent = quota_spent
        self.campaign_id = campaign_id
        self.send_id = send_id
        self._take(told)

    def __str__(self) -> str:
        return self.message

    @property
    def args(self) -> tuple[Any, ...]:
        return self.message, self.to_dict()

    @args.setter
    def args(self, args: tuple[Any, ...]) -> None:
        if args:
            self.message = str(args[0])

    def to_dict(self) -> dict[str, Any]:
        """The error for JSON: the name of its class as ``error``, and all its attributes.

        Times are ISO 8601 text, and ``rate_limit`` is an object of its own.
        """
        fields = {name: value for name, value in vars(self).items() if name in _READ}
        plain = {name: _plain(value) for name, value in fields.items()}
        return {"error": type(self).__name__, "message": self.message, **plain}

    @staticmethod
    def from_dict(told: Mapping[str, Any]) -> BrazeSendsError:
        """The error that ``to_dict`` told, of the same class.

        An unknown class, of a newer release or of your own, becomes ``BrazeSendsError``. A field
        that this release does not know is passed over. A ``quota_spent`` that is missing or makes
        no sense is ``None``, for unknown; any other such attribute has its default.
        """
        kinds = {kind.__name__: kind for kind in _tree(BrazeSendsError) if _is_ours(kind)}
        kind = kinds.get(str(told.get("error")), BrazeSendsError)
        return kind(str(told.get("message", "")), told)

    def _take(self, told: object) -> None:
        """Take over what another error told, as far as this class knows it."""
        if told is None:
            return
        fields = told if isinstance(told, Mapping) else {}
        self.quota_spent = None
        for name in _READ.keys() & vars(self).keys() & fields.keys():
            try:
                value = _READ[name](fields[name])
            except (LookupError, TypeError, ValueError):
                continue
            setattr(self, name, value)


class ConfigurationError(BrazeSendsError, ValueError):
    """An argument, an option or the environment is unusable. Nothing was sent."""


class QuotaExhaustedError(BrazeSendsError):
    """No quota can be had within the wait that was allowed.

    Either nothing was sent, or Braze answered 429 and said when to come back.

    Attributes:
        limit: sends a window, as far as known.
        remaining: slots that are left under your own limit too (more than 0 where ``headroom``
            keeps them, or in a pause).
        resets_at: when the window ends (UTC), or ``None`` if Braze has not said.
        retry_after: seconds until trying again makes sense, or ``None`` if nothing is known.
    """

    def __init__(
        self,
        message: str,
        told: object = None,
        *,
        limit: int | None = None,
        remaining: int | None = None,
        resets_at: datetime | None = None,
        retry_after: float | None = None,
        quota_spent: bool | None = False,
        campaign_id: str | None = None,
        send_id: str | None = None,
    ) -> None:
        super().__init__(message, quota_spent=quota_spent, campaign_id=campaign_id, send_id=send_id)
        self.limit = limit
        self.remaining = remaining
        self.resets_at = resets_at
        self.retry_after = retry_after
        self._take(told)

    def __str__(self) -> str:
        when, resets = "", ""
        if self.retry_after is not None:
            when = f"; come back in {span(self.retry_after)}"
        if self.resets_at is not None:
            resets = f" (the quota resets {self.resets_at.astimezone(UTC):%Y-%m-%d %H:%M UTC})"
        return f"{self.message}{when}{resets}"


class StoreError(BrazeSendsError):
    """The store that keeps the quota cannot be used. Nothing was sent."""


class APIConnectionError(BrazeSendsError):
    """No answer came: refused, reset, or broken off. ``quota_spent`` tells if it had been sent.

    Attributes:
        permanent: another attempt would fail in the same way, so none is made: the server's TLS
            certificate failed verification, there is no TLS that both sides speak, or a proxy
            refused.
    """

    def __init__(
        self,
        message: str,
        told: object = None,
        *,
        permanent: bool = False,
        quota_spent: bool | None = None,
        campaign_id: str | None = None,
        send_id: str | None = None,
    ) -> None:
        super().__init__(message, quota_spent=quota_spent, campaign_id=campaign_id, send_id=send_id)
        self.permanent = permanent
        self._take(told)


class APITimeoutError(APIConnectionError, TimeoutError):
    """No answer came within the timeout of one attempt."""


class APIResponseError(BrazeSendsError):
    """An answer came, and it is no send ID.

    Attributes:
        status_code: the HTTP status.
        errors: the items of Braze's ``errors`` list, strings or objects, cleaned as the message is
            of the key and of control characters, and cut off where they get long.
        request_id: Braze's ``X-Request-Id``, which its support asks for.
        rate_limit: the rate-limit headers of the answer, or ``None``.
        retry_after: seconds after which the answer asks to come back, or ``None``.
        from_edge: the body is not JSON: a CDN or proxy before Braze answered.
    """

    def __init__(
        self,
        message: str,
        told: object = None,
        *,
        status_code: int = 0,
        errors: tuple[object, ...] = (),
        request_id: str | None = None,
        rate_limit: RateLimit | None = None,
        retry_after: float | None = None,
        from_edge: bool = False,
        quota_spent: bool | None = None,
        campaign_id: str | None = None,
        send_id: str | None = None,
    ) -> None:
        super().__init__(message, quota_spent=quota_spent, campaign_id=campaign_id, send_id=send_id)
        self.status_code = status_code
        self.errors = errors
        self.request_id = request_id
        self.rate_limit = rate_limit
        self.retry_after = retry_after
        self.from_edge = from_edge
        self._take(told)

    def __str__(self) -> str:
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.status_code}: {self.message}{request}"


class APIStatusError(APIResponseError):
    """Braze, or something before it, answered with a status outside 2xx."""


class BadRequestError(APIStatusError):
    """400: bad syntax, or an unknown or malformed campaign."""


class AuthenticationError(APIStatusError):
    """401: a bad key, or a good key sent to another instance than its own."""


class PermissionDeniedError(APIStatusError):
    """403: the key lacks ``sends.id.create``, or this address is not allowed."""


class NotFoundError(APIStatusError):
    """404: no such path; the base URL is not that of a Braze REST endpoint."""


class RateLimitError(APIStatusError):
    """429, and nothing says when to come back."""


class InternalServerError(APIStatusError):
    """5xx: Braze, or the proxy before it, failed."""


class APIResponseValidationError(APIResponseError):
    """A 2xx answer whose body is not what Braze documents."""


def span(seconds: float) -> str:
    """A duration in its two largest units, such as ``23 h 17 min``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _one_of(*kinds: type) -> Callable[[Any], Any]:
    def read(value: object) -> object:
        if value is None or type(value) in kinds:
            return value
        raise TypeError

    return read


def _time(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)


def _rate_limit(value: Mapping[str, Any] | None) -> RateLimit | None:
    if value is None:
        return None
    limit, remaining = int(value["limit"]), int(value["remaining"])
    return RateLimit(limit, remaining, datetime.fromisoformat(value["resets_at"]))


_text, _flag, _whole, _list = _one_of(str), _one_of(bool), _one_of(int), _one_of(list, tuple)

#: The attributes that ``to_dict`` tells, and how each is read.
_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "quota_spent": _flag,
    "campaign_id": _text,
    "send_id": _text,
    "limit": _whole,
    "remaining": _whole,
    "resets_at": _time,
    "retry_after": _one_of(int, float),
    "permanent": bool,
    "status_code": int,
    "errors": lambda value: tuple(_list(value)),
    "request_id": _text,
    "rate_limit": _rate_limit,
    "from_edge": bool,
    "line": _text,
}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, RateLimit):
        return {
            "limit": value.limit,
            "remaining": value.remaining,
            "resets_at": value.resets_at.isoformat(),
        }
    return list(value) if isinstance(value, tuple) else value


def _tree(kind: type[BrazeSendsError]) -> Iterator[type[BrazeSendsError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)


def _is_ours(kind: type[BrazeSendsError]) -> bool:
    return kind.__module__.startswith("braze_sends.")
