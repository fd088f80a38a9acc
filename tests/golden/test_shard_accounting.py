"""What an exchanged vector of a shard costs: above the exact figure by little, and below what a caller could hope for.

Exact is the pair of (1 − q) N(0, z²) + q N(½, z²) and its mirror image: for one shard that moves by the sensitivity, no
pair of vectors is told apart better. Its privacy losses are summed up here on a fine grid.
"""

import numpy as np
import pytest
import torch
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from numpy.random import default_rng

from dpdm.privacy import GaussianRelease, Plan, ShardSums
from dpdm.privacy.accounting import (
    PoissonGaussianSteps,
    ShardGaussianSteps,
    decode_event,
    encode_event,
    epsilon,
    merged,
    renyi_divergence,
)
from dpdm.types import InputError

ADD_REMOVE = {"delta": 1e-5, "relation": "add_or_remove_one"}
CASES = [(1.07, 1e-3, 20_000), (0.8, 0.01, 500), (1.5, 0.02, 1000), (2.0, 0.5, 10), (5.0, 0.1, 1000)]


def losses(noise, rate):
    """Return points, and the densities there of the exact pair."""
    x = np.linspace(-12 * noise - 1, 12 * noise + 1, 400_001)

    def density(mean):
        return np.exp(-(((x - mean) / noise) ** 2) / 2) / (noise * np.sqrt(2 * np.pi)) * (x[1] - x[0])

    return tuple((1 - rate) * density(0) + rate * density(mean) for mean in (0.5, -0.5))


def exact_epsilon(noise, rate, steps, interval=1e-4):
    one, other = losses(noise, rate)
    places = np.rint(np.log(one / other) / interval).astype(int)
    pmf = DensePLDPmf(interval, places.min(), np.bincount(places - places.min(), one), 0.0, pessimistic_estimate=True)
    return PrivacyLossDistribution(pmf.self_compose(steps)).get_epsilon_for_delta(1e-5)


@pytest.mark.parametrize(("noise", "rate", "steps"), CASES)
def test_it_costs_more_than_the_exact_figure_and_not_much(noise, rate, steps):
    event = ShardGaussianSteps(noise_multiplier=noise, sample_rate=rate, steps=steps)
    claimed, exact = epsilon([event], **ADD_REMOVE), exact_epsilon(noise, rate, steps)
    assert exact - 1e-3 < claimed < 1.35 * exact
    assert claimed <= epsilon([event], **ADD_REMOVE, accountant="rdp")


@pytest.mark.parametrize("order", [1.5, 2.0, 8.0])
@pytest.mark.parametrize(("noise", "rate", "steps"), CASES)
def test_its_divergence_is_above_the_exact_one_of_either_direction(noise, rate, steps, order):
    event = ShardGaussianSteps(noise_multiplier=noise, sample_rate=rate, steps=steps)
    one, other = losses(noise, rate)
    exact = steps * np.log(np.sum(one**order * other ** (1 - order))) / (order - 1)
    assert renyi_divergence([event], order=order, relation="add_or_remove_one") >= exact * (1 - 1e-6)


def test_vectors_in_any_direction_are_told_apart_no_better_than_opposite_ones():
    """At each ε, for pairs in a ball of half the sensitivity, at angles other than a straight one."""
    noise, rate = 0.7, 0.3
    drawn = default_rng(0).normal(size=(400_000, 2)) * noise

    def delta(v, w, level):
        """Return δ of a mixture around v against one around w, by points of N(0, z²) that are weighted."""
        weights = [(1 - rate) + rate * np.exp((drawn @ c - c @ c / 2) / noise**2) for c in (np.array(v), np.array(w))]
        return np.maximum(weights[0] - np.exp(level) * weights[1], 0).mean()

    for level in (0.0, 0.3, 0.7):
        most = delta((0.5, 0.0), (-0.5, 0.0), level)
        for w in ((0.0, 0.5), (0.0, 0.0), (-0.2, 0.4), (-0.4, 0.3)):
            assert delta((0.5, 0.0), w, level) < most + 2e-3


def test_a_shard_in_every_step_is_a_gaussian_release_of_the_sensitivity():
    event = ShardGaussianSteps(noise_multiplier=3.0, sample_rate=1.0, steps=9)
    assert merged([event]) == [GaussianRelease(noise_multiplier=1.0)]


def test_equal_steps_of_records_and_of_shards_stay_apart_and_come_back_from_a_file():
    numbers = {"noise_multiplier": 2.0, "sample_rate": 0.1, "steps": 5}
    events = [kind(**numbers) for kind in (PoissonGaussianSteps, ShardGaussianSteps) for _ in range(2)]
    assert [(type(event), event.steps) for event in merged(events)] == [
        (PoissonGaussianSteps, 10),
        (ShardGaussianSteps, 10),
    ]
    assert [decode_event(encode_event(event)) for event in events] == events
    assert epsilon([ShardGaussianSteps(**{**numbers, "steps": 0})], **ADD_REMOVE) == 0


def test_a_plan_says_how_many_shards_there_are_and_selects_among_these():
    sums = ShardSums(shards=50, count=20, expected_batch_size=5, max_norm=0.8, noise_multiplier=2.0)
    plan = Plan(dataset_size=60_000, releases=(sums,))
    assert plan.sample_rate == 0.1
    assert sums.radius == 0.4
    assert plan.events() == [ShardGaussianSteps(noise_multiplier=2.0, sample_rate=0.1, steps=20)]
    assert "20 Poisson steps over 50 shards at q = 0.1" in plan.statement
    assert plan.noise_std(0, sums.max_norm) == 1.6
    with pytest.raises(InputError, match="expected_batch_size = 51 is more than shards = 50"):
        Plan(dataset_size=60_000, releases=(ShardSums(shards=50, count=1, expected_batch_size=51),))
    with pytest.raises(InputError, match="shards"):
        ShardSums(shards=0, count=1, expected_batch_size=1)
    assert torch.isfinite(torch.tensor(plan.epsilon()))
