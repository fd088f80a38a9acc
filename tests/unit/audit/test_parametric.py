"""What `dpdm audit` tests of noise and batches: what is used twice is seen, and sound draws seldom alarm."""

import numpy as np
import pytest
from scipy.stats import binom, poisson

from dpdm.audit import parametric
from dpdm.audit.repetition import Sum, farthest_overlap
from dpdm.privacy import DPSGD, Plan, ShardSums

SUMS, WIDTH = 20, 2000


@pytest.mark.parametrize("counted", [0.5, 1.7, 5.0, 17.0, 100.0, 3000.0])
def test_limits_hold_for_counts_of_rare_events(counted):
    """Of overlaps that are Poisson, sound ones are beyond the limits no more often than said."""
    seen = np.arange(int(counted + 40 * counted**0.5 + 40))
    beyond = [not parametric._around_one("overlap", k / counted, 1 / counted).passed for k in seen]
    assert poisson.pmf(seen[beyond], counted).sum() <= parametric._SIGNIFICANCE
    assert beyond[-1]  # and not everything passes


def checks_of(noise, step=0.0):
    return parametric._checks_of_noise(noise) + parametric._checks_of_repetition(
        "noise", [Sum(row, step) for row in noise]
    )


def failed(checks):
    return [check.name.removeprefix("noise: ") for check in checks if not check.passed]


def fresh(rng):
    return rng.standard_normal((SUMS, WIDTH))


def one_from_another(change, *, of=4, to=11):
    def make(rng):
        noise = fresh(rng)
        noise[to] = change(noise[of], rng)
        return noise

    return make


