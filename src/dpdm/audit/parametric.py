"""Whether the mechanism does what is accounted: its noise and its batches, taken from it as an optimizer sees them.

The records are blank, so that every private gradient is noise alone. Lower bounds on ε from canaries are blunt next to
this: with n draws the noise's standard deviation is known to 1/√(2n).
"""

import dataclasses
import math
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.fft import next_fast_len
from scipy.stats import chi2, gamma, kstest, kstwobign, norm, poisson
from torch import nn

from dpdm.audit.repetition import (
    FOLDS,
    Farthest,
    Sum,
    equal_values,
    farthest_correlation,
    farthest_overlap,
)
from dpdm.privacy import AnyPlan, MechanismRun, OperatingSystemEntropy, Plan
from dpdm.privacy.entropy import Entropy
from dpdm.privacy.noise import grid_step
from dpdm.privacy.releases import noise_of
from dpdm.privacy.sums import BoundedSum
from dpdm.types import InputError

_STEPS = 20  # noisy sums that are looked at
_SELECTIONS = 2000  # batches of one run that are looked at
_REPEATED = 100  # batches that are compared with those of the same number in another run, or before resuming
_TESTED = 1_000_000  # draws in the test of normality
_SHAPES = ((1,), (2,), (3,), (17,), (257,), (4097,), (), (1, 8), (8, 1), (3, 3), (2, 3, 4))  # of totals to release
_OF_BLOCK = (
    (),
    (3,),
    (1, 5),
    (5, 1),
    (2, 3, 2, 2),
)  # shapes of small parameters that a step looks at, beside large ones
_CHECKS = 23
_SIGNIFICANCE = 1e-4 / _CHECKS  # probability that a sound mechanism fails one check: 1e-4 for all together


