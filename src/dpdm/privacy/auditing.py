"""How much privacy an attack has disproved: from guesses about canaries to lower bounds on ε. Statistics only.

A canary is a record that takes part or not by the toss of a fair coin. Who audits scores each canary by what the run
gave away, and guesses. Each bound holds with probability 1 − `significance` over coins and run.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray
from scipy.special import betaincinv, log_expit, ndtr, ndtri
from scipy.stats import beta, binom

from dpdm.privacy.gaussians import gaussian_epsilon
from dpdm.types import InputError, require_counts, require_counts_or_none

_LARGEST = 100.0  # ε and μ beyond which no bound is looked for
_FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)  # of the canaries that are guessed about on either side


@dataclass(frozen=True, kw_only=True)
class LowerBounds:
    """What one attack disproved: with 95 % confidence ε is not below each of these.

    `one_run` holds for any mechanism, and `clopper_pearson` where canaries do not interfere with one another, as Dirac
    canaries do not. The two others are estimates: they hold if the mechanism's trade-off is that of a Gaussian one,
    which many steps come near to.
    """

    one_run: float
    one_run_gaussian: float
    clopper_pearson: float
    gaussian: float


def lower_bounds(
    scores: Float64[ndarray, " canaries"],
    took_part: Bool[ndarray, " canaries"],
    *,
    delta: float,
    significance: float = 0.05,
) -> LowerBounds:
    """Return all bounds from the scores of canaries, each with the best of several numbers of guesses.

    Trying several numbers is paid for by dividing the significance by how many there are (Bonferroni).

    Args:
        scores: One for each canary; the higher, the more it looks as if it took part.
        took_part: What the coins said.
        delta: δ of the claim.
        significance: Probability that a bound is wrong.

    Raises:
        InputError: There are not as many coins as scores, or one side is empty, or a score is not a number.
    """
    if scores.shape != took_part.shape or not 0 < took_part.sum() < len(took_part) or np.isnan(scores).any():
        raise InputError("an audit needs a score for each canary, and canaries on both sides")
    order = np.argsort(-scores, kind="stable")
    ordered, count = took_part[order], len(scores)
    each = significance / len(_FRACTIONS)
    present, absent = int(took_part.sum()), int((~took_part).sum())
    sides = sorted({max(1, int(fraction * count)) for fraction in _FRACTIONS})
    both, top, errors = [], [], []
    for guesses in sides:
        correct_in, correct_out = int(ordered[:guesses].sum()), int((~ordered[count - guesses :]).sum())
        both.append(one_run_epsilon(count, 2 * guesses, correct_in + correct_out, delta=delta, significance=each))
        top.append(one_run_mu(count, guesses, correct_in, significance=each))
        # "present" for the `guesses` highest scores; and, mirrored, "absent" for the lowest
        errors.append(_Errors(guesses - correct_in, absent, present - correct_in, present, each / 2))
        errors.append(_Errors(guesses - correct_out, present, absent - correct_out, absent, each / 2))
    return LowerBounds(
        one_run=max(both),
        one_run_gaussian=gaussian_epsilon(mu=max(top), delta=delta),
        clopper_pearson=max(e.epsilon(delta) for e in errors),
        gaussian=gaussian_epsilon(mu=max(e.mu() for e in errors), delta=delta),
    )


def one_run_epsilon(canaries: int, guesses: int, correct: int, *, delta: float, significance: float = 0.05) -> float:
    """Return the largest ε at which so many correct guesses would be too lucky.

    Args:
        canaries: How many took part by the toss of a coin.
        guesses: About how many of them something was guessed; the others were abstained from.
        correct: How many guesses were right.
        delta: δ of the claim.
        significance: Probability that the bound is wrong.

    Source:
        Steinke, Nasr & Jagielski 2023 (arXiv 2305.08846).
    """
    _require_counts(canaries, guesses, correct)

    def too_lucky(epsilon: float) -> bool:
        right = binom(guesses, math.exp(log_expit(epsilon)))
        by_chance = right.sf(correct - 1)
        i = np.arange(1, correct + 1)
        by_delta = float(((right.sf(correct - 1 - i) - by_chance) / i).max()) if correct else 0.0
        return bool(by_chance + 2 * canaries * delta * by_delta < significance)

    return _largest(too_lucky)


def one_run_mu(canaries: int, guesses: int, correct: int, *, significance: float = 0.05) -> float:
    """Return the largest μ of a Gaussian mechanism at which so many correct guesses would be too lucky.

    Other than for `one_run_epsilon`, all guesses are "took part".

    Source:
        Mahloujifar, Melis & Chaudhuri 2025 (arXiv 2410.22235), for Gaussian trade-offs.
    """
    _require_counts(canaries, guesses, correct)

    def too_lucky(mu: float) -> bool:
        mass, largest = significance * correct / canaries, significance * (guesses - correct) / canaries
        for i in range(correct - 1, -1, -1):
            grown = max(largest, float(ndtr(ndtri(mass) - mu)))
            mass = min(1.0, mass + i / (guesses - i) * (grown - largest))
            largest = grown
        return mass + largest > guesses / canaries

    return _largest(too_lucky) if correct else 0.0


def clopper_pearson(successes: int, trials: int, *, significance: float) -> tuple[float, float]:
    """Return the two-sided interval for a rate of which `successes` in `trials` were seen."""
    low = 0.0 if not successes else float(betaincinv(successes, trials - successes + 1, significance / 2))
    high = 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1 - significance / 2))
    return low, high


@dataclass(frozen=True)
class _Errors:
    """The errors of one rule on independent canaries, each with its upper bound by Clopper & Pearson.

    Source:
        Jagielski, Ullman & Oprea 2020; Nasr et al. 2021 (arXiv 2101.04535), and 2023 (arXiv 2302.07956) for `mu`.
    """

    false_positives: int
    negatives: int
    false_negatives: int
    positives: int
    significance: float

    def rates(self) -> tuple[float, float]:
        """Return upper bounds on false-positive and false-negative rate; both hold together."""

        def bound(errors: int, trials: int) -> float:
            return 1.0 if errors == trials else float(beta.ppf(1 - self.significance / 2, errors + 1, trials - errors))

        return bound(self.false_positives, self.negatives), bound(self.false_negatives, self.positives)

    def epsilon(self, delta: float) -> float:
        false_positive, false_negative = self.rates()
        told_apart = 1 - false_negative - delta
        return max(0.0, math.log(told_apart / false_positive)) if told_apart > 0 else 0.0

    def mu(self) -> float:
        false_positive, false_negative = self.rates()
        return max(0.0, float(ndtri(1 - false_positive) - ndtri(false_negative)))


def _require_counts(canaries: int, guesses: int, correct: int) -> None:
    require_counts(canaries=canaries, guesses=guesses)
    require_counts_or_none(correct=correct)
    if not 0 <= correct <= guesses <= canaries:
        raise InputError(f"{correct} right of {guesses} guesses about {canaries} canaries is impossible")


def _largest(rejected: Callable[[float], bool]) -> float:
    """Return the largest value up to 100 that is rejected, by bisection; 0 if none is."""
    if not rejected(0.0):
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low
