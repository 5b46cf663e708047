"""A record to text and back, for stores that keep text.

JSON of the attrs classes: small (a lease or charge is about 150 bytes), and a person can read it.
"""

from __future__ import annotations

import json
from typing import TypeVar

from cattrs import Converter
from cattrs.errors import BaseValidationError

from braze_sends.errors import StoreError
from braze_sends.quota.bucket import Bucket
from braze_sends.quota.store import Remembered

T = TypeVar("T")

# Not the vendor's JSON but our own, so that coercion does no harm; unknown fields are ignored, so
# that a newer release may add one.
_converter = Converter(omit_if_default=True)


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
        BaseValidationError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ):
        raise StoreError(
            f"the store holds a damaged {kind.__name__.lower()}: delete it there, and the quota "
            "starts over with one careful request"
        ) from None
