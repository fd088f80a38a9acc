"""Releases that a filter lets pass stay within the total, whichever they are."""

import math
from typing import get_args

import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.rdp import RdpAccountant, rdp_privacy_accountant
from hypothesis import given, settings
from hypothesis import strategies as st

from dpdm.privacy import accounting
from dpdm.privacy.accounting import (
    GaussianRelease,
    PoissonGaussianSteps,
    Relation,
    RepeatedSelection,
    epsilon,
    renyi_divergence,
)
from dpdm.privacy.filter import RenyiFilter
from dpdm.types import InputError

RELATION = "add_or_remove_one"


@pytest.mark.parametrize("order", [1.5, 4.0, 18.0, 63.0])
def test_divergence_of_a_gaussian_is_its_closed_form(order):
    """Mironov 2017: α / (2 σ²)."""
    found = renyi_divergence([GaussianRelease(noise_multiplier=3.0)] * 2, order=order, relation=RELATION)
    assert found == pytest.approx(2 * order / (2 * 9.0), rel=1e-9)


def test_every_step_at_rate_one_is_a_gaussian():
    steps = PoissonGaussianSteps(noise_multiplier=5.0, sample_rate=1.0, steps=7)
    same = [GaussianRelease(noise_multiplier=5.0)] * 7
    assert renyi_divergence([steps], order=8.0, relation=RELATION) == pytest.approx(
        renyi_divergence(same, order=8.0, relation=RELATION)
    )


STEPS = PoissonGaussianSteps(noise_multiplier=4.0, sample_rate=0.05, steps=30)


@pytest.mark.parametrize("relation", get_args(Relation))
@pytest.mark.parametrize(
    "event", [GaussianRelease(noise_multiplier=3.0), STEPS, RepeatedSelection(events=(STEPS,), mean=3.0, shape=1.0)]
)
def test_the_divergence_that_is_read_from_dp_accounting_is_the_one_its_epsilon_comes_from(event, relation):
    """`RdpAccountant._rdp` has no public name: here it must be what the public `get_epsilon` converts."""
    order, delta = 8.0, 1e-5
    accountant = RdpAccountant([order], neighboring_relation=NeighboringRelation[relation.upper()])
    found = accounting._compose(accountant, [event])
    assert [*found._orders] == [order]
    assert found.get_epsilon(delta) == pytest.approx(
        found._rdp[-1] + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
    )
    assert renyi_divergence([event], order=order, relation=relation) <= found._rdp[-1] * (1 + 1e-9)
    if not isinstance(event, RepeatedSelection):  # whose bound is a minimum over other orders as well
        assert renyi_divergence([event], order=order, relation=relation) == found._rdp[-1]


@pytest.mark.parametrize("total", [0.2, 1.0, 3.0, 10.0])
def test_the_order_is_the_one_into_which_most_gaussians_fit(total):
    chosen = RenyiFilter.for_gaussians(epsilon=total, delta=1e-5)
    release = [GaussianRelease(noise_multiplier=20.0)]

    def how_many(order):
        budget = RenyiFilter(epsilon=total, delta=1e-5, order=order)
        return budget.budget / budget.divergence(release, RELATION)

    assert how_many(chosen.order) >= max(how_many(chosen.order * 1.2), how_many(1 + (chosen.order - 1) * 0.8))


@settings(max_examples=15, deadline=None)
@given(
    noise=st.lists(st.floats(2.0, 30.0), min_size=1, max_size=12),
    total=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_whatever_passes_is_within_the_total(noise, total):
    budget = RenyiFilter.for_gaussians(epsilon=total, delta=1e-5)
    passed, spent = [], 0.0
    for multiplier in noise:
        release = GaussianRelease(noise_multiplier=multiplier)
        more = budget.divergence([release], RELATION)
        if budget.allows(spent + more):
            passed.append(release)
            spent += more
    assert epsilon(passed, delta=1e-5, relation=RELATION) <= total


def test_nothing_that_is_no_number_passes():
    budget = RenyiFilter.for_gaussians(epsilon=1.0, delta=1e-5)
    assert not budget.allows(math.nan)
    assert not budget.allows(0.0, delta=math.nan)
    assert not budget.allows(math.inf)
    assert budget.allows(budget.budget, delta=1e-6)
    assert not budget.allows(0.0, delta=1.01e-6), "a tenth of δ is all that is kept for releases with their own"


@pytest.mark.parametrize(
    "wrong", [{"epsilon": 0.0}, {"epsilon": math.nan}, {"delta": 1.0}, {"delta": -1e-5}, {"order": 1.0}]
)
def test_an_impossible_total_is_refused(wrong):
    with pytest.raises(InputError):
        RenyiFilter(**{"epsilon": 1.0, "delta": 1e-5, "order": 18.0} | wrong)


def test_into_a_total_too_small_for_any_order_nothing_fits():
    budget = RenyiFilter.for_gaussians(epsilon=1e-4, delta=1e-5)
    assert not budget.allows(0.0)


@pytest.mark.parametrize(("total", "order"), [(0.5, 40.0), (1.0, 18.0), (4.0, 5.5)])
def test_the_budget_is_what_dp_accounting_makes_an_epsilon_of(total, order):
    """An oracle: the ε of a divergence that fills the budget, at this one order and the filter's part of δ."""
    budget = RenyiFilter(epsilon=total, delta=1e-5, order=order)
    found, _ = rdp_privacy_accountant.compute_epsilon([order], [budget.budget], 0.9e-5)
    assert found == pytest.approx(total, rel=1e-9)
