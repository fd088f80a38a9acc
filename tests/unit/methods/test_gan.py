"""What a discriminator, its pairs and its pace are, and that a generator learns by them."""

import io
import math

import numpy as np
import pytest
import torch

from dpdm.config import Machine
from dpdm.data import ImageDataset
from dpdm.methods import GAN, ImageFacts, Optimizer
from dpdm.methods.adversary import Discriminator, Pace, PairLoader, PairLoss, Pairs
from dpdm.privacy import NonPrivate, PoissonSums
from dpdm.runs import Trainer
from dpdm.types import InputError
from shades import NAMES, assert_goes_on, shades

CPU = torch.device("cpu")
FACTS = ImageFacts((1, 8, 8), NAMES)
TOY = {"width": 16, "latent": 2, "discriminator_width": 4, "batch_size": 16}


def loader(data, *, seed=0):
    return PairLoader(data, GAN(**TOY).untrained(FACTS, seed=seed), CPU)


def random_bytes(count, seed=0):
    return np.random.default_rng(seed).bytes(16 * count)


@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 0), ((1, 28, 28), 10), ((3, 9, 21), 1)])
def test_a_discriminator_gives_each_image_a_number_as_one_of_its_class(shape, classes):
    facts = ImageFacts(shape, tuple(map(str, range(classes))))
    discriminator = Discriminator(facts, width=4)
    x, labels = torch.rand(5, *shape), torch.arange(5) % max(1, classes)
    values = discriminator(x, labels)
    assert values.shape == (5,)
    assert torch.allclose(values[2:3], discriminator(x[2:3], labels[2:3]), atol=1e-6)
    if classes > 1:
        assert not torch.allclose(values, discriminator(x, labels.roll(1)), atol=1e-4)


def test_the_loss_of_a_pair_is_what_both_halves_lose():
    class Mean(torch.nn.Module):
        def forward(self, x, labels):
            return x.flatten(1).mean(1) + labels

    images = torch.zeros(2, 2, 1, 2, 2)
    images[0, 0], images[0, 1], images[1, 0], images[1, 1] = 3.0, -2.0, 0.0, 1.0
    loss = PairLoss()(Mean(), Pairs(images, torch.tensor([0, 1])))
    expected = [math.log1p(math.exp(-3)) + math.log1p(math.exp(-2)), math.log1p(math.exp(-1)) + math.log1p(math.exp(2))]
    assert loss.tolist() == pytest.approx(expected)


def test_what_is_generated_beside_an_image_depends_on_its_own_bytes_and_class_alone():
    load, drawn = loader(shades(6)), random_bytes(3)
    pairs = load(np.array([4, 1, 0]), io.BytesIO(drawn).read)
    assert pairs.images.shape == (3, 2, 1, 8, 8)
    assert pairs.labels.tolist() == [0, 1, 0]
    alone = load(np.array([1]), io.BytesIO(drawn[16:32]).read)
    assert torch.allclose(alone.images, pairs.images[1:2], atol=1e-6)
    assert not torch.allclose(pairs.images[0, 1], pairs.images[2, 1], atol=1e-3)


def test_a_group_shows_one_of_its_images_and_a_blank_one_is_no_number():
    data = shades(6, groups=np.array([0, 0, 0, 0, 1, 1]))
    load = loader(data)
    seen = {float(load(np.array([0]), io.BytesIO(random_bytes(1, seed)).read).images[0, 0].sum()) for seed in range(30)}
    assert len(seen) == 4
    blank = loader(ImageDataset(images=data.images[:2], name="blank", blank=np.array([False, True])))
    assert blank(np.array([0, 1]), io.BytesIO(random_bytes(2)).read).images[:, 0].isnan().any((1, 2, 3)).tolist() == [
        False,
        True,
    ]


def test_the_pace_slows_where_the_discriminator_is_fooled_and_is_all_in_its_state():
    pace, steps = Pace(threshold=0.7, most=7), []
    assert pace.is_due()
    for _ in range(400):
        pace.saw(torch.zeros(4, dtype=torch.bool))
        steps.append(int(pace.steps))
    assert sorted(set(steps)) == [1, 2, 5, 7]
    assert steps.count(1) == 39  # a time of grace before the first change, too
    other = Pace(threshold=0.7, most=7)
    other.load_state_dict(pace.state_dict())
    assert [other.is_due() for _ in range(7)] == [False] * 6 + [True]
    known = Pace(threshold=0.7, most=7)
    for _ in range(400):
        known.saw(torch.ones(4, dtype=torch.bool))
    assert int(known.steps) == 1


def test_a_generator_learns_the_shade_of_each_class():
    data = shades(64)
    plan = NonPrivate(dataset_size=64, releases=(PoissonSums(count=250, expected_batch_size=32, max_norm=1.0),))
    rates = {"generator_rate": 3e-3, "optimizer": Optimizer(learning_rate=3e-3, ema_decay=0.9)}
    machine = Machine(device="cpu", precision="float32", strategy="layer-wise")
    made = Trainer(method=GAN(**TOY, **rates), plan=plan, machine=machine, ledger=None).fit(data)
    images, labels = made.sample(40, seed=0)
    dark, bright = (images[labels == label].mean() for label in (0, 1))
    assert dark < 90
    assert bright > 160
    assert made.generator.class_shares is None


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    assert_goes_on(GAN(**TOY, most_steps=3), tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 4}, "width"),
        ({"latent": 10**6}, "latent"),
        ({"discriminator_width": 0}, "discriminator_width"),
        ({"batch_size": 10**6}, "batch_size"),
        ({"most_steps": 0}, "most_steps"),
        ({"generator_rate": 1.0}, "generator_rate"),
        ({"threshold": 1.5}, "threshold"),
        ({"spread": -1.0}, "spread"),
        ({"optimizer": None}, "optimizer must be Optimizer"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        GAN(**settings)


def test_a_plan_takes_steps_alone():
    with pytest.raises(InputError, match=r"privacy.steps = 0 trains no network"):
        GAN().plan(epsilon=1.0, dataset_size=100, delta=1e-3, steps=0)
    (steps,) = GAN().plan(epsilon=3.0, dataset_size=100, delta=1e-13, steps=7).releases
    assert steps.count == 7
    assert GAN().memory(FACTS, public=0, records=100) < GAN(batch_size=1000).memory(FACTS, public=0, records=100)
