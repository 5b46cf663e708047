"""``--log-file``: what happens inside a command, a line for each event."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from braze_sends import ConfigurationError
from braze_sends.cli.common import note, printable


class _Line(logging.Formatter):
    """A record in one line, with the time in UTC; some of its text comes from the network."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _LogFile(logging.FileHandler):
    failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # as of logging
        """Say once that the file cannot be written; the work goes on without it."""
        if not self.failed:
            self.failed = True
            note(f"warning: {self.baseFilename} cannot be written, and misses events")


@contextmanager
def logging_to(path: str | None) -> Iterator[None]:
    """Append all that the logger ``braze_sends`` is told to a file; ``None`` is no file.

    Raises:
        ConfigurationError: the file cannot be opened.
    """
    if path is None:
        yield
        return
    try:
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    form = "%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s"
    line = _Line(form, "%Y-%m-%dT%H:%M:%S")
    line.converter = time.gmtime
    handler.setFormatter(line)
    logger = logging.getLogger("braze_sends")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        with suppress(OSError):  # what could not be written
            handler.close()
