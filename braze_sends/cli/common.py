"""What the commands share: the key that they read, and how they say what happened.

The result goes to stdout, all else to stderr.
"""

from __future__ import annotations

import asyncio
import errno
import getpass
import ipaddress
import json
import math
import os
import shlex
import signal
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import typer

from braze_sends import BrazeSendsError, ConfigurationError, QuotaExhaustedError, RateLimitError

# Exit codes, the same for every command; docs/cli.md tells them.
ERROR = 1  # Braze said no, no answer, or what is needed cannot be used
USAGE = 2  # an unknown option, no API key, a file or an ID that cannot be used
SOME_FAILED = 3  # a batch is through, and some of its rows have no send ID
COME_BACK = 75  # no quota within the wait allowed: ``EX_TEMPFAIL`` of sysexits.h
INTERRUPTED = 130  # Ctrl-C or, in a batch, SIGTERM

#: Said at the first Ctrl-C.
STOPPING = "stopping: what is under way may end; Ctrl-C once more ends it at once"


def api_key(key_file: str | None) -> str:
    """The key, from where the user keeps it; ``ConfigurationError`` if it is nowhere.

    To be called outside of an event loop, whose handling of Ctrl-C a prompt would not notice.
    """
    if key_file is not None:
        try:
            text = sys.stdin.read() if key_file == "-" else _text_of(key_file)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            # Without the path: it may be the key, given there by mistake.
            raise ConfigurationError(f"--api-key-file cannot be read: {reason}") from None
        return text.removesuffix("\n").removesuffix("\r")
    key = os.environ.get("BRAZE_API_KEY")
    if not key and sys.stdin.isatty():
        try:
            key = getpass.getpass("Braze API key: ")
        except KeyboardInterrupt:
            typer.echo(err=True)  # ends the line of the prompt
            raise
    if not key:
        raise ConfigurationError(
            "no API key: set BRAZE_API_KEY, or name a file that holds it with --api-key-file"
        )
    return key


def _text_of(key_file: str) -> str:
    """What a key's file holds; with a warning if others than its owner can read it."""
    with open(key_file) as file:
        text = file.read()
        found = os.fstat(file.fileno())
    open_to_others = stat.S_ISREG(found.st_mode) and found.st_mode & (stat.S_IRGRP | stat.S_IROTH)
    # Who does not own the file can neither change its mode nor would read it after that.
    if open_to_others and sys.platform != "win32" and found.st_uid == os.geteuid():
        note(f"warning: {key_file} can be read by others; chmod 600 it")
    return text


def now() -> datetime:
    """The time by this machine's clock, in UTC."""
    return datetime.fromtimestamp(time.time(), UTC)


