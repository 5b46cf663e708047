"""The endpoint as pure functions: values to a request, ``(status, headers, body)`` to a result.

``parse_read`` is for endpoints that only read. The rest is for
``POST /sends/id/create``, https://www.braze.com/docs/api/endpoints/messaging/send_messages/post_create_send_ids/
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import attrs
from cattrs import Converter
from cattrs.errors import BaseValidationError
from cattrs.gen import make_dict_unstructure_fn

from braze_sends.errors import (
    APIConnectionError,
    APIResponseError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BrazeSendsError,
    ConfigurationError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExhaustedError,
    RateLimitError,
)
from braze_sends.headers import LONGEST_WAIT, AnswerHeaders
from braze_sends.models import MAX_SEND_ID_LENGTH, CreateSendId, SendId
from braze_sends.settings import ApiKey

PATH = "/sends/id/create"

T = TypeVar("T")

_NOT_JSON = object()

#: The most bytes of a body that are read. No documented answer comes near.
MAX_BODY = 1024 * 1024

#: Characters that an error keeps of one text of an answer, and of its ``errors`` in all.
MAX_TEXT, MAX_ERRORS = 1000, 10_000

#: How many of an answer's ``errors`` are searched for words.
_SEARCHED = 100

#: Braze does not publish a bound for campaign identifiers; theirs are 36 characters.
MAX_CAMPAIGN_ID_LENGTH = 256

STATUS_ERRORS: Mapping[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    429: RateLimitError,
}

#: Refused before anybody looked at the pair, so that no slot is spent. Whether other errors are
#: counted is not published; on an hourly bucket, 400s were seen to count.
NOT_COUNTED = frozenset({401, 403, 429})


@attrs.frozen
class Reply:
    """An answer, read whole unless it was ``too_long``. Header names are in lower case."""

    status: int
    # Not shown: tools that print the locals of a traceback would show a key that was echoed.
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    too_long: bool = False
    host: str = attrs.field(default="this instance", eq=False)  #: that was asked, for messages


@attrs.frozen
class NoReply:
    """No answer, or only its head.

    Attributes:
        reason: what happened, in words, without the key.
        sent: whether any byte of the request's body was written; if not, Braze cannot know of it.
        timed_out: whether the attempt's timeout passed.
        headers: those of an answer that broke off after its head; else empty.
        permanent: whether another attempt would fail in the same way.
    """

    reason: str
    sent: bool
    timed_out: bool = False
    headers: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    permanent: bool = False


@attrs.frozen
class _CreatedBody:
    """The body of an answer that tells of a send."""

    send_id: str


def _strict_str(value: object, _: type[str]) -> str:
    # cattrs would coerce: {"send_id": null} became the string 'None'.
    if not isinstance(value, str):
        raise TypeError(f"expected a string, not {type(value).__name__}")
    return value


_encode = json.JSONEncoder(separators=(",", ":")).encode
_converter = Converter()
_converter.register_structure_hook(str, _strict_str)
_converter.register_unstructure_hook(
    CreateSendId,
    make_dict_unstructure_fn(CreateSendId, _converter, _cattrs_omit_if_default=True),
)


def check_request(request: CreateSendId) -> CreateSendId:
    """``request`` itself, if Braze could accept it.

    Raises:
        ConfigurationError: an ID is empty, no string, not ASCII, too long, or has control
            characters or blanks around it. Nothing was sent.
    """
    for name, value, longest in (
        ("campaign_id", request.campaign_id, MAX_CAMPAIGN_ID_LENGTH),
        ("send_id", request.send_id, MAX_SEND_ID_LENGTH),
    ):
        if name == "send_id" and value is None:
            continue
        if problem := _problem(value, longest):
            raise ConfigurationError(
                f"{name} {problem}",
                campaign_id=_text_or_none(request.campaign_id),
                send_id=_text_or_none(request.send_id),
            )
    return request


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _problem(value: object, longest: int) -> str | None:
    if not isinstance(value, str):
        return f"must be a string, not {type(value).__name__}"
    if not value.strip():
        return "must not be empty"
    if not value.isascii():
        return "must be ASCII, as Braze requires"
    if not value.isprintable():
        return "must not contain control characters"
    if value != value.strip():
        return "must not begin or end with a blank"
    if len(value) > longest:
        return f"must be at most {longest} characters, not {len(value)}"
    return None


def pair_digest(request: CreateSendId) -> bytes:
    """16 bytes that stand for a pair, in stores and in large sets."""
    # Checked IDs have no NUL.
    pair = f"{request.campaign_id}\0{request.send_id}"
    return hashlib.blake2b(pair.encode(), digest_size=16).digest()


def build_body(request: CreateSendId) -> bytes:
    """The JSON body; a ``send_id`` of ``None`` is left out."""
    return _encode(_converter.unstructure(request)).encode()


def parse_response(
    request: CreateSendId, reply: Reply | NoReply, headers: AnswerHeaders, key: ApiKey
) -> SendId:
    """The send ID that ``reply`` tells of.

    Judged by the status and by what is there, never by wording, which drifts.

    Raises:
        APIConnectionError: there is no answer.
        APIStatusError: the status is not 2xx; the subclass is by ``STATUS_ERRORS``.
        APIResponseValidationError: 2xx, but no usable ``send_id``, and not queued either.
    """
    if isinstance(reply, NoReply):
        raise _no_answer(request, reply)
    answer = _json(reply)
    kind: type[APIResponseError]
    if 200 <= reply.status < 300:
        send = _created(request, headers, answer, key) or _queued(request, reply, headers, answer)
        if send is not None:
            return send
        kind = APIResponseValidationError
    else:
        kind = _kind_of(reply.status)
    # From here on no local may hold the key: some tools print the locals with a traceback.
    answer = _clean(answer, key)
    raise _error(kind, request, reply, headers, key, answer)


def parse_read(
    request: CreateSendId,
    reply: Reply | NoReply,
    headers: AnswerHeaders,
    key: ApiKey,
    parse: Callable[[object], T],
    permission: str,
) -> T:
    """What an endpoint that only reads has answered. It costs no quota, whatever comes.

    Args:
        request: the pair that was asked for, for the errors.
        reply: what came.
        headers: of the answer.
        key: the API key, which is cut out of all texts.
        parse: makes the result of the body; raises ``ValueError`` with what the body lacks, in
            words that do not quote it.
        permission: what the key needs.

    Raises:
        APIConnectionError: there is no answer.
        APIStatusError: the status is not 2xx; the subclass is by ``STATUS_ERRORS``.
        APIResponseValidationError: 2xx, but the body is not what Braze documents.
    """
    error: BrazeSendsError
    if isinstance(reply, NoReply):
        error = _no_answer(request, reply)
    else:
        answer, kind, lacks = _json(reply), _kind_of(reply.status), ""
        if 200 <= reply.status < 300:
            try:
                return parse(answer)
            except ValueError as unusable:
                kind, lacks = APIResponseValidationError, str(unusable)
        # As in ``parse_response``: no local may hold the key.
        answer = _clean(answer, key)
        error = _error(kind, request, reply, headers, key, answer, lacks, permission)
    error.quota_spent = False
    raise error


def _no_answer(request: CreateSendId, reply: NoReply) -> APIConnectionError:
    failure = APITimeoutError if reply.timed_out else APIConnectionError
    return failure(
        reply.reason,
        permanent=reply.permanent,
        quota_spent=None if reply.sent else False,
        campaign_id=request.campaign_id,
        send_id=request.send_id,
    )


def _kind_of(status: int) -> type[APIResponseError]:
    server = InternalServerError if status >= 500 else APIStatusError
    return STATUS_ERRORS.get(status, server)


def _created(
    request: CreateSendId, headers: AnswerHeaders, answer: object, key: ApiKey
) -> SendId | None:
    try:
        body = _converter.structure(answer, _CreatedBody)
    except (BaseValidationError, TypeError, ValueError, KeyError, AttributeError):
        return None
    # The send ID that the caller chose is accepted even with the key in it: a test's key is short.
    if body.send_id != request.send_id and (
        _problem(body.send_id, MAX_SEND_ID_LENGTH) or key.scrub(body.send_id) != body.send_id
    ):
        return None
    return SendId(
        campaign_id=request.campaign_id,
        send_id=body.send_id,
        request_id=headers.request_id,
        rate_limit=headers.rate_limit,
    )


def _queued(
    request: CreateSendId, reply: Reply, headers: AnswerHeaders, answer: object
) -> SendId | None:
    # 202 {"message": "queued"}: maintenance mode, in older documentation. The send ID that the
    # request names will exist. A send ID that Braze is to choose cannot be known: an error.
    if not isinstance(answer, dict) or request.send_id is None:
        return None
    says_queued = reply.status == 202 or answer.get("message") == "queued"
    if not says_queued or answer.get("send_id") is not None or answer.get("errors"):
        return None
    return SendId(
        campaign_id=request.campaign_id,
        send_id=request.send_id,
        queued=True,
        request_id=headers.request_id,
        rate_limit=headers.rate_limit,
    )


def leaves_pair_in_doubt(error: BrazeSendsError) -> bool:
    """Whether the pair may exist in spite of ``error``; asking for it again is then a repeat.

    A 4xx says that the pair was not created, though not that the request was not counted.
    """
    answered = isinstance(error, APIStatusError) and 400 <= error.status_code < 500
    return error.quota_spent is None and not answered


def exhausted(error: RateLimitError, headers: AnswerHeaders, now: float) -> BrazeSendsError:
    """What a 429 means to the caller.

    Args:
        error: the 429.
        headers: of its answer.
        now: our wall clock, epoch seconds, for an answer without ``Date``.

    Returns:
        a ``QuotaExhaustedError`` if anything says when to come back, else ``error`` itself.
    """
    rate_limit = headers.rate_limit
    used_up = rate_limit is not None and rate_limit.remaining == 0
    retry_after = headers.retry_after
    if rate_limit is not None and used_up:
        wait = rate_limit.resets_at.timestamp() - (now if headers.date is None else headers.date)
        used_up = 0 < wait <= LONGEST_WAIT
        retry_after = wait if used_up else retry_after
    if retry_after is None:
        return error
    return QuotaExhaustedError(
        f"Braze answered 429: {error.message}",
        limit=rate_limit.limit if rate_limit and used_up else None,
        remaining=0 if used_up else None,
        resets_at=rate_limit.resets_at if rate_limit and used_up else None,
        retry_after=retry_after,
        campaign_id=error.campaign_id,
        send_id=error.send_id,
    )


def says_it_exists(error: BrazeSendsError) -> bool:
    """Whether a 400 says that the *send* exists already.

    The one place that reads wording, since there is no machine code for it. Narrow on purpose: it
    must name a send and say that it exists, is taken, or is a duplicate; an unknown campaign or a
    catalog that exists does not match. Asked only for the repeat of an attempt in doubt.
    """
    if not isinstance(error, BadRequestError):
        return False
    texts = [error.message, *(json.dumps(item) for item in error.errors[:_SEARCHED])]
    # sendId, send_id and send-id are read as "send id".
    texts = [re.sub(r"[_-]|(?<=[a-z])(?=[A-Z])", " ", text[:MAX_TEXT]).lower() for text in texts]
    return any(_NAMES_A_SEND.search(text) and _EXISTS.search(text) for text in texts)


_NAMES_A_SEND = re.compile(
    r"\bsend id(?:entifier)?s?\b|\b(?:the|this|a) send\b|(?:^|\")send already\b"
)
_EXISTS = re.compile(
    r"\balready (?:exists?|(?:been )?(?:created|used|taken)|in use)\b|\bduplicate\b"
)


def _json(reply: Reply) -> object:
    """The body as JSON, or ``_NOT_JSON``."""
    if reply.too_long:
        return _NOT_JSON
    try:
        return json.loads(reply.body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return _NOT_JSON


def _clean(answer: object, key: ApiKey) -> object:
    """The message and the errors of an answer, as far as they are kept and fit to be shown.

    ``None`` if it is no object; ``_NOT_JSON`` if it is nested too deeply.
    """
    room = MAX_ERRORS

    def clean(value: object) -> object:
        nonlocal room
        room -= 1
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 64:
            value = str(value)  # digits that may be many, or the key
        if isinstance(value, str):
            text = _printable(key.scrub(value)[: max(0, min(room, MAX_TEXT))])
            room -= len(text)
            return text
        if isinstance(value, int | float):
            room -= len(repr(value))
        if isinstance(value, list):
            return [clean(item) for item in value if room > 0]
        if isinstance(value, dict):
            return {clean(name): clean(item) for name, item in value.items() if room > 0}
        return value

    if not isinstance(answer, dict):
        return answer if answer is _NOT_JSON else None
    try:
        return {name: clean(answer.get(name)) for name in ("message", "errors")}
    except RecursionError:
        return _NOT_JSON


def _printable(text: str) -> str:
    # Characters that are not printable act on a terminal or a log, or cannot be seen. Surrogates
    # cannot be encoded.
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _error(
    kind: type[APIResponseError],
    request: CreateSendId,
    reply: Reply,
    headers: AnswerHeaders,
    key: ApiKey,
    answer: object,
    lacks: str = "has no usable send_id",
    permission: str = "sends.id.create",
) -> APIResponseError:
    message, errors = "", tuple[object, ...]()
    if isinstance(answer, dict):
        message = answer["message"] if isinstance(answer.get("message"), str) else ""
        listed = answer.get("errors")
        errors = tuple(listed) if isinstance(listed, list) else ()
    elif not reply.too_long:
        message = _plain_text(key.scrub(reply.body.decode("utf-8", "replace")))
    if kind is APIResponseValidationError:
        message = f"{_complaint(reply, answer, lacks)}{f': {message}' if message else ''}"
    elif 300 <= reply.status < 400:
        message = (
            "redirected, which is never followed since the key would go with it; check that the "
            "base URL is a REST endpoint of Braze"
        )
    # An empty body does not show who answered. Any other text that is no JSON is not Braze's.
    from_edge = answer is _NOT_JSON and not reply.too_long and bool(reply.body.strip())
    return kind(
        (message or "no message") + _advice(reply, permission, from_edge=from_edge),
        status_code=reply.status,
        errors=errors,
        request_id=headers.request_id,
        rate_limit=headers.rate_limit,
        retry_after=headers.retry_after,
        from_edge=from_edge,
        quota_spent=False if reply.status in NOT_COUNTED else None,
        campaign_id=request.campaign_id,
        send_id=request.send_id,
    )


def _advice(reply: Reply, permission: str, *, from_edge: bool) -> str:
    """The next step after a status that another attempt would meet too; else empty."""
    if from_edge and reply.status in (401, 403):
        return (
            f". The answer is not JSON, so a proxy or CDN before {reply.host} sent it, not Braze's "
            "API: check the base URL, and that this network may reach it"
        )
    return _ADVICE.get(reply.status, "").format(host=reply.host, permission=permission)


#: https://www.braze.com/docs/api/errors/ and /docs/api/basics/#rest-api-key-permissions.
_ADVICE: Final = {
    401: ". A wrong key, or a key of another instance than {host}: compare BRAZE_API_KEY and "
    "BRAZE_BASE_URL with Settings > APIs and Identifiers in Braze's dashboard",
    403: ". The key needs the permission {permission}, and its IP allowlist, if it has one, "
    "must hold this address: see the key under Settings > APIs and Identifiers in Braze's "
    "dashboard (asked: {host})",
    404: ". {host} has no such path: check that the base URL is a REST endpoint of Braze, such as "
    "https://rest.iad-01.braze.com",
}


def _complaint(reply: Reply, answer: object, lacks: str) -> str:
    if reply.too_long:
        return f"the body is over {MAX_BODY} bytes and was not read to its end"
    if answer is _NOT_JSON:
        return "the body is not JSON" if reply.body.strip() else "the body is empty"
    if not isinstance(answer, dict):
        return "the body is not a JSON object"
    return f"the body {lacks}"


def _plain_text(text: str, longest: int = 200) -> str:
    text = re.sub(r"<[^>]*>", " ", text[:4096])
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:longest]
