"""Whether randomness was used twice: moved, turned round, negated, scaled, or put into another order.

Equal values in equal places are a correlation, which products show. What was moved is a correlation at a distance, for
which Fourier transforms try all distances at once. What was put into another order is no correlation at all, but
leaves equal values: of 2 · 10⁷ sound float64 draws hardly two agree.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import scipy.fft
from jaxtyping import Float64, Int64
from numpy import ndarray

_FINEST = 2.0**-46  # standard deviations within which two draws are equal: rounding differs by less
_CELLS = 4_000_000  # of batches times records, in which overlaps are looked for
_BATCHES = 129


class Farthest(NamedTuple):
    """The statistic that is farthest from what it should be, and among how many."""

    value: float
    tests: int


class Equal(NamedTuple):
    """How many pairs of values are equal; how many should be, and the variance of what a Poisson law leaves out."""

    pairs: int
    expected: float
    variance: float


class Sum(NamedTuple):
    """The noise of one sum in units of its accounted standard deviation, and the step of its grid; 0 if continuous."""

    noise: Float64[ndarray, " coordinates"]
    step: float


class Fold(NamedTuple):
    """Something that draws are known by in any order: how it is made of draws; ∫ f² and ∫ f³ of its density f."""

    of: Callable[[Float64[ndarray, " draws"]], Float64[ndarray, " values"]]
    squared: float
    cubed: float


def _pairs(noise: Float64[ndarray, " draws"]) -> Float64[ndarray, "two pairs"]:
    return noise[: len(noise) // 2 * 2].reshape(-1, 2).T


FOLDS = {
    "sizes of draws": Fold(np.abs, 1 / math.sqrt(math.pi), 2 / (math.pi * math.sqrt(3))),
    # Box and Muller make a pair of draws of a length and a direction: either could be used twice.
    "lengths of pairs": Fold(lambda noise: np.hypot(*_pairs(noise)), math.sqrt(math.pi) / 4, 2 / 9),
    "directions of pairs": Fold(lambda noise: np.arctan2(*np.abs(_pairs(noise))), 2 / math.pi, (2 / math.pi) ** 2),
}


def farthest_correlation(noise: Float64[ndarray, "sums width"]) -> Farthest:
    """Return the largest correlation of two sums, or of one with itself, at any distance, forwards or backwards.

    Each is normal with a standard deviation of 1/√width in sound noise. `width` is even; distances go round its end.
    """
    width = noise.shape[1]
    assert width % 2 == 0
    spectra = scipy.fft.rfft(noise.astype(np.float32))

    def found() -> Iterator[ndarray]:
        for first, one in enumerate(spectra):
            forwards, backwards = (scipy.fft.irfft(one * other, n=width) for other in (one.conj(), one))
            forwards[width // 2] /= math.sqrt(2)  # at half of the width every product is there twice
            yield forwards[1 : width // 2 + 1]
            backwards[::2] -= 2  # at every other place there are two squares; products are there twice at all
            yield backwards / math.sqrt(2)
            for other in spectra[first + 1 :]:
                yield scipy.fft.irfft(one * other.conj(), n=width)
                yield scipy.fft.irfft(one * other, n=width)

    farthest, tests = 0.0, 0
    for part in found():
        value = float(part[np.abs(part).argmax()]) / width
        tests += len(part)
        if not abs(value) <= abs(farthest):  # a value that is no number is farthest
            farthest = value
    return Farthest(farthest, tests)


def equal_values(sums: Iterable[Sum], fold: Fold) -> Equal:
    """Return how many pairs of values are equal among sums on the same grid.

    A value falls on a point of a grid with the probability of its density times the step. So a pair is equal with
    probability step · ∫ f², and the number of equal pairs varies by more than a Poisson number.

    Source:
        Hoeffding 1948 (variance of a U-statistic).
    """
    pairs, expected, variance = 0, 0.0, 0.0
    for step, alike in groupby(sorted(sums, key=lambda each: each.step), key=lambda each: max(each.step, _FINEST)):
        points = np.concatenate([fold.of(each.noise) for each in alike])
        points /= step
        np.rint(points, out=points).sort()
        again = np.flatnonzero(points[1:] == points[:-1])
        ends = np.flatnonzero(np.diff(again, append=-1) != 1)
        runs = np.diff(ends, prepend=-1)  # a run of m repetitions is of m + 1 equal values
        pairs += int((runs * (runs + 1) // 2).sum())
        expected += len(points) ** 2 / 2 * step * fold.squared
        variance += len(points) ** 3 * step**2 * max(0.0, fold.cubed - fold.squared**2)
    return Equal(pairs, expected, variance)


def farthest_overlap(
    batches: Sequence[Int64[ndarray, " batch"]], *, records: int, rate: float
) -> tuple[Farthest, float]:
    """Return the most that batches overlap with later ones whose records are moved or turned round, and its mean.

    All batches with those a fixed number later are taken together, for each such number and each distance of records.
    In sound batches that is about a Poisson number, with wider tails if records are chosen more often than not: then
    overlaps of what is left out are counted.
    """
    rare, width = min(rate, 1 - rate), min(records, _CELLS)
    rows = min(len(batches), _BATCHES, max(3, _CELLS // width))
    rows -= 1 - rows % 2  # an odd number: no two batches are as far from each other in both directions
    chosen = np.zeros((rows, width), dtype=np.float32)
    for row, batch in zip(chosen, batches, strict=False):
        row[batch[batch < width]] = 1
    chosen = (chosen if rare == rate else 1 - chosen) - np.float32(rare)
    spectrum = scipy.fft.rfft2(chosen)
    turned = np.roll(spectrum[::-1], 1, axis=0)  # of the same batches in the opposite order
    later = slice(1, rows // 2 + 1)
    forwards = scipy.fft.irfft2(spectrum * spectrum.conj(), s=chosen.shape)
    backwards = scipy.fft.irfft2(spectrum * turned, s=chosen.shape)
    within = forwards[0, 1 : (width + 1) // 2]  # what of each batch is at one distance
    found = [forwards[later].max(), backwards[later].max(), *([within.max()] if within.size else [])]
    tests = 2 * forwards[later].size + within.size
    mean = rows * width * rare**2
    return Farthest(float(max(found)) + mean, tests), mean
