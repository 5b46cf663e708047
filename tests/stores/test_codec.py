"""A record to text and back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from braze_sends import StoreError
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.history import History
from braze_sends.quota.rule.ledger import NO_LIMIT, Lease, Unconfirmed
from braze_sends.quota.rule.messages import Answer, Ask, Grant
from braze_sends.stores.codec import FAR, dump, load_bucket, load_remembered
from braze_sends.stores.store import Remembered
from braze_sends.testing.store_conformance import FULL, MEMORIES
from tests.quota.machine import BucketMachine, assume

T = TypeVar("T")

RESETS = st.floats(-62_135_596_800, 253_402_300_799)
MOMENTS = st.floats(-FAR, FAR)
COUNTS = st.integers(0, NO_LIMIT)

#: Fields that have bounds of their own.
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "limit": st.integers(1, NO_LIMIT),
    "probes": st.integers(1, 1 << 20),
    "refusals": st.integers(0, 16),
    "Reading.reset": RESETS,
    "reset": st.none() | RESETS,
    "created_reset": st.none() | RESETS,
    **dict.fromkeys(("learned", "unknown_since", "blocked_until"), st.just(-math.inf) | MOMENTS),
}


def whole(hint: Any) -> st.SearchStrategy[Any]:
    """Any sane value of the type ``hint``, with all its fields given."""
    if get_origin(hint) is dict:
        return st.dictionaries(*map(whole, get_args(hint)))
    if get_args(hint):
        return st.one_of(*map(whole, get_args(hint)))
    if attrs.has(hint):
        hints = get_type_hints(hint)
        fields = [field.name for field in attrs.fields(hint) if field.init]
        own = {name: SPECIAL.get(f"{hint.__name__}.{name}", SPECIAL.get(name)) for name in fields}
        return st.builds(
            hint,
            **{
                name: whole(hints[name]) if strategy is None else strategy
                for name, strategy in own.items()
            },
        )
    return {float: MOMENTS, int: COUNTS}[hint] if hint in (float, int) else st.from_type(hint)


@given(whole(Bucket))
def test_a_bucket_comes_back_as_it_was(bucket: Bucket) -> None:
    """Whatever is in it, as long as it makes sense, in the same order, from text or bytes."""
    back = load_bucket(dump(bucket))
    assert bucket == back == load_bucket(dump(bucket).encode())
    assert list(bucket.leases) == list(back.leases)


@given(whole(Remembered), st.none() | st.from_regex(r"[ -~]{1,64}", fullmatch=True))
def test_a_memory_comes_back_as_it_was(memory: Remembered, send_id: str | None) -> None:
    """Whatever is in it, as long as its send ID can be one."""
    memory = attrs.evolve(memory, send_id=send_id)
    assert memory == load_remembered(dump(memory)) == load_remembered(dump(memory).encode())


@pytest.mark.parametrize("send_id", ["", "a\x1bb", "\ud800", 1001 * "a", 7])
def test_a_memory_of_what_is_no_send_id_is_damaged(send_id: object) -> None:
    """It would be handed out."""
    with pytest.raises(StoreError, match="damaged remembered"):
        load_remembered(json.dumps({"send_id": send_id}))


class KeptMachine(BucketMachine):
    """Its state is text between two transitions."""

    def transact(self, change: Callable[[Bucket, float], T]) -> T:
        result = super().transact(change)
        kept = load_bucket(dump(self.bucket))
        assert self.bucket == kept
        self.bucket = attrs.evolve(kept)
        self.bucket.unsettled = []
        return result


@pytest.mark.parametrize("schedules", [30, pytest.param(400, marks=pytest.mark.long)])
def test_each_state_that_the_rule_comes_to_can_be_kept(
    schedules: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under any schedule, none is taken for a damaged one."""
    assume(monkeypatch)
    run_state_machine_as_test(
        KeptMachine,
        settings=settings(
            max_examples=schedules,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_an_answer_with_an_absurd_clock_leaves_a_state_that_can_be_kept() -> None:
    """A proxy's ``Date`` may be in any year that can be written."""
    for date in (-62_135_596_800.0, 253_402_300_799.0):
        bucket = Bucket(offset=0.0)
        for name in ("first", "second"):
            ask = Ask(name, 1, name, 10.0)
            (grant,) = bucket.reserve([ask], 1.8e9)
            assert isinstance(grant, Grant)
            bucket.finish(ask, grant, Answer(True, date=date), 1.8e9)
            bucket.advance(1.8e9)
            assert bucket == load_bucket(dump(bucket))


def test_the_types_of_a_bucket_are_kept() -> None:
    """A whole number in a float field comes back as a float."""
    back = load_bucket('{"offset":5,"limit":7}')
    assert (5.0, float, 7, int) == (back.offset, type(back.offset), back.limit, type(back.limit))


def test_the_text_of_a_bucket_is_small() -> None:
    """What has its default is left out; a lease or an unconfirmed slot takes about 150 bytes."""
    assert '{"offset":0.5}' == dump(Bucket(offset=0.5))
    assert '{"send_id":null}' == dump(Remembered(None))
    lease = Lease("0f" * 16, 1, 1000.123456, 1015.123456, 1030.123456)
    slot = Unconfirmed("0f" * 16, 1000.123456, 1030.123456)
    empty = Bucket(offset=0.5)
    for one in (
        attrs.evolve(empty, leases={"a1" * 16: lease}),
        attrs.evolve(empty, unconfirmed={"a1" * 16 + ".1": slot}),
    ):
        assert len(dump(one)) - len(dump(empty)) < 175


def test_a_state_of_an_older_release_is_loaded() -> None:
    """It has no history yet."""
    older = json.loads(dump(FULL))
    del older["tally"]
    assert attrs.evolve(FULL, history=History()) == load_bucket(json.dumps(older))


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
        '{"offset":0,"tally":{"hours":{"2026-11-22T05":{"a":-1}}}}',
        # numbers that no rule comes to
        '{"offset":0,"limit":5,"used":5,"reset":1e300,"known":true}',
        '{"offset":0,"created_reset":-1e12}',
        '{"offset":0,"canaries":0}',
        '{"offset":0,"canaries":-1}',
        '{"offset":0,"canaries":2000000}',
        '{"offset":0,"refusals":17}',
        '{"offset":0,"refusals":-1}',
        '{"offset":0,"limit":0}',
        '{"offset":0,"limit":-5}',
        '{"offset":0,"limit":1' + 30 * "0" + "}",
        '{"offset":0,"used":-1}',
        '{"offset":0,"created":NaN}',
        '{"offset":NaN}',
        '{"offset":1e13}',
        '{"offset":-Infinity}',
        '{"offset":0,"learned":Infinity}',
        '{"offset":0,"learned":NaN}',
        '{"offset":0,"blocked_until":1e300}',
        '{"offset":0,"known":"yes"}',
        '{"offset":0,"odd_offset":Infinity}',
        '{"offset":0,"rumour":{"window":{"limit":5,"used":0,"reset":1e300},"seen":0}}',
        '{"offset":0,"rumour":{"window":{"limit":0,"used":0,"reset":0},"seen":0}}',
        '{"offset":0,"leases":{"a":{"pair":null,"attempt":1,"begun":0,"deadline":1e300,"ripe":0}}}',
        '{"offset":0,"leases":{"a":{"pair":null,"attempt":-1,"begun":0,"deadline":0,"ripe":0}}}',
        '{"offset":0,"leases":{"a":{"pair":7,"attempt":1,"begun":0,"deadline":0,"ripe":0}}}',
        '{"offset":0,"charges":{"a":{"pair":null,"begun":0,"ripe":Infinity}}}',
        '{"offset":0,"charges":{"a":{"pair":null,"begun":0}}}',
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


def test_a_time_that_never_was_can_be_written() -> None:
    """Where it is the default: for what has never been learnt, and a block that never was."""
    text = '{"offset":0,"learned":-Infinity,"unknown_since":-Infinity,"blocked_until":-Infinity}'
    assert Bucket(offset=0.0) == load_bucket(text)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", "null", "{}", '{"send_id":7}', '{"send_id":"s","queued":1}', b"\xff"],
)
def test_a_damaged_memory_is_told(text: str | bytes) -> None:
    """As ``StoreError``, which says what to do."""
    with pytest.raises(StoreError, match="holds a damaged remembered: delete it there"):
        load_remembered(text)


def test_each_memory_of_the_conformance_tests_is_another() -> None:
    """Or they would see less than they say."""
    assert len(MEMORIES) == len({dump(memory) for memory in MEMORIES.values()})


def test_text_that_is_nested_absurdly_is_told_as_damaged() -> None:
    """It does not end the program."""
    with pytest.raises(StoreError):
        load_bucket("[" * 200_000 + "]" * 200_000)
