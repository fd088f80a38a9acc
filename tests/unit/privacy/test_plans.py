"""A plan that promises nonsense is refused in one line, when it is made."""

import dataclasses
import hashlib
import json
import math

import pytest

from dpdm.config import decode_plan, encode
from dpdm.privacy import DPSGD, GaussianRelease, NonPrivate
from dpdm.privacy.accounting import PoissonGaussianSteps, calibrate, round_up
from dpdm.privacy.search import Search
from dpdm.types import InputError

FIELDS = {"dataset_size": 1000, "expected_batch_size": 100, "steps": 10, "noise_multiplier": 2.0, "delta": 1e-4}


def refused(words, make):
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dataset_size", "expected_batch_size", "steps", "max_grad_norm", "delta"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_numbers_that_are_not_positive_are_refused(name, value):
    refused(name, lambda: DPSGD(**FIELDS | {name: value}))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf])
def test_noise_that_is_not_positive_is_refused(value):
    refused("noise_multiplier", lambda: DPSGD(**FIELDS | {"noise_multiplier": value}))
    refused("noise_multiplier", lambda: GaussianRelease(noise_multiplier=value))


@pytest.mark.parametrize("delta", [1e-3, 0.5, 1.0, 2.0])
def test_delta_must_be_below_one_in_the_declared_number(delta):
    refused("delta", lambda: DPSGD(**FIELDS | {"delta": delta}))


def test_delta_just_below_one_in_the_declared_number_is_accepted():
    assert DPSGD(**FIELDS | {"delta": 0.99e-3}).delta == 0.99e-3


def test_a_batch_larger_than_the_data_is_refused():
    refused("expected_batch_size", lambda: DPSGD(**FIELDS | {"expected_batch_size": 1001}))
    refused("sample_rate", lambda: PoissonGaussianSteps(noise_multiplier=1.0, sample_rate=1.01, steps=1))
    refused("steps", lambda: PoissonGaussianSteps(noise_multiplier=1.0, sample_rate=0.5, steps=-1))
    assert DPSGD(**FIELDS | {"expected_batch_size": 1000}).sample_rate == 1


@pytest.mark.parametrize("epsilon", [0, -1.0, math.nan, math.inf])
def test_an_epsilon_that_is_not_positive_is_refused(epsilon):
    refused("epsilon", lambda: DPSGD(**FIELDS).calibrate(epsilon=epsilon))


def test_an_epsilon_that_earlier_releases_exceed_is_refused():
    plan = DPSGD(**FIELDS, earlier=(GaussianRelease(noise_multiplier=1.0),))
    refused("cannot be reached by any amount of noise", lambda: plan.calibrate(epsilon=0.5))


def test_releases_that_no_noise_changes_cannot_be_calibrated():
    fixed = [GaussianRelease(noise_multiplier=1.0)]
    refused(
        "cannot be reached",
        lambda: calibrate(lambda noise: fixed, target=0.1, delta=1e-5, relation="add_or_remove_one"),
    )


@pytest.mark.parametrize("use", ["start", "epsilon", "statement", "events"])
def test_a_plan_without_noise_can_do_nothing(use):
    plan = DPSGD(**FIELDS | {"noise_multiplier": None})
    refused("no noise yet", lambda: plan.statement if use == "statement" else getattr(plan, use)())


def test_a_plan_without_privacy_checks_its_numbers_too():
    refused("steps", lambda: NonPrivate(dataset_size=10, expected_batch_size=5, steps=0))


@pytest.mark.parametrize("value", [0.99991, 1.0, 9.99999, 0.00001, 10.00005])
def test_a_printed_epsilon_is_never_below_the_computed_one(value):
    assert value <= round_up(value) < value + 1.0001e-4


def test_the_statement_names_the_relation():
    assert "add or remove one image" in DPSGD(**FIELDS).statement
    assert "blank out one image" in DPSGD(**FIELDS, relation="replace_special").statement


BEFORE_UNITS_AND_SEARCHES = (
    "(DPSGD(dataset_size=1000, expected_batch_size=100, steps=10, max_grad_norm=1.0, noise_multiplier=2.0, "
    "delta=0.0001, relation='add_or_remove_one', earlier=(), noise='continuous'{}), True)"
)
NOT_PRIVATE_BEFORE = (
    "(NonPrivate(dataset_size=1000, expected_batch_size=100, steps=10, max_grad_norm=inf, "
    "relation='add_or_remove_one', noise='continuous', earlier=(){}), True)"
)
SEARCH = "search=Search(mean=5.0, shape=1.0, score_noise_multiplier=None)"


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (DPSGD(**FIELDS), BEFORE_UNITS_AND_SEARCHES.format("")),
        (DPSGD(**FIELDS, unit="group"), BEFORE_UNITS_AND_SEARCHES.format(", unit='group'")),
        (DPSGD(**FIELDS, search=Search(mean=5.0)), BEFORE_UNITS_AND_SEARCHES.format(f", {SEARCH}")),
        (
            DPSGD(**FIELDS, unit="group", search=Search(mean=5.0)),
            BEFORE_UNITS_AND_SEARCHES.format(f", unit='group', {SEARCH}"),
        ),
        (NonPrivate(dataset_size=1000, expected_batch_size=100, steps=10), NOT_PRIVATE_BEFORE.format("")),
        (
            NonPrivate(dataset_size=1000, expected_batch_size=100, steps=10, unit="group"),
            NOT_PRIVATE_BEFORE.format(", unit='group'"),
        ),
    ],
)
def test_a_journal_and_settings_say_unit_and_search_only_where_a_plan_has_them(plan, said, tmp_path):
    """So that runs that began before there was a choice go on."""
    plan.start(tmp_path / "journal.jsonl").close()
    header = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])
    assert header["claim"] == hashlib.sha256(said.encode()).hexdigest()
    table = encode(plan)
    assert ("unit" in table, "search" in table) == ("unit=" in said, "search=" in said)
    assert decode_plan(table) == plan


def test_the_statement_of_a_search_says_its_unit():
    plan = DPSGD(**FIELDS, unit="group", search=Search(mean=5.0))
    assert (
        "-DP, add or remove one group of images, the best of 5 runs on average, each of, 10 Poisson" in plan.statement
    )
    assert "one image, the best of 5 runs" in dataclasses.replace(plan, unit="image").statement