@contextmanager
def interrupts(
    first: Callable[[], object], then: bytes = b"ended at once", code: int = INTERRUPTED
) -> Iterator[None]:
    """Ctrl-C or SIGTERM calls ``first`` in the running event loop; Ctrl-C once more ends the
    process at once with ``code``, and says ``then``. What ``nohup`` ignores stays ignored.
    """
    loop = asyncio.get_running_loop()
    called = False

    def interrupted(number: int, frame: FrameType | None) -> None:
        nonlocal called
        if called and number == signal.SIGINT:
            with suppress(OSError):
                if sys.stderr.isatty():
                    os.write(2, b"\x1b[?25h\n")  # shows the cursor, which a bar has hidden
                os.write(2, then + b"\n")
            os._exit(code)
        if not called:
            called = True
            loop.call_soon_threadsafe(first)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` until Ctrl-C or SIGTERM cancels it, which is its normal end."""
    task = asyncio.ensure_future(work)
    with interrupts(task.cancel, code=0), suppress(asyncio.CancelledError):
        await task


def forgetful(store: str | None) -> bool:
    """Whether a store lasts no longer than the command."""
    return not store or store.startswith("memory:")


def existing(store: str | None) -> str | None:
    """``store``, but memory in place of a file that is not there: who only looks makes none."""
    path = file_of(store)
    return "memory://" if path is not None and not os.path.exists(path) else store


def file_of(store: str | None) -> str | None:
    """The file that a store is in, if it is in one."""
    prefix = "sqlite:///"
    return store.removeprefix(prefix) if store and store.startswith(prefix) else None


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Tell an error in one line, without a traceback, and exit with its code."""
    try:
        yield
    except BrazeSendsError as error:
        if as_json:
            print_json(error_object(error))
        else:
            note(f"error: {error_line(error)}")
        raise typer.Exit(exit_code(error)) from None
    except OSError as error:
        note(f"error: {error.strerror or error}")
        raise typer.Exit(ERROR) from None


@contextmanager
def printing(otherwise: str = "") -> Iterator[None]:
    """Print the result. If stdout cannot be written, say so and ``otherwise``, and exit."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        yield
    except OSError as error:
        note(f"error: standard output cannot be written: {error.strerror}{otherwise}")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # else Python tries again at its end
        raise typer.Exit(ERROR) from None


def exit_code(error: BrazeSendsError) -> int:
    """The exit code that tells a script what to do."""
    if isinstance(error, QuotaExhaustedError | RateLimitError):
        return COME_BACK
    return USAGE if isinstance(error, ConfigurationError) else ERROR


def error_line(error: BrazeSendsError) -> str:
    """The error in words, and how to go on where that is known."""
    line = str(error)
    if isinstance(error, QuotaExhaustedError) and error.resets_at is not None:
        line = error.message  # and the times as the user's clock shows them
        if error.retry_after is not None:
            line += f"; come back in {span(error.retry_after)}"
        line += f" (the quota resets {moment(error.resets_at)})"
    if error.quota_spent is None and error.send_id is not None:
        line += f"; it may have been created: to ask again, pass --send-id {error.send_id}"
    return line


def come_back(error: QuotaExhaustedError | RateLimitError) -> str:
    """When to come back, as far as that is known."""
    seconds, resets_at = error.retry_after, getattr(error, "resets_at", None)
    if seconds is None:
        return "later"
    if resets_at is None or (resets_at - now()).total_seconds() > seconds + 5:
        return f"in {span(seconds)}"  # before the window ends, when a doubt or a pause does
    return f"{moment(resets_at)}, in {span(seconds)}"


def finish(
    left: int, *, limit: int, remaining: int, headroom: int, resets_at: datetime
) -> datetime | None:
    """When ``left`` rows are done if each day's quota is used at its beginning.

    ``None`` if no more than one day is needed, or if the headroom leaves none.
    """
    daily = limit - headroom
    if daily <= 0 or left <= daily:
        return None
    days = math.ceil((left - max(0, remaining - headroom)) / daily)
    return resets_at + timedelta(days=days - 1)


def command() -> str | None:
    """What was typed to start this process, ``None`` if that is unknown or has a password."""
    words = sys.argv[1:]
    if words[:1] != ["batch"] or any("://" in word and "@" in word for word in words):
        return None
    return shlex.join(["braze-sends", *words])


def error_object(error: BrazeSendsError) -> dict[str, Any]:
    """The error as ``--json`` shows it."""
    names = ("status_code", "request_id", "limit", "remaining", "resets_at", "retry_after")
    details = {name: getattr(error, name, None) for name in names}
    return {
        "error": type(error).__name__,
        "message": str(error),
        "quota_spent": error.quota_spent,
        "campaign_id": error.campaign_id,
        "send_id": error.send_id,
        **{name: value for name, value in details.items() if value is not None},
    }


def print_json(shown: dict[str, Any], otherwise: str = "") -> None:
    """One JSON object on one line of stdout, times in ISO 8601; see ``printing``."""
    with printing(otherwise):
        typer.echo(json.dumps(shown, default=datetime.isoformat))


def note(line: str) -> None:
    """One line on stderr; if nobody reads it any more, so be it."""
    with suppress(OSError):
        typer.echo(printable(line), err=True)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine for sure: an address of loopback, or its usual name."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def printable(text: str) -> str:
    """``text`` without control characters: some of it comes from the network."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def moment(when: datetime) -> str:
    """A time as the user's clock shows it, and in UTC where that differs."""
    utc, local = f"{when.astimezone(UTC):%a %d %b %H:%M UTC}", when.astimezone()
    return f"{local:%a %d %b %H:%M %Z} = {utc}" if local.utcoffset() else utc


def span(seconds: float) -> str:
    """A duration in its two largest units."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
