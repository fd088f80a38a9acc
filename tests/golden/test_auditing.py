"""Lower bounds on ε against figures computed elsewhere, against theory, and against mechanisms whose ε is known."""

import numpy as np
import pytest

from dpdm.privacy.auditing import clopper_pearson, lower_bounds, one_run_epsilon, one_run_mu
from dpdm.privacy.gaussians import gaussian_epsilon, gaussian_mu
from dpdm.types import InputError

pytestmark = pytest.mark.proof


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "one_run", "gaussian"),
    [
        (1000, 600, 600, 1e-5, 5.2704, 10.5149),
        (1000, 100, 100, 1e-5, 3.4654, 5.5490),
        (1000, 200, 150, 1e-5, 0.8200, 1.2969),
        (1000, 200, 150, 0, 0.8214, None),
        (5000, 1000, 700, 1e-5, 0.7306, 1.0761),
        (100, 100, 100, 1e-6, 3.4927, 9.0709),
    ],
)
def test_one_run_bounds_are_those_of_the_design(canaries, guesses, correct, delta, one_run, gaussian):
    assert one_run_epsilon(canaries, guesses, correct, delta=delta) == pytest.approx(one_run, abs=2e-4)
    if gaussian is not None:
        mu = one_run_mu(canaries, guesses, correct)
        assert gaussian_epsilon(mu=mu, delta=delta) == pytest.approx(gaussian, abs=1e-4)


@pytest.mark.parametrize("mu", [0.3, 1.0, 4.0])
def test_the_epsilon_of_a_gaussian_mechanism_is_the_inverse_of_its_mu(mu):
    assert gaussian_mu(epsilon=gaussian_epsilon(mu=mu, delta=1e-5), delta=1e-5) == pytest.approx(mu, rel=1e-6)
    assert gaussian_epsilon(mu=0, delta=1e-5) == 0


def test_rates_have_the_interval_of_clopper_and_pearson():
    assert clopper_pearson(0, 20, significance=0.05) == pytest.approx((0, 0.16843), abs=1e-5)  # 1 − 0.025^(1/20)
    assert clopper_pearson(20, 20, significance=0.05) == pytest.approx((0.83157, 1), abs=1e-5)
    assert clopper_pearson(5, 10, significance=0.05) == pytest.approx((0.18709, 0.81291), abs=1e-5)


def scores(mu, *, canaries=2000, seed=0):
    rng = np.random.default_rng(seed)
    took_part = rng.random(canaries) < 0.5
    return rng.normal(size=canaries) + mu * took_part, took_part


@pytest.mark.parametrize("mu", [0.5, 1.5, 3.0])
def test_bounds_stay_below_the_truth_and_come_near(mu):
    truth = gaussian_epsilon(mu=mu, delta=1e-5)
    found = [lower_bounds(*scores(mu, seed=seed), delta=1e-5) for seed in range(20)]
    for name in ("one_run", "one_run_gaussian", "clopper_pearson", "gaussian"):
        assert sum(getattr(bounds, name) > truth for bounds in found) <= 3  # each may fail once in twenty
    assert np.mean([bounds.gaussian for bounds in found]) > 0.4 * truth
    assert np.mean([bounds.one_run_gaussian for bounds in found]) > 0.3 * truth
    assert np.mean([bounds.one_run for bounds in found]) > 0.1


def test_scores_that_know_nothing_prove_nothing():
    found = [lower_bounds(*scores(0.0, seed=seed), delta=1e-5) for seed in range(20)]
    assert sum(bounds.one_run > 0 for bounds in found) <= 3
    assert sum(bounds.clopper_pearson > 0 for bounds in found) <= 3


def test_a_leak_is_proved():
    took_part = np.arange(1000) % 2 == 0
    bounds = lower_bounds(took_part.astype(float), took_part, delta=1e-5)
    assert bounds.one_run > 4
    assert bounds.clopper_pearson > 3.5
    assert bounds.gaussian > 10


@pytest.mark.parametrize(
    ("values", "coins"),
    [([1.0, 2.0], [True]), ([1.0, 2.0], [True, True]), ([1.0, float("nan")], [True, False])],
)
def test_an_audit_without_both_sides_is_refused(values, coins, unchecked):
    with pytest.raises(InputError, match="audit needs"):
        lower_bounds(np.array(values), np.array(coins), delta=1e-5)


def test_impossible_counts_are_refused():
    for counts in ((10, 11, 5), (10, 5, 6), (10, 5, -1)):
        with pytest.raises(InputError, match=r"impossible|must be a whole number from 0"):
            one_run_epsilon(*counts, delta=1e-5)
    with pytest.raises(InputError, match="guesses"):
        one_run_mu(10, 0, 0)


@pytest.mark.parametrize("canaries", [2, 3, 7, 359])
def test_any_number_of_canaries_will_do(canaries):
    took_part = np.arange(canaries) % 2 == 0
    assert lower_bounds(np.arange(canaries) * 1.0, took_part, delta=1e-5).one_run < 1
