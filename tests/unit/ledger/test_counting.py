"""A run is reserved, completed, undone or left as it is by one context."""

import numpy as np
import pytest

from dpdm.ledger import Ledger, Records, RunIdentity, counted
from dpdm.privacy import DPSGD
from dpdm.types import InputError

SCANS = Records("scans", np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8, 1))
PLAN = DPSGD(dataset_size=100, expected_batch_size=10, steps=0, delta=1e-5, releases={"first": 10.0, "second": 10.0})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path / "ledger.sqlite"), tell=lambda line: None)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "private").mkdir(parents=True)
    return tmp_path / "run"


def entered(ledger, run, made, *, begun=False, finished=False, plan=PLAN, undone=None):
    """Return the context of a run that has made `made` noisy sums when it is left."""

    def undo():
        assert undone is not None, "nothing may be undone"
        undone.append(run)

    return counted(ledger, plan, SCANS, run=run, begun=begun, finished=finished, spent=lambda: made, undo=undo)


def reservation(ledger):
    (found,) = ledger.account("scans").reservations.values()
    return found


def test_a_run_is_reserved_within_and_completed_after(ledger, run):
    with entered(ledger, run, None):
        assert (reservation(ledger).state, reservation(ledger).place) == ("running", str(run))
    assert reservation(ledger).state == "completed"
    assert reservation(ledger).events == PLAN.events()
    with entered(ledger, run, None, begun=True, finished=True):
        pass
    assert reservation(ledger).events == PLAN.events(), "told once more, it is the same"


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, RuntimeError])
def test_after_an_error_a_run_in_a_folder_goes_on_and_one_in_memory_is_completed(ledger, run, error):
    for place in (run, None):
        with pytest.raises(error), entered(ledger, place, 1):
            raise error
        if place is not None:
            assert reservation(ledger).events == PLAN.events(), "all of it stays reserved"
            with pytest.raises(InputError, match="began in a ledger"), entered(None, run, 1, begun=True):
                pass
            with pytest.raises(InputError, match="began in a ledger"), entered(None, run, 1, begun=True, finished=True):
                pass
            with entered(ledger, run, 1, begun=True):
                pass
            ledger.change_total("scans", epsilon=9.0)
    assert [r.events for r in ledger.account("scans").reservations.values()] == [PLAN.events(made=1)] * 2


def test_a_refusal_is_undone_if_nothing_is_known_of_the_run(ledger, run):
    ledger.register(SCANS, epsilon=0.1, delta=1e-5, relation="add_or_remove_one")
    undone = []
    with pytest.raises(InputError, match="does not fit"), entered(ledger, run, None, undone=undone):
        raise AssertionError("it must not be entered")
    assert undone == [run]
    with pytest.raises(InputError, match="began in another ledger"), entered(ledger, run, None, begun=True):
        pass
    assert RunIdentity.read(run / "private") is not None, "its tokens stay"


def test_what_no_ledger_counts_runs_as_it_is(ledger, run):
    for book, finished in ((None, False), (ledger, True)):
        with entered(book, run, None, begun=True, finished=finished):
            assert RunIdentity.read(run / "private") is None
    assert ledger.accounts() == {}
