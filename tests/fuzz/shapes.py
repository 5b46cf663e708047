"""JSON as text that is nearly right, and one damage to a tree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

T = TypeVar("T")

Strategy = st.SearchStrategy


def several(few: int, many: int) -> pytest.MarkDecorator:
    """Run a test with ``few`` examples, and with ``many`` in ``nox -s long``."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.long)])


def check(examples: int, cases: Strategy[T], holds: Callable[[T], None]) -> None:
    """Call ``holds`` with so many of the cases; a failure is shrunk and told with its seed."""

    @st.composite
    def case(draw: st.DrawFn) -> T:  # has a short repr, and they have not
        return draw(cases)

    # Hypothesis keeps the values of many examples: in rounds, it forgets them.
    for done in range(0, examples, _ROUND):

        def each(value: T) -> None:
            holds(value)

        each.__name__ = holds.__name__  # its failures are kept under this name
        settings(
            max_examples=min(_ROUND, examples - done),
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )(given(case())(each))()


_ROUND = 1000


def pick(values: Sequence[T]) -> Strategy[T]:
    """One of the values. ``sampled_from`` would list them all, and some are long, in its repr."""
    return st.integers(0, len(values) - 1).map(lambda n: values[n])


def often(usual: Strategy[T], *rare: Strategy[T], weight: int = 4) -> Strategy[T]:
    """``usual`` so many times as often as each of the others. A failure shrinks to it."""

    @st.composite  # ``one_of`` counts what it is given twice as one
    def either(draw: st.DrawFn) -> T:
        n = draw(st.integers(0, weight + len(rare) - 1))
        return draw(usual if n < weight else rare[n - weight])

    return either()


# --- long texts ----------------------------------------------------------------------------------

#: Hypothesis keeps what it generates, so what is long is written short until ``long`` expands it.
_START, _OF, _END = "\ue000", "\ue001", "\ue002"
_RUN = re.compile(f"{_START}([0-9]+){_OF}([^{_START}{_END}]*){_END}")
#: Characters that one run has at most: about as much as is read of an answer.
_MOST = 1024 * 1024


def times(n: int, text: str) -> str:
    """Short for ``n * text``."""
    return f"{_START}{n}{_OF}{text}{_END}"


