"""The tree of errors: what catches what, and that each survives a pickle."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import pydoc
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import pytest

import braze_sends
from braze_sends import (
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
    RateLimit,
    RateLimitError,
    StoreError,
)
from braze_sends.journal import JournalError

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

#: A value for every attribute that an error can have, none of them a default.
VALUES: dict[str, Any] = {
    "message": "what happened",
    "quota_spent": True,
    "campaign_id": "campaign",
    "send_id": "asked",
    "limit": 100,
    "remaining": 3,
    "resets_at": NOON,
    "retry_after": 12.5,
    "status_code": 418,
    "errors": ("text", {"id": ["object"]}),
    "request_id": "9d4c0c4e",
    "rate_limit": RateLimit(100, 37, NOON),
    "from_edge": True,
    "permanent": True,
}


def tree(root: type[BrazeSendsError]) -> Iterator[type[BrazeSendsError]]:
    """The class and all below it."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


ALL = [kind for kind in tree(BrazeSendsError) if kind.__module__ == "braze_sends.errors"]


def full(kind: type[BrazeSendsError]) -> BrazeSendsError:
    """An error with every attribute set to something that is no default."""
    return kind(VALUES["message"], **{name: VALUES[name] for name in fields(kind)})


def fields(kind: type[BrazeSendsError]) -> list[str]:
    """The attributes of an error, besides its message."""
    return [name for name in inspect.signature(kind).parameters if name not in {"message", "told"}]


@pytest.mark.parametrize(
    ("kind", "parents"),
    [
        (BrazeSendsError, [Exception]),
        (ConfigurationError, [BrazeSendsError, ValueError]),
        (QuotaExhaustedError, [BrazeSendsError]),
        (StoreError, [BrazeSendsError]),
        (APIConnectionError, [BrazeSendsError]),
        (APITimeoutError, [APIConnectionError, TimeoutError]),
        (APIResponseError, [BrazeSendsError]),
        (APIStatusError, [APIResponseError]),
        (BadRequestError, [APIStatusError]),
        (AuthenticationError, [APIStatusError]),
        (PermissionDeniedError, [APIStatusError]),
        (NotFoundError, [APIStatusError]),
        (RateLimitError, [APIStatusError]),
        (InternalServerError, [APIStatusError]),
        (APIResponseValidationError, [APIResponseError]),
    ],
)
def test_each_error_class_stands_where_the_tree_draws_it(
    kind: type[BrazeSendsError], parents: list[type[BaseException]]
) -> None:
    """Each class stands where the tree draws it."""
    assert parents == list(kind.__bases__)


def test_the_tree_has_every_error_class() -> None:
    """The package has no error class besides these fifteen, and exports them all."""
    assert 15 == len(ALL)
    assert [] == [kind for kind in ALL if getattr(braze_sends, kind.__name__) is not kind]


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        (BrazeSendsError, {"message", "quota_spent", "campaign_id", "send_id"}),
        (QuotaExhaustedError, {"limit", "remaining", "resets_at", "retry_after"}),
        (APITimeoutError, {"permanent"}),
        (
            APIStatusError,
            {"status_code", "message", "errors", "request_id", "rate_limit", "retry_after"},
        ),
        (APIResponseValidationError, {"status_code", "message", "errors", "request_id"}),
    ],
)
def test_an_error_has_its_documented_attributes(
    kind: type[BrazeSendsError], attributes: set[str]
) -> None:
    """An error has its documented attributes, and those of every error."""
    assert attributes | {"quota_spent", "campaign_id", "send_id"} <= vars(kind("words")).keys()


@pytest.mark.parametrize("kind", ALL)
def test_the_message_alone_makes_an_error(kind: type[BrazeSendsError]) -> None:
    """All attributes but the message are optional; unless told, no create is named."""
    error = kind("words")
    assert "words" == error.message
    assert (None, None) == (error.campaign_id, error.send_id)


@pytest.mark.parametrize("kind", ALL)
def test_unless_told_an_error_of_the_way_to_braze_leaves_the_quota_unknown(
    kind: type[BrazeSendsError],
) -> None:
    """All others mean that nothing was sent."""
    unknown = issubclass(kind, APIConnectionError | APIResponseError)
    assert (None if unknown else False) is kind("words").quota_spent


