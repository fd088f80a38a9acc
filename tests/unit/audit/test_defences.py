"""Defences without DP do what they say, and each leaves what its docstring says that it leaves."""

import numpy as np
import pytest

from dpdm.audit.defences import draw_away, leakage, stop_before_copies
from dpdm.types import InputError

RNG = np.random.default_rng(99)
TRAINING, HELD_OUT, FRESH = RNG.integers(0, 256, (3, 60, 8, 8, 1), dtype=np.uint8)
LABELS = np.arange(60) % 3


def honest(labels, seed):
    return np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8)


def copies(labels, seed):
    """About half of the images are of the training set."""
    rng, made = np.random.default_rng(seed), honest(labels, seed)
    chosen = rng.random(len(made)) < 0.5
    made[chosen] = TRAINING[rng.integers(0, 60, chosen.sum())]
    return made


def test_what_is_near_is_drawn_again_and_the_rest_stays():
    made = draw_away(copies, LABELS, TRAINING, below=0.2)
    distances = np.sqrt(((made[:, None] / 255.0 - TRAINING / 255.0) ** 2).mean(axis=(2, 3, 4)))
    assert distances.min() >= 0.2
    kept = (made == copies(LABELS, 0)).all(axis=(1, 2, 3))
    assert 20 < kept.sum() < 40
    assert np.array_equal(draw_away(honest, LABELS, TRAINING, below=0.01), honest(LABELS, 0))


def test_a_generator_that_only_copies_is_refused():
    with pytest.raises(InputError, match="60 of 60 images are near a training image after 3 draws"):
        draw_away(lambda labels, seed: TRAINING[: len(labels)].copy(), LABELS, TRAINING, below=0.1, rounds=3)
    for wrong in ({"below": 0.0}, {"below": 0.1, "rounds": 0}):
        with pytest.raises(InputError):
            draw_away(honest, LABELS, TRAINING, **wrong)


def test_copies_leak_and_so_does_a_hole_where_they_would_have_been():
    """Of images with two numbers each, samples come near to everybody, but for the rejection."""
    rng = np.random.default_rng(1)
    population = np.full((4000, 8, 8, 1), 128, np.uint8)
    population[:, 0, :2, 0] = np.clip(rng.normal(128, 30, (4000, 2)), 0, 255)
    training, held_out, samples = population[:100], population[100:200], population[200:]
    assert leakage(training, training, held_out).auc > 0.9
    fair = leakage(samples, training, held_out)
    assert fair.auc < 0.6

    def draw(labels, seed):
        return samples[np.random.default_rng(seed).integers(0, len(samples), len(labels))]

    made = draw_away(draw, np.zeros(3000, np.int64), training, below=3 / 255 / 8)
    left = leakage(made, training, held_out)
    assert left.training == 0
    assert left.auc > 0.8, "no copy, and members are told from others by it"


def test_training_stops_before_the_first_state_that_copies_and_asks_for_no_more():
    asked = []

    def states():
        for name, made in [("a", honest(LABELS, 5)), ("b", honest(LABELS, 6)), ("c", TRAINING), ("d", FRESH)]:
            asked.append(name)
            yield name, made

    found = stop_before_copies(states(), TRAINING, HELD_OUT)
    assert found[0] == "b"
    assert asked == ["a", "b", "c"]
    assert stop_before_copies([("c", TRAINING)], TRAINING, HELD_OUT) is None
    assert stop_before_copies([("d", FRESH)], TRAINING, HELD_OUT)[0] == "d"
