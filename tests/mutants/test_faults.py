"""The list of faults stays true to the code; ``python -m tests.mutants`` runs them."""

from __future__ import annotations

from pathlib import Path

from tests.mutants.faults import FAULTS, wrong


def test_each_fault_can_be_applied() -> None:
    """The text that a fault replaces occurs exactly once, and what is left is Python."""
    root = Path(__file__).parents[2]
    assert [] == [told for fault in FAULTS if (told := wrong(fault, root))]
    assert len(FAULTS) == len({fault.name for fault in FAULTS})
