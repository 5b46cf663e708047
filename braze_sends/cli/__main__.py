"""``python -m braze_sends.cli`` is ``braze-sends``."""

from __future__ import annotations

from braze_sends.cli import main

main()
