"""What an autoencoder and a flow lose of an image, and that a generator learns by it."""

import io
import math

import numpy as np
import pytest
import torch

from dpdm.config import Machine
from dpdm.methods import ImageFacts, LatentFlow, Optimizer
from dpdm.methods.autoencoder import Coded, CodeLoader
from dpdm.privacy import NonPrivate, PoissonSums
from dpdm.runs import Trainer
from dpdm.types import InputError
from shades import NAMES, assert_goes_on, shades

CPU = torch.device("cpu")
FACTS = ImageFacts((1, 8, 8), NAMES)
TOY = {"latent": 2, "encoder_width": 4, "width": 16, "couplings": 2, "coupling_width": 8}


def stepped(**settings):
    method = LatentFlow(**TOY, **settings)
    return method.stepped(method.untrained(FACTS))


def test_an_image_loses_what_its_decoded_code_differs_by_and_what_its_code_is_unlikely_by():
    of = stepped()
    network, loss, made_up = of.module, of.loss, of.made_up
    images, labels, noise = batch = made_up(5)
    raw = network.head(network.halvings(images))
    code = raw / raw.square().mean(1, keepdim=True).sqrt() + 0.2 * noise
    errors = (network.generator(code, labels) - images).square().sum((1, 2, 3)) / 2
    assert torch.allclose(loss(network, batch), errors + code.square().sum(1) / 2, rtol=1e-3)  # the flow is none yet
    alone = loss(network, Coded(images[2:3], labels[2:3], noise[2:3]))
    assert torch.allclose(alone, loss(network, batch)[2:3], rtol=1e-5)


def test_how_unlikely_a_code_is_moves_no_encoder():
    of = stepped()
    network, made_up = of.module, of.made_up
    of_parts = [
        torch.autograd.grad(network(*made_up(3))[part].sum(), list(network.parameters()), allow_unused=True)
        for part in (0, 1)
    ]
    flow = {id(p) for p in network.generator.flow.parameters()}
    for p, of_errors, of_unlikely in zip(network.parameters(), *of_parts, strict=True):
        assert (of_errors is None) == (id(p) in flow)
        assert (of_unlikely is None) == (id(p) not in flow)


def test_the_noise_of_a_code_is_by_an_images_own_bytes_and_a_blank_image_is_no_number():
    load, drawn = CodeLoader(shades(6, blank=np.arange(6) == 1), 3, CPU), np.random.default_rng(0).bytes(48)
    batch = load(np.array([4, 1, 0]), io.BytesIO(drawn).read)
    alone = load(np.array([0]), io.BytesIO(drawn[32:]).read)
    assert torch.equal(alone.noise, batch.noise[2:])
    assert batch.labels.tolist() == [0, 1, 0]
    assert batch.images.isnan().flatten(1).any(1).tolist() == [False, True, False]


def test_a_flow_that_trains_alone_begins_at_the_average_and_leaves_codes_as_they_are():
    network, average = stepped().module, stepped().module
    with torch.no_grad():
        for p in average.parameters():
            p.add_(1)
    network.keep_codes(average)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), average.parameters(), strict=True))
    assert {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad} == {"flow"}
    with torch.no_grad():
        network.generator.flow.places.weight.add_(1)
    network.keep_codes(average)
    assert not torch.equal(network.generator.flow.places.weight, average.generator.flow.places.weight)


def test_the_parts_of_all_steps():
    phases = [LatentFlow(flow_share=0.4)._phase(spent, 10) for spent in range(10)]
    assert [alone for alone, _ in phases] == 6 * [False] + 4 * [True]
    assert [part for _, part in phases] == pytest.approx([n / 6 for n in range(6)] + [n / 4 for n in range(4)])
    assert not any(LatentFlow(flow_share=0)._phase(spent, 10)[0] for spent in range(10))
    assert LatentFlow(flow_share=0.9)._phase(0, 1) == (True, 0)


def test_a_generator_learns_the_shade_of_each_class():
    plan = NonPrivate(dataset_size=64, releases=(PoissonSums(count=100, expected_batch_size=32, max_norm=10.0),))
    machine = Machine(device="cpu", precision="float32", strategy="layer-wise")
    method = LatentFlow(**TOY, optimizer=Optimizer(learning_rate=1e-2, ema_decay=0.9))
    made = Trainer(method=method, plan=plan, machine=machine, ledger=None).fit(shades(64))
    images, labels = made.sample(40, seed=0)
    dark, bright = (images[labels == label].mean() for label in (0, 1))
    assert dark < 90
    assert bright > 160
    assert made.generator.class_shares is None


@pytest.mark.parametrize("taken", [2, 4])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(taken, tmp_path):
    assert_goes_on(LatentFlow(**TOY), tmp_path, taken=taken)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"latent": 1}, "latent"),
        ({"latent": 10**6}, "latent"),
        ({"encoder_width": 0}, "encoder_width"),
        ({"width": 4}, "width"),
        ({"couplings": 100}, "couplings"),
        ({"coupling_width": 10**6}, "coupling_width"),
        ({"flow_share": 1.0}, "flow_share"),
        ({"code_noise": math.nan}, "code_noise"),
        ({"optimizer": None}, "optimizer must be Optimizer"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        LatentFlow(**settings)


def test_a_plan_takes_steps_alone():
    with pytest.raises(InputError, match=r"privacy.steps = 0 trains no network"):
        LatentFlow().plan(epsilon=1.0, dataset_size=100, delta=1e-3, steps=0)
    (steps,) = LatentFlow().plan(epsilon=3.0, dataset_size=100, delta=1e-13, steps=7).releases
    assert steps.count == 7
