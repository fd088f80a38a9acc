"""A search among settings, of whose runs the best alone is released: how many runs there are, and what it costs.

Trying k settings and keeping the best costs as much as releasing all k runs, if k is fixed. If k is random, and told to
nobody, it costs little more than one run.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from dpdm.privacy.accounting import (
    Event,
    GaussianRelease,
    Relation,
    RepeatedSelection,
    epsilon,
)
from dpdm.privacy.gaussians import gaussian_epsilon, gaussian_mu
from dpdm.types import InputError, RandomBytes, require_positive

_MOST_RUNS = 1000  # on average: beyond, nobody would wait for them
_SHAPES = 1e-6, 100.0  # beside 0: beyond, probabilities leave the range of floating-point numbers
_CUT_OFF = 2.0**-64  # probability of more runs than can be drawn
_RELATION: Relation = "add_or_remove_one"  # a Gaussian release costs the same under either


@dataclass(frozen=True, kw_only=True)
class Search:
    """That a run is one of a random number of runs, of which the best alone is released.

    Args:
        mean: How many runs there are on average, above 1.
        shape: Of their number's distribution, a truncated negative binomial one: 1 is geometric, 0 logarithmic, which
            costs less and is more often a single run.
        score_noise_multiplier: Noise on the count of right answers by which runs are compared, if that is of private
            images, ÷ what one record can change, which is 1. None for a score of released and public images alone.

    Source:
        Papernot & Steinke 2022.
    """

    mean: float
    shape: float = 1.0
    score_noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        RepeatedSelection(events=(), mean=self.mean, shape=self.shape)
        if not 1.01 <= self.mean <= _MOST_RUNS:
            raise InputError(f"runs must be from 1.01 to {_MOST_RUNS} on average, not {self.mean:g}")
        if self.shape != 0 and not _SHAPES[0] <= self.shape <= _SHAPES[1]:
            raise InputError(f"shape must be 0, or from {_SHAPES[0]:g} to {_SHAPES[1]:g}, not {self.shape:g}")
        if self.score_noise_multiplier is not None:
            require_positive(score_noise_multiplier=self.score_noise_multiplier)

    def events(self, of_one_run: Iterable[Event]) -> list[Event]:
        """Return what is accounted for the best of all runs, each of which releases its score too."""
        noise = self.score_noise_multiplier
        score = () if noise is None else (GaussianRelease(noise_multiplier=noise),)
        parts: tuple[Any, ...] = tuple(of_one_run)
        return [RepeatedSelection(events=(*parts, *score), mean=self.mean, shape=self.shape)]

    def epsilon_of_one(self, *, epsilon: float, delta: float) -> float:
        """Return about what one run may cost, so that the best of all costs `epsilon`; 0 if nothing is left for one.

        About, since it takes a run for a Gaussian release: `Plan.calibrate` makes it exact.
        """
        high = gaussian_mu(epsilon=epsilon, delta=delta)
        low = 0.0
        for _ in range(40):
            mu = (low + high) / 2
            if self._cost(mu, delta) <= epsilon:
                low = mu
            else:
                high = mu
        return gaussian_epsilon(mu=low, delta=delta)

    def _cost(self, mu: float, delta: float) -> float:
        events = self.events([GaussianRelease(noise_multiplier=1 / mu)])
        return epsilon(events, delta=delta, relation=_RELATION)

    def draw_num_runs(self, random_bytes: RandomBytes) -> int:
        """Return how many runs there are, at least 1.

        Args:
            random_bytes: Of the operating system; eight are read.

        Guarantees:
            * It ends, and its distribution is that of `probabilities` but for 2⁻⁶⁴.
        """
        u = (int.from_bytes(random_bytes(8), "big") + 1) / 2**64
        # From the end, so that even the smallest tails keep all their digits: above[k] is P(more than k + 1 runs).
        above = [*accumulate(reversed(self.probabilities()))][-2::-1]
        return 1 + next((number for number, tail in enumerate(above) if tail < u), len(above))

    def probabilities(self) -> list[float]:
        """Return the probabilities of 1, 2, 3, ... runs, as far as more than 2⁻⁶⁴ of them is left.

        What is cut off goes to the others in proportion: the price of the search then holds with a δ that is larger by
        (1 + e^ε) 2⁻⁶³, the draw's rounding included: 2.4 · 10⁻¹⁵ at ε = 10.

        Source:
            Papernot & Steinke 2022: ∝ (1 − γ)^k · Π_{l < k} (l + η) / (l + 1), truncated to k ≥ 1.
        """
        from scipy.optimize import brentq

        def mean(gamma: float) -> float:
            if self.shape == 0:
                return (1 / gamma - 1) / -math.log(gamma)
            return self.shape * (1 - gamma) / (gamma * -math.expm1(self.shape * math.log(gamma)))

        gamma = float(brentq(lambda g: mean(g) - self.mean, 1e-12, 1 - 1e-9, xtol=1e-15))
        if self.shape == 0:
            probability = (1 - gamma) / -math.log(gamma)
        else:
            probability = self.shape * (1 - gamma) / math.expm1(-self.shape * math.log(gamma))
        found, left = [probability], math.inf
        while left > _CUT_OFF:
            number = len(found)
            found.append(found[-1] * (1 - gamma) * (number + self.shape) / (number + 1))
            # From here on each is at most `ratio` times the one before, so that a geometric series bounds the rest.
            ratio = (1 - gamma) * max(1.0, (number + 1 + self.shape) / (number + 2))
            left = found[-1] * ratio / (1 - ratio) if ratio < 1 else math.inf
        whole = math.fsum(found)
        return [probability / whole for probability in found]