COPIES: list[tuple[str, Callable[[Any], Any]]] = [
    ("copy", copy.copy),
    ("deepcopy", copy.deepcopy),
    *(
        (
            f"pickle {protocol}",
            lambda error, protocol=protocol: pickle.loads(  # noqa: S301  # made just now
                pickle.dumps(error, protocol)
            ),
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ),
]


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("copied", [c for _, c in COPIES], ids=[name for name, _ in COPIES])
def test_an_error_survives_a_pickle_and_a_copy(
    kind: type[BrazeSendsError], copied: Callable[[Any], Any]
) -> None:
    """Class, text, arguments, attributes and notes are all there on the other side."""
    error = full(kind)
    error.add_note("a note")
    other = copied(error)
    assert error is not other
    assert kind is type(other)
    assert str(error) == str(other)
    assert error.args == other.args
    assert vars(error) == vars(other)
    names = ["message", *fields(kind)]
    assert [VALUES[name] for name in names] == [getattr(other, name) for name in names]


@pytest.mark.parametrize("kind", [*ALL, JournalError])
def test_an_error_rebuilt_from_its_arguments_is_whole(kind: type[BrazeSendsError]) -> None:
    """Task queues send ``error.args`` through JSON and call the class with what comes out."""
    error = full(kind) if kind in ALL else JournalError("no room", line="{}")
    error.quota_spent = None  # changed later, as the client does
    other = kind(*json.loads(json.dumps(error.args, allow_nan=False)))
    assert (str(error), vars(error), error.args) == (str(other), vars(other), other.args)


@pytest.mark.parametrize("kind", ALL)
def test_an_error_survives_json(kind: type[BrazeSendsError]) -> None:
    """``from_dict`` gives back what ``to_dict`` told, of the same class."""
    told = json.loads(json.dumps(full(kind).to_dict(), allow_nan=False))
    assert kind.__name__ == told["error"]
    other = BrazeSendsError.from_dict(told)
    assert (kind, vars(full(kind))) == (type(other), vars(other))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "lost",
    [{}, "{'quota_spent': False, …", {"quota_spent": "no", "send_id": 7}, {"newer": 1}],
    ids=["empty", "cut off", "ill-typed", "newer"],
)
def test_what_was_lost_is_unknown(kind: type[BrazeSendsError], lost: object) -> None:
    """A lost ``quota_spent`` never reads as a promise that nothing was spent."""
    error = kind("words", lost)
    assert (None, None, None) == (error.quota_spent, error.campaign_id, error.send_id)
    assert vars(kind("words", quota_spent=None)) == vars(error)


def test_an_error_of_a_newer_release_is_still_one() -> None:
    """An unknown class is the root, with what this release understands."""
    told = {
        "error": "NewerError",
        "message": "words",
        "quota_spent": True,
        "newer": [1],
        "limit": 3,
    }
    error = BrazeSendsError.from_dict(told)
    assert (BrazeSendsError, "words", True) == (type(error), str(error), error.quota_spent)
    assert not hasattr(error, "limit")
    assert "" == str(BrazeSendsError.from_dict({}))


def test_an_error_of_somebody_elses_class_is_the_root() -> None:
    """Its constructor may take other arguments."""

    class StoreError(BrazeSendsError):
        def __init__(self) -> None:
            super().__init__("words")

    told = StoreError().to_dict()
    assert braze_sends.StoreError is type(BrazeSendsError.from_dict(told))
    told["error"] = "Other"
    assert BrazeSendsError is type(BrazeSendsError.from_dict(told))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("resets_at", "soon", None),
        ("resets_at", None, None),
        ("retry_after", 3, 3),
        ("limit", True, None),
    ],
)
def test_each_field_is_read_by_its_type(name: str, value: object, expected: object) -> None:
    """What makes no sense is as if it were missing."""
    assert expected == getattr(QuotaExhaustedError("words", {name: value}), name)


@pytest.mark.parametrize("value", [None, {}, {"limit": 1, "remaining": 1}, 7])
def test_a_rate_limit_that_makes_no_sense_is_none(value: object) -> None:
    """Its three numbers come together or not at all."""
    assert RateLimitError("words", {"rate_limit": value}).rate_limit is None


def test_a_prefix_put_before_the_message_is_kept() -> None:
    """Some tools assign ``args`` to say where an error came from."""
    error = StoreError("words", send_id="s")
    error.args = ("in task 7: words", *error.args[1:])
    assert ("in task 7: words", "s") == (str(error), error.send_id)
    error.args = ()
    assert "in task 7: words" == str(error)


