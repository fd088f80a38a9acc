"""Retrieval of public trajectories: what is kept, what is asked, and where private steps train."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from two_worlds import IMAGES, public_start

from dpdm.config import decode_method, encode_method
from dpdm.data import ImageDataset
from dpdm.diffusion import EDM, VE, Below, DiscreteTimes, LogNormal, PreconditionedDenoiser
from dpdm.methods import Diffusion, ImageFacts, Retrieval, Start
from dpdm.methods.retrieval import Trajectories
from dpdm.networks import MLP
from dpdm.runs import Release, Trainer
from dpdm.types import InputError, images_to_tensor

FACTS = ImageFacts((1, 8, 8), ("dark", "light"))
NETWORK = MLP(width=8, blocks=1)
START = Start(sources=("public",), gains=False)


class Run:
    """Has public images: dark ones and light ones, a little apart."""

    device, seed = torch.device("cpu"), 3

    class processes:
        from_first = staticmethod(lambda tensor: tensor)

    def __init__(self, names=FACTS.class_names):
        random, labels = np.random.default_rng(0), np.arange(40) % 2
        levels = np.where(labels, 200, 50)[:, None, None, None] + random.integers(-20, 20, (40, 8, 8, 1))
        self.public = ImageDataset(
            images=levels.astype(np.uint8), labels=labels, num_classes=2, class_names=names, name="shown", public=True
        )

    def autocast(self):
        return torch.autocast("cpu", enabled=False)


class TwoGreys(nn.Module):
    """F of EDM whose denoiser is a mixture of two even greys; told a class, it knows which."""

    def forward(self, x, c_noise, labels):
        sigma, edm = (4 * c_noise).exp(), EDM()
        c_skip, c_out, c_in, _ = (c[:, None, None, None] for c in edm.coefficients(sigma))
        greys = torch.tensor([50.0, 200.0]) / 127.5 - 1
        mean = (x / c_in).flatten(1).mean(1, keepdim=True)
        weights = torch.softmax(-((mean - greys) ** 2) * 64 / (2 * sigma[:, None] ** 2), dim=1)
        known = torch.nn.functional.one_hot(labels, 3)[:, :2].float()
        weights = torch.where(labels[:, None] < 2, known, weights)
        denoised = (weights @ greys)[:, None, None, None].expand_as(x)
        return (denoised - c_skip * x / c_in) / c_out


def filled(retrieval=None, names=FACTS.class_names):
    retrieval = retrieval or Retrieval(keep=30)
    made, run = Trajectories(retrieval, FACTS), Run(names)
    made.fill(run, PreconditionedDenoiser(TwoGreys(), EDM()), images_to_tensor, null_label=2)
    return made, run


def test_classes_retrieve_public_images_of_their_own_name():
    made, run = filled()
    chosen = made.of.entries(run.public, FACTS, seed=3)
    light = torch.from_numpy(run.public.labels)[chosen] == 1
    assert made.counts[0][light].sum() == made.counts[1][~light].sum() == 0
    assert made.counts.sum(1).tolist() == [15, 15]
    assert (made.ends[light].float() - 200).abs().max() <= 1
    drawn = made.draw(torch.tensor([0, 1] * 20), random=torch.Generator().manual_seed(0))
    assert torch.allclose(drawn[1::2], torch.tensor(200 / 127.5 - 1), atol=0.01)
    assert torch.allclose(drawn[::2], torch.tensor(50 / 127.5 - 1), atol=0.01)


def test_without_the_private_names_the_nearest_of_all_public_images_are_retrieved():
    made, _ = filled(names=("night", "day"))
    ends = made.ends.float().mean((1, 2, 3))
    for label, grey in enumerate((50, 200)):  # the network knows classes, the images none: it brings them to a grey
        asked = made.counts[label] > 0
        assert (ends[asked] - grey).abs().max() < 1


def test_trajectories_are_the_same_of_the_same_seed():
    assert all(torch.equal(one, other) for one, other in zip(filled()[0].buffers(), filled()[0].buffers(), strict=True))


def test_sampling_begins_at_ends_with_noise_of_the_first_level():
    method = Diffusion(network=NETWORK, preconditioning=EDM(), start=START, retrieval=Retrieval(keep=2, level=0.5))
    generator = method.untrained(FACTS)
    generator.trajectories.ends.fill_(255)
    seen = []

    class Kept(type(generator.sampler)):
        def _integrate(self, denoiser, x, labels, levels, generator):
            seen.append((x, levels))
            return x

    generator.sampler = Kept(sigma_max=0.5)
    generator.draw(torch.zeros(500, dtype=torch.long), random=torch.Generator().manual_seed(0))
    ((x, levels),) = seen
    assert levels[0] == pytest.approx(0.5)
    assert (x - 1).mean().abs() < 0.02
    assert (x - 1).std() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
    "base", [LogNormal(), VE().noise_levels, DiscreteTimes()], ids=lambda base: type(base).__name__
)
def test_levels_below_one_are_those_of_the_base_that_are(base):
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    whole, below = base.quantile(u), Below(base=base, most=1.0).quantile(u)
    assert below.max() <= 1
    kept = whole[whole <= 1]
    quantiles = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    assert torch.allclose(below.quantile(quantiles), kept.quantile(quantiles), rtol=0.01)
    assert Below(base=base, most=1.0).span == (base.span[0], 1.0)
    with pytest.raises(InputError, match="hardly any noise level of training is below 1e-05: set it higher"):
        Below(base=base, most=1e-5)


def test_samplers_keep_below_the_level_and_those_that_do_not_are_refused():
    method = Diffusion(network=NETWORK, preconditioning=EDM(), start=START, retrieval=Retrieval())
    assert method.sampler.sigma_max == 1.0
    assert decode_method(encode_method(method)) == method
    assert method.starts_from_images
    assert not Diffusion().starts_from_images
    with pytest.raises(InputError, match="sampler goes up to a noise level of 2, above all those of training"):
        dataclasses.replace(method, sampler=dataclasses.replace(method.sampler, sigma_max=2.0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"start": None, "preconditioning": EDM()}, "retrieval needs a public network: name a start"),
        ({"start": Start(sources=("public",))}, "retrieval is for a public network without a prior"),
        ({"preconditioning": VE(), "retrieval": Retrieval(key=99)}, None),
    ],
)
def test_what_does_not_go_together_is_refused(given, said):
    given = {"network": NETWORK, "start": START, "retrieval": Retrieval()} | given
    if said is None:
        assert Diffusion(**given).noise_levels.span == (0.02, 1.0)
        return
    with pytest.raises(InputError, match=said):
        Diffusion(**given)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"level": 5.0}, "retrieval.level = 5 must be below retrieval.key = 5"),
        ({"keep": 50_001}, "keep"),
        ({"keep": 0}, "keep"),
        ({"key": 1e9}, "key"),
    ],
)
def test_settings_are_checked(settings, said):
    with pytest.raises(InputError, match=said):
        Retrieval(**settings)


def test_too_few_public_images_or_a_class_that_none_shows_are_refused():
    public = Run().public
    with pytest.raises(InputError, match=r"shown has 40 images, and retrieval.keep is 41: set fewer"):
        Retrieval(keep=41).entries(public, FACTS, seed=0)
    with pytest.raises(InputError, match=r"none of the 1 images of shown .* shows the class"):
        Retrieval(keep=1).entries(public, FACTS, seed=0)


def test_counts_of_no_run_are_refused():
    retrieval, counts = Retrieval(keep=6), torch.ones(2, 6)
    for other in (counts, counts * 0.5, torch.tensor([[4.0, -1, 0, 0, 0, 0]] * 2)):
        with pytest.raises(InputError, match="counts of retrieved trajectories that no run comes to"):
            retrieval.require_possible(lambda name, c=other: c, FACTS, "model")
    retrieval.require_possible(lambda name: torch.tensor([[3.0, 0, 0, 0, 0, 0]] * 2), FACTS, "model")


def test_a_claim_names_images_twice_where_a_start_was_made_of_them_too(tmp_path):
    random = np.random.default_rng(0)
    public = ImageDataset(images=random.integers(0, 256, (9, 8, 8, 1), np.uint8), name="shown", public=True)
    start = dataclasses.replace(public_start(NETWORK, public, IMAGES.class_names, preconditioning=EDM()), gains=False)
    method = Diffusion(network=NETWORK, preconditioning=EDM(), start=start, retrieval=Retrieval(keep=6))
    plan = method.plan(epsilon=3.0, dataset_size=12, delta=1e-13, steps=2, expected_batch_size=4)
    made = Trainer(method=method, plan=plan, public=public, run=tmp_path / "run", ledger=None).fit(IMAGES)
    assert [(part.name, part.images) for part in made.public] == [("shown (again)", 9), ("shown", 9)]
    opened = Release.load(tmp_path / "run").generator
    assert torch.equal(opened.trajectories.ends.cpu(), made.generator.trajectories.ends.cpu())
    assert opened.trajectories.counts.sum() == 6