class Check(NamedTuple):
    """One statistic of the mechanism, what it should be, and between what it may lie."""

    name: str
    value: float
    expected: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether it lies there."""
        return bool(self.low <= self.value <= self.high)


def check_mechanism(plan: Plan, *, draws: int = 20_000_000, entropy: Entropy | None = None) -> list[Check]:
    """Run the plan's mechanism on blank records, and test its noise and batch selection against what is accounted.

    Args:
        plan: A calibrated plan; its number of steps plays no part.
        draws: Coordinates of noise in all.
        entropy: The operating system's unless a test says otherwise.

    Returns:
        Checks of the noise: mean and standard deviation of all and of each sum, normality, and values that are there
        twice. Also correlation of sums at any distance and backwards: of one run, before and after resuming, of another
        run and of other processes. A check of the journal's count. Checks of batch selection: mean, variance and
        correlation of sizes, and variance of how often a record takes part. Also overlap of neighbouring batches, and
        of those of the same number in another run and after resuming. Also overlap of batches whose records are moved
        or turned round.

    Source:
        Chua et al. 2024 (arXiv 2411.04205) for what shuffled batches would cost.
    """
    source = entropy or OperatingSystemEntropy()
    width = max(2, draws // ((_STEPS if plan.steps else 0) + len(plan.full)))
    while width % 2 or next_fast_len(width, real=True) != width:  # pairs of draws, and quick Fourier transforms
        width -= 1
    checks: list[Check] = []
    large: list[Sum] = []
    if plan.steps:
        large, counted = _noise_of_steps(plan, width, source)
        checks.append(Check("journal: sums counted after resuming", counted, _STEPS - 4, _STEPS - 4, _STEPS - 4))
    large += _noise_of_full_sums(plan, source, [(width,)])
    small = _noise_of_full_sums(plan, source, _SHAPES)
    noise = np.stack([each.noise for each in large])
    large = [each._replace(noise=row) for each, row in zip(large, noise, strict=True)]  # views, not copies
    checks += _checks_of_noise(noise)
    if small:
        checks.append(_check_of_each("noise: standard errors that of a small sum is off", small))
    checks += _checks_of_repetition("noise", large + small)
    return checks + (_checks_of_selection(plan, source) if plan.steps else [])


def check_sums(sums: list[Sum], what: str = "prior") -> list[Check]:
    """Test the noise on sums that were released, of whatever lengths; `what` is what they are called."""
    if not sums:
        return []
    off = _check_of_each(f"{what}: standard errors that the noise of a sum is off", sums)
    return [off, *_checks_of_repetition(what, sums)]


def called(plan: Plan) -> str:
    """Return what the full sums of a plan are called together: all of one kind by its name, else those of a prior."""
    kinds = {release.name.partition(", round")[0] for release in plan.full}
    return kinds.pop() if len(kinds) == 1 else "prior"


def _noise_of_steps(plan: Plan, width: int, entropy: Entropy) -> tuple[list[Sum], int]:
    """Return what steps put into `.grad`, in units of the accounted standard deviation, and the journal's last count.

    Most steps come from one run, half of them after it was resumed; two come from another run, and two from other
    processes.
    """
    of_one_run = _STEPS - 4
    plan = _steps_alone(plan, of_one_run)
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal.jsonl"
        rows = []
        for _ in range(2):
            run = plan.start(journal, entropy=entropy)
            rows += [_blank_step(run, width) for _ in range(of_one_run // 2)]
            run.settle()
            counted = run.steps_spent
            run.close()
    rows += list(_steps(plan, width, entropy, count=2))
    rows += [_in_another_process(plan, width, entropy) for _ in range(2)]
    unit = plan.noise_std(0, plan.max_grad_norm)
    step = grid_step(plan.max_grad_norm) / unit if plan.noise == "grid" else 0.0
    return [Sum(row, step) for row in rows], counted


def _in_another_process(plan: Plan, width: int, entropy: Entropy) -> Float64[ndarray, " width"]:
    """Return the noise of the first step of a run in a new process."""
    script = "from dpdm.audit.parametric import answer; answer()"
    asked = pickle.dumps((plan, width, entropy))
    try:
        done = subprocess.run([sys.executable, "-c", script], input=asked, capture_output=True, check=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise InputError(f"another process could not be asked for its noise ({''.join(said)})") from None
    return np.frombuffer(done.stdout, dtype=np.float64)


def answer() -> None:
    """Answer another process, which asked on standard input for the noise of a first step."""
    plan, width, entropy = pickle.load(sys.stdin.buffer)
    (noise,) = _steps(plan, width, entropy, count=1)
    sys.stdout.buffer.write(noise.tobytes())


def _steps(plan: Plan, width: int, entropy: Entropy, *, count: int) -> Iterator[Float64[ndarray, " width"]]:
    run = plan.start(entropy=entropy)
    for _ in range(count):
        yield _blank_step(run, width)


class _Block(nn.Module):
    """So many numbers as parameters of several shapes, in float64: what is equal is equal in every digit."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        small = [shape for shape in _OF_BLOCK if numbers >= 100]
        rest = numbers - sum(math.prod(shape) for shape in small)
        side = math.isqrt(rest // 2)
        shapes = [*small, (side, side), (rest - side**2,)]
        self.parts = nn.ParameterList(torch.zeros(shape, dtype=torch.float64) for shape in shapes)


def _blank_step(run: MechanismRun, width: int) -> Float64[ndarray, " width"]:
    """Take a step on records that contribute nothing; return the sum that the gradient came from, in noise units."""
    block = _Block(width)
    run.backward(
        lambda module, batch: batch[0].sum(1),
        block,
        num_records=_selected_from(run.plan),
        load=lambda indices, random_bytes: (torch.zeros(0, 1),),
        physical_batch_size=_selected_from(run.plan),
    )
    assert isinstance(run.plan, Plan)
    assert run.plan.noise_multiplier is not None
    unit = run.plan.noise_multiplier * run.plan.max_grad_norm / run.plan.expected_batch_size
    gradients = [part.grad.flatten() for part in block.parts if part.grad is not None]
    return torch.cat(gradients).double().numpy() / unit


def _noise_of_full_sums(plan: Plan, entropy: Entropy, shapes: Iterable[tuple[int, ...]]) -> list[Sum]:
    """Return the noise of the sums over all records on totals of each shape that they take, a run for each shape."""
    sums = []
    for shape in shapes:
        run = plan.start(entropy=entropy)
        zero = BoundedSum(torch.zeros(shape, dtype=torch.float64), 2.0)
        try:
            for entry in plan.full:
                noisy, _ = run.release(entry.name, zero, num_records=plan.dataset_size)
                sums.append(as_sum(noisy, plan, noise_of(entry), sensitivity=zero.sensitivity))
        except InputError:
            continue  # a shape that is refused has no noise that could be wrong
    return sums


def _steps_alone(plan: Plan, count: int) -> Plan:
    """Return a plan of so many steps, and nothing before them."""
    return dataclasses.replace(plan, releases=plan.poisson[-1:]).with_steps(count)


def _selected_from(plan: AnyPlan) -> int:
    """Return of how many a step's batch is selected: records, or shards of them."""
    return plan.poisson[-1].out_of(plan.dataset_size)


def as_sum(noise: Float64[torch.Tensor, "..."], plan: Plan, noise_multiplier: float, *, sensitivity: float) -> Sum:
    """Return the noise of one release of the plan in units of what is accounted."""
    step = grid_step(sensitivity) / (noise_multiplier * sensitivity) if plan.noise == "grid" else 0.0
    return Sum(noise.flatten().numpy() / (noise_multiplier * sensitivity), step)


def _checks_of_noise(noise: Float64[ndarray, "sums width"]) -> list[Check]:
    sums, width = noise.shape
    pairs = (noise @ noise.T / width)[np.triu_indices(sums, 1)] if sums > 1 else np.zeros(1)
    some = noise.reshape(-1)[:: max(1, noise.size // _TESTED) | 1]  # an odd stride meets both of a pair of draws
    distance = float(kstwobign.isf(_SIGNIFICANCE)) / math.sqrt(len(some))

    def near(name: str, values: ndarray, expected: float, error: float) -> Check:
        """Take the value that is farthest off, each being normal with a standard deviation of `error`."""
        value = float(values.flat[np.abs(values - expected).argmax()])
        limit = _limit(values.size) * error
        return Check(name, value, expected, expected - limit, expected + limit)

    moved = farthest_correlation(noise)
    return [
        near("noise: standard deviation ÷ accounted", noise.std()[None], 1, 1 / math.sqrt(2 * noise.size)),
        near("noise: that of the sum farthest off", noise.std(axis=1), 1, 1 / math.sqrt(2 * width)),
        near("noise: mean of the sum farthest off", noise.mean(axis=1), 0, 1 / math.sqrt(width)),
        Check("noise: distance from normal (KS)", float(kstest(some, "norm").statistic), 0, 0, distance),
        near("noise: largest correlation of two sums", pairs, 0, 1 / math.sqrt(width)),
        _correlation("noise: largest correlation at any distance, forwards or backwards", moved, width),
    ]


def _correlation(name: str, found: Farthest, terms: int, *, skewness: float = 0.0, kurtosis: float = 6.0) -> Check:
    """Return a check of correlations of so many terms; products of two normal numbers have an excess kurtosis of 6.

    Source:
        Cornish & Fisher 1938 (limits for sums of numbers that are not normal).
    """
    z, different = _limit(found.tests), terms / 2  # backwards, every product is there twice
    z += skewness / math.sqrt(different) * (z**2 - 1) / 6 + kurtosis / different * (z**3 - 3 * z) / 24
    return Check(name, found.value, 0, -z / math.sqrt(terms), z / math.sqrt(terms))


def _check_of_each(name: str, sums: list[Sum]) -> Check:
    """Return a check of the mean square of each sum's noise, as the normal number that is as unlikely."""
    rank = [chi2.cdf(np.square(each.noise).sum(), each.noise.size) for each in sums]
    off = np.clip(norm.ppf(rank), -38, 38)  # where float64 ends
    limit = _limit(len(off))
    return Check(name, float(off[np.abs(off).argmax()]), 0, -limit, limit)


def _checks_of_repetition(what: str, sums: list[Sum]) -> list[Check]:
    """Test that no draw, and neither half of what a pair of draws was made of, is there twice."""
    checks = []
    for name, fold in FOLDS.items():
        equal = equal_values(sums, fold)
        most = poisson.isf(_SIGNIFICANCE, equal.expected) + _limit(1) * math.sqrt(equal.variance)
        checks.append(Check(f"{what}: pairs of equal {name}", equal.pairs, equal.expected, 0, float(most)))
    return checks


def _checks_of_selection(plan: Plan, entropy: Entropy) -> list[Check]:
    """Test that each record enters each batch with probability q, independently of all others and of other steps."""
    records, rate = _selected_from(plan), plan.sample_rate
    batches = _selections(plan, entropy, count=_SELECTIONS)
    if rate >= 1:
        least = min(len(batch) for batch in batches)
        return [Check("batches: every record in every one", least, records, records, records)]
    sizes = np.array([len(batch) for batch in batches])
    turns = np.bincount(np.concatenate(batches).astype(np.int64), minlength=records)
    before, after = _selections_around_resuming(plan, entropy)
    again = _selections(plan, entropy, count=_REPEATED)
    pairs = {
        "overlap of neighbours ÷ N q²": list(pairwise(batches)),
        "overlap with another run's ÷ N q²": list(zip(batches, again, strict=False)),
        "overlap before and after resuming ÷ N q²": list(zip(before, after, strict=True)),
    }
    variance = rate * (1 - rate)
    checks = [
        _around_one("mean size ÷ E", sizes.mean() / (records * rate), (1 - rate) / (records * rate * _SELECTIONS)),
        # The second terms: an estimate of a variance varies more for sums of few rare events than for normal numbers.
        _around_one(
            "variance of sizes ÷ N q (1 − q)",
            ((sizes - records * rate) ** 2).mean() / (records * variance),
            (2 + 1 / (records * variance)) / _SELECTIONS,
        ),
        _around_one(
            "variance of a record's turns ÷ T q (1 − q)",
            ((turns - _SELECTIONS * rate) ** 2).mean() / (_SELECTIONS * variance),
            (2 + 1 / (_SELECTIONS * variance)) / records,
        ),
    ]
    for name, compared in pairs.items():
        shared = float(np.mean([len(np.intersect1d(one, other, assume_unique=True)) for one, other in compared]))
        # The second term: neighbouring overlaps share a batch, and so are correlated.
        spread = (1 / (records * rate**2) + 2 / (records * rate)) / len(compared)
        checks.append(_around_one(name, shared / (records * rate**2), spread))
    series = [batch for some in (batches, before, after, again) for batch in some[: _REPEATED // 3]]
    return [*checks, _check_of_overlap(series, records, rate), _check_of_sizes(sizes, records, rate)]


def _check_of_overlap(batches: list[Int64[ndarray, " batch"]], records: int, rate: float) -> Check:
    """Return a check of what batches have in common with later ones, if records are moved or turned round."""
    found, mean = farthest_overlap(batches, records=records, rate=rate)
    most = 1 + poisson.isf(_SIGNIFICANCE / found.tests, mean)  # 1: the most that centring adds
    return Check("batches: largest overlap, records moved or turned round", found.value, mean, 0, float(most))


def _check_of_sizes(sizes: Int64[ndarray, " batches"], records: int, rate: float) -> Check:
    """Return a check that no size follows from another one, however much earlier."""
    variance = records * rate * (1 - rate)
    rarity = (1 - 2 * rate) ** 2 / variance  # squared skewness of a binomial number
    found = farthest_correlation((sizes - records * rate)[None] / math.sqrt(variance))
    shape = {"skewness": rarity, "kurtosis": (3 + rarity) ** 2 - 9}
    return _correlation("batches: largest correlation of their sizes", found, len(sizes), **shape)


def _around_one(name: str, value: float, variance: float) -> Check:
    """Return a check of a mean of squares or counts, which is 1 on average.

    Its tails are those of a gamma variable or, where little is counted, of a Poisson one: whichever are wider.
    """
    tails = (_SIGNIFICANCE / 2, 1 - _SIGNIFICANCE / 2)
    limits = [(gamma.ppf(p, 1 / variance, scale=variance), poisson.ppf(p, 1 / variance) * variance) for p in tails]
    return Check(f"batches: {name}", float(value), 1, float(min(limits[0])), float(max(limits[1])))


def _selections(plan: Plan, entropy: Entropy, *, count: int) -> list[Int64[ndarray, " batch"]]:
    """Return the batches of the first `count` steps of a new run."""
    return _chosen(_steps_alone(plan, count).start(entropy=entropy), count)


def _selections_around_resuming(
    plan: Plan, entropy: Entropy
) -> tuple[list[Int64[ndarray, " batch"]], list[Int64[ndarray, " batch"]]]:
    """Return the batches of a run before it is stopped, and as many after it goes on."""
    plan = _steps_alone(plan, 2 * _REPEATED)
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            run = plan.start(Path(folder) / "journal.jsonl", entropy=entropy)
            parts.append(_chosen(run, _REPEATED))
            run.settle()
            run.close()
    return parts[0], parts[1]


def _chosen(run: MechanismRun, count: int) -> list[Int64[ndarray, " batch"]]:
    """Take steps on blank records; return which of them were chosen in each."""
    block, batches = nn.Linear(1, 1, bias=False), []
    for _ in range(count):
        seen: list[ndarray] = []

        def load(indices: ndarray, random_bytes: object, seen: list[ndarray] = seen) -> tuple[torch.Tensor]:
            seen.append(indices)
            return (torch.zeros(0, 1),)

        run.backward(
            lambda module, batch: batch[0].sum(1),
            block,
            num_records=_selected_from(run.plan),
            load=load,
            physical_batch_size=_selected_from(run.plan),
        )
        batches.append(seen[0] if seen else np.zeros(0, dtype=np.int64))
    return batches


def _limit(tests: int) -> float:
    """Return how many standard errors the farthest of `tests` normal statistics may be off."""
    return float(norm.isf(_SIGNIFICANCE / tests / 2))
