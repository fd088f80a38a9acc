"""What a step costs on this machine, and what fits it: measured on random images, so no private data is read."""

import dataclasses
import math
import os
import sys
import time
from typing import NamedTuple

import torch

from dpdm.config import Config, Training
from dpdm.diffusion import DenoisingLoss, NoisyBatch, PreconditionedDenoiser
from dpdm.privacy import DPSGD, Mechanism
from dpdm.privacy.processes import Processes
from dpdm.training.hardware import autocast, bytes_for_backward, choose_device, keep_freed_memory, memory_for_a_batch
from dpdm.training.release import ImageFacts, build_denoiser
from dpdm.types import InputError, require_positive

_COPIES_AT_ONCE = 1024  # noisy copies that keep a CPU busy: twice as many are no faster; a GPU takes what fits
_ONE_BY_ONE = 4  # examples that tell the time of others, where each has a backward pass of its own
_MANY_COPIES = 32  # the noise multiplicity beyond which time is better spent on steps and batches


class StepCost(NamedTuple):
    """Size and cost of training."""

    parameters: int
    seconds_per_step: float
    memory_gib: float
    physical_batch_size: int


class _Stopwatch:
    """Takes real steps on random images: all but the loading of files.

    On several processes all take them at once, each with its share of a batch: they may share cores.
    """

    def __init__(self, config: Config, facts: ImageFacts) -> None:
        keep_freed_memory()
        self.device = choose_device(config.training.device)
        self._denoiser = build_denoiser(config.network, config.preconditioning, facts, config.prior).to(self.device)
        self._config, self._facts = config, facts
        self._processes = Processes.joined()
        self._average = [p.detach().clone() for p in self._denoiser.parameters()]
        self._optimizer = torch.optim.Adam(self._denoiser.parameters())
        self.parameters = sum(p.numel() for p in self._denoiser.parameters())

    def physical_batch_size(self, loss: DenoisingLoss) -> int:
        return physical_batch_size(self._config.training, loss, self._denoiser, self._facts)

    def peak_gib(self, loss: DenoisingLoss, at_once: int) -> float:
        """Return the most memory that this process has had; counted, where the system does not say."""
        try:
            import resource
        except ImportError:
            return 1.5 * at_once * bytes_of_one(loss, self._denoiser, self._facts) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

    def seconds(self, loss: DenoisingLoss, examples: int) -> tuple[float, float]:
        """Return the seconds for each example of a step, and for the step beside them: the same on all processes."""
        share = -(-examples // self._processes.size)
        at_once = self._processes.object_from_first(min(share, self.physical_batch_size(loss)))
        timed = min(at_once, _ONE_BY_ONE) if self._config.training.strategy == "one-backward-each" else at_once
        plan = DPSGD(dataset_size=1, expected_batch_size=1, steps=100, noise_multiplier=1.0, delta=1e-9)
        run = plan.start(None, strategy=self._config.training.clipping)
        images = torch.rand(at_once, *self._facts.shape, device=self.device) * 2 - 1

        def step(records: int, drawn: int) -> float:
            """Select all of so many records, when noisy copies of `drawn` are made."""
            started = time.perf_counter()
            with autocast(self._config.training.precision, self.device):
                run.backward(
                    loss,
                    self._denoiser,
                    num_records=records,
                    load=lambda indices, random_bytes: NoisyBatch(
                        *(t[:records] for t in random_batch(self._config, loss, self._facts, images[:drawn]))
                    ),
                    physical_batch_size=at_once,
                )
            self._optimizer.step()
            for slow, fast in zip(self._average, self._denoiser.parameters(), strict=True):
                slow.lerp_(fast.detach(), 1e-3)
            self._average[0].sum().item()  # waits for the device
            return time.perf_counter() - started

        step(timed, drawn=at_once)  # for the peak of memory
        beside = min(step(0, 0) for _ in range(3))
        taken = [step(timed, timed)]
        # Short steps are measured for a second. A step ends for all processes when it does for the slowest.
        while self._processes.object_from_first(sum(taken) < 1 and len(taken) < 20):
            taken.append(step(timed, timed))
        each = max(0.0, sorted(taken)[len(taken) // 2] - beside) / timed
        return self._processes.object_from_first((each / self._processes.size, beside))


def random_batch(config: Config, loss: DenoisingLoss, facts: ImageFacts, images: torch.Tensor) -> NoisyBatch:
    """Draw noisy copies of made-up images."""
    return loss.draw(
        images,
        torch.zeros(len(images), dtype=torch.long, device=images.device),
        null_label=facts.num_classes,
        noise_levels=config.preconditioning.noise_levels,
        random_bytes=os.urandom,
    )


def measure_step(config: Config, facts: ImageFacts, mechanism: Mechanism) -> StepCost:
    """Time steps on one physical batch of random images, or a few of it, and scale to the expected batch.

    Args:
        config: Network, loss and performance settings.
        facts: Shape and classes of the images.
        mechanism: The plan: batch size and number of records.
    """
    if not mechanism.steps:
        return StepCost(0, 0.0, _records_gib(facts, mechanism), mechanism.expected_batch_size)
    stopwatch = _Stopwatch(config, facts)
    each, beside = stopwatch.seconds(config.loss, mechanism.expected_batch_size)
    at_once = min(mechanism.expected_batch_size, stopwatch.physical_batch_size(config.loss))
    return StepCost(
        stopwatch.parameters,
        each * mechanism.expected_batch_size + beside,
        stopwatch.peak_gib(config.loss, at_once) + _records_gib(facts, mechanism),
        at_once,
    )


def _records_gib(facts: ImageFacts, mechanism: Mechanism) -> float:
    """Return what all images take; of groups, of which nobody has declared how many images they have, nothing."""
    if mechanism.unit == "group":
        return 0.0
    return mechanism.dataset_size * math.prod(facts.shape) / 2**30


def fit_to_time(config: Config, facts: ImageFacts, mechanism: Mechanism, *, minutes: float) -> Config:
    """Return `config` with the noise multiplicity, steps and batch that take about `minutes` on this machine.

    On several processes all must call it together, and get the same.

    Time goes first to noise multiplicity K, a power of two up to 32, at the steps and the batch of `config`. Where even
    K = 1 takes too long, or K = 32 leaves time, steps and batch shrink or grow by the same factor.

    Args:
        config: The settings to start from.
        facts: Shape and classes of the images.
        mechanism: Its plan: steps, batch and number of records.
        minutes: Time for all steps; a twentieth of it is kept for checkpoints.

    Raises:
        InputError: There is not even time for one step on one image.
    """
    require_positive(minutes=minutes)
    if not mechanism.steps:
        raise InputError("privacy.steps = 0 takes seconds and has no steps to fit to a time: leave out --minutes")
    stopwatch = _Stopwatch(config, facts)
    steps, batch = mechanism.steps, mechanism.expected_batch_size

    def times_over(copies: int) -> float:
        """Return how often the steps with so many noisy copies fit into the time."""
        loss = dataclasses.replace(config.loss, noise_multiplicity=copies)
        each, beside = stopwatch.seconds(loss, batch)
        return 57 * minutes / (steps * (batch * each + beside))

    copies, fits = 1, times_over(1)
    while fits >= 1 and copies < _MANY_COPIES and (more := times_over(2 * copies)) >= 1:
        copies, fits = 2 * copies, more
    if fits < 1 or copies == _MANY_COPIES:
        steps, batch = int(steps * fits**0.5), min(mechanism.dataset_size, int(batch * fits**0.5))
    if not steps or not batch:
        raise InputError(f"{minutes:g} minutes are too short for a single step here: give more, or a smaller network")
    return dataclasses.replace(
        config,
        privacy=dataclasses.replace(config.privacy, steps=steps, expected_batch_size=batch),
        loss=dataclasses.replace(config.loss, noise_multiplicity=copies),
    )


def physical_batch_size(
    training: Training, loss: DenoisingLoss, denoiser: PreconditionedDenoiser, facts: ImageFacts
) -> int:
    """Return how many examples to take at once: what `training` says, or as many as are of use and fit the memory.

    What one example keeps is counted, its gradient row with it; half as much again comes and goes.
    """
    if training.physical_batch_size != "auto":
        return training.physical_batch_size
    device = next(denoiser.parameters()).device
    if training.strategy == "one-backward-each":
        return max(1, _COPIES_AT_ONCE // loss.noise_multiplicity)  # of which one is in memory
    with autocast(training.precision, device):
        fit = int(memory_for_a_batch(device) / (1.5 * bytes_of_one(loss, denoiser, facts)))
    of_use = fit if device.type == "cuda" else -(-_COPIES_AT_ONCE // loss.noise_multiplicity)
    return max(1, min(fit, of_use))


def bytes_of_one(loss: DenoisingLoss, denoiser: PreconditionedDenoiser, facts: ImageFacts) -> int:
    """Return the bytes that one example keeps for its gradient, and those of the gradient.

    Passes with one noisy copy and with two tell what each further one takes, so that this needs little itself.
    """
    device = next(denoiser.parameters()).device

    def kept(copies: int) -> int:
        few = dataclasses.replace(loss, noise_multiplicity=copies)
        batch = few.draw(
            torch.zeros(1, *facts.shape, device=device),
            torch.zeros(1, dtype=torch.long, device=device),
            null_label=facts.num_classes,
            noise_levels=denoiser.preconditioning.noise_levels,
            random_bytes=os.urandom,
        )
        return bytes_for_backward(lambda: few(denoiser, batch), denoiser)

    one = kept(1)
    each = kept(2) - one if loss.noise_multiplicity > 1 else 0
    return one + (loss.noise_multiplicity - 1) * each + sum(4 * p.numel() for p in denoiser.parameters())
