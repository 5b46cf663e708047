"""Records of a store that are nearly right: damaged, or a state that the whole client works on."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any, get_args, get_origin, get_type_hints

import attrs
import pytest
from hypothesis import strategies as st

from braze_sends import (
    BrazeSendsError,
    CreateSendId,
    MemoryStore,
    QuotaStatus,
    SendId,
    SendsClient,
    StoreError,
)
from braze_sends.protocol import check_request, pair_digest
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.ledger import NO_LIMIT
from braze_sends.quota.rule.window import DAY
from braze_sends.stores.codec import _NAMES, dump, load_bucket, load_remembered
from braze_sends.stores.memory import _Record
from braze_sends.stores.store import Remembered
from tests.fuzz.shapes import Strategy, check, mutated, often, pick, several
from tests.fuzz.test_bodies import fit_to_show
from tests.world import BARE, LOST, MIDNIGHT, MORNING, REFUSED, UNANSWERED, Fate, World, play

PAIRS = [pair_digest(CreateSendId("campaign", name)).hex() for name in ("s0", "s1", "s2")]

# --- plausible -----------------------------------------------------------------------------------

#: The store's clock begins at 0, where ``play`` begins at ``MORNING``.
_past = pick([0.0, -0.5, -3.0, -30.0, -3600.0, -86_400.0])
_soon = pick([0.0, 0.5, 12.0, 15.0, 30.0])
_since = st.just(-math.inf) | _past
_resets = pick([MIDNIGHT, MORNING + 7, MORNING, MORNING - 9, MIDNIGHT + 86_400])
_counts = pick([0, 1, 2, 37, 99, 100, 101])
_names = pick(["a1" * 16, "b2" * 16, "c3" * 16, f"{'a1' * 16}.1", f"{'d4' * 16}.2", ""])
_texts = pick([*PAIRS, "campaign", "", "s0"])
_hours = pick(["2026-11-21T08", "2026-11-21T09", "2026-11-20T23"])

#: Where the type does not tell what is plausible.
_FIELDS: dict[str, Strategy[Any]] = {
    "offset": pick([MORNING, MORNING + 40.0, MORNING - 3.0]),
    "limit": pick([100, 1, 2, 20, 250_000]),
    "reset": st.none() | _resets,
    "created_reset": st.none() | _resets,
    "Reading.reset": _resets,
    "begun": _past,
    "seen": _past,
    "deadline": _soon,
    "ripe": often(_soon, _past, weight=1),
    "learned": _since,
    "unknown_since": _since,
    "blocked_until": often(_since, _soon),
    "probes": pick([1, 2, 4, 1 << 20]),
    "refusals": pick([0, 1, 16]),
    "odd_offset": st.none() | st.just(MORNING + 500),
    "attempt": st.none() | pick([1, 2]),
    "hours": st.dictionaries(_hours, st.dictionaries(_texts, _counts, max_size=2), max_size=2),
}
_TYPES: dict[Any, Strategy[Any]] = {
    float: _past,
    int: _counts,
    str: _texts,
    bool: st.booleans(),
    type(None): st.none(),
}


def plausible(hint: Any) -> Strategy[Any]:
    """What a store would hold for a value of the type ``hint``, as a tree of JSON."""
    if get_origin(hint) is dict:
        return st.dictionaries(_names, plausible(get_args(hint)[1]), max_size=3)
    if get_args(hint):
        return st.one_of(*map(plausible, get_args(hint)))
    if not attrs.has(hint):
        return _TYPES[hint]
    hints = get_type_hints(hint)
    required: dict[str, Strategy[Any]] = {}
    optional: dict[str, Strategy[Any]] = {}
    for field in attrs.fields(hint):
        if field.init:
            own = _FIELDS.get(f"{hint.__name__}.{field.name}", _FIELDS.get(field.name))
            chosen = plausible(hints[field.name]) if own is None else own
            name = _NAMES.get(hint, {}).get(field.name, field.name)
            (required if field.default is attrs.NOTHING else optional)[name] = chosen
    return st.fixed_dictionaries(required, optional=optional)


_PLAUSIBLE: dict[type, Strategy[Any]] = {kind: plausible(kind) for kind in (Bucket, Remembered)}

# --- hostile -------------------------------------------------------------------------------------

#: Stands for a number with more digits than Python reads.
_ENDLESS = "<endless>"
_hostile: Strategy[Any] = pick(
    [
        *(0, -1, 1, -0.0, 0.5, 1e-300, 1e9, -1e9, 1e12, -1e12, 1.0001e12, 1e300, -1e300),
        *(
            math.inf,
            -math.inf,
            math.nan,
            NO_LIMIT,
            NO_LIMIT - 1,
            NO_LIMIT + 1,
            10**18,
            10**400,
            -(10**400),
        ),
        *(253_402_300_799, 253_402_300_800, -62_135_596_800, MORNING, MIDNIGHT, _ENDLESS),
        *(
            None,
            True,
            False,
            "",
            "0",
            "7",
            "1e9",
            "nan",
            "soon",
            "\ud800",
            "\0",
            "x" * 5000,
            "\u0667",
        ),
        *(
            [],
            {},
            [[]],
            [{}],
            {"": {}},
            [0],
            {"a": 1},
            [["a", 1]],
            "0000-01-01T00",
            "9999-12-31T23",
        ),
        *(
            {"0001-01-01T00": {"c": 1}},
            {"9999-12-31T23": {"\ud800": NO_LIMIT}},
            {"2026-11-21T24": {}},
        ),
        {str(n): {"pair": None, "begun": 0, "ripe": 0} for n in range(300)},
        {
            str(n): {"pair": None, "begun": 0, "ripe": 9, "deadline": 9, "attempt": 1}
            for n in range(99)
        },
    ]
)


@st.composite
def _records(draw: st.DrawFn, kind: type) -> str:
    tree = draw(_PLAUSIBLE[kind])
    for _ in range(draw(pick([0, 1, 1, 1, 2, 3]))):
        tree = draw(mutated(tree, _hostile))
    text = json.dumps(tree).replace(json.dumps(_ENDLESS), "9" * 5000)
    return draw(often(st.just(text), pick([text[:-1], text + ",", f"[{text}]"]), weight=9))


# --- the client on it ----------------------------------------------------------------------------

#: Seconds that one call may take: its wait for quota (30), three attempts of 10 and their pauses,
#: and the leases of others, which are granted for 15. Turns of the loop that all calls may take.
_LONGEST, _TURNS = 300.0, 5000


class HangsError(Exception):
    """A call does not end."""


class Watch:
    """Ends a virtual loop that takes too long or turns too often."""

    def __init__(self, loop: Any) -> None:
        self._selector, self._turns = loop._virtual, 0
        self._select = self._selector.select
        self.until = math.inf
        self._selector.select = self.select

    def select(self, timeout: float | None = None) -> Any:
        self._turns += 1
        if self._turns > _TURNS:
            self._turns = 0  # what ends the tasks needs some, too
            raise HangsError(f"over {_TURNS} turns")
        if self._selector.time > self.until:
            self.until = math.inf
            raise HangsError(f"at {self._selector.time} s")
        return self._select(timeout)


@attrs.frozen
class Case:
    """A record, and what is done with it.

    Attributes:
        text: of the record.
        fates: of the requests, in turn.
        daily_limit: Braze's.
        own_limit: the client's own.
        headroom: of each create.
    """

    text: str
    fates: tuple[Fate, ...] = (Fate(),)
    daily_limit: int = 100
    own_limit: int | None = None
    headroom: int = 0


_fates = st.lists(
    often(
        st.just(Fate()),
        pick([LOST, UNANSWERED, REFUSED, Fate(headers=BARE), Fate(status=503), Fate(status=429)]),
        weight=2,
    ),
    min_size=1,
    max_size=4,
).map(tuple)


def _cases(kind: type) -> Strategy[Case]:
    return st.builds(
        Case,
        _records(kind),
        _fates,
        often(st.just(100), pick([0, 1, 50, 250])),
        often(st.none(), pick([0, 1, 100]), weight=3),
        often(st.just(0), pick([20, 100, 10**6]), weight=3),
    )


async def _ended(world: World, watch: Watch, call: Awaitable[Any]) -> Any:
    """The result of a call or its error, which must be ours and come in time."""
    watch.until = world.loop.time() + _LONGEST
    try:
        return await call
    except BrazeSendsError as error:
        fit_to_show(error)
        return error


def _client(world: World, case: Case, put: Callable[[MemoryStore], None]) -> SendsClient:
    world.fate = lambda n, send_id: case.fates[n % len(case.fates)]
    store = world.store()
    put(store)
    return world.client(store=store, workspace="w", daily_limit=case.own_limit)


def _sensible(status: Any) -> None:
    """The numbers make sense, or the history in the record is damaged."""
    if isinstance(status, StoreError):
        return
    assert isinstance(status, QuotaStatus)
    assert 0 <= status.remaining
    assert 0 <= status.in_flight
    assert 0 <= status.unconfirmed
    assert 0 <= status.limit
    assert all(creations.count >= 0 for creations in status.creations)


def _created(result: Any, name: str) -> None:
    if isinstance(result, SendId):
        check_request(CreateSendId(result.campaign_id, result.send_id))
        # What is remembered may differ: Braze may have answered with another name.
        assert name == result.send_id or result.reused
        assert "campaign" == result.campaign_id
    else:
        assert isinstance(result, BrazeSendsError)
        assert ("campaign", name) == (result.campaign_id, result.send_id)


def _works_on(bucket: Bucket, case: Case) -> None:
    async def schedule(world: World) -> None:
        watch = Watch(world.loop)
        record = _Record(bucket)
        client = _client(world, case, lambda store: store._records.update(w=record))
        _sensible(await _ended(world, watch, client.quota()))
        for name in ("s0", "s1"):
            create = client.create_send_id("campaign", name, headroom=case.headroom)
            _created(await _ended(world, watch, create), name)
            _sensible(await _ended(world, watch, client.quota()))
            load_bucket(dump(record.bucket))  # raises if it is damaged
        await _ended(world, watch, client.forget_quota())
        at_once = {name: client.create_send_id("campaign", name) for name in ("s1", "s2")}
        calls = {name: asyncio.ensure_future(call) for name, call in at_once.items()}
        for name, call in calls.items():
            _created(await _ended(world, watch, call), name)
        _sensible(await _ended(world, watch, client.quota()))
        load_bucket(dump(record.bucket))
        watch.until = math.inf

    play(schedule, daily_limit=case.daily_limit)


def _loaded(load: Callable[[str | bytes], Any], text: str) -> Any:
    """The record, or ``None`` if it is damaged."""
    try:
        return load(text)
    except StoreError as error:
        fit_to_show(error)
    with pytest.raises(StoreError):
        load(text.encode())
    return None


def _bucket_holds(case: Case) -> None:
    bucket = _loaded(load_bucket, case.text)
    if bucket is not None:
        assert bucket == load_bucket(dump(bucket)) == load_bucket(case.text.encode())
        _works_on(bucket, case)


@several(50, 10_000)
def test_a_state_is_damaged_or_the_client_works_on_it(examples: int) -> None:
    """On whatever state can be loaded, each call ends in time with a result or an error of ours,
    and leaves a state that can be loaded."""
    check(examples, _cases(Bucket), _bucket_holds)


def _bucket_heals(case: Case) -> None:
    bucket = load_bucket(case.text)

    async def schedule(world: World) -> None:
        watch = Watch(world.loop)
        record = _Record(bucket)
        client = _client(world, case, lambda store: store._records.update(w=record))
        for name in ("s0", "s1"):
            await _ended(world, watch, client.create_send_id("campaign", name))
        watch.until = math.inf
        await asyncio.sleep(4 * DAY)
        world.fate = lambda n, send_id: Fate()
        assert "s2" == str(await client.create_send_id("campaign", "s2"))

    play(schedule, daily_limit=case.daily_limit)


@several(30, 2000)
def test_days_later_any_plausible_state_lets_a_create_go(examples: int) -> None:
    """Whatever a store holds that is plausible, and however two creates end on it, another
    succeeds four days later."""
    texts = _PLAUSIBLE[Bucket].map(json.dumps)
    check(examples, st.builds(Case, texts, _fates, pick([100, 1, 50, 250])), _bucket_heals)


def _memory_holds(case: Case) -> None:
    memory = _loaded(load_remembered, case.text)
    if memory is None:
        return
    assert memory == load_remembered(dump(memory))

    def put(store: MemoryStore) -> None:
        record = _Record(Bucket(offset=MORNING), {PAIRS[0]: memory}, {PAIRS[0]: 1000.0})
        store._records["w"] = record

    async def schedule(world: World) -> None:
        watch = Watch(world.loop)
        client = _client(world, case, put)
        found = await _ended(world, watch, client.find_send_id("campaign", "s0"))
        if found is not None:
            _created(found, "s0")
        create = client.create_send_id("campaign", "s0", headroom=case.headroom)
        _created(await _ended(world, watch, create), "s0")
        _sensible(await _ended(world, watch, client.quota()))
        watch.until = math.inf

    play(schedule, daily_limit=case.daily_limit)


@several(30, 3000)
def test_a_memory_is_damaged_or_the_client_works_on_it(examples: int) -> None:
    """On whatever can be loaded of a pair, each call ends in time with the pair or an error."""
    check(examples, _cases(Remembered), _memory_holds)
