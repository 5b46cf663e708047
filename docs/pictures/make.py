"""Draw the pictures of the README and the documentation: ``python docs/pictures/make.py``.

Each picture has a panel of its own, so it can be read on a page of any colour. On systems that ask
for dark colours the panel is dark. The slots of the window differ in shape as well as in colour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
WIDTH = 600

STYLE = """
svg { font: 17px "DejaVu Sans", Verdana, sans-serif }
text { fill: #1f2430 } .faint { fill: #505868; font-size: 15px } .bold { font-weight: bold }
.middle { text-anchor: middle }
.panel { fill: #ffffff; stroke: #c9ced8 }
.used { fill: #2f6fd0 } .flight { fill: #f0a818 } .unconfirmed { fill: #d0473f }
.free { fill: none; stroke: #7a8394; stroke-width: 1.5 }
.mark { fill: #ffffff; font-size: 15px; font-weight: bold; text-anchor: middle }
.dark { fill: #1f2430 }
.box { fill: #eef2f9; stroke: #7a8394 }
.line { stroke: #505868; stroke-width: 2; fill: none } .dashed { stroke-dasharray: 5 5 }
.lost { stroke: #d0473f; stroke-width: 3; fill: none } .head { fill: #505868 }
@media (prefers-color-scheme: dark) {
text { fill: #e8ebf2 } .faint { fill: #b4bccb } .mark { fill: #ffffff } .dark { fill: #1f2430 }
.panel { fill: #171b24; stroke: #3b4352 } .box { fill: #242b39; stroke: #7a8394 }
.line { stroke: #b4bccb } .head { fill: #b4bccb } .free { stroke: #97a0b2 }
}
"""

ARROW = (
    '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
    'markerHeight="7" orient="auto-start-reverse"><path class="head" d="M0 0 L10 5 L0 10 z"/>'
    "</marker></defs>"
)

#: The kinds of slots: class, letter on the slot, name, how many in the picture, meaning.
SLOTS = (
    ("used", "", "used", 63, "Braze has counted them"),
    ("flight", "•", "in flight", 6, "requests are under way"),
    ("unconfirmed", "?", "unconfirmed", 3, "an answer was lost"),
    ("free", "", "free", 28, "the next creates may take them"),
)


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """One line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(words)}</text>'


def slot(x: float, y: float, kind: str, letter: str, side: int) -> Iterator[str]:
    """One slot of the quota."""
    yield f'<rect x="{x}" y="{y}" width="{side}" height="{side}" rx="4" class="{kind}"/>'
    if letter:
        dark = " dark" if kind == "flight" else ""
        yield text(x + side / 2, y + side / 2 + 5.5, letter, f"mark{dark}")


def box(x: float, y: float, width: float, *lines: str) -> Iterator[str]:
    """A box whose first line is bold."""
    height = 22 * len(lines) + 18
    yield f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="box"/>'
    for n, line in enumerate(lines):
        kind = "middle faint" if n else "middle bold"
        yield text(x + width / 2, y + 27 + 22 * n, line, kind)


def arrow(*points: tuple[float, float], kind: str = "line") -> str:
    """A line through the points, with a head at its end."""
    path = " L".join(f"{x} {y}" for x, y in points)
    return f'<path class="{kind}" d="M{path}" marker-end="url(#head)"/>'


def window() -> Iterator[str]:
    """The 100 slots of a day, and what each is."""
    yield text(24, 40, "One day of a workspace: 100 slots", "bold")
    kinds = [(kind, letter) for kind, letter, _, count, _ in SLOTS for _ in range(count)]
    for n, (kind, letter) in enumerate(kinds):
        yield from slot(24 + n % 20 * 28, 60 + n // 20 * 28, kind, letter, 22)
    for n, (kind, letter, name, count, meaning) in enumerate(SLOTS):
        y = 218 + 30 * n
        yield from slot(24, y, kind, letter, 22)
        yield text(58, y + 17, f"{count} {name}", "bold")
        yield text(226, y + 17, meaning, "faint")


def lease() -> Iterator[str]:
    """How a lease begins and ends."""
    yield text(24, 40, "The life of a lease", "bold")
    yield from box(170, 60, 260, "A create asks for a slot")
    yield arrow((300, 100), (300, 136))
    yield text(312, 124, "a slot is free", "faint")
    yield from box(150, 140, 300, "Lease: one slot in flight", "the request goes to Braze")
    for x in (104, 300, 496):
        yield arrow((300, 202), (300, 222), (x, 222), (x, 252))
    yield from box(14, 256, 180, "Used", "an answer with", "rate-limit headers")
    yield from box(210, 256, 180, "Free again", "nothing was sent;", "401, 403 or 429")
    yield from box(406, 256, 180, "Unconfirmed", "no answer;", "5xx, other 4xx")
    yield arrow((496, 340), (496, 382), (380, 382))
    yield from box(120, 362, 256, "A later answer decides")
    yield arrow((160, 362), (104, 344))
    yield arrow((300, 362), (300, 344))


def lost() -> Iterator[str]:
    """A lost answer, and the retry under the same name."""
    yield text(24, 40, "A lost answer makes no second send ID", "bold")
    yield from box(24, 60, 150, "Client")
    yield from box(426, 60, 150, "Braze")
    for x in (99, 501):
        yield f'<path class="line dashed" d="M{x} 100 V410"/>'
    yield arrow((105, 140), (495, 140))
    yield text(300, 130, "create “story-7”", "middle")
    yield '<path class="line" d="M495 190 H300"/>'
    yield '<path class="lost" d="M290 180 L310 200 M310 180 L290 200"/>'
    yield text(400, 180, "created", "middle")
    yield text(110, 196, "no answer in time", "faint")
    yield text(110, 240, "The slot is unconfirmed: the client keeps the slot.", "faint")
    yield arrow((105, 290), (495, 290))
    yield text(300, 280, "create “story-7” again", "middle")
    yield arrow((495, 340), (105, 340))
    yield text(300, 330, "“story-7” exists", "middle")
    yield text(110, 384, "One send ID. The caller gets “story-7”.", "faint")


def workers() -> Iterator[str]:
    """Several workers, one store."""
    yield text(24, 40, "Several workers share one store", "bold")
    for n in range(3):
        y = 66 + 76 * n
        yield from box(24, y, 130, f"Worker {n + 1}")
        yield arrow((154, y + 20), (216, 162 if n == 1 else 138 + 24 * n))
    yield from box(220, 120, 160, "Store", "one quota,", "every send ID")
    yield from box(446, 131, 130, "Braze", "100 a day")
    yield arrow((89, 258), (89, 300), (511, 300), (511, 197))
    yield text(300, 290, "requests go to Braze only with a lease", "middle faint")
    yield text(300, 224, "gives leases, keeps results", "middle faint")


PICTURES = {
    "window": (348, window),
    "lease": (420, lease),
    "lost-answer": (430, lost),
    "workers": (330, workers),
}


def drawing(height: int, parts: Iterable[str]) -> str:
    """A whole SVG file."""
    view = f"0 0 {WIDTH} {height}"
    panel = f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="12" class="panel"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" width="{WIDTH}">'
    return "\n".join((head, f"<style>{STYLE}</style>", ARROW, panel, *parts, "</svg>")) + "\n"


if __name__ == "__main__":
    for name, (height, parts) in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(drawing(height, parts()), encoding="utf-8")
