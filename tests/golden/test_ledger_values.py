"""Published and independently computed numbers of composition and selection."""

import pytest

from dpdm.privacy.accounting import (
    GaussianRelease,
    PoissonGaussianSteps,
    RepeatedSelection,
    epsilon,
    merged,
)

RELATION = "add_or_remove_one"
STEPS = PoissonGaussianSteps(noise_multiplier=16.93, sample_rate=4096 / 60000, steps=4400)  # ε = 1 by PLD
BY_RDP = PoissonGaussianSteps(noise_multiplier=18.35, sample_rate=4096 / 60000, steps=4400)  # ε = 1 by RDP


@pytest.mark.parametrize(
    ("runs", "pld", "rdp"), [(1, 1.000, 1.093), (2, 1.464, 1.595), (4, 2.153, 2.338), (8, 3.182, 3.446)]
)
def test_runs_at_epsilon_1_planned_together(runs, pld, rdp):
    assert epsilon([STEPS] * runs, delta=1e-5, relation=RELATION) == pytest.approx(pld, abs=2e-3)
    assert epsilon(merged([STEPS] * runs), delta=1e-5, relation=RELATION) == pytest.approx(pld, abs=2e-3)
    assert epsilon([STEPS] * runs, delta=1e-5, relation=RELATION, accountant="rdp") == pytest.approx(rdp, abs=2e-3)


def test_the_run_of_the_tables_costs_1_by_rdp():
    assert epsilon([BY_RDP], delta=1e-5, relation=RELATION, accountant="rdp") == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize(
    ("shape", "mean", "expected"),
    [(0, 2, 1.40), (0, 10, 1.76), (0, 100, 2.11), (1, 2, 1.56), (1, 10, 2.13), (1, 100, 2.69)],
)
def test_the_best_of_a_random_number_of_runs(shape, mean, expected):
    search = RepeatedSelection(events=(BY_RDP,), mean=mean, shape=shape)
    assert epsilon([search], delta=1e-5, relation=RELATION) == pytest.approx(expected, abs=0.011)


def test_steps_in_which_all_records_take_part_are_gaussian_releases():
    of_all, twice = PoissonGaussianSteps(noise_multiplier=3.0, sample_rate=1.0, steps=2), [3.0, 3.0]
    assert merged([of_all]) == merged([GaussianRelease(noise_multiplier=s) for s in twice])
    nearly = PoissonGaussianSteps(noise_multiplier=3.0, sample_rate=1 - 1e-9, steps=2)
    assert epsilon([of_all], delta=1e-5, relation=RELATION) == pytest.approx(
        epsilon([nearly], delta=1e-5, relation=RELATION), rel=2e-3
    )


def test_merged_events_cost_what_they_did():
    releases = [GaussianRelease(noise_multiplier=s) for s in (4.0, 6.0, 6.0, 30.0)]
    short = PoissonGaussianSteps(noise_multiplier=2.0, sample_rate=0.05, steps=10)
    whole = [*releases, short, short]
    fewer = merged(whole)
    assert len(fewer) == 2
    assert epsilon(fewer, delta=1e-5, relation=RELATION) == pytest.approx(
        epsilon(whole, delta=1e-5, relation=RELATION), rel=1e-4
    )
