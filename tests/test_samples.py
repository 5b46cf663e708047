"""Every exchange of ``tests/samples``, through the pure protocol and through the real client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import attrs
import pytest
from aioresponses import aioresponses

from braze_sends import (
    APIResponseError,
    APIResponseValidationError,
    AuthenticationError,
    BadRequestError,
    BrazeSendsError,
    CreateSendId,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExhaustedError,
    RateLimit,
    RateLimitError,
    SendId,
    SendsClient,
)
from braze_sends.headers import read
from braze_sends.protocol import PATH, Reply, parse_response
from braze_sends.settings import ApiKey
from tests.world import KEY

SAMPLES = Path(__file__).parent / "samples"
URL = "https://rest.iad-01.braze.com"
ASKED = CreateSendId("campaign", "asked")
NOVEMBER = datetime(2026, 11, 23, tzinfo=UTC)


@attrs.frozen(kw_only=True)
class Row:
    """What an exchange gives.

    Attributes:
        result: the send ID, or the class of the error.
        quota_spent: of an error.
        pieces: what the error's text contains.
        absent: what it does not contain.
        errors: Braze's own list.
        rate_limit: of either.
        told: the class that a caller of the client sees, if another than ``result``.
    """

    result: SendId | type[APIResponseError]
    quota_spent: bool | None = None
    pieces: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    errors: tuple[object, ...] = ()
    rate_limit: RateLimit | None = None
    told: type[BrazeSendsError] | None = None


ROWS: Mapping[str, Row] = {
    "bad_campaign": Row(
        result=BadRequestError,
        pieces=("400", "campaign_id must be a string of the campaign api identifier"),
        rate_limit=RateLimit(250_000, 249_996, datetime(2020, 6, 17, 21, tzinfo=UTC)),
    ),
    "bad_key": Row(
        result=AuthenticationError,
        quota_spent=False,
        pieces=("401", "Invalid API key: ***"),
        absent=(KEY,),
    ),
    "created": Row(
        result=SendId(
            "campaign",
            "story-2026-11-21",
            request_id="9d4c0c4e-6f5c-4b36-a7f7-6f3a0b6b5d11",
            rate_limit=RateLimit(100, 99, NOVEMBER),
        ),
        rate_limit=RateLimit(100, 99, NOVEMBER),
    ),
    "created_lowercase_headers": Row(
        result=SendId("campaign", "s", rate_limit=RateLimit(100, 42, NOVEMBER)),
        rate_limit=RateLimit(100, 42, NOVEMBER),
    ),
    "edge_html": Row(
        result=InternalServerError, pieces=("502", "502 Bad Gateway"), absent=("<", "html")
    ),
    "empty_body": Row(result=APIResponseValidationError, pieces=("201", "the body is empty")),
    "exhausted": Row(
        result=RateLimitError,
        quota_spent=False,
        pieces=("429", "Rate limit exceeded"),
        rate_limit=RateLimit(100, 0, NOVEMBER),
        told=QuotaExhaustedError,
    ),
    "exhausted_bare": Row(
        result=RateLimitError, quota_spent=False, pieces=("429", "Too Many Requests")
    ),
    "exhausted_retry_after": Row(
        result=RateLimitError,
        quota_spent=False,
        pieces=("429", "Rate limit exceeded"),
        told=QuotaExhaustedError,
    ),
    "fatal_in_2xx": Row(
        result=APIResponseValidationError,
        pieces=("201", "the body has no usable send_id", "a fatal error"),
        errors=({"type": "x", "index": 0},),
    ),
    "forbidden": Row(
        result=PermissionDeniedError,
        quota_spent=False,
        pieces=("403", "You do not have permission to access this resource"),
    ),
    "invalid_url": Row(result=NotFoundError, pieces=("404", "Invalid URL")),
    "null_send_id": Row(
        result=APIResponseValidationError, pieces=("201", "the body has no usable send_id")
    ),
    "object_errors": Row(
        result=BadRequestError,
        pieces=("400", "Invalid Request"),
        errors=(
            {
                "id": "catalog-name-already-exists",
                "message": "A catalog with that name already exists",
                "parameters": ["name"],
                "parameter_values": ["restaurants"],
            },
        ),
        rate_limit=RateLimit(50, 48, datetime(2024, 10, 14, 10, 29, tzinfo=UTC)),
    ),
    "queued": Row(result=SendId("campaign", "asked", queued=True)),
    "unavailable": Row(result=InternalServerError, pieces=("503", "Service Unavailable")),
}


@attrs.frozen
class Exchange:
    """A sample: the status, the headers as they were sent, and the body."""

    status: int
    headers: dict[str, str]
    body: str


def load(name: str) -> Exchange:
    """The exchange of a sample, with the key of the tests in it."""
    (path,) = (SAMPLES / name).glob("*.json")
    sample = json.loads(path.read_text())
    assert int(path.stem) == sample["status"]
    return Exchange(sample["status"], sample["headers"], sample["body"].replace("{key}", KEY))


def test_every_sample_has_a_row() -> None:
    """A sample without an expected result is a failure, and so is a row without a sample."""
    assert sorted(ROWS) == sorted(path.name for path in SAMPLES.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_protocol_gives_the_result_of_a_sample(name: str) -> None:
    """An exchange, taken apart without a socket, gives its row's send ID or its error."""
    row, exchange = ROWS[name], load(name)
    headers = {header.lower(): text for header, text in exchange.headers.items()}
    reply = Reply(exchange.status, headers, exchange.body.encode())
    told = read(headers, 0.0)
    if isinstance(row.result, SendId):
        assert row.result == parse_response(ASKED, reply, told, ApiKey(KEY))
        return
    with pytest.raises(APIResponseError) as caught:
        parse_response(ASKED, reply, told, ApiKey(KEY))
    check(row, exchange, caught.value)


@pytest.mark.parametrize("name", sorted(ROWS))
async def test_the_client_gives_the_result_of_a_sample(name: str, answers: aioresponses) -> None:
    """The same exchange, through the client and aiohttp, gives the caller the same."""
    row, exchange = ROWS[name], load(name)
    answers.post(URL + PATH, status=exchange.status, headers=exchange.headers, body=exchange.body)
    async with SendsClient(KEY, base_url=URL, max_retries=0) as client:
        if isinstance(row.result, SendId):
            assert row.result == await client.create_send_id("campaign", "asked")
        else:
            with pytest.raises(row.told or row.result) as caught:
                await client.create_send_id("campaign", "asked")
            check(row, exchange, caught.value)
        assert row.rate_limit == client.rate_limit
    assert 1 == sum(len(calls) for calls in answers.requests.values())


def check(row: Row, exchange: Exchange, error: BrazeSendsError) -> None:
    """Compare an error with its row."""
    assert row.quota_spent is error.quota_spent
    assert ("campaign", "asked") == (error.campaign_id, error.send_id)
    assert [] == [piece for piece in row.pieces if piece not in str(error)]
    assert [] == [piece for piece in row.absent if piece in f"{error} {error!r} {vars(error)}"]
    if isinstance(error, APIResponseError):
        assert row.result is type(error)
        assert exchange.status == error.status_code
        assert row.errors == error.errors
        assert row.rate_limit == error.rate_limit
    else:
        assert row.told is type(error)
