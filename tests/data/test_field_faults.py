"""Every fault of data found in the field ends as it must, and docs/bad-inputs.md says so."""

from __future__ import annotations

import pytest
from bad_inputs import PAGE
from field_faults import FAULTS, Fault, check, outcome, table
from trials import Trial


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kind}: {fault.example}")
def test_a_fault_found_in_the_field(fault: Fault, trial: Trial) -> None:
    check(fault, outcome(fault, trial))


def test_the_page_has_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "run make docs"