def _raise(error: BrazeSendsError) -> None:
    raise error


@pytest.mark.process
def test_an_error_crosses_a_process() -> None:
    """A process pool hands the error over whole."""
    error = full(RateLimitError)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        caught = pool.submit(_raise, error).exception()
    assert RateLimitError is type(caught)
    assert vars(error) == {
        name: value for name, value in vars(caught).items() if name != "__notes__"
    }


@pytest.mark.parametrize("kind", ALL)
def test_the_text_of_an_error_is_readable(kind: type[BrazeSendsError]) -> None:
    """One line of words, with the status and request ID of an answer, or when to come back."""
    text = "what happened"
    if issubclass(kind, APIResponseError):
        text = "418: what happened (request 9d4c0c4e)"
    if kind is QuotaExhaustedError:
        text = "what happened; come back in 12 s (the quota resets 2026-11-21 12:00 UTC)"
    assert text == str(full(kind))
    assert f"{kind.__name__}('what happened')" == repr(full(kind))


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (83_818.0, "23 h 16 min"),
        (3600.0, "1 h 0 min"),
        (125.4, "2 min 5 s"),
        (59.4, "59 s"),
        (0.0, "0 s"),
    ],
)
def test_an_exhausted_quota_tells_how_long_to_wait(seconds: float, told: str) -> None:
    """A duration is in its two largest units, not in seconds alone."""
    error = QuotaExhaustedError("none left", retry_after=seconds)
    assert f"none left; come back in {told}" == str(error)


def test_an_exhausted_quota_tells_the_time_of_its_reset_in_utc() -> None:
    """Also where it is given in another zone, and where nothing says how long to wait."""
    zone = timezone(timedelta(hours=9))
    resets_at = datetime(2026, 11, 26, 9, tzinfo=zone)
    error = QuotaExhaustedError("none left", resets_at=resets_at, retry_after=83_818.0)
    assert "none left; come back in 23 h 16 min (the quota resets 2026-11-26 00:00 UTC)" == str(
        error
    )
    error = QuotaExhaustedError("none left", resets_at=resets_at)
    assert "none left (the quota resets 2026-11-26 00:00 UTC)" == str(error)


def test_an_answer_without_a_request_id_has_a_shorter_text() -> None:
    """Nothing stands in the text for a request ID that was not told."""
    assert "503: busy" == str(InternalServerError("busy", status_code=503))


def test_all_is_sorted() -> None:
    """The public names are listed in order, constants first, each once."""
    names = sorted(set(braze_sends.__all__), key=lambda name: (not name.isupper(), name))
    assert names == list(braze_sends.__all__)


def test_all_is_complete() -> None:
    """What can be seen in the package is what it exports, besides its modules."""
    seen = {
        name
        for name in dir(braze_sends)
        if not name.startswith("_") and not isinstance(getattr(braze_sends, name), types.ModuleType)
    }
    assert set(braze_sends.__all__) == seen


@pytest.mark.process
def test_importing_the_package_imports_no_aiohttp() -> None:
    """``import braze_sends`` imports the parts of the package, and aiohttp, when they are used."""
    seen = "print(*(name for name in sys.modules if name.startswith(('aiohttp', 'braze_sends'))))"
    script = f"""
import sys, braze_sends
{seen}
braze_sends.QuotaExhaustedError
{seen}
from braze_sends import *
print({{"aiohttp", "braze_sends.client"}} <= set(sys.modules), SendsClient)
"""
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    assert [
        "braze_sends",
        "braze_sends braze_sends.models braze_sends.errors",
        "True <class 'braze_sends.client.SendsClient'>",
    ] == told.stdout.splitlines()


def test_help_tells_all_names() -> None:
    """``help(braze_sends)`` describes each public name, though none has been used yet."""
    told = pydoc.plain(pydoc.render_doc(braze_sends))
    assert [] == [name for name in braze_sends.__all__ if name not in told]


def test_the_version_is_that_of_the_distribution() -> None:
    """``__version__`` is looked up where the installation keeps it."""
    assert version("braze_sends") == braze_sends.__version__


def test_a_name_that_the_package_lacks_is_an_attribute_error() -> None:
    """A name that the package does not have is an AttributeError that says so."""
    with pytest.raises(AttributeError, match="'braze_sends' has no attribute 'nonsense'"):
        braze_sends.nonsense  # noqa: B018
