"""The walk over all states of a world, depth first, and what a person reads of a violation.

A step takes faults: a loss, an answer without headers, a delay, an error, a cancellation, a crash.
The walk has a budget of them. A state that was walked with as many faults left is not walked again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import attrs

from tests.exhaustive.alike import key
from tests.exhaustive.world import WINDOW, Create, Scope, Step, ViolationError, World

DAY = 86_400.0


@attrs.frozen
class Found:
    """A violation.

    Attributes:
        message: what does not hold.
        steps: to be given to ``replay``.
    """

    message: str
    steps: tuple[Step, ...]


@attrs.frozen
class Walked:
    """What a walk has seen.

    Attributes:
        states: different ones.
        steps: taken between them.
        depth: of the longest way.
        whole: whether nothing was left out.
        seconds: of the processor.
        found: violations, one for each kind of message.
    """

    states: int
    steps: int
    depth: int
    whole: bool
    seconds: float
    found: tuple[Found, ...]

    def __str__(self) -> str:
        part = "all" if self.whole else "a part"
        return (
            f"{part}: {self.states:,} states, {self.steps:,} steps, "
            f"depth {self.depth}, {self.seconds:.1f} s, {len(self.found)} violations"
        )


def walk(scope: Scope, faults: int, *, most: float = math.inf, violations: int = 1) -> Walked:
    """Walk all states that ``faults`` faults lead to.

    Args:
        most: states to walk at most.
        violations: how many different ones to look for.
    """
    started = time.process_time()
    begin = World.begin(scope)
    seen: dict[int, int] = {key(begin): faults}
    found: dict[str, Found] = {}
    way: list[Step] = []
    stack = [_next(begin, faults)]
    taken = depth = 0
    while stack and len(seen) < most and len(found) < violations:
        if not stack[-1]:
            stack.pop()
            if way:
                way.pop()
            continue
        world, step, left, last = stack[-1].pop()
        world = world if last else world.copy()
        taken += 1
        try:
            world.do(step)
            if world.moment >= scope.windows * WINDOW:
                end = key(world)
                if end not in seen:
                    seen[end] = left
                    settle(world)
                continue
        except ViolationError as error:
            found.setdefault(kind(str(error)), Found(str(error), (*way, step)))
            continue
        state = key(world)
        if seen.get(state, -1) < left:
            seen[state] = left
            way.append(step)
            stack.append(_next(world, left))
            depth = max(depth, len(way))
    whole = not stack
    seconds = time.process_time() - started
    return Walked(len(seen), taken, depth, whole, seconds, tuple(found.values()))


def shrunk(scope: Scope, found: Found) -> Found:
    """The same violation with no step to spare."""
    steps = list(found.steps)
    n = len(steps)
    while n:
        n -= 1
        fewer = _run(World.begin(scope), steps[:n] + steps[n + 1 :])
        if fewer is not None and kind(fewer.message) == kind(found.message):
            found, steps = fewer, list(fewer.steps)
            n = len(steps)
    return found


def replay(scope: Scope, steps: Sequence[Step]) -> str:
    """The timeline of some steps, and the violation at its end, if there is one."""
    world = World.begin(scope)
    world.told = []
    found = _run(world, steps)
    world.told.append("all is well" if found is None else f"VIOLATION: {found.message}")
    return "\n".join(line for line in world.told if line)


def settle(world: World) -> None:
    """All goes well from now on: everybody is served, and a day later nothing is left over.

    Raises:
        ViolationError: it is not so.
    """
    for _ in range(200):
        step = _calm_step(world)
        if step is None:
            break
        idle = step == ("wait",) and all(a.owner != "waits" for a in world.attempts)
        change = world.bucket.next_change(world.now)
        if idle and change < math.inf:
            world.go_to(math.floor(change))
        else:
            world.do(step)
    else:
        raise ViolationError("somebody is never served")
    world.go_to((world.moment + 2 * DAY) // WINDOW * WINDOW + 5)
    n = len(world.creates)
    world.scope = attrs.evolve(world.scope, creates=(*world.scope.creates, (0, "")))
    world.creates += (Create(),)
    world.do(("ask", str(n)))
    if world.creates[n].phase != "out":
        raise ViolationError("a create waits, a day later")
    name = world.attempts[-1].name
    world.do(("arrive", name))
    world.do(("tell", name, "full"))
    status, left = world.bucket.status(), world.scope.limit - world.used
    if (status.in_flight, status.unconfirmed, status.remaining) != (0, 0, left):
        raise ViolationError(f"in the end {left} are left, but not by {status}")


def _calm_step(world: World) -> Step | None:
    for attempt in world.attempts:
        if attempt.owner in {"waits", "stopped"}:
            if attempt.reply is not None:
                return "tell", attempt.name, "full"
            if attempt.may_arrive:
                return "arrive", attempt.name
            return "tell", attempt.name, "unknown", "end"
    for n, create in enumerate(world.creates):
        if create.phase == "backoff":
            return "ask", str(n)
    for n, create in enumerate(world.creates):
        client = world.scope.creates[n][0]
        if create.phase == "waits" and not world.fresh[client]:
            return "look", str(client)
    return ("wait",) if any(create.phase == "waits" for create in world.creates) else None


def kind(message: str) -> str:
    """What violations have in common that differ in names and numbers."""
    return "".join(letter for letter in message if not letter.isdigit())


def _run(world: World, steps: Sequence[Step]) -> Found | None:
    """Take the steps, but for those that are not possible any more."""
    taken: list[Step] = []
    try:
        for step in steps:
            possible = dict(world.steps())
            if step not in possible:  # an earlier call of the same create will do as well
                alike = (s for s in possible if s[0] == step[0] and s[2:] == step[2:])
                step = next((s for s in alike if s[1:] and s[1][0] == step[1][0]), step)
            if step in possible:
                taken.append(step)
                world.do(step)
            if world.moment >= world.scope.windows * WINDOW:
                settle(world)
                break
    except ViolationError as error:
        return Found(str(error), tuple(taken))
    return None


def _next(world: World, faults: int) -> list[tuple[World, Step, int, bool]]:
    """What can come next, the last first; the last one to be taken may change the world itself."""
    steps = [(step, faults - cost) for step, cost in world.steps() if cost <= faults]
    return [(world, step, left, n == 0) for n, (step, left) in enumerate(reversed(steps))]
