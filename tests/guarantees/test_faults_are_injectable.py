"""Every deliberate fault still finds what it changes: said in seconds, before the proofs look at what it does."""

import pytest
from injected_faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_what_a_fault_changes_is_there(fault, monkeypatch):
    fault.inject(monkeypatch)  # which ends in an AttributeError where a name has moved
