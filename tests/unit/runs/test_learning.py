"""Learning rate and clipping norm from a rehearsal on drawn images, under the planned noise."""

import dataclasses

import pytest
from test_processes import launch

from dpdm.cli.fitting import rehearsed as rehearsed_settings
from dpdm.config import Config, Data, Machine, Privacy
from dpdm.data.shapes import draw_shapes
from dpdm.methods import Diffusion, ImageFacts, Prior, PriorAlone, Start
from dpdm.networks import MLP
from dpdm.privacy import FullSum, Plan
from dpdm.privacy.processes import Processes
from dpdm.runs import learning
from dpdm.runs.learning import FACTORS, rehearse_learning
from dpdm.runs.start import save_start
from dpdm.types import InputError

FACTS = ImageFacts((1, 8, 8), ("0", "1", "2"))
METHOD = Diffusion(network=MLP(width=8, blocks=1), prior=Prior(centres=1))
CONFIG = Config(
    data=Data(source="nowhere"),
    method=METHOD,
    privacy=Privacy(epsilon=1.0),
    machine=Machine(device="cpu", precision="float32"),
)
PLAN = METHOD.plan(epsilon=3.0, dataset_size=6000, delta=1e-13, steps=3, expected_batch_size=600)


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(learning, "_IMAGES", 60)
    monkeypatch.setattr(learning, "_HELD_OUT", 10)


def rehearse(config=CONFIG, plan=PLAN):
    told = []
    found = rehearse_learning(config, plan, FACTS, lambda done, whole: told.append((done, whole)))
    return found, told


def test_the_best_of_four_learning_rates_and_the_median_norm_are_found(monkeypatch):
    losses = iter([3.0, 2.0, float("inf"), 4.0])
    monkeypatch.setattr(learning._Rehearsal, "loss", lambda self: next(losses))
    found, told = rehearse()
    assert found.learning_rate == pytest.approx(METHOD.optimizer.learning_rate / 3, rel=0.03)
    assert len(found.losses) == len(FACTORS)
    assert told == [(number, 12) for number in range(1, 13)]
    assert found.max_grad_norm > 0
    assert found.max_grad_norm == float(f"{found.max_grad_norm:.2g}"), "two digits, for a person to read"


def test_the_loss_is_of_what_was_trained():
    found, _ = rehearse()
    assert all(0 < loss < 100 for loss in found.losses.values())
    assert len({*found.losses.values()}) > 1
    assert found.learning_rate == min(found.losses, key=found.losses.get)


def test_means_have_the_planned_noise_and_the_norm_that_was_found(monkeypatch):
    """z C / E of a step, and z / N of a sum over all, are those of the plan; the numbers of images are others."""
    plans, sound = [], Plan.start

    def start(self, *given, **named):
        plans.append(self)
        return sound(self, *given, **named)

    monkeypatch.setattr(Plan, "start", start)
    found, _ = rehearse()
    (steps,) = PLAN.poisson
    first, *tries = plans
    assert [plan.steps for plan in plans] == [1, 3, 3, 3, 3]
    assert [plan.poisson[0].max_norm for plan in plans] == [1.0, *[found.max_grad_norm] * 4]
    for plan in tries:
        (tried,) = plan.poisson
        assert tried.expected_batch_size == 30, "a twentieth"
        per_mean = tried.noise_multiplier / tried.expected_batch_size
        assert per_mean == pytest.approx(steps.noise_multiplier / steps.expected_batch_size)
        for own, planned in zip(plan.releases, PLAN.releases, strict=True):
            assert own.name == planned.name
            if isinstance(own, FullSum):
                assert own.noise_multiplier / plan.dataset_size == pytest.approx(planned.noise_multiplier / 6000)
    assert first.dataset_size == tries[0].dataset_size == 120


def test_no_private_image_is_opened(monkeypatch):
    monkeypatch.setattr(Data, "open", lambda self: pytest.fail("private images were opened"))
    rehearse()


def test_what_takes_no_steps_is_not_rehearsed():
    alone = PriorAlone(prior=Prior(centres=1))
    plan = alone.plan(epsilon=3.0, dataset_size=600, delta=1e-4)
    with pytest.raises(InputError, match="takes none: leave out --rehearse"):
        rehearse(dataclasses.replace(CONFIG, method=alone), plan)


WORKER = """
from pathlib import Path
import torch
from dpdm.runs import learning
from dpdm.runs.hardware import joined_processes
from test_learning import rehearse
torch.set_num_threads(1)
learning._IMAGES, learning._HELD_OUT = 60, 10
with joined_processes() as processes:
    Path(f"found{processes.rank}").write_text(repr(rehearse()[0]))
"""


@pytest.mark.proof
def test_two_processes_rehearse_one_plan(tmp_path):
    """Each sees norms of its own part of a batch, and all clip to one norm."""
    done = launch(2, WORKER, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found0").read_text() == (tmp_path / "found1").read_text()


def test_a_start_that_knows_classes_by_name_is_rehearsed_with_them(tmp_path, monkeypatch):
    """Where facts are declared, classes are known by their number alone."""
    facts, rehearsed = ImageFacts((1, 8, 8), ("ant", "bee", "cat")), []
    weights = METHOD.untrained(facts).denoiser.network.state_dict()
    images = dataclasses.replace(draw_shapes(4, (1, 8, 8)), name="shown")
    settings = {"classes": [*facts.class_names], "facts": {"shape": [1, 8, 8]}}
    (tmp_path / "start").mkdir()
    save_start(tmp_path / "start", weights, images, settings | {"preconditioning": {"kind": "moment-matched"}})
    method = dataclasses.replace(METHOD, start=Start(sources=(str(tmp_path / "start"),)))
    declared = Data(source="nowhere", size=8, channels=1, num_classes=3)
    privacy = Privacy(epsilon=3.0, delta=1e-13, dataset_size=6000, steps=3, expected_batch_size=600)
    config = dataclasses.replace(CONFIG, method=method, data=declared, privacy=privacy)

    def watched(config, plan, facts, on_progress):
        rehearsed.append(facts)
        return learning.Learning(1e-3, 0.5, {})

    monkeypatch.setattr(learning, "rehearse_learning", watched)
    found = rehearsed_settings(config, tmp_path / "run", Processes(), timed=False)
    assert rehearsed == [facts]
    assert (found.method.optimizer.learning_rate, found.privacy.max_grad_norm) == (1e-3, 0.5)
