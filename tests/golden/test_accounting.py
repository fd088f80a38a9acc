"""ε and σ against figures from elsewhere: closed forms, a second accountant, and what was measured for the design.

The table of the design: q = 4096/60000, T = 4400, δ = 1e-5, add or remove one (dp-accounting 0.6.0, PLD and RDP).
"""

import dataclasses

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from dpdm.privacy import DPSGD, GaussianRelease
from dpdm.privacy.accounting import (
    PoissonGaussianSteps,
    RepeatedSelection,
    _compose,
    _rdp_accountant,
    epsilon,
    merged,
)
from plans import changed

PLAN = DPSGD(dataset_size=60_000, expected_batch_size=4096, steps=4400, delta=1e-5)
TABLE = pytest.mark.parametrize(
    ("target", "sigma", "rdp"), [(10.0, 2.38172, 10.751), (1.0, 16.93244, 1.0929), (0.2, 73.856, 0.2211)]
)
ADD_REMOVE = {"delta": 1e-5, "relation": "add_or_remove_one"}


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Return the exact ε of one Gaussian release (Balle & Wang 2018, Theorem 8)."""

    def excess(eps):
        return (
            norm.cdf(0.5 / sigma - eps * sigma)
            - pow(2.718281828459045, eps) * norm.cdf(-0.5 / sigma - eps * sigma)
            - delta
        )

    return brentq(excess, 0.0, 100.0, xtol=1e-12)


@TABLE
def test_calibrated_noise_is_that_of_the_table(target, sigma, rdp):
    plan = PLAN.calibrate(epsilon=target)
    assert plan.noise_multiplier == pytest.approx(sigma, rel=2e-3)
    assert 0.995 * target < plan.epsilon() <= target
    assert changed(plan, noise_multiplier=None) == PLAN


@TABLE
def test_renyi_is_the_larger_second_opinion(target, sigma, rdp):
    plan = changed(PLAN, noise_multiplier=sigma)
    assert plan.epsilon(accountant="rdp") == pytest.approx(rdp, rel=2e-3)
    assert plan.epsilon() == pytest.approx(target, rel=2e-3)
    assert plan.epsilon() <= plan.epsilon(accountant="rdp") <= 1.25 * plan.epsilon()


@pytest.mark.parametrize(("sigma", "expected"), [(2.38172, 9.848), (16.93244, 0.986), (73.856, 0.197)])
def test_the_official_loader_of_dpdm_costs_what_it_costs(sigma, expected):
    steps = PoissonGaussianSteps(noise_multiplier=sigma, sample_rate=1 / 15, steps=4500)
    assert epsilon([steps], **ADD_REMOVE) == pytest.approx(expected, rel=3e-3)


@pytest.mark.parametrize(("runs", "expected"), [(2, 1.464), (4, 2.153)])
def test_runs_compose(runs, expected):
    one = PoissonGaussianSteps(noise_multiplier=16.93244, sample_rate=4096 / 60_000, steps=4400)
    assert epsilon([one] * runs, **ADD_REMOVE) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("sigma", [0.8, 2.0, 10.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_one_gaussian_release_costs_the_closed_form(sigma, delta):
    exact = gaussian_epsilon(sigma, delta)
    computed = epsilon([GaussianRelease(noise_multiplier=sigma)], delta=delta, relation="add_or_remove_one")
    assert exact * (1 - 1e-6) <= computed <= exact * 1.005


def test_gaussian_releases_compose_by_the_closed_form():
    events = [GaussianRelease(noise_multiplier=3.0), GaussianRelease(noise_multiplier=4.0)]  # 1/σ² adds up
    computed = epsilon(events, **ADD_REMOVE)
    exact = gaussian_epsilon(1 / (1 / 9 + 1 / 16) ** 0.5, 1e-5)
    assert exact * (1 - 1e-6) <= computed <= exact * 1.005


def test_steps_that_take_everybody_are_gaussian_releases():
    steps = PoissonGaussianSteps(noise_multiplier=10.0, sample_rate=1.0, steps=25)
    exact = gaussian_epsilon(2.0, 1e-5)
    assert exact * (1 - 1e-6) <= epsilon([steps], **ADD_REMOVE) <= exact * 1.005


def test_blanking_out_costs_what_adding_or_removing_costs():
    plan = changed(PLAN, noise_multiplier=16.93244)
    assert dataclasses.replace(plan, relation="replace_special").epsilon() == pytest.approx(plan.epsilon(), rel=1e-9)


def test_nothing_released_costs_nothing():
    assert epsilon([], **ADD_REMOVE) == 0
    assert epsilon([PoissonGaussianSteps(noise_multiplier=1.0, sample_rate=0.5, steps=0)], **ADD_REMOVE) == 0


def test_too_little_noise_costs_a_finite_upper_bound_without_filling_the_memory():
    steps = PoissonGaussianSteps(noise_multiplier=0.2, sample_rate=0.5, steps=100)
    assert 50 < epsilon([steps], **ADD_REMOVE) < float("inf")


def test_at_the_smallest_delta_the_smaller_bound_is_claimed():
    plan = changed(PLAN, noise_multiplier=16.93, delta=1e-14)
    assert plan.epsilon() <= plan.epsilon(accountant="rdp") == pytest.approx(2.041, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "batch", "steps", "delta", "target", "before"),
    [
        pytest.param(1000, 64, 200, 1e-4, 3.0, (), marks=pytest.mark.slow),
        (1000, 1000, 10, 1e-4, 1.0, ()),
        (60_000, 512, 2000, 1e-6, 0.05, ()),
        (60_000, 4096, 4400, 1e-5, 1e-3, ()),  # beyond the orders of RDP
        pytest.param(60_000, 2048, 1000, 1e-5, 1e-4, (), marks=pytest.mark.slow),
        pytest.param(300, 30, 1, 1e-3, 0.5, (), marks=pytest.mark.slow),
        pytest.param(1800, 112, 500, 1e-5, 10.0, (), marks=pytest.mark.slow),
        (1000, 100, 50, 1e-4, 150.0, ()),
        pytest.param(1000, 100, 50, 1e-4, 2.0, (5.0, 8.0), marks=pytest.mark.slow),
    ],
)
def test_calibration_never_exceeds_the_target_and_wastes_little(size, batch, steps, delta, target, before):
    plan = DPSGD(
        dataset_size=size,
        expected_batch_size=batch,
        steps=steps,
        delta=delta,
        releases={f"sum {i}": s for i, s in enumerate(before)},
    ).calibrate(epsilon=target)
    assert plan.epsilon() <= target
    less = changed(plan, noise_multiplier=plan.noise_multiplier * 0.995)
    assert less.epsilon() > target
    assert plan.epsilon() <= plan.epsilon(accountant="rdp")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@TABLE
def test_the_accountant_of_opacus_agrees_within_its_stated_error(target, sigma, rdp):
    accountants = pytest.importorskip("opacus.accountants")
    error = 0.001 if target < 5 else 0.01
    prv = accountants.PRVAccountant()
    prv.history = [(sigma, PLAN.sample_rate, PLAN.steps)]
    theirs = prv.get_epsilon(PLAN.delta, eps_error=error)
    ours = changed(PLAN, noise_multiplier=sigma).epsilon()
    assert abs(ours - theirs) <= 2 * error + 2e-3 * target


def test_rdp_adds_up_the_divergences_of_events_as_composing_them_does_to_the_last_bit():
    whole = GaussianRelease(noise_multiplier=7.0)
    steps = [
        PoissonGaussianSteps(noise_multiplier=1.0 + k / 7, sample_rate=0.001 * (k + 1), steps=10 + k) for k in range(5)
    ]
    for events in ([whole, *steps], [*steps, RepeatedSelection(events=(*steps[:2],), mean=3.0, shape=1.0)]):
        composed = _compose(_rdp_accountant("add_or_remove_one"), merged(events)).get_epsilon(1e-5)
        assert epsilon(events, accountant="rdp", **ADD_REMOVE) == composed
