"""Who is told of events: the log, and the listeners of a user.

Most programs listen to nothing, so the events themselves are imported when one is told.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import typing
from collections.abc import Callable, Iterable
from typing import Any
from weakref import ref

from braze_sends.errors import ConfigurationError

if typing.TYPE_CHECKING:
    from braze_sends.events import Event

log = logging.getLogger("braze_sends")

Listener = Callable[["Event"], object]


class Listeners:
    """The listeners of one client: the log, and those that the user passed.

    A listener that raises is logged once, and harms nothing.
    """

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self.all = tuple(listeners)
        self._failed: set[int] = set()

    def want(self, level: int) -> bool:
        """Whether any listener wants to hear of events of a log level; those of a user want all."""
        return bool(self.all) or log.isEnabledFor(level)

    def tell(self, event: Event) -> None:
        """Log the event, and call each listener."""
        log_event(event)
        for listener in self.all:
            self.call(listener, event)

    def call(self, listener: Listener, event: Event) -> None:
        """Call one of them."""
        try:
            listener(event)
        except Exception:
            if id(listener) not in self._failed:
                self._failed.add(id(listener))
                log.exception("a listener of events raised; further errors of it are not logged")


class Audience:
    """The ``Listeners`` of all clients that share a quota.

    A listener that several clients have is called once for each event.
    """

    def __init__(self) -> None:
        self._members: list[ref[Listeners]] = []

    def add(self, listeners: Listeners) -> None:
        """Take in the listeners of a client. They drop out when the client is gone."""
        self._members.append(ref(listeners, self._members.remove))

    def remove(self, listeners: Listeners) -> None:
        """Take out the listeners of a client; idempotent."""
        with contextlib.suppress(ValueError):
            self._members.remove(ref(listeners))

    def want(self, level: int) -> bool:
        """Whether any of them wants to hear of events of a log level."""
        for member in self._members:
            listeners = member()
            if listeners is not None and listeners.want(level):
                return True
        return False

    def tell(self, event: Event) -> None:
        """Log the event, and call each listener."""
        log_event(event)
        told: list[Listener] = []
        present = [listeners for member in self._members if (listeners := member()) is not None]
        for listeners in present:
            for listener in listeners.all:
                if listener not in told:
                    told.append(listener)
                    listeners.call(listener, event)


def checked_listeners(value: Any) -> tuple[Listener, ...]:
    """``on_event`` as a tuple.

    Raises:
        ConfigurationError: it is neither ``None``, nor a plain function, nor several.
    """
    if value is None:
        return ()
    listeners = (value,) if callable(value) or not isinstance(value, Iterable) else tuple(value)
    for listener in listeners:
        if (
            not callable(listener)
            or inspect.iscoroutinefunction(listener)
            or inspect.iscoroutinefunction(type(listener).__call__)
        ):
            raise ConfigurationError(
                "on_event must be a plain function, or several: they are called, never awaited"
            )
    return listeners


def log_event(event: Event) -> None:
    """Write an event to the logger ``braze_sends``: its name and its fields."""
    if log.isEnabledFor(event.severity):
        fields = event.fields()
        told = " ".join(f"{name}={value}" for name, value in fields.items())
        # A record has a ``message`` of its own.
        extra = {"text" if name == "message" else name: value for name, value in fields.items()}
        log.log(event.severity, "%s %s", event.name, told, extra={"event": event.name, **extra})
