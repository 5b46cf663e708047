"""One key for states that differ in nothing that matters later.

- The two clients may change places where they want alike creates. So may creates of one client that
  are done.
- Of a time that lies ahead its second counts. Of a past one its place in the order counts, and its
  second only while it is recent. The rule compares past times, and adds to none of them but the
  beginning of an attempt that is under way, whose time to ripeness is a part of the key.

The bucket is taken apart without knowing its fields, so that they may change.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import attrs

from braze_sends.quota.rule.history import History
from tests.exhaustive.world import Scope, World, lease_of

#: Seconds. Past times that are younger keep their second: the rule looks 2 s back from a reset.
RECENT = 4.0


def key(world: World) -> int:
    """The same for states that differ in nothing that matters later."""
    scope, moment = world.scope, int(world.moment)
    places = _places(world)
    names = _names(scope, places)
    swapped = scope.creates[0][0] != scope.creates[places.index(0)][0]
    out: list[Any] = [
        moment,
        world.used,
        world.made if scope.own_limit is not None else 0,
        world.credit,
        world.refused,
        int(max(world.dead_until - moment, 0)),
        *(world.fresh[::-1] if swapped else world.fresh),
        tuple(sorted([(names[pair], known) for pair, known in world.memory.items()])),
        tuple(sorted([names[pair] for pair in world.exists])),
    ]
    creates: list[Any] = [None] * len(places)
    for n, (phase, life, number, doubt, kept) in enumerate(world.creates):
        creates[places[n]] = (phase, life, number, doubt, int(max(kept - moment, 0)))
    out += creates
    for attempt in sorted(world.attempts, key=_begun):
        out += (places[attempt[0]], *attempt[1:], int(max(attempt.ripe - moment, 0)))
    _flatten(world.bucket, out, names)
    now = world.now
    past = sorted({x for x in out if x.__class__ is float and -math.inf < x <= now})
    short: dict[Any, float] = {
        x: -3 - place - 64 * min(moment - math.floor(x), RECENT) for place, x in enumerate(past)
    }
    for n, x in enumerate(out):
        if x.__class__ is float and -math.inf < x < math.inf:
            out[n] = short[x] if x <= now else math.floor(x)
    return hash(tuple(out))


_begun = operator.attrgetter("begun")


def _flatten(value: Any, out: list[Any], names: _Names) -> None:
    """Take apart what the bucket is made of, without knowing it."""
    kind = value.__class__
    if kind is str:
        out.append(names[value])
    elif kind is dict:
        out.append(len(value))
        for name in sorted(value, key=names.__getitem__):
            out.append(names[name])
            _flatten(value[name], out, names)
    elif kind in (list, tuple):
        out.append(len(value))
        for part in value:
            _flatten(part, out, names)
    elif kind is not History and (parts := _parts(kind)):
        for part in parts(value):
            if part.__class__ in _PLAIN:
                out.append(part)
            else:
                _flatten(part, out, names)
    elif kind is not History:  # a history is only shown
        out.append(value)


_PLAIN = frozenset({float, int, bool, type(None)})


@functools.cache
def _parts(kind: type) -> Callable[[Any], tuple[Any, ...]] | None:
    if not attrs.has(kind):
        return None
    fields = [field.name for field in attrs.fields(kind) if field.eq]
    getter = operator.attrgetter(*fields)
    return getter if len(fields) > 1 else lambda value: (getter(value),)


class _Names(dict[str, str]):
    """What leases and pairs are called once the creates have changed places."""

    def __missing__(self, name: str) -> str:
        lease, dot, attempt = name.partition(".")
        self[name] = self[lease] + dot + attempt if dot else name
        return self[name]


@functools.cache
def _names(scope: Scope, places: tuple[int, ...]) -> _Names:
    names = _Names({"": ""})
    for n, place in enumerate(places):
        names.update({lease_of(n, life): lease_of(place, life) for life in range(8)})
        names[scope.creates[n][1]] = scope.creates[place][1]
    return names


def _places(world: World) -> tuple[int, ...]:
    """The places of the creates: what is done goes first, and clients that are alike are sorted."""
    creates = world.creates
    places, mirrored = _sorted(world.scope, tuple([create[0] == "done" for create in creates]))
    return mirrored if mirrored and _is_second(world, places) else places


def _is_second(world: World, places: tuple[int, ...]) -> bool:
    """Whether client 1 goes first: the creates decide, then the attempts."""
    sides: tuple[list[Any], list[Any]] = ([], [])
    order = sorted(range(len(places)), key=places.__getitem__)
    for n in order:
        sides[world.scope.creates[n][0]].append(world.creates[n])
    if sides[0] == sides[1]:
        sides[0].append(not world.fresh[0])
        sides[1].append(not world.fresh[1])
        for attempt in world.attempts:
            side = sides[world.scope.creates[attempt[0]][0]]
            side.append((attempt[3], *attempt[5:8], attempt[8] or ()))
    return sides[1] < sides[0]


@functools.cache
def _sorted(scope: Scope, done: tuple[bool, ...]) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The places of the creates, and those with the clients exchanged, if they are alike."""
    groups, alike = _groups(scope)
    ways = [
        [n for members in group for n in sorted(members, key=lambda n: not done[n])]
        for group in groups
    ]
    slots = [[n for members in group for n in members] for group in groups]

    def places(ways: list[list[int]]) -> tuple[int, ...]:
        of = dict(
            pair
            for slot, way in zip(slots, ways, strict=True)
            for pair in zip(way, slot, strict=True)
        )
        return tuple(of[n] for n in range(len(done)))

    return places(ways), places(ways[::-1]) if alike else None


@functools.cache
def _groups(scope: Scope) -> tuple[tuple[list[list[int]], ...], bool]:
    """For each client the creates that may change places, and whether the clients may."""
    clients: dict[int, dict[str, list[int]]] = {}
    pairs = [pair for _, pair in scope.creates]
    for n, (client, pair) in enumerate(scope.creates):
        kind = pair if pairs.count(pair) > 1 or not pair else "?"
        clients.setdefault(client, {}).setdefault(kind, []).append(n)
    shapes = [
        [(kind, len(members)) for kind, members in sorted(of.items())] for of in clients.values()
    ]
    groups = tuple([of[kind] for kind in sorted(of)] for of in clients.values())
    return groups, len(shapes) == 2 and shapes[0] == shapes[1]
