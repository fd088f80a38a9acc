"""Every deliberate fault is caught by its check, and the check finds nothing wrong without it."""

from pathlib import Path

import injected_faults
import pytest
from injected_faults import BEGIN, CHECKS, END, FAULTS, table, two_worlds

from dpdm.audit import parametric
from dpdm.privacy import MechanismRun

pytestmark = pytest.mark.proof


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    def here(plan, width, entropy):  # in place of another process: what that would see of a fault is seen here as well
        return next(parametric._steps(plan, width, entropy, count=1))

    monkeypatch.setattr(parametric, "_in_another_process", here)
    monkeypatch.setattr(parametric, "_SELECTIONS", 400)
    monkeypatch.setattr(parametric, "_TESTED", 30_000)


@pytest.mark.parametrize("check", CHECKS, ids=CHECKS.values())
def test_sound_code_passes(check, tmp_path):
    assert check(tmp_path) == []


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_the_fault_is_caught(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(injected_faults, "_MIXING", [layer(2) for layer in fault.mixing])
    if fault.check is two_worlds:  # which must see the fault by itself: the rehearsal would refuse the first step
        monkeypatch.setattr(MechanismRun, "_require_rehearsed", lambda *arguments: None)
    fault.inject(monkeypatch)
    found = fault.check(tmp_path, **fault.given)
    assert [finding for finding in found if fault.said in finding], found


def test_the_page_on_privacy_has_the_table():
    text = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
    shown = text[text.index(BEGIN) : text.index(END) + len(END)]
    assert shown == table(), "run python tests/guarantees/injected_faults.py docs/privacy.md"
    assert len(FAULTS) >= 20