def long(text: str) -> str:
    """The text with each of its runs, inner ones first, as long as it says."""
    runs = 1
    while runs:
        text, runs = _RUN.subn(
            lambda run: run[2] * min(int(run[1]), 1 + _MOST // (1 + len(run[2]))), text
        )
    return text


# --- JSON as text --------------------------------------------------------------------------------

NUMBERS = pick(
    [
        *("0", "1", "-1", "-0", "7", "2147483648", "9223372036854775808", "1.5", "1e3", "1E400"),
        *("-1e999", "1e-400", times(400, "9"), times(4300, "9"), f"-{times(4300, '9')}"),
        f"0.{times(5000, '9')}",
    ]
)
#: What only Python's parser takes, or none.
NO_NUMBERS = pick(
    [
        *("NaN", "Infinity", "-Infinity", "01", "+1", "0x10", "1_000", ".5", times(4301, "9"), "-"),
        *("None", "nul", "undefined", "'single'", ""),
    ]
)
WORDS = pick(["null", "true", "false", "[]", "{}", '""', "[[]]", "[{}]", '{"":{}}'])


def _escaped(text: str) -> str:
    shown = json.dumps(text)
    for mark in (_START, _OF, _END):
        shown = shown.replace(json.dumps(mark)[1:-1], mark)
    return shown


def _plain(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _each_escaped(text: str) -> str:
    if _START in text:
        return _escaped(text)
    units = text.encode("utf-16-be", "surrogatepass")
    pairs = (units[n : n + 2].hex() for n in range(0, len(units), 2))
    return '"' + "".join(f"\\u{unit}" for unit in pairs) + '"'


def quoted(texts: Strategy[str]) -> Strategy[str]:
    """JSON strings, in each way to write one."""
    ways = pick([_escaped, _plain, _each_escaped])
    return st.builds(lambda way, text: way(text), ways, texts)


BROKEN_STRINGS = pick(
    ['"', '"a', '"\\', '"\\x41"', '"\\u12"', '"\\ud800"', '"\\udc00\\ud800"', '"a\nb"', '"\x00"']
)


def deep(inner: Strategy[str]) -> Strategy[str]:
    """Nested as far as some parser gives up, or just not so far."""
    depths = pick([3, 90, 300, 420, 460, 490, 900, 990, 5000, 100_000])
    pair = pick([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"), ("[0,", "]"), ("[", "")])
    return st.builds(lambda text, n, p: times(n, p[0]) + text + times(n, p[1]), inner, depths, pair)


def array(items: Strategy[str]) -> Strategy[str]:
    """Lists, some of them long, some with a comma too many."""
    commas = often(st.just(","), pick([", ", ",,", "", " ,\n"]))
    few = st.builds(lambda c, texts: f"[{c.join(texts)}]", commas, st.lists(items, max_size=4))
    lengths = pick([2, 99, 101, 240, 3000, 11_000])

    many = st.builds(lambda text, n: f"[{times(n, text + ',')}{text}]", items, lengths)
    return often(few, many, weight=12)


def mapping(members: Strategy[list[tuple[str, str]]]) -> Strategy[str]:
    """Objects of pairs of JSON texts: a name may be there twice."""
    colons = often(st.just(":"), pick([" : ", "", "=", "::"]), weight=8)
    ends = often(st.just("}"), pick([",}", "", "}}", "]"]), weight=8)
    return st.builds(
        lambda pairs, colon, end: "{" + ",".join(f"{n}{colon}{v}" for n, v in pairs) + end,
        members,
        colons,
        ends,
    )


def anything(texts: Strategy[str]) -> Strategy[str]:
    """Near-JSON of any shape."""
    strings = quoted(texts)
    leaves = often(strings | NUMBERS | WORDS, NO_NUMBERS, BROKEN_STRINGS, weight=14)
    branches = st.recursive(
        leaves,
        lambda inner: array(inner) | mapping(st.lists(st.tuples(strings, inner), max_size=3)),
        max_leaves=6,
    )
    return often(branches, deep(branches), weight=6)


# --- bytes ---------------------------------------------------------------------------------------

BOM = b"\xef\xbb\xbf"
_ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]


_JUNK = [
    b"",
    b"\0",
    b"\xff",
    b"\xfe\xff",
    BOM,
    b"\xed\xa0\x80",
    b'"',
    b"}",
    b"]",
    b"\r",
    b"<",
    b" ",
]


@attrs.frozen
class Content:
    """Bytes to be: a text, its encoding, and one damage.

    Attributes:
        damage: where, as a share of the whole; how many bytes are cut out; what is put there.
    """

    text: str
    encoding: str = "utf-8"
    damage: tuple[float, int, bytes] | None = None

    def bytes(self) -> bytes:
        errors = "replace" if self.encoding in ("latin-1", "cp1252") else "surrogatepass"
        content = long(self.text).encode(self.encoding, errors)
        if self.damage is None:
            return content
        share, size, junk = self.damage
        start = int(share * len(content))
        return content[:start] + junk + content[start + size :]


def contents(texts: Strategy[str]) -> Strategy[Content]:
    """Mostly UTF-8 and whole; a lone surrogate becomes bytes that no UTF-8 has."""
    return st.builds(
        Content,
        texts,
        often(st.just("utf-8"), pick(_ENCODINGS), weight=9),
        often(
            st.none(), st.tuples(st.floats(0, 1), pick([0, 1, 7, 1 << 30]), pick(_JUNK)), weight=2
        ),
    )


# --- trees ---------------------------------------------------------------------------------------

Path = tuple[Any, ...]


def _paths(tree: Any, here: Path = ()) -> list[Path]:
    """Of all that is in a tree, the tree itself first."""
    found = [here]
    if isinstance(tree, dict):
        for name in tree:
            found += _paths(tree[name], (*here, name))
    elif isinstance(tree, list):
        for n, item in enumerate(tree):
            found += _paths(item, (*here, n))
    return found


def _changed(tree: Any, path: Sequence[Any], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(tree)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = _changed(copy[path[0]], path[1:], change)
    return copy


def _without(tree: Any, name: Any) -> Any:
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    del copy[name]
    return copy


@st.composite
def mutated(draw: st.DrawFn, tree: Any, hostile: Strategy[Any]) -> Any:
    """A tree with one damage: a value replaced, deleted, added, repeated, or wrapped."""
    path = draw(pick(_paths(tree)))
    how = draw(pick(["replace", "replace", "delete", "add", "repeat", "wrap"]))
    if how == "delete" and path:
        return _changed(tree, path[:-1], lambda parent: _without(parent, path[-1]))
    value = draw(hostile)

    def change(old: Any) -> Any:
        if how == "add" and isinstance(old, dict):
            return old | {draw(pick(["", "mood", "__class__", "init", "self"])): value}
        if how == "repeat" and isinstance(old, dict) and old:
            return old | {"again": old[draw(pick([*old]))]}
        if how == "repeat" and isinstance(old, list):
            return old * 2
        if how == "wrap":
            return draw(pick([[old], {"a": old}, [old, old]]))
        return value

    return _changed(tree, path, change)
