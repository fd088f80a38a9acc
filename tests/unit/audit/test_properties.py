"""An attacker finds the shares of classes in what is generated of skewed images: no ε hides them, and this says so."""

from types import SimpleNamespace

import numpy as np
import pytest

from dpdm.audit.properties import NO_CLAIM, Properties, estimate_shares, properties_of
from dpdm.config import Machine
from dpdm.data import ImageDataset, open_dataset
from dpdm.diffusion import EDM, DenoisingLoss
from dpdm.methods import Diffusion, Optimizer, Prior, PriorAlone
from dpdm.networks import MLP
from dpdm.privacy import NonPrivate
from dpdm.runs import Trainer

SKEWED = (0.7, 0.2, 0.1)


def threes(part, numbers, *, labelled=True):
    """So many zeros, ones and twos."""
    data = open_dataset(part)
    chosen = np.concatenate([np.flatnonzero(data.labels == digit)[:number] for digit, number in enumerate(numbers)])
    images, labels = data.images[chosen], data.labels[chosen]
    told = {"labels": labels, "num_classes": 3} if labelled else {}
    return ImageDataset(images=images, name="three digits", **told)


def opened(release, data, held_out):
    return SimpleNamespace(release=release, private=data, held_out=held_out)


@pytest.mark.proof
def test_shares_are_estimated_whatever_those_of_the_known_images_are():
    known = threes("digits:test", (10, 20, 30))
    samples = threes("digits", (70, 20, 10)).images
    assert estimate_shares(samples, known) == pytest.approx(SKEWED, abs=0.03)


@pytest.fixture(scope="module")
def skewed():
    """A generator of 100 digits, seventy of them zeros, without privacy."""
    method = Diffusion(
        network=MLP(width=64, blocks=2),
        preconditioning=EDM(),
        loss=DenoisingLoss(noise_multiplicity=4, label_dropout=0.5),
        optimizer=Optimizer(learning_rate=3e-3, ema_decay=0.99),
    )
    plan = NonPrivate.dp_sgd(dataset_size=100, expected_batch_size=100, steps=150)
    data = threes("digits", (70, 20, 10))
    return Trainer(method=method, plan=plan, machine=Machine(precision="float32")).fit(data), data


@pytest.mark.proof
def test_images_drawn_without_label_tell_how_frequent_classes_are(skewed):
    """Calibrated where it must succeed: samples are otherwise drawn of each class alike."""
    release, data = skewed
    found = properties_of(opened(release, data, threes("digits:test", (30, 30, 30))), 500)
    assert found.true == pytest.approx(SKEWED)
    assert found.error < 0.15
    assert found.as_json()["what"] == NO_CLAIM
    assert properties_of(opened(release, data, None), 500) is None, "nobody knows what a class looks like"
    other = ImageDataset(images=data.images, labels=data.labels, num_classes=3, class_names=("a", "b", "c"), name="o")
    assert properties_of(opened(release, data, other), 500) is None


def test_shares_that_noisy_sums_counted_need_no_image():
    data = threes("digits", (70, 20, 10))
    method = PriorAlone(prior=Prior(centres=1))
    plan = method.plan(epsilon=50.0, dataset_size=100, delta=1e-3)
    release = Trainer(method=method, plan=plan, ledger=None).fit(data)
    found = properties_of(opened(release, data, None), 10)
    assert found.by == "class shares that the run released"
    assert found.estimated == release.generator.class_shares
    assert found.error < 0.2


def test_without_classes_it_is_looks_that_are_counted():
    data, held_out = (
        threes(part, numbers, labelled=False)
        for part, numbers in [("digits", (70, 20, 10)), ("digits:test", (30, 30, 30))]
    )

    class Copies:
        def sample(self, number):
            return data.images[np.arange(number) % len(data)], None

    found = properties_of(opened(Copies(), data, held_out), 200)
    assert found.names[:2] == ("look 0", "look 1")
    assert found.error == pytest.approx(0, abs=1e-6)
    assert max(found.true) > 0.1
    assert properties_of(opened(Copies(), data, None), 200) is None


def test_the_error_is_the_part_that_is_of_another_class():
    assert Properties(("a", "b", "c"), (0.5, 0.3, 0.2), (0.7, 0.2, 0.1), "").error == pytest.approx(0.2)
