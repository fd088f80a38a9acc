"""The matrices that private images choose: what an image says of them, and what the steps then change."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from two_worlds import IMAGES, images, public_start

from dpdm.config import Machine
from dpdm.data import ImageDataset
from dpdm.diffusion import EDM
from dpdm.methods import Diffusion, ImageFacts, Prior
from dpdm.methods.matrices import _of_length_one, _votes, choose_matrices
from dpdm.methods.start import MATRICES
from dpdm.methods.trained import Trained
from dpdm.networks import MLP, CompactUNet
from dpdm.networks.low_rank import matrices
from dpdm.privacy import Noisy
from dpdm.runs import Trainer, verify_release
from dpdm.runs.start import open_start
from dpdm.types import InputError

SHOWN = dataclasses.replace(images(40, seed=7), labels=None, num_classes=0, class_names=(), name="shown", public=True)
NETWORK = MLP(width=8, blocks=1)


def method(trains, network=NETWORK):
    start = dataclasses.replace(public_start(network, SHOWN, IMAGES.class_names), trains=trains)
    return Diffusion(network=network, prior=Prior(centres=1), start=start)


def trainer(made, run=None, *, steps=2):
    plan = made.plan(epsilon=3.0, dataset_size=12, delta=1e-13, steps=steps, expected_batch_size=4)
    return Trainer(method=made, plan=plan, machine=Machine(device="cpu", precision="float32"), run=run, ledger=None)


def denoiser_of(made, data):
    denoiser = made.untrained(ImageFacts(data.shape, data.class_names), seed=3).denoiser
    for parameter in denoiser.network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return denoiser


@pytest.mark.parametrize("network", [NETWORK, CompactUNet(width=16)])
def test_a_row_is_the_same_to_the_bit_whatever_its_neighbours_and_its_place(network):
    random = np.random.default_rng(0)
    data = ImageDataset(
        images=random.integers(0, 256, (60, 8, 8, 1), np.uint8), labels=np.arange(60) % 3, num_classes=3, name="many"
    )
    denoiser = denoiser_of(method("chosen:3", network), data)

    def rows(images):
        return torch.cat([part for part, _ in _votes(denoiser, images, 4, 0)])

    order = random.permutation(60)
    whole, shuffled, without = rows(data), rows(data.part(order)), rows(data.part(np.arange(7, 60)))
    assert torch.allclose(whole.norm(dim=1), torch.ones(60, dtype=torch.float64))
    assert torch.equal(shuffled, whole[order])
    assert torch.equal(without, whole[7:])


def test_a_gradient_that_is_zero_or_not_finite_votes_for_nothing():
    pairs = [[0.0, 0.0], [9.0, 16.0], [torch.inf, 1.0], [torch.nan, 1.0], [1e-300, 0.0]]
    squared = torch.tensor(pairs, dtype=torch.float64)
    rows = _of_length_one(squared)
    assert torch.equal(rows[[0, 2, 3]], torch.zeros(3, 2, dtype=torch.float64))
    assert torch.allclose(rows[[1, 4]], torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=torch.float64))


def test_what_was_trainable_before_is_so_after():
    denoiser = denoiser_of(method("chosen:3"), IMAGES)
    before = [parameter.requires_grad for parameter in denoiser.parameters()]
    assert len([*_votes(denoiser, IMAGES, 1, 0)]) == 1
    assert [parameter.requires_grad for parameter in denoiser.parameters()] == before


def test_without_noise_the_matrices_with_the_longest_gradients_win():
    denoiser = denoiser_of(method("chosen:3"), IMAGES)
    seen = {}

    def once(name, make):
        assert name == MATRICES
        seen["sum"] = make()
        return Noisy(seen["sum"].total, 0.0)

    plan = SimpleNamespace(dataset_size=12)
    run = SimpleNamespace(seed=0, mechanism=SimpleNamespace(plan=plan), once=once)
    choice = choose_matrices(run, IMAGES, denoiser, 3)
    assert seen["sum"].sensitivity == 1
    assert (choice.dtype, int(choice.sum())) == (torch.uint8, 3)
    assert seen["sum"].total[choice == 1].min() >= seen["sum"].total[choice == 0].max()


@pytest.mark.parametrize("trains", ["chosen:2", "chosen:2,low-rank:2", "low-rank:2"])
def test_the_matrices_that_train_change_and_nothing_else_does(trains, tmp_path):
    made = method(trains)
    release = trainer(made, tmp_path / "run").fit(IMAGES)
    public, state = open_start(made.start.sources[0]).weights, release.generator.denoiser.network.state_dict()
    changed = {name for name in public if not torch.equal(state[name], public[name])}
    named = [f"{name}.weight" for name in matrices(release.generator.denoiser.network)]
    assert public.keys() == state.keys(), "the plain network is released"
    if (choice := release.generator.choice) is None:
        assert changed == set(named)
    else:
        assert changed == {name for name, chosen in zip(named, choice, strict=True) if chosen}
    assert verify_release(tmp_path / "run").dataset_size == 12


def test_the_choice_is_planned_as_a_sum_of_its_own():
    plan = trainer(method("chosen:2")).plan
    assert [release.name for release in plan.full][-1] == MATRICES
    assert MATRICES not in [release.name for release in trainer(method("low-rank:2")).plan.full]


def test_a_choice_that_no_run_comes_to_is_refused(tmp_path):
    release = trainer(method("chosen:2")).fit(IMAGES)
    release.generator.choice[release.generator.choice == 0] = 1
    release.save(tmp_path / "release")
    with pytest.raises(InputError, match="holds another choice of matrices than one of 2"):
        verify_release(tmp_path / "release")


def test_more_matrices_than_there_are_is_one_line_before_anything_is_spent(tmp_path):
    with pytest.raises(InputError, match=r"start\.trains chooses 99 matrices, and the network has \d+: fewer"):
        trainer(method("chosen:99"), tmp_path / "run").fit(IMAGES)
    assert not (tmp_path / "run").exists()


def test_a_choice_needs_a_prior_and_steps():
    start = dataclasses.replace(method("chosen:2").start, gains=False)
    with pytest.raises(InputError, match=r"leave chosen out of start\.trains"):
        Diffusion(preconditioning=EDM(), start=start)
    with pytest.raises(InputError, match=r"start\.trains is for private steps"):
        method("low-rank:2").plan(epsilon=1.0, dataset_size=12, steps=0)


@pytest.mark.parametrize("said", ["low-rank:3", "chosen:2", "chosen:2, low-rank:3", "all", "head.*,stem.*"])
def test_what_is_said_is_what_is_meant(said):
    meant = Trained(said)
    assert meant.rank == (3 if "low-rank" in said else None)
    assert meant.chosen == (2 if "chosen" in said else None)
