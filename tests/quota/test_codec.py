"""A record to text and back."""

from __future__ import annotations

import json
from typing import Any, get_args, get_origin, get_type_hints

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from braze_sends import StoreError
from braze_sends.quota.bucket import Bucket, Charge, Lease
from braze_sends.quota.codec import dump, load_bucket, load_remembered
from braze_sends.quota.store import Remembered
from braze_sends.quota.tally import Tally
from braze_sends.testing.store_conformance import FULL, MEMORIES


def whole(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of the type ``hint``, with all its fields given."""
    if get_origin(hint) is dict:
        return st.dictionaries(*map(whole, get_args(hint)))
    if get_args(hint):
        return st.one_of(*map(whole, get_args(hint)))
    if attrs.has(hint):
        hints = get_type_hints(hint)
        fields = [field.name for field in attrs.fields(hint) if field.init]
        return st.builds(hint, **{name: whole(hints[name]) for name in fields})
    return st.floats(allow_nan=False) if hint is float else st.from_type(hint)


@given(whole(Bucket))
def test_a_bucket_comes_back_as_it_was(bucket: Bucket) -> None:
    """Whatever is in it, infinities too, in the same order, from text or bytes."""
    back = load_bucket(dump(bucket))
    assert bucket == back == load_bucket(dump(bucket).encode())
    assert list(bucket.leases) == list(back.leases)


@given(whole(Remembered))
def test_a_memory_comes_back_as_it_was(memory: Remembered) -> None:
    """Whatever is in it."""
    assert memory == load_remembered(dump(memory)) == load_remembered(dump(memory).encode())


def test_the_types_are_kept() -> None:
    """A whole number in a float field comes back as a float."""
    back = load_bucket('{"offset":5,"limit":7}')
    assert (5.0, float, 7, int) == (back.offset, type(back.offset), back.limit, type(back.limit))


def test_the_text_is_small() -> None:
    """What has its default is left out, and a lease or charge takes about 150 bytes."""
    assert '{"offset":0.5}' == dump(Bucket(offset=0.5))
    assert '{"send_id":null}' == dump(Remembered(None))
    lease = Lease("0f" * 16, 1, 1000.123456, 1015.123456, 1030.123456)
    charge = Charge("0f" * 16, 1000.123456, 1030.123456)
    empty = Bucket(offset=0.5)
    for one in (
        attrs.evolve(empty, leases={"a1" * 16: lease}),
        attrs.evolve(empty, charges={"a1" * 16 + ".1": charge}),
    ):
        assert len(dump(one)) - len(dump(empty)) < 175


def test_a_state_of_an_older_release_is_loaded() -> None:
    """It has no tally yet."""
    older = json.loads(dump(FULL))
    del older["tally"]
    assert attrs.evolve(FULL, tally=Tally()) == load_bucket(json.dumps(older))


def test_fields_of_a_newer_release_are_ignored() -> None:
    """Two releases may share a store while one is rolled out."""
    later = json.loads(dump(FULL)) | {"mood": "good"}
    for lease in [*later["leases"].values(), later["tally"]]:
        lease["mood"] = "bad"
    assert FULL == load_bucket(json.dumps(later))
    assert Remembered("s") == load_remembered('{"send_id":"s","mood":{}}')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        '"text"',
        "{}",
        '{"offset":null}',
        '{"offset":"soon"}',
        '{"offset":[]}',
        '{"offset":0,"limit":"many"}',
        '{"offset":0,"limit":Infinity}',
        '{"offset":0,"leases":[]}',
        '{"offset":0,"leases":{"a":{}}}',
        '{"offset":0,"leases":{"a":7}}',
        '{"offset":0,"charges":null}',
        '{"offset":0,"rumour":7}',
        '{"offset":0,"tally":7}',
        '{"offset":0,"tally":{"hours":[]}}',
        '{"offset":0,"tally":{"hours":{"2026-11-22T05":{"a":"few"}}}}',
        b"\xff\xfe\xfd",
        dump(FULL)[:-1],
        dump(FULL).encode()[: len(dump(FULL)) // 2],
    ],
)
def test_a_damaged_state_is_told(text: str | bytes) -> None:
    """As ``StoreError``, which says what to do, and shows nothing of the text."""
    with pytest.raises(StoreError, match="holds a damaged bucket: delete it there") as caught:
        load_bucket(text)
    assert None is caught.value.__cause__
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "{}", b"\xff"])
def test_a_damaged_memory_is_told(text: str | bytes) -> None:
    """As ``StoreError``, which says what to do."""
    with pytest.raises(StoreError, match="holds a damaged remembered: delete it there"):
        load_remembered(text)


def test_each_memory_of_the_conformance_tests_is_another() -> None:
    """Or they would see less than they say."""
    assert len(MEMORIES) == len({dump(memory) for memory in MEMORIES.values()})


def test_text_that_is_nested_absurdly_is_damaged() -> None:
    """It does not end the program."""
    with pytest.raises(StoreError):
        load_bucket("[" * 200_000 + "]" * 200_000)