def within(change):
    def make(rng):
        noise = fresh(rng)
        noise[7, WIDTH // 2 :] = change(noise[7, : WIDTH // 2], rng)
        return noise

    return make


def half_of(change):
    def half(x, rng):
        y = rng.standard_normal(len(x))
        y[: len(x) // 2] = change(x, rng)[: len(x) // 2]
        return y

    return half


def counter(rng):
    """One stream, from which each sum takes its noise two numbers later than the one before."""
    stream = rng.standard_normal(WIDTH + 2 * SUMS)
    return np.stack([stream[2 * row : 2 * row + WIDTH] for row in range(SUMS)])


def shuffled_pairs(x, rng):
    return rng.permutation(x.reshape(-1, 2)).ravel()


def other_angles(x, rng):
    angle = 2 * np.pi * rng.random(len(x) // 2)
    return (np.hypot(x[::2], x[1::2])[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)).ravel()


def other_lengths(x, rng):
    length = np.sqrt(-2 * np.log(rng.random(len(x) // 2)))
    return (x.reshape(-1, 2) / np.hypot(x[::2], x[1::2])[:, None] * length[:, None]).ravel()


CORRELATED, MOVED = "largest correlation of two sums", "largest correlation at any distance, forwards or backwards"
EQUAL, LENGTHS, DIRECTIONS = (f"pairs of equal {what}" for what in parametric.FOLDS)
REUSED = {
    "a counter for each step": (counter, MOVED),
    "the same": (one_from_another(lambda x, rng: x), CORRELATED),
    "negated": (one_from_another(lambda x, rng: -x), CORRELATED),
    "moved by a pair": (one_from_another(lambda x, rng: np.roll(x, 2)), MOVED),
    "moved by one": (one_from_another(lambda x, rng: np.roll(x, 1)), MOVED),
    "moved back by many": (one_from_another(lambda x, rng: np.roll(x, -777), of=19, to=0), MOVED),
    "moved, without going round": (
        one_from_another(lambda x, rng: np.append(x[300:], rng.standard_normal(300))),
        MOVED,
    ),
    "moved and negated": (one_from_another(lambda x, rng: -np.roll(x, 2)), MOVED),
    "moved, mixed with other noise": (
        one_from_another(lambda x, rng: 0.6 * np.roll(x, 5) + 0.8 * fresh(rng)[0]),
        MOVED,
    ),
    "backwards": (one_from_another(lambda x, rng: x[::-1]), MOVED),
    "backwards, negated and moved": (one_from_another(lambda x, rng: -np.roll(x[::-1], 9)), MOVED),
    "pairs backwards": (one_from_another(lambda x, rng: x.reshape(-1, 2)[::-1].ravel()), EQUAL),
    "in another order": (one_from_another(lambda x, rng: rng.permutation(x)), EQUAL),
    "pairs in another order": (one_from_another(shuffled_pairs), EQUAL),
    "sorted": (one_from_another(lambda x, rng: np.sort(x)), EQUAL),
    "with other signs": (one_from_another(lambda x, rng: x * rng.choice([-1, 1], len(x))), EQUAL),
    "half of it in another order": (one_from_another(half_of(lambda x, rng: rng.permutation(x))), EQUAL),
    "twenty numbers of it": (one_from_another(lambda x, rng: np.append(x[:20], fresh(rng)[0, 20:])), EQUAL),
    "scaled and back": (one_from_another(lambda x, rng: x * 0.3 / 0.3), CORRELATED),
    "scaled and back, in another order": (one_from_another(lambda x, rng: rng.permutation(x) * 7.3 / 7.3), EQUAL),
    "lengths of pairs": (one_from_another(other_angles), LENGTHS),
    "directions of pairs": (one_from_another(other_lengths), DIRECTIONS),
    "within a sum": (within(lambda x, rng: x), MOVED),
    "within a sum, backwards": (within(lambda x, rng: x[::-1]), MOVED),
    "within a sum, in another order": (within(lambda x, rng: -rng.permutation(x)), EQUAL),
    "one for each row of a matrix": (lambda rng: np.repeat(fresh(rng)[:, ::50], 50, axis=1), EQUAL),
}


@pytest.mark.parametrize(("make", "said"), REUSED.values(), ids=REUSED)
def test_noise_that_is_used_twice_is_seen(make, said):
    """Noise used again is seen, however it was changed: at any distance, backwards, negated, in another order."""
    assert said in failed(checks_of(make(np.random.default_rng(1))))


@pytest.mark.parametrize("change", [lambda x, rng: rng.permutation(x), shuffled_pairs, lambda x, rng: np.roll(x, 2)])
def test_noise_on_a_grid_that_is_used_twice_is_seen(change):
    """On a grid, equal values are no wonder; too many of them are."""
    step, rng = 2.0**-18, np.random.default_rng(2)
    noise = np.rint(fresh(rng) / step) * step
    assert failed(checks_of(noise, step)) == []
    noise[3] = change(noise[12], rng)
    assert EQUAL in failed(checks_of(noise, step))


def batches(rng, *, records=300, rate=0.1):
    return [np.flatnonzero(rng.random(records) < rate) for _ in range(132)]


OF_BATCHES = {
    "moved by a record": lambda some, rng: (some + 1) % 300,
    "moved by many": lambda some, rng: (some + 123) % 300,
    "backwards": lambda some, rng: 299 - some,
    "the same": lambda some, rng: some,
}


@pytest.mark.parametrize("later", [1, 5, 40])
@pytest.mark.parametrize("change", OF_BATCHES.values(), ids=OF_BATCHES)
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.9])
def test_batches_that_are_used_twice_are_seen(change, later, rate):
    """A batch that is an earlier one, moved or turned round, is seen however much later it comes."""
    rng = np.random.default_rng(3)
    sound = batches(rng, rate=rate)
    used = [
        change(sound[i - later], rng) if i >= later and i % (2 * later) >= later else b for i, b in enumerate(sound)
    ]
    for series, passes in ((sound, True), (used, False)):
        assert parametric._check_of_overlap(series, 300, rate).passed is passes


def test_false_alarms_are_as_rare_as_said(monkeypatch):
    """Of simulated audits of sound noise and batches no more fail than the significance allows, all checks together."""
    monkeypatch.setattr(parametric, "_SIGNIFICANCE", 0.2 / parametric._CHECKS)
    audits, alarms, names = 150, 0, set()
    rng = np.random.default_rng(4)
    for number in range(audits):
        step = (0.0, 2.0**-18)[number % 2]
        noise = rng.standard_normal((SUMS, 500))
        noise = np.rint(noise / step) * step if step else noise
        of_prior = [Sum(rng.standard_normal(length), 0.0) for length in (1, 2, 3, 17, 257, 1000)]
        checks = [*checks_of(noise, step), *parametric.check_sums(of_prior)]
        records, rate = ((300, 0.1), (2000, 0.004), (50, 0.8), (100, 0.5))[number % 4]
        checks.append(parametric._check_of_overlap(batches(rng, records=records, rate=rate), records, rate))
        checks.append(parametric._check_of_sizes(rng.binomial(records, rate, 400), records, rate))
        alarms += any(not check.passed for check in checks)
        names |= {check.name for check in checks}
    assert len(names) <= parametric._CHECKS
    assert binom.sf(alarms - 1, audits, 0.2) > 1e-4, alarms  # no more than said
    assert alarms  # and the limits are not so wide that nothing is ever beyond them


@pytest.mark.parametrize("noise", ["continuous", "grid"])
@pytest.mark.parametrize("steps", [0, 100])
def test_a_whole_check_counts_its_comparisons(noise, steps, monkeypatch):
    """The significance is shared out among at least as many checks as there are."""

    def here(plan, width, entropy):  # in place of another process
        return next(parametric._steps(plan, width, entropy, count=1))

    monkeypatch.setattr(parametric, "_in_another_process", here)
    monkeypatch.setattr(parametric, "_SELECTIONS", 400)
    before = {"first": 5.0, "second": 3.0}
    training = {"steps": steps, "noise_multiplier": 1.5} if steps else {"steps": 0}
    plan = DPSGD(dataset_size=300, expected_batch_size=30, delta=1e-3, releases=before, noise=noise, **training)
    checks = parametric.check_mechanism(plan, draws=100_000)
    assert failed(checks) == []
    of_prior = len(parametric.check_sums([Sum(np.zeros(3), 0.0)]))
    assert len({check.name for check in checks}) == len(checks) <= parametric._CHECKS - of_prior


def test_overlaps_are_looked_for_in_part_of_many_records():
    rng = np.random.default_rng(5)
    found, mean = farthest_overlap(
        [np.sort(rng.choice(5_000_000, 50, replace=False)) for _ in range(9)], records=5_000_000, rate=1e-5
    )
    assert found.value < 6
    assert mean < 0.01


def test_sums_are_called_by_what_they_are():
    from dpdm.methods import Evolution, PriorAlone

    facts = {"epsilon": 1.0, "dataset_size": 1000}
    assert parametric.called(Evolution().plan(**facts)) == "votes"
    assert parametric.called(PriorAlone().plan(**facts)) == "prior"
    check = parametric.check_sums([Sum(np.random.default_rng(0).normal(size=300), 0.0)], "votes")[0]
    assert check.name == "votes: standard errors that the noise of a sum is off"


def test_of_a_plan_over_shards_it_is_shards_that_are_selected(monkeypatch):
    def here(plan, width, entropy):  # in place of another process
        return next(parametric._steps(plan, width, entropy, count=1))

    monkeypatch.setattr(parametric, "_in_another_process", here)
    monkeypatch.setattr(parametric, "_SELECTIONS", 200)
    sums = ShardSums(shards=80, count=40, expected_batch_size=8, noise_multiplier=1.5)
    plan = Plan(dataset_size=1000, delta=1e-4, relation="replace_special", releases=(sums,))
    checks = parametric.check_mechanism(plan, draws=100_000)
    assert [check.name for check in checks if not check.passed] == []
    assert any(check.name.startswith("batches: mean size") for check in checks)
