"""Amplification by subsampling holds for independent inclusions, and for those only."""

import numpy as np
import pytest

from dpdm.privacy import DPSGD, InsecureSeededEntropy, OperatingSystemEntropy
from dpdm.privacy.accounting import PoissonGaussianSteps
from dpdm.privacy.batch_selection import physical_batches, poisson

N, Q, T = 2000, 0.05, 2000


@pytest.fixture(scope="module")
def inclusions():
    entropy = OperatingSystemEntropy()
    table = np.zeros((T, N), dtype=bool)
    for step in range(T):
        table[step, poisson(N, sample_rate=Q, random_bytes=entropy.stream("selection", step))] = True
    return table


def statistics(table):
    """Return what tells Poisson selection from all else, each as a multiple of its standard error."""
    steps, number = table.shape
    centred = (table - Q) / np.sqrt(Q * (1 - Q))
    return {
        "mean": centred.mean() * np.sqrt(table.size),
        "variance of batch sizes": (table.sum(1).var() / (number * Q * (1 - Q)) - 1) / np.sqrt(2 / steps),
        "variance of participations": (table.sum(0).var() / (steps * Q * (1 - Q)) - 1) / np.sqrt(2 / number),
        "next step": (centred[1:] * centred[:-1]).mean() * np.sqrt(table.size),
        "next record": (centred[:, 1:] * centred[:, :-1]).mean() * np.sqrt(table.size),
        "step after an epoch": (centred[20:] * centred[:-20]).mean() * np.sqrt(table.size),
    }


def test_inclusions_are_independent_with_probability_q(inclusions):
    for name, z in statistics(inclusions).items():
        assert abs(z) < 6, name


@pytest.mark.parametrize(
    ("fault", "shows_in"),
    [
        ("shuffled", "variance of participations"),
        ("fixed size", "variance of batch sizes"),
        ("in runs", "next step"),
    ],
)
def test_other_selections_would_be_noticed(fault, shows_in):
    rng = np.random.default_rng(0)
    table = np.zeros((T, N), dtype=bool)
    if fault == "shuffled":
        for epoch in range(T // 20):
            table[epoch * 20 + np.repeat(np.arange(20), N // 20), rng.permutation(N)] = True
    elif fault == "fixed size":
        for row in table:
            row[rng.choice(N, int(Q * N), replace=False)] = True
    else:
        table[:] = np.repeat(rng.random((T // 2, N)) < Q, 2, axis=0)
    assert abs(statistics(table)[shows_in]) > 6


def test_the_accounted_event_is_the_selection_that_is_made():
    plan = DPSGD(dataset_size=N, expected_batch_size=100, steps=T, noise_multiplier=3.0)
    assert plan.events() == [PoissonGaussianSteps(noise_multiplier=3.0, sample_rate=Q, steps=T)]
    assert plan.sample_rate == Q


@pytest.mark.parametrize("rate", [0.05, 1e-6, 4096 / 60000, 1 - 2**-53, 2**-60])
def test_the_threshold_is_exact(rate):
    threshold = int(rate * 2**64)
    words = np.array([0, threshold - 1, threshold, 2**64 - 1], dtype=np.uint64)
    assert poisson(4, sample_rate=rate, random_bytes=lambda count: words.tobytes()[:count]).tolist() == [0, 1]


def test_probability_one_selects_everybody():
    assert poisson(5, sample_rate=1.0, random_bytes=lambda count: b"\xff" * count).tolist() == [0, 1, 2, 3, 4]


def test_no_records_is_an_empty_batch():
    assert poisson(0, sample_rate=0.5, random_bytes=OperatingSystemEntropy().stream("selection", 0)).tolist() == []


def test_another_record_changes_nobody_elses_selection():
    stream = InsecureSeededEntropy(3).stream
    few = poisson(500, sample_rate=0.3, random_bytes=stream("selection", 0))
    many = poisson(501, sample_rate=0.3, random_bytes=stream("selection", 0))
    assert 0 < len(few) < 500
    assert many[many < 500].tolist() == few.tolist()


@pytest.mark.parametrize("size", [1, 3, 7, 10, 100])
def test_physical_batches_are_the_batch(size):
    indices = np.arange(10) * 3
    parts = list(physical_batches(indices, size))
    assert np.concatenate(parts).tolist() == indices.tolist()
    assert all(0 < len(part) <= size for part in parts)
    assert list(physical_batches(indices[:0], size)) == []
