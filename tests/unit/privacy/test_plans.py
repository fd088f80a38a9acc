"""A plan that promises nonsense is refused in one line, when it is made."""

import dataclasses
import json
import math
import tomllib

import pytest
import tomli_w

from dpdm.config import decode_plan, encode
from dpdm.methods import Diffusion, Prior, PriorAlone
from dpdm.privacy import DPSGD, Earlier, FullSum, GaussianRelease, NonPrivate, Plan, PoissonSums
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


@pytest.mark.proof
def test_an_epsilon_that_earlier_releases_exceed_is_refused():
    plan = DPSGD(**FIELDS | {"noise_multiplier": None}, releases={"first": 1.0})
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
    refused("steps", lambda: NonPrivate.dp_sgd(dataset_size=10, expected_batch_size=5, steps=0))


@pytest.mark.parametrize("value", [0.99991, 1.0, 9.99999, 0.00001, 10.00005])
def test_a_printed_epsilon_is_never_below_the_computed_one(value):
    assert value <= round_up(value) < value + 1.0001e-4


def test_the_statement_names_the_relation():
    assert "add or remove one image" in DPSGD(**FIELDS).statement
    assert "blank out one image" in DPSGD(**FIELDS, relation="replace_special").statement


@pytest.mark.parametrize(
    "plan",
    [
        DPSGD(**FIELDS),
        DPSGD(**FIELDS, unit="group", search=Search(mean=5.0), releases={"first": 3.0}),
        NonPrivate.dp_sgd(dataset_size=1000, expected_batch_size=100, steps=10, unit="group"),
        Plan(
            dataset_size=1000,
            releases=(
                PoissonSums(name="batches", count=2, expected_batch_size=10, noise_multiplier=2.0),
                FullSum(name="between", noise_multiplier=3.0),
                PoissonSums(name="others", count=3, expected_batch_size=20, max_norm=0.5, noise_multiplier=4.0),
                FullSum(name="after", noise_multiplier=5.0),
            ),
        ),
    ],
)
def test_a_plan_is_the_same_once_it_was_written_and_read(plan):
    assert decode_plan(tomllib.loads(tomli_w.dumps(encode(plan)))) == plan


def test_a_journal_holds_the_digest_of_all_that_its_plan_claims(tmp_path):
    claims = set()
    plans = [DPSGD(**FIELDS), DPSGD(**FIELDS, unit="group"), DPSGD(**FIELDS, search=Search(mean=5.0))]
    plans += [DPSGD(**FIELDS, releases={name: 3.0}) for name in ("first", "another")]
    for number, plan in enumerate(plans):
        plan.start(tmp_path / f"{number}").close()
        claims.add(json.loads((tmp_path / f"{number}").read_text().splitlines()[0])["claim"])
    assert len(claims) == len(plans)


SEQUENCE = Plan(
    dataset_size=1000,
    releases=(
        FullSum(name="before", noise_multiplier=9.0),
        PoissonSums(name="batches", count=2, expected_batch_size=10, noise_multiplier=2.0),
        FullSum(name="between", noise_multiplier=3.0),
        PoissonSums(name="others", count=3, expected_batch_size=20, max_norm=0.5, noise_multiplier=4.0),
        FullSum(name="after", noise_multiplier=5.0),
    ),
)


def test_sums_come_before_between_and_after_steps_each_with_numbers_of_its_own():
    names = [SEQUENCE.at(number).name for number in range(SEQUENCE.planned)]
    assert names == ["before", "batches", "batches", "between", "others", "others", "others", "after"]
    refused("are spent", lambda: SEQUENCE.at(SEQUENCE.planned))
    assert [SEQUENCE.steps_among(made) for made in range(9)] == [0, 0, 1, 2, 2, 3, 4, 5, 5]
    assert [SEQUENCE.made_after(steps) for steps in range(6)] == [1, 2, 4, 5, 6, 8]
    assert SEQUENCE.noise_std(4, 0.5) == 2.0
    rates = [event.sample_rate for event in SEQUENCE.events() if hasattr(event, "sample_rate")]
    assert rates == [0.01, 0.02]
    costs = [SEQUENCE.epsilon(made=made) for made in range(9)]
    assert costs == sorted(costs)
    assert costs[0] == 0
    assert "1 Gaussian release, 2 Poisson steps at q = 0.01, 1 Gaussian release, 3 Poisson" in SEQUENCE.statement


def test_releases_without_noise_get_the_same_and_the_others_keep_theirs():
    open_ = (FullSum(name="votes"), FullSum(name="more votes"), FullSum(name="known", noise_multiplier=9.0))
    found = Plan(dataset_size=1000, releases=open_).calibrate(epsilon=2.0)
    votes, more, known = (release.noise_multiplier for release in found.releases)
    assert votes == more
    assert known == 9.0
    assert 1.99 < found.epsilon() <= 2.0


@pytest.mark.parametrize("name", ["", "Class counts", "ε", "a" * 65, 5, "two\nlines"])
def test_a_release_is_called_by_plain_words(name):
    refused("a release is called", lambda: FullSum(name=name, noise_multiplier=1.0))


def test_two_releases_of_one_name_are_refused():
    twice = (FullSum(name="votes", noise_multiplier=3.0),) * 2
    refused("names, each its own: 'votes' is not", lambda: Plan(dataset_size=1000, releases=twice))


def test_the_statement_of_a_search_says_its_unit():
    plan = DPSGD(**FIELDS, unit="group", search=Search(mean=5.0))
    assert (
        "-DP, add or remove one group of images, the best of 5 runs on average, each of, 10 Poisson" in plan.statement
    )
    assert "one image, the best of 5 runs" in dataclasses.replace(plan, unit="image").statement


