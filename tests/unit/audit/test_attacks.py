"""The attacks find what there is to find: members of an overfitted generator, copies among generated images."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from dpdm.audit import memorisation
from dpdm.audit.membership import ATTACKS, attack_scores, judge
from dpdm.audit.memorisation import near_samples, nearness
from dpdm.config import Machine
from dpdm.data import ImageDataset, open_dataset
from dpdm.diffusion import EDM, DenoisingLoss, V
from dpdm.evaluation import roc_chart
from dpdm.methods import Diffusion, Optimizer
from dpdm.networks import MLP
from dpdm.privacy import NonPrivate
from dpdm.runs import Trainer
from dpdm.types import images_to_tensor


@pytest.fixture(scope="module")
def overfitted():
    """A generator that has seen 40 digits 1,500 times each, without privacy, and 40 others not at all.

    After 600 times SecMI's bound was anywhere from 0.15 to 0.6; now it is at least 0.8, and chance decides nothing.
    """
    data = open_dataset("digits")
    part = ImageDataset(images=data.images[:40], labels=data.labels[:40], num_classes=10, name="forty digits")
    release = Trainer(
        method=Diffusion(
            network=MLP(width=128, blocks=2),
            preconditioning=EDM(),
            loss=DenoisingLoss(noise_multiplicity=4, label_dropout=0.0),
            optimizer=Optimizer(learning_rate=3e-3, ema_decay=0.99),
        ),
        plan=NonPrivate.dp_sgd(dataset_size=40, expected_batch_size=40, steps=1500),
        machine=Machine(strategy="layer-wise", precision="float32"),
    ).fit(part)
    images = images_to_tensor(data.images[:80])
    return release, images, torch.from_numpy(data.labels[:80]), np.arange(80) < 40


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.proof
def test_members_of_an_overfitted_generator_are_found(name, overfitted):
    release, images, labels, were_in = overfitted
    denoiser = release.generator.denoiser
    scores = attack_scores(ATTACKS[name], denoiser, images, labels)
    found = judge(scores, were_in, delta=1e-3)
    assert found.auc > 0.8
    assert found.balanced_accuracy > 0.7
    assert found.bounds.one_run > 0.3
    alone = attack_scores(ATTACKS[name], denoiser, images[3:5], labels[3:5])
    assert alone == pytest.approx(scores[3:5], rel=1e-3)


@pytest.mark.proof
def test_images_are_extracted_from_an_overfitted_generator(overfitted):
    """Calibrated where it must succeed: a generator that memorises, of which an attacker has samples alone."""
    release, _, _, were_in = overfitted
    data = open_dataset("digits")
    samples, _ = release.sample(400, seed=0)
    found = nearness(samples, data.images[:40], data.images[40:400]).extracted
    assert found.training >= 20
    assert found.training > 5 * found.held_out
    assert found.p_value < 1e-4
    assert found.copies > 0.5 * found.again > 40
    told = judge(near_samples(samples, data.images[:80]), were_in, delta=1e-3)
    assert told.auc > 0.8
    assert told.bounds.one_run > 0.3


def test_rates_are_those_of_the_curve():
    scores = np.array([5.0, 4, 3, 2, 1, 0, -1, -2])
    were_in = np.array([True, True, False, True, False, False, True, False])
    found = judge(scores, were_in, delta=1e-3)
    assert found.auc == pytest.approx(12 / 16)  # pairs in the right order
    assert [rate.true_positive_rate for rate in found.rates] == [0.5, 0.5]  # two found before the first false alarm
    assert found.rates[0].low < 0.5 < found.rates[0].high
    tied = judge(np.zeros(8), were_in, delta=1e-3)
    assert (tied.auc, tied.balanced_accuracy) == (0.5, 0.5)
    assert tied.rates[0].true_positive_rate == 0


def test_copies_are_found_and_measured():
    rng = np.random.default_rng(0)
    population = rng.integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    training, held_out, fresh = population[:150], population[150:300], population[300:]
    honest = nearness(fresh, training, held_out)
    assert honest.nearer_to_training[3] > 1e-4
    assert honest.nearest.mean() == pytest.approx(honest.of_held_out.mean(), rel=0.05)
    copies = nearness(np.concatenate([training[:90], fresh[:10]]), training, held_out)
    assert copies.neighbour[:90].tolist() == list(range(90))
    assert copies.nearest[:90] == pytest.approx(0, abs=1e-6)
    assert copies.carlini[:90].max() < 0.1 < 1 < copies.carlini[90:].min()
    assert copies.nearer_to_training[0] > 0.9
    assert copies.nearer_to_training[3] < 1e-10
    assert copies.extracted.training >= 90 > 5 > copies.extracted.held_out
    assert copies.extracted.p_value < 1e-10
    twice = nearness(np.concatenate([training[:9], training[:9], fresh]), training, held_out).extracted
    assert (twice.again, twice.copies) == (18, 18), "what comes again is kept, and is a copy"
    assert honest.extracted.p_value > 0.01
    assert honest.extracted.again <= 5
    assert nearness(fresh, training, None).nearer_to_training is None


@pytest.mark.parametrize("at_once", [1, 7, 60, 149, 1000])
def test_the_nearest_of_many_images_are_found_a_part_at_a_time(at_once, monkeypatch):
    rng = np.random.default_rng(0)
    generated, training = (rng.integers(0, 256, (number, 8, 8, 1), dtype=np.uint8) for number in (20, 150))
    monkeypatch.setattr(memorisation, "_AT_ONCE", 64 * at_once)
    found = nearness(generated, training, None)
    levels = [images.reshape(len(images), -1) / 255 for images in (generated, training)]
    exact = np.sqrt(np.square(levels[0][:, None] - levels[1]).mean(2))
    assert found.neighbour.tolist() == exact.argmin(1).tolist()
    assert found.nearest == pytest.approx(exact.min(1), rel=1e-5)
    assert found.carlini == pytest.approx(exact.min(1) / (0.5 * np.sort(exact, 1)[:, :50].mean(1)), rel=1e-5)


def test_a_generator_that_copies_nobody_is_not_accused():
    """Held-out images in the order of classes, many more than training ones; and generated ones that are all alike."""
    data, test = open_dataset("digits"), open_dataset("digits:test")
    held_out = data.images[np.argsort(data.labels, kind="stable")]
    found = nearness(test.images[::2], test.images[1::2][:100], held_out)
    assert found.nearer_to_training[3] > 1e-4
    rng, accused = np.random.default_rng(0), 0
    population = rng.integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    for seed in range(20):
        shuffled = np.random.default_rng(seed).permutation(population)
        alike = np.repeat(shuffled[300:308], 50, axis=0)
        accused += nearness(alike, shuffled[:150], shuffled[150:300]).nearer_to_training[3] < 0.05
    assert accused <= 4


def test_a_distance_is_a_root_mean_square_of_levels():
    black, grey = np.zeros((1, 8, 8, 1), dtype=np.uint8), np.full((1, 8, 8, 1), 51, dtype=np.uint8)
    assert nearness(grey, black, None).nearest[0] == pytest.approx(0.2, abs=1e-6)


def test_curves_are_drawn_between_the_axes():
    ceiling = [(1e-3, 1e-2), (1e-2, 0.1), (1.0, 1.0)]
    picture = roc_chart({"loss <": [(0.0, 0.0), (0.5, 0.7), (1.0, 1.0)]}, ceiling)
    root = ElementTree.fromstring(picture)
    lines = [element.get("points") for element in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 3
    for x, y in re.findall(r"([\d.]+),([\d.]+)", " ".join(lines)):
        assert 54 <= float(x) <= 414
        assert 12 <= float(y) <= 372
    assert lines[0].startswith("54.0,252.0")  # 0.001 at the left edge, 0.01 a third of the way up
    assert "what the audited sums allow" in picture
    assert "loss &lt;" in picture
    points = roc_chart({"loss": [(0.01, 0.3), (0.001, 0.1)]}, ceiling)
    assert "loss: 30 % at 1 %" in points
    assert points.count("<polyline") == 2


def test_v_has_attacks_too():
    from dpdm.diffusion import PreconditionedDenoiser

    denoiser = PreconditionedDenoiser(MLP(width=16, blocks=1).build((1, 8, 8), num_classes=2), V())
    for attack in ATTACKS.values():
        scores = attack_scores(attack, denoiser, torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.long))
        assert np.isfinite(scores).all()
