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
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray
from scipy.stats import gamma, kstest, kstwobign, norm, poisson
from torch import nn

from dpdm.privacy import DPSGD, MechanismRun, OperatingSystemEntropy
from dpdm.privacy.entropy import Entropy
from dpdm.types import InputError

_STEPS = 20  # noisy sums that are looked at
_SELECTIONS = 2000  # batches of one run that are looked at
_REPEATED = 100  # batches that are compared with those of the same number in another run, or before resuming
_TESTED = 1_000_000  # draws in the test of normality
_CHECKS = 13
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


def check_mechanism(plan: DPSGD, *, draws: int = 20_000_000, entropy: Entropy | None = None) -> list[Check]:
    """Run the plan's mechanism on blank records, and test its noise and batch selection against what is accounted.

    Args:
        plan: A calibrated plan; its number of steps plays no part.
        draws: Coordinates of noise in all.
        entropy: The operating system's unless a test says otherwise.

    Returns:
        Checks of the noise (standard deviation of all and of each sum, normality, correlation between any two sums: of
        one run, before and after resuming, of another run, of other processes; and within a sum, at any distance), of
        the journal's count, and of batch selection (mean and variance of sizes, variance of how often a record takes
        part, overlap of neighbouring batches, and of those of the same number in another run and after resuming).

    Source:
        Chua et al. 2024 (arXiv 2411.04205) for what shuffled batches would cost.
    """
    source = entropy or OperatingSystemEntropy()
    width = max(2, draws // ((_STEPS if plan.steps else 0) + len(plan.earlier)))
    checks, noise = [], np.empty((0, width))
    if plan.steps:
        noise, counted = _noise_of_steps(plan, width, source)
        checks.append(Check("journal: sums counted after resuming", counted, _STEPS - 4, _STEPS - 4, _STEPS - 4))
    noise = np.concatenate([noise, _noise_of_earlier(plan, width, source)])
    checks += _checks_of_noise(noise)
    return checks + (_checks_of_selection(plan, source) if plan.steps else [])


def _noise_of_steps(plan: DPSGD, width: int, entropy: Entropy) -> tuple[Float64[ndarray, "steps width"], int]:
    """Return what steps put into `.grad`, in units of the accounted standard deviation, and the journal's last count.

    Half of most steps are of one run, the rest of the same run resumed; two are of another run, two of other processes.
    """
    of_one_run = _STEPS - 4
    plan = dataclasses.replace(plan, earlier=(), steps=of_one_run)
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
    return np.stack(rows), counted


def _in_another_process(plan: DPSGD, width: int, entropy: Entropy) -> Float64[ndarray, " width"]:
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


def _steps(plan: DPSGD, width: int, entropy: Entropy, *, count: int) -> Iterator[Float64[ndarray, " width"]]:
    run = plan.start(entropy=entropy)
    for _ in range(count):
        yield _blank_step(run, width)


def _blank_step(run: MechanismRun, width: int) -> Float64[ndarray, " width"]:
    """Take a step on records that contribute nothing; return the sum that the gradient came from, in noise units."""
    block = nn.Linear(width, 1, bias=False)
    run.backward(
        lambda module, batch: batch[0].sum(1),
        block,
        num_records=run.plan.dataset_size,
        load=lambda indices, random_bytes: (torch.zeros(0, 1),),
        physical_batch_size=run.plan.dataset_size,
    )
    assert isinstance(run.plan, DPSGD)
    assert block.weight.grad is not None
    assert run.plan.noise_multiplier is not None
    unit = run.plan.noise_multiplier * run.plan.max_grad_norm / run.plan.expected_batch_size
    return block.weight.grad.double().flatten().numpy() / unit


def _noise_of_earlier(plan: DPSGD, width: int, entropy: Entropy) -> Float64[ndarray, "releases width"]:
    """Return the noise of each of the plan's earlier releases, in units of the accounted standard deviation."""
    run = plan.start(entropy=entropy)
    rows = []
    for event in plan.earlier:
        noisy = run.release(torch.zeros(width, dtype=torch.float64), sensitivity=2.0, num_records=plan.dataset_size)
        rows.append(noisy.numpy() / (2.0 * event.noise_multiplier))
    return np.stack(rows) if rows else np.empty((0, width))


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

    within = np.stack([_correlations(row) for row in noise])
    return [
        near("noise: standard deviation ÷ accounted", noise.std()[None], 1, 1 / math.sqrt(2 * noise.size)),
        near("noise: that of the sum farthest off", noise.std(axis=1), 1, 1 / math.sqrt(2 * width)),
        near("noise: mean of the sum farthest off", noise.mean(axis=1), 0, 1 / math.sqrt(width)),
        Check("noise: distance from normal (KS)", float(kstest(some, "norm").statistic), 0, 0, distance),
        near("noise: largest correlation of two sums", pairs, 0, 1 / math.sqrt(width)),
        near("noise: largest correlation within a sum", within, 0, 1 / math.sqrt(width)),
    ]


def _correlations(noise: Float64[ndarray, " width"]) -> Float64[ndarray, " lags"]:
    """Return the correlation of each coordinate with the one at every distance up to half of the width."""
    width = len(noise)
    found = np.fft.irfft(np.abs(np.fft.rfft(noise)) ** 2, n=width)[1 : width // 2 + 1] / width
    if width % 2 == 0:
        found[-1] /= math.sqrt(2)  # at half of the width every pair is met twice
    return found


def _checks_of_selection(plan: DPSGD, entropy: Entropy) -> list[Check]:
    """Test that each record enters each batch with probability q, independently of all others and of other steps."""
    records, rate = plan.dataset_size, plan.sample_rate
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
    return checks


def _around_one(name: str, value: float, variance: float) -> Check:
    """Return a check of a mean of squares or counts, which is 1 on average.

    Its tails are those of a gamma variable or, where little is counted, of a Poisson one: whichever are wider.
    """
    tails = (_SIGNIFICANCE / 2, 1 - _SIGNIFICANCE / 2)
    limits = [(gamma.ppf(p, 1 / variance, scale=variance), poisson.ppf(p, 1 / variance) * variance) for p in tails]
    return Check(f"batches: {name}", float(value), 1, float(min(limits[0])), float(max(limits[1])))


def _selections(plan: DPSGD, entropy: Entropy, *, count: int) -> list[ndarray]:
    """Return the batches of the first `count` steps of a new run."""
    return _chosen(dataclasses.replace(plan, earlier=(), steps=count).start(entropy=entropy), count)


def _selections_around_resuming(plan: DPSGD, entropy: Entropy) -> tuple[list[ndarray], list[ndarray]]:
    """Return the batches of a run before it is stopped, and as many after it goes on."""
    plan = dataclasses.replace(plan, earlier=(), steps=2 * _REPEATED)
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            run = plan.start(Path(folder) / "journal.jsonl", entropy=entropy)
            parts.append(_chosen(run, _REPEATED))
            run.settle()
            run.close()
    return parts[0], parts[1]


def _chosen(run: MechanismRun, count: int) -> list[ndarray]:
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
            num_records=run.plan.dataset_size,
            load=load,
            physical_batch_size=run.plan.dataset_size,
        )
        batches.append(seen[0] if seen else np.zeros(0, dtype=np.int64))
    return batches


def _limit(tests: int) -> float:
    """Return how many standard errors the farthest of `tests` normal statistics may be off."""
    return float(-norm.ppf(_SIGNIFICANCE / tests / 2))