EARLIER = Earlier(
    run="photos",
    noise_multiplier=4.0,
    sample_rate=1.0,
    count=1,
    dataset_size=100,
    relation="add_or_remove_one",
    unit="image",
)
STEPS_BEFORE = dataclasses.replace(EARLIER, noise_multiplier=1.5, sample_rate=0.1, count=20)


def test_earlier_sums_are_counted_before_a_plans_own():
    """ε is that of one plan with all of the sums, whoever made them."""
    own = FullSum(name="mean", noise_multiplier=5.0)
    plan = Plan(dataset_size=100, releases=(own,), earlier=(EARLIER, STEPS_BEFORE))
    both = Plan(
        dataset_size=100,
        releases=(
            FullSum(name="first", noise_multiplier=4.0),
            PoissonSums(count=20, expected_batch_size=10, noise_multiplier=1.5),
            own,
        ),
    )
    assert plan.epsilon() == pytest.approx(both.epsilon(), rel=1e-6)
    assert plan.events()[:2] == [*EARLIER.events(), *STEPS_BEFORE.events()]
    assert plan.events(made=0) == [], "nothing is spent before the first sum"
    assert plan.planned == 1, "it makes its own alone"
    assert "earlier releases of 'photos' (noisy sums: 21), 1 Gaussian release" in plan.statement


def test_a_search_counts_earlier_sums_once():
    own = FullSum(name="mean", noise_multiplier=5.0)
    searched = Plan(dataset_size=100, releases=(own,), search=Search(mean=4.0, score_noise_multiplier=20.0))
    both = dataclasses.replace(searched, earlier=(EARLIER,))
    assert both.events() == [*EARLIER.events(), *searched.events()]


def test_a_method_in_a_search_plans_with_earlier_sums_counted_once():
    """They lie outside the search: what they leave is what its runs share."""
    method, search = PriorAlone(prior=Prior(centres=1)), Search(mean=5.0)
    earlier = (dataclasses.replace(EARLIER, noise_multiplier=5.0),)
    plan = method.plan(epsilon=1.5, dataset_size=1000, delta=1e-5, search=search, earlier=earlier)
    assert plan.epsilon() == pytest.approx(1.5, rel=1e-3)


def test_noise_is_calibrated_to_what_earlier_sums_leave():
    asked = Plan(dataset_size=100, releases=(FullSum(name="mean"),), earlier=(EARLIER,))
    assert asked.calibrate(epsilon=2.0).epsilon() <= 2.0
    assert asked.calibrate(epsilon=2.0).releases[0].noise_multiplier > (
        dataclasses.replace(asked, earlier=()).calibrate(epsilon=2.0).releases[0].noise_multiplier
    )
    with pytest.raises(InputError, match="cannot be reached by any amount of noise"):
        asked.calibrate(epsilon=0.5)


def test_a_methods_shares_are_of_what_earlier_sums_leave():
    """The parts of a plan that are shares of the budget fit whatever was spent before."""
    method, asked = PriorAlone(prior=Prior(centres=1)), {"dataset_size": 1000, "delta": 1e-5}
    whole = method.plan(epsilon=1.2, **asked, earlier=(EARLIER,))
    assert whole.epsilon() == pytest.approx(1.2, rel=1e-3)
    stepping = Diffusion(prior=Prior(centres=1, share=0.8)).plan(epsilon=1.2, **asked, steps=5, earlier=(EARLIER,))
    assert stepping.epsilon() == pytest.approx(1.2, rel=1e-3)


def test_earlier_sums_have_bounds_and_a_delta_below_theirs():
    own = (FullSum(name="mean", noise_multiplier=5.0),)
    for earlier in ((EARLIER,) * 65, (dataclasses.replace(STEPS_BEFORE, count=10**6),)):
        with pytest.raises(InputError, match="too many noisy sums"):
            Plan(dataset_size=100, releases=own, earlier=earlier)
    large = dataclasses.replace(EARLIER, dataset_size=1000)
    with pytest.raises(InputError, match=r"is not below 1 / dataset_size = 0\.001"):
        Plan(dataset_size=100, delta=5e-3, releases=own, earlier=(large,))


def test_a_plan_without_earlier_sums_says_nothing_of_them():
    """So that releases and journals of before are read as they were."""
    assert "earlier" not in encode(Plan(dataset_size=100, releases=(FullSum(name="mean", noise_multiplier=5.0),)))


@pytest.mark.parametrize(
    "changes",
    [{"relation": "replace_special"}, {"unit": "group"}],
)
def test_earlier_sums_that_protect_something_else_are_refused(changes):
    with pytest.raises(InputError, match="if both protect the same, under the same relation"):
        Plan(dataset_size=100, releases=(FullSum(name="mean"),), earlier=(dataclasses.replace(EARLIER, **changes),))


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "two\nlines"},
        {"noise_multiplier": 0.0},
        {"sample_rate": 1.5},
        {"count": 2.5},
        {"count": 0},
        {"unit": "x"},
    ],
)
def test_earlier_sums_that_are_none_are_refused(changes):
    with pytest.raises(InputError):
        dataclasses.replace(EARLIER, **changes)


def test_a_plan_with_earlier_sums_is_read_as_it_was_written():
    plan = Plan(dataset_size=100, releases=(FullSum(name="mean", noise_multiplier=5.0),), earlier=(EARLIER,))
    assert decode_plan(encode(plan)) == plan
