"""What is no argument of a trainer is refused in one line when it is given, in Python too."""

import numpy as np
import pytest

import dpdm
from dpdm.privacy import DPSGD
from dpdm.runs import Trainer
from dpdm.types import InputError

PLAN = DPSGD(dataset_size=10, expected_batch_size=5, steps=2, noise_multiplier=1.0, delta=1e-3)
METHOD = dpdm.Diffusion(preconditioning=dpdm.EDM())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plan", None),
        ("method", None),
        ("method", dpdm.CompactUNet()),
        ("machine", None),
        ("entropy", object()),
        ("ledger", "ledger.sqlite"),
        ("run", 3),
        ("seed", -1),
    ],
)
def test_an_argument_of_another_type_is_refused_in_one_line(name, value):
    with pytest.raises(InputError, match=name) as caught:
        Trainer(**{"method": METHOD, "plan": PLAN, "ledger": None, name: value})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss", None), ("optimizer", None), ("sampler", None), ("samplers", []), ("prior", 0.2)],
)
def test_an_argument_of_a_method_is_checked_when_it_is_given(name, value):
    with pytest.raises(InputError, match=name) as caught:
        dpdm.Diffusion(**{name: value})
    assert len(str(caught.value).splitlines()) == 1


def test_images_that_are_no_data_set_are_refused_and_leave_no_folder(tmp_path):
    for images in (None, np.zeros((3, 8, 8, 1), np.uint8)):
        with pytest.raises(InputError, match=r"dpdm\.open_dataset"):
            Trainer(method=METHOD, plan=PLAN, ledger=None, run=tmp_path / "run").fit(images)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("epsilon", ["1", True, 1j])
def test_a_budget_that_is_no_number_is_refused(epsilon):
    with pytest.raises(InputError, match="must be a number above 0"):
        dpdm.Synthesizer(epsilon=epsilon).fit(np.zeros((20, 8, 8, 1), np.uint8))
