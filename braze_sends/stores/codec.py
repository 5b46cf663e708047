"""A record to text and back, for stores that keep text.

JSON of the attrs classes: small (a lease or slot is about 150 bytes), and a person can read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from braze_sends.errors import StoreError
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.gate import MOST_PROBES, MOST_REFUSALS
from braze_sends.quota.rule.ledger import NO_LIMIT, Lease
from braze_sends.quota.rule.messages import Reading
from braze_sends.stores.store import Remembered

T = TypeVar("T")

# Unknown fields are ignored, so that a newer release may add one. What is known is checked, since
# whoever can write to the store can damage a record, and a number that makes no sense would end in
# an error that names no reason, or in a wait without an end. The bounds are wider than all that the
# rule can come to. ``detailed_validation`` would cost half of the time.
_converter = Converter(omit_if_default=True, detailed_validation=False)

#: No time and no difference of times is further from zero: 30,000 years, in seconds.
FAR = 1e12
#: The times that a ``datetime`` can show, in epoch seconds.
_FIRST, _LAST = -62_135_596_800.0, 253_402_300_799.0


def _number(value: Any, _: object) -> float:
    number = float(value)
    if not -FAR <= number <= FAR:  # and NaN is in no order
        raise ValueError
    return number


def _count(value: Any, _: object) -> int:
    number = int(value)
    if number < 0:
        raise ValueError
    return min(number, NO_LIMIT)  # one more than that is no damage


def _flag(value: Any, _: object) -> bool:
    if value is True or value is False:
        return value
    raise ValueError


def _text(value: Any, _: object) -> str:
    if isinstance(value, str):
        return value
    raise ValueError


def _between(low: float, high: float) -> Callable[[Any, object], Any]:
    def check(value: Any, _: object) -> Any:
        number = int(value) if isinstance(low, int) else float(value)
        if not low <= number <= high:
            raise ValueError
        return number

    return check


def _since(value: Any, _: object) -> float:
    """A moment, or since ever."""
    return -math.inf if value == -math.inf else _number(value, _)


def _perhaps_reset(value: Any, _: object) -> float | None:
    return None if value is None else _reset(value, _)


def _perhaps_send_id(value: Any, _: object) -> str | None:
    if value is None or (
        isinstance(value, str)
        and value.isascii()
        and value.isprintable()
        and 0 < len(value) <= 1000
    ):
        return value
    raise ValueError


_reset = _between(_FIRST, _LAST)
_converter.register_structure_hook(float, _number)
_converter.register_structure_hook(int, _count)
_converter.register_structure_hook(bool, _flag)
_converter.register_structure_hook(str, _text)

#: Fields that have bounds of their own.
_FIELDS: dict[type, dict[str, Callable[[Any, Any], Any]]] = {
    Remembered: {"send_id": _perhaps_send_id},
    Reading: {"limit": _between(1, NO_LIMIT), "reset": _reset},
    Bucket: {
        "limit": _between(1, NO_LIMIT),
        "reset": _perhaps_reset,
        "created_reset": _perhaps_reset,
        "probes": _between(1, MOST_PROBES),
        "refusals": _between(0, MOST_REFUSALS),
    },
}
#: Records have the names that these fields had in the first release.
_NAMES: dict[type, dict[str, str]] = {
    Bucket: {
        "probes": "canaries",
        "sighting": "rumour",
        "history": "tally",
        "unconfirmed": "charges",
    },
    Lease: {"asks_unconfirmed": "asks_charges"},
}


def _register(kind: type) -> None:
    checks, names = _FIELDS.get(kind, {}), _NAMES.get(kind, {})
    for field in attrs.fields(kind):
        if field.default == -math.inf:
            checks[field.name] = _since
    changed = {
        name: override(struct_hook=checks.get(name), rename=names.get(name))
        for name in {*checks, *names}
    }
    structure: Callable[..., Any] = make_dict_structure_fn(
        kind,
        _converter,
        _cattrs_detailed_validation=False,
        **changed,  # type: ignore[arg-type]
    )
    unstructure: Callable[..., Any] = make_dict_unstructure_fn(
        kind,
        _converter,
        _cattrs_omit_if_default=True,
        **changed,  # type: ignore[arg-type]
    )
    _converter.register_structure_hook(kind, structure)
    _converter.register_unstructure_hook(kind, unstructure)


for _kind in (Remembered, Reading, Lease, Bucket):  # those within others come first
    _register(_kind)


def dump(value: Bucket | Remembered) -> str:
    """``value`` as text; what has its default is left out."""
    return json.dumps(_converter.unstructure(value), separators=(",", ":"))


def load_bucket(text: str | bytes) -> Bucket:
    """The state that ``dump`` wrote.

    Raises:
        StoreError: it is damaged.
    """
    return _load(text, Bucket)


def load_remembered(text: str | bytes) -> Remembered:
    """The memory that ``dump`` wrote.

    Raises:
        StoreError: it is damaged.
    """
    return _load(text, Remembered)


def _load(text: str | bytes, kind: type[T]) -> T:
    try:
        return _converter.structure(json.loads(text), kind)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ):
        raise StoreError(
            f"the store holds a damaged {kind.__name__.lower()}: delete it there, and the quota "
            "starts over with one careful request"
        ) from None
