"""Ways to select batches, at equal ε: the noise that Poisson batches and balls-and-bins need, and what shuffling gives.

In an epoch of balls-and-bins each record throws itself into one of T batches, independently and anew (Chua et al.
2024). Its bound here is deterministic: no Monte Carlo.

    python benchmarks/batch_selection.py --render docs/results/2026-11-29.md
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from numpy import ndarray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from dpdm.privacy.accounting import PoissonGaussianSteps, epsilon
from rendering import put_between

MARKERS: Final = ("<!-- selection: made by benchmarks/batch_selection.py -->", "<!-- end of selection -->")
DELTA: Final = 1e-5
_CASES: Final = ((8, 25), (30, 10), (30, 50), (120, 10))  # batches an epoch, epochs
_TARGETS: Final = (0.2, 1.0, 10.0)
_CELLS: Final = 2**19
_TAIL: Final = 1e-12  # mass of one batch's ratio that is given up, and counted as an infinite loss
_ROUNDING: Final = 1e-12  # of a Fourier transform of numbers that add up to one
_STEPS: Final = 10**5  # of a grid of losses


def ratios(noise_multiplier: float, bins: int) -> tuple[ndarray, ndarray, ndarray]:
    """Return values of P/Q of one epoch, and their masses under P and Q: laws that dominate balls-and-bins.

    Q is N(0, σ² I) of T dimensions, P its mixture with means at the T unit vectors. Under Q the ratio is the mean of T
    independent exp((x − 1/2) / σ²), x ~ N(0, σ²). Each of them is put on a grid, the mass between two points to both so
    that its mean stays. A sum of such terms is greater in the convex order, so no hockey-stick divergence is smaller,
    in either direction. What lies above the grid is put to zero: the mean that it had is an infinite loss under P.
    Under P one of them has its mass times its value.
    """
    sigma = noise_multiplier
    greatest = math.exp((0.5 - sigma * ndtri(_TAIL)) / sigma**2)
    spread = math.sqrt(bins * math.expm1(sigma**-2))
    step = (greatest + bins + 40 * min(spread, greatest)) / _CELLS
    edges = np.arange(int(greatest / step) + 1) * step
    with np.errstate(divide="ignore"):
        x = sigma**2 * np.log(edges) + 0.5
    mass, mean = np.diff(ndtr(x / sigma)), np.diff(ndtr((x - 1) / sigma))
    upper = np.clip(mean / step - np.arange(len(mass)) * mass, 0, mass)
    one = np.zeros(len(edges))
    one[:-1] += mass - upper
    one[1:] += upper
    one[0] += ndtr(-x[-1] / sigma)
    size = next_fast_len(2 * _CELLS)
    others = rfft(one, size) ** (bins - 1)
    under_p, under_q = (irfft(rfft(each, size) * others, size) for each in (edges * one, one))
    return np.arange(size) * step / bins, np.maximum(under_p, 0), np.maximum(under_q, 0)


def balls_and_bins(noise_multiplier: float, bins: int, epochs: int, delta: float = DELTA) -> float:
    """Return an upper bound on ε of some epochs, to the rounding of a Fourier transform."""
    ratio, under_p, under_q = (law[1:] for law in ratios(noise_multiplier, bins))
    sides = ((under_p, np.log(ratio)), (under_q, -np.log(ratio)))
    return max(_losses(*side).self_compose(epochs).get_epsilon_for_delta(delta) for side in sides)


def _losses(mass: ndarray, losses: ndarray) -> PrivacyLossDistribution:
    """Return the distribution of losses of these masses, rounded up; what is missing to one is infinite."""
    mass, losses = mass[mass > _ROUNDING / len(mass)], losses[mass > _ROUNDING / len(mass)]
    interval = float(np.ptp(losses)) / _STEPS
    rounded = np.ceil(losses / interval).astype(np.int64)
    places, which = np.unique(rounded, return_inverse=True)
    summed = np.bincount(which, weights=mass)
    missing = max(0.0, 1 - float(summed.sum())) + _ROUNDING
    summed *= (1 - missing) / summed.sum()
    first = dict(zip(places.tolist(), np.log(summed), strict=True))
    second = {place: value - place * interval for place, value in first.items()}
    return privacy_loss_distribution.from_two_probability_mass_functions(
        second, first | {"missing": math.log(missing)}, value_discretization_interval=interval
    )


def poisson(noise_multiplier: float, bins: int, epochs: int, delta: float = DELTA) -> float:
    """Return ε of as many Poisson batches of the same expected size."""
    steps = PoissonGaussianSteps(noise_multiplier=noise_multiplier, sample_rate=1 / bins, steps=bins * epochs)
    return epsilon([steps], delta=delta, relation="add_or_remove_one")


def noise_for(cost: Callable[[float, int, int], float], target: float, bins: int, epochs: int) -> float:
    """Return the least noise multiplier for which ε is at most `target`, to a thousandth."""
    low, high = 0.5, 0.7
    while cost(high, bins, epochs) > target:
        low, high = high, 1.4 * high
    return float(brentq(lambda noise: min(cost(noise, bins, epochs), 1e3) - target, low, high, xtol=1e-3 * low))


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        "",
        "| batches an epoch | epochs | ε | σ, Poisson | σ, balls-and-bins | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for bins, epochs in _CASES:
        for target in _TARGETS:
            one, other = (noise_for(cost, target, bins, epochs) for cost in (poisson, balls_and_bins))
            lines.append(f"| {bins} | {epochs} | {target:g} | {one:.3f} | {other:.3f} | {other / one:.3f} |")
            print(lines[-1], flush=True)
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", type=Path, required=True, metavar="PAGE", help="the page with the markers")
    put_between(MARKERS, table(), parser.parse_args().render)
