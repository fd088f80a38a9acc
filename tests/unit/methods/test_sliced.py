"""What projections, their histograms and quantiles are, and that a generator learns by them."""

import math

import numpy as np
import pytest
import torch

from dpdm.data import ImageDataset
from dpdm.methods import ImageFacts, SlicedWasserstein
from dpdm.methods.projections import as_floats, bins_of, choices, directions, on_simplex, quantiles
from dpdm.privacy import FullSum, NonPrivate
from dpdm.runs import Trainer
from dpdm.types import InputError, images_to_tensor
from plans import in_memory

FACTS = ImageFacts((1, 28, 28), tuple("0123456789"))


def noise(count, shape=(8, 8, 1), seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return ImageDataset(images=images, labels=np.arange(count) % 2, num_classes=2, name="noise")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12)])
def test_projections_lie_between_minus_one_and_one_and_are_whole_numbers(shape):
    weights = directions(shape, 40, seed=0)
    assert weights.shape == (math.prod(shape), 40)
    assert torch.equal(weights, weights.round())
    assert (weights.abs().sum(0) <= 2**20).all()
    assert (as_floats(weights).abs().sum(0) > 0.99).all()
    assert torch.equal(weights, directions(shape, 40, seed=0))
    assert not torch.equal(weights, directions(shape, 40, seed=1))


def test_an_image_lies_in_the_same_bins_whatever_is_beside_it():
    data, weights = noise(300), directions((1, 8, 8), 50, seed=0)
    whole = torch.cat([places for places, _, _ in bins_of(data, weights, bins=16)])
    alone = torch.cat([places for places, _, _ in bins_of(data.part(range(7, 9)), weights, bins=16)])
    assert torch.equal(alone, whole[7:9])
    made = images_to_tensor(data.images).flatten(1) @ as_floats(weights)
    assert ((made + 1) * 8 - 0.5 - whole).abs().max() < 0.51


def test_each_image_has_one_vote_in_each_histogram_of_its_class():
    data = noise(6)
    (bins, weights), *others = choices(data, directions((1, 8, 8), 5, seed=0), bins=4)
    assert others == []
    assert weights.tolist() == [1.0] * 6
    histogram = torch.bincount(bins.flatten(), minlength=2 * 5 * 4).view(2, 5, 4)
    assert (histogram.sum(2) == 3).all()


def test_shares_are_the_nearest_that_add_up_to_one():
    counts = torch.tensor([[5.0, 3.0, -1.0, 2.0], [0.1, -4.0, 0.2, 30.0]], dtype=torch.float64)
    shares = on_simplex(counts, torch.tensor([10.0, 20.0], dtype=torch.float64))
    assert torch.allclose(shares.sum(1), torch.ones(2, dtype=torch.float64))
    assert shares.min() >= 0
    assert shares[0].tolist() == pytest.approx([0.5, 0.3, 0.0, 0.2])
    assert shares[1].tolist() == pytest.approx([0.0, 0.0, 0.0, 1.0])


def test_quantiles_are_those_of_evenly_filled_bins():
    even = torch.full((1, 8), 1 / 8, dtype=torch.float64)
    assert quantiles(even, 4)[0].tolist() == pytest.approx([-0.75, -0.25, 0.25, 0.75])
    last = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    assert quantiles(last, 2)[0].tolist() == pytest.approx([0.625, 0.875])
    halves = torch.tensor([[0.5, 0.0, 0.0, 0.5]], dtype=torch.float64)
    assert quantiles(halves, 4)[0].tolist() == pytest.approx([-0.875, -0.625, 0.625, 0.875])


def test_the_number_of_directions_follows_from_the_plan_alone():
    method = SlicedWasserstein()

    def number(epsilon, size):
        plan = method.plan(epsilon=epsilon, dataset_size=size)
        return method.number_of(in_memory(plan.start(), 3), 10)

    assert 50 == number(1.0, 2000) < number(1.0, 60_000) < number(10.0, 60_000) == 2000
    assert (
        SlicedWasserstein(directions=7).number_of(in_memory(method.plan(epsilon=1.0, dataset_size=9).start(), 3), 2)
        == 7
    )


def test_a_generator_learns_the_shade_of_each_class():
    shade = np.where(np.arange(64) % 2 == 0, 40, 210).astype(np.uint8)
    images = np.broadcast_to(shade[:, None, None, None], (64, 8, 8, 1)).copy()
    data = ImageDataset(images=images, labels=np.arange(64) % 2, num_classes=2, name="shades")
    method = SlicedWasserstein(directions=20, updates=60, batch_size=128, latent=2, width=16, learning_rate=1e-2)
    plan = NonPrivate(dataset_size=64, releases=(FullSum(name="histograms of projections"),))
    made, labels = Trainer(method=method, plan=plan, ledger=None).fit(data).sample(40, seed=0)
    dark, bright = (made[labels == label].mean() for label in (0, 1))
    assert dark == pytest.approx(40, abs=25)
    assert bright == pytest.approx(210, abs=25)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"bins": 1}, "bins"),
        ({"directions": 0}, "directions"),
        ({"batch_size": 7}, "batch_size"),
        ({"updates": 0}, "updates"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        SlicedWasserstein(**settings)


def test_more_than_memory_is_good_for_is_refused():
    with pytest.raises(InputError, match="directions × bins × classes"):
        SlicedWasserstein(directions=10**5, bins=1000).require_images(FACTS)
    with pytest.raises(InputError, match="directions × pixels"):
        SlicedWasserstein(directions=10**5, bins=2).require_images(ImageFacts((3, 64, 64), ()))
    base = SlicedWasserstein().memory(FACTS, public=0, records=100)
    assert SlicedWasserstein(directions=20_000).memory(FACTS, public=0, records=100) > base
    with pytest.raises(InputError, match="sliced"):
        SlicedWasserstein().plan(epsilon=1.0, dataset_size=100, delta=1e-3, steps=5)
