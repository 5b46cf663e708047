"""Tools for tests of code that creates send IDs: Braze on loopback, and a clock that jumps.

::

    async with FakeBraze(daily_limit=3) as fake:
        async with SendsClient("test-key", base_url=fake.base_url) as braze:
            fake.script(Fault(status=503), Fault(drop="after"))
            await braze.create_send_id("campaign-id", "story-1")
    fake.assert_created("campaign-id", "story-1")

In pytest, the fixture ``fake_braze`` gives a running one. Code that needs no socket can be run
without waiting::

    run_virtual(asyncio.sleep(86400))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pragma: no cover
    from braze_sends.testing.clock import VirtualTimeLoop, run_virtual
    from braze_sends.testing.fake import FakeBraze, Fault

__all__ = ["FakeBraze", "Fault", "VirtualTimeLoop", "run_virtual"]

_HOMES = {"FakeBraze": "fake", "Fault": "fake", "VirtualTimeLoop": "clock", "run_virtual": "clock"}


def __getattr__(name: str) -> object:
    # Imported when asked for, since pytest loads the plugin of this package in every run.
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"braze_sends.testing.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
