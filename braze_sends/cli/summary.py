"""How a batch went: counted while it runs, told in words, in JSON and as an exit code."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from braze_sends import BrazeSendsError, ConfigurationError, QuotaExhaustedError, RateLimitError
from braze_sends.cli.common import (
    COME_BACK,
    INTERRUPTED,
    SOME_FAILED,
    come_back,
    exit_code,
    finish,
    moment,
)


@attrs.define(kw_only=True)
class Summary:
    """The counts of a batch. ``rows``, ``bad`` and ``repeated`` together are those of the file."""

    rows: int  # different pairs in the file
    bad: int  # rows that cannot be used
    repeated: int  # rows that repeat the pair of another
    before: int  # pairs that had a line already, and had not failed
    failed_before: int
    lines: dict[str, int] = attrs.field(  # that were written
        factory=lambda: dict.fromkeys(("created", "reused", "queued", "failed"), 0)
    )
    unwritten: int = 0  # lines that could not be
    unknown: int = 0  # rows without a line, as nobody knows what became of them
    ended: QuotaExhaustedError | RateLimitError | None = None  # how the quota ended
    fatal: BrazeSendsError | None = None  # what ended the batch
    interrupted: bool = False  # by Ctrl-C or SIGTERM
    headroom: int = 0  # slots of each day that are left to others

    @property
    def left(self) -> int:
        """Pairs without a line."""
        return self.rows - self.before - self.failed_before - sum(self.lines.values())

    @property
    def exit_code(self) -> int:
        """What a script has to know. A bad row is only here if the user had it skipped."""
        if self.fatal is not None:
            return exit_code(self.fatal)
        if self.interrupted and self.left:
            return INTERRUPTED
        if self.ended is not None:
            return COME_BACK
        failed = self.lines["failed"] + self.failed_before + self.left
        return SOME_FAILED if failed else 0

    @property
    def known_before(self) -> dict[str, int]:
        """What is known before anything is sent."""
        names = ("rows", "bad", "repeated", "before", "failed_before")
        return {name: getattr(self, name) for name in names}

    def as_json(self) -> dict[str, object]:
        """As ``--json`` shows it."""
        return {
            **self.known_before,
            **self.lines,
            "unwritten": self.unwritten,
            "unknown": self.unknown,
            "left": self.left,
            "resets_at": getattr(self.ended, "resets_at", None),
            "retry_after": self.ended and self.ended.retry_after,
            "error": self.fatal and type(self.fatal).__name__,
            "message": self.fatal and str(self.fatal),
        }

    def in_words(
        self, *, continues: bool, journal: str = "the output", command: str | None = None
    ) -> Iterator[str]:
        """As people read it.

        Args:
            continues: a rerun goes on from here.
            journal: where the lines are.
            command: what starts that rerun, if it is known.
        """
        if self.fatal is not None:
            yield f"error: {self.fatal}"
        told = _listed(
            **self.lines,
            whose_line_could_not_be_written=self.unwritten,
            done_before=self.before,
            failed_before=self.failed_before,
            unknown=self.unknown,
        )
        told = told or ("nothing created" if self.rows else "nothing to do")
        left_out = _listed(repeated=self.repeated, bad=self.bad)
        end = f" (left out: {left_out})" if left_out else ""
        yield f"{self.rows} row{'s' * (self.rows != 1)}: {told}{end}"
        if self.failed_before:
            yield f"to ask again for what failed, delete its lines from {journal}"
        if self.left and not isinstance(self.fatal, ConfigurationError):
            when = "" if self.ended is None else f"; come back {come_back(self.ended)}"
            then = "the same command goes on from here" if continues else "a rerun begins anew"
            if self.fatal is not None:
                then = f"once that is fixed, {then}"
            yield f"{self.left} left{when}: {then}"
            if (done := self._done()) is not None:
                yield done
            if continues and command is not None:
                yield f"  {command}"

    def _done(self) -> str | None:
        """When the file is done, if it takes days."""
        limit, resets_at = (getattr(self.ended, name, None) for name in ("limit", "resets_at"))
        if limit is None or resets_at is None:
            return None
        done_at = finish(
            self.left, limit=limit, remaining=0, headroom=self.headroom, resets_at=resets_at
        )
        daily = limit - self.headroom
        return (
            None
            if done_at is None
            else f"at {daily} a day the file is done about {moment(done_at)}"
        )


def _listed(**counts: int) -> str:
    """What there is any of, such as ``2 created, 1 done before``."""
    return ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in counts.items() if count)
