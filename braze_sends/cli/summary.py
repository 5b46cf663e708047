"""How a batch went: counted while it runs, told in words, in JSON and as an exit code."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from braze_sends import BrazeSendsError, ConfigurationError, QuotaExhaustedError, RateLimitError
from braze_sends.cli.common import COME_BACK, INTERRUPTED, SOME_FAILED, come_back, exit_code


@attrs.define(kw_only=True)
class Summary:
    """The counts of a batch; ``rows``, ``bad`` and ``repeated`` together are the rows of the file.

    Attributes:
        rows: different pairs in the file.
        bad: rows that cannot be used.
        repeated: rows that repeat the pair of another.
        before: pairs that had a line already, and had not failed.
        failed_before: pairs that had failed before.
        lines: how many were written.
        unwritten: lines that could not be.
        unknown: rows of which nobody knows what became of them, and so without a line.
        ended: how the quota ended.
        fatal: what ended the batch.
        interrupted: whether Ctrl-C or SIGTERM did.
    """

    rows: int
    bad: int
    repeated: int
    before: int
    failed_before: int
    lines: dict[str, int] = attrs.field(
        factory=lambda: {"created": 0, "reused": 0, "queued": 0, "failed": 0}
    )
    unwritten: int = 0
    unknown: int = 0
    ended: QuotaExhaustedError | RateLimitError | None = None
    fatal: BrazeSendsError | None = None
    interrupted: bool = False

    @property
    def left(self) -> int:
        """Pairs without a line."""
        return self.rows - self.before - self.failed_before - sum(self.lines.values())

    @property
    def exit_code(self) -> int:
        """What a script has to know."""
        if self.fatal is not None:
            return exit_code(self.fatal)
        if self.interrupted and self.left:
            return INTERRUPTED
        if self.ended is not None:
            return COME_BACK
        failed = self.lines["failed"] + self.failed_before + self.left + self.bad
        return SOME_FAILED if failed else 0

    @property
    def known_before(self) -> dict[str, int]:
        """What is known before anything is sent."""
        names = ("rows", "bad", "repeated", "before", "failed_before")
        return {name: getattr(self, name) for name in names}

    def as_json(self) -> dict[str, object]:
        """As ``--json`` shows it."""
        resets_at = getattr(self.ended, "resets_at", None)
        return {
            **self.known_before,
            **self.lines,
            "unwritten": self.unwritten,
            "unknown": self.unknown,
            "left": self.left,
            "resets_at": resets_at and resets_at.isoformat(),
            "retry_after": self.ended and self.ended.retry_after,
            "error": self.fatal and type(self.fatal).__name__,
            "message": self.fatal and str(self.fatal),
        }

    def in_words(self, *, continues: bool) -> Iterator[str]:
        """As people read it; ``continues`` is whether a rerun goes on from here."""
        if self.fatal is not None:
            yield f"error: {self.fatal}"
        counts = {
            **self.lines,
            "whose line could not be written": self.unwritten,
            "done before": self.before,
            "failed before": self.failed_before,
            "unknown": self.unknown,
        }
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        out = {"repeated": self.repeated, "bad": self.bad}
        left_out = ", ".join(f"{count} {what}" for what, count in out.items() if count)
        yield (
            f"{self.rows} row{'s' * (self.rows != 1)}: "
            f"{told or ('nothing created' if self.rows else 'nothing to do')}"
            f"{f' (left out: {left_out})' if left_out else ''}"
        )
        if self.failed_before:
            yield "to ask again for what failed, delete its lines from the output"
        if self.left and not isinstance(self.fatal, ConfigurationError):
            when = "" if self.ended is None else f"; come back {come_back(self.ended)}"
            then = "the same command goes on from here" if continues else "a rerun begins anew"
            if self.fatal is not None:
                then = f"when that is mended, {then}"
            yield f"{self.left} left{when}: {then}"
