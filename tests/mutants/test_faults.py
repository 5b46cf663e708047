"""The list of faults stays true to the code; ``python -m tests.mutants`` runs them."""

from __future__ import annotations

from pathlib import Path

from tests.mutants.faults import FAULTS, wrong


def test_each_fault_can_be_applied() -> None:
    """The text that a fault replaces occurs exactly once, and what is left is Python."""
    root = Path(__file__).parents[2]
    assert [] == [told for fault in FAULTS if (told := wrong(fault, root))]
    assert len(FAULTS) == len({fault.name for fault in FAULTS})


def test_each_fault_names_a_test_that_exists() -> None:
    """A killer that was renamed stops a run in its midst."""
    root, missing = Path(__file__).parents[2], []
    for fault in FAULTS:
        path, _, name = fault.killer.split(" ")[0].partition("::")
        defined = f"def {name.split('[')[0]}("
        if name and defined not in (root / path).read_text():
            missing.append(fault.killer)
    assert [] == missing
