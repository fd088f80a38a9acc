"""Whether the mechanism does what is accounted: its noise and its batches, taken from it as an optimizer sees them.

The records are blank, so that every private gradient is noise alone. Lower bounds on ε from canaries are blunt next to
this: with n draws the noise's standard deviation is known to 1/√(2n).
"""

import dataclasses
import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray
from scipy.stats import kstest, norm
from torch import nn

from dpdm.privacy import DPSGD, MechanismRun, OperatingSystemEntropy
from dpdm.privacy.entropy import Entropy

_STEPS = 20  # noisy sums that are looked at
_SELECTIONS = 2000  # batches that are looked at
_TESTED = 1_000_000  # draws in the test of normality
_SIGNIFICANCE = 1e-4  # probability that a sound mechanism fails one of the checks


class Check(NamedTuple):
    """One statistic of the mechanism, and how far it may be from what it should be."""

    name: str
    value: float
    expected: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is within its tolerance."""
        return bool(abs(self.value - self.expected) <= self.tolerance)


def check_mechanism(plan: DPSGD, *, draws: int = 20_000_000, entropy: Entropy | None = None) -> list[Check]:
    """Run the plan's mechanism on blank records, and test its noise and batch selection against what is accounted.

    Args:
        plan: A calibrated plan; its number of steps plays no part.
        draws: Coordinates of noise in all.
        entropy: The operating system's unless a test says otherwise.

    Returns:
        Checks of the noise (standard deviation of all and of each sum, normality, correlation between any two sums:
        of one run, before and after resuming, of another run, of other processes), of the journal's count, and of
        batch selection (mean and variance of sizes, variance of how often a record takes part, overlap of neighbours).

    Source:
        Chua et al. 2024 for what shuffled batches would cost; Meiser, Mohammadi & Ganesh 2024 on parametric checks.
    """
    source = entropy or OperatingSystemEntropy()
    width = max(2, draws // _STEPS)
    checks, noise = [], np.empty((0, width))
    if plan.steps:
        noise, counted = _noise_of_steps(plan, width, source)
        checks.append(Check("journal: sums counted after resuming", counted, _STEPS - 4, 0))
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
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        rows += [part[0] for part in pool.map(_in_another_process, *zip(*[(plan, width, entropy)] * 2, strict=True))]
    return np.stack(rows), counted


def _in_another_process(plan: DPSGD, width: int, entropy: Entropy) -> list[Float64[ndarray, " width"]]:
    return list(_steps(plan, width, entropy, count=1))


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
    each = noise.std(axis=1)
    pairs = (noise @ noise.T / width)[np.triu_indices(sums, 1)] if sums > 1 else np.zeros(1)
    neighbours = np.array([row[:-1] @ row[1:] / width for row in noise])
    some = noise.reshape(-1)[:: max(1, noise.size // _TESTED)]
    from_normal = float(kstest(some, "norm").statistic)
    return [
        Check("noise: standard deviation ÷ accounted", float(noise.std()), 1, _limit(1) / math.sqrt(2 * noise.size)),
        Check("noise: that of the sum farthest off", _farthest(each, 1), 1, _limit(sums) / math.sqrt(2 * width)),
        Check("noise: mean of the sum farthest off", _farthest(noise.mean(1), 0), 0, _limit(sums) / math.sqrt(width)),
        Check("noise: distance from normal (KS)", from_normal, 0, 2.23 / math.sqrt(len(some))),
        Check("noise: largest correlation of two sums", _farthest(pairs, 0), 0, _limit(len(pairs)) / math.sqrt(width)),
        Check("noise: of neighbouring coordinates", _farthest(neighbours, 0), 0, _limit(sums) / math.sqrt(width)),
    ]


def _checks_of_selection(plan: DPSGD, entropy: Entropy) -> list[Check]:
    """Test that each record enters each batch with probability q, independently of all others and of other steps."""
    records, rate = plan.dataset_size, plan.sample_rate
    run = dataclasses.replace(plan, earlier=(), steps=_SELECTIONS).start(entropy=entropy)
    block, chosen = nn.Linear(1, 1, bias=False), []

    def load(indices: ndarray, random_bytes: object) -> tuple[torch.Tensor]:
        chosen.append(indices)
        return (torch.zeros(0, 1),)

    counts, sizes, shared = np.zeros(records), np.zeros(_SELECTIONS), np.zeros(_SELECTIONS - 1)
    before = np.zeros(records, dtype=bool)
    for step in range(_SELECTIONS):
        chosen.clear()
        run.backward(
            lambda module, batch: batch[0].sum(1),
            block,
            num_records=records,
            load=load,
            physical_batch_size=records,
        )
        now = np.zeros(records, dtype=bool)
        now[np.concatenate(chosen) if chosen else []] = True
        counts += now
        sizes[step] = now.sum()
        if step:
            shared[step - 1] = (before & now).sum()
        before = now
    variance = rate * (1 - rate)
    if not variance:
        return [Check("batches: every record in every one", float(sizes.min()), records, 0)]
    mean = float(sizes.mean()) / (records * rate)
    overlap = float(shared.mean()) / (records * rate**2)
    # The second terms: estimates of a variance vary more for sums of few rare events than for normal numbers.
    width = math.sqrt((2 + 1 / (records * variance)) / _SELECTIONS)
    per_record = math.sqrt((2 + 1 / (_SELECTIONS * variance)) / records)
    # The second term: neighbouring overlaps share a batch, and so are correlated.
    of_overlap = math.sqrt((1 / (records * rate**2) + 2 / (records * rate)) / _SELECTIONS)
    return [
        Check("batches: mean size ÷ E", mean, 1, _limit(1) * math.sqrt((1 - rate) / (records * rate * _SELECTIONS))),
        Check(
            "batches: variance of sizes ÷ N q (1 − q)", float(sizes.var()) / (records * variance), 1, _limit(1) * width
        ),
        Check(
            "batches: variance of a record's turns ÷ T q (1 − q)",
            float(((counts - _SELECTIONS * rate) ** 2).mean() / (_SELECTIONS * variance)),
            1,
            _limit(1) * per_record,
        ),
        Check("batches: overlap of neighbours ÷ N q²", overlap, 1, _limit(1) * of_overlap),
    ]


def _farthest(values: Float64[ndarray, " values"], expected: float) -> float:
    return float(values[np.abs(values - expected).argmax()])


def _limit(tests: int) -> float:
    """Return how many standard errors the farthest of `tests` normal statistics may be off."""
    return float(-norm.ppf(_SIGNIFICANCE / tests / 2))
