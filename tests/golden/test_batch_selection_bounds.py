"""benchmarks/batch_selection.py: the bound for balls-and-bins, beside what is known exactly and what is drawn."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from dpdm.privacy.gaussians import gaussian_epsilon

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def selection():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("batch_selection", BENCHMARKS / "batch_selection.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.mark.parametrize(("noise", "epochs"), [(4.0, 5), (1.5, 1)])
def test_one_batch_an_epoch_is_the_gaussian_mechanism(noise, epochs, selection):
    exact = gaussian_epsilon(mu=math.sqrt(epochs) / noise, delta=1e-5)
    assert exact <= selection.balls_and_bins(noise, 1, epochs) < 1.01 * exact


@pytest.mark.parametrize(("noise", "bins"), [(0.8, 8), (1.0, 30)])
def test_the_laws_dominate_what_is_drawn(noise, bins, selection):
    """Hockey-stick divergences in both directions, each within four standard errors of a million draws, or above."""
    ratio, under_p, under_q = selection.ratios(noise, bins)
    assert under_p.sum() == pytest.approx(1, abs=1e-9)
    assert (ratio * under_q).sum() == pytest.approx(1, abs=1e-6)
    x = noise * np.random.default_rng(0).standard_normal((200_000, bins))
    for shift, lost, bound in (
        (
            1.0,
            lambda e, r: np.maximum(1 - math.exp(e) / r, 0),
            lambda e: np.maximum(under_p - math.exp(e) * under_q, 0),
        ),
        (
            0.0,
            lambda e, r: np.maximum(1 - math.exp(e) * r, 0),
            lambda e: np.maximum(under_q - math.exp(e) * under_p, 0),
        ),
    ):
        x[:, 0] += shift
        drawn = np.exp((x - 0.5) / noise**2).mean(1)
        x[:, 0] -= shift
        for epsilon in (0.2, 0.6):
            values = lost(epsilon, drawn)
            error = values.std() / math.sqrt(len(values))
            above = bound(epsilon).sum()
            assert values.mean() - 4 * error < above < 1.02 * values.mean() + 5 * error


def test_it_costs_less_than_poisson_batches_where_epochs_are_few(selection):
    assert 3.3 < selection.balls_and_bins(1.0, 30, 10) < 0.92 * selection.poisson(1.0, 30, 10)
