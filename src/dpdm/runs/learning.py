"""Learning rate and clipping norm, found before the first noisy sum: private steps are rehearsed on drawn images.

The steps are as many as planned, with the planned noise on a step's mean, around a prior with the planned noise. Each
takes fewer examples. So what is found depends on public numbers alone, and costs no privacy.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from dpdm.config import Config
from dpdm.data.shapes import draw_shapes
from dpdm.methods import Diffusion, ImageFacts, Progress
from dpdm.methods.denoising import DenoisingGenerator
from dpdm.privacy import FullSum, Plan, PoissonSums
from dpdm.privacy.processes import Processes
from dpdm.privacy.releases import noise_of
from dpdm.runs.hardware import choose_device, keep_freed_memory
from dpdm.runs.run import Run
from dpdm.runs.start import open_starts
from dpdm.types import InputError

FACTORS = (1 / 9, 1 / 3, 1.0, 3.0)
"""What the configured learning rate is multiplied by, in each try."""

TIME = 0.25
"""What all tries together take about, as a part of the steps' time: more, where batches are small."""

_PART = 0.05  # of a step's examples, in each try
_FEWEST = 16  # examples of a step
_IMAGES, _HELD_OUT, _COPIES = 2048, 256, 4

OnProgress = Callable[[int, int], None]
"""Called with how many steps are taken, and of how many."""


class Learning(NamedTuple):
    """What a rehearsal found, and the loss on other drawn images after each try."""

    learning_rate: float
    max_grad_norm: float
    losses: dict[float, float]


def rehearse_learning(config: Config, plan: Plan, facts: ImageFacts, on_progress: OnProgress) -> Learning:
    """Return the learning rate with which noisy steps on drawn images end best, and the median norm of their gradients.

    Args:
        config: Its method's learning rate is multiplied by `FACTORS`; its machine computes.
        plan: Of the run that is to come. Its noise, sizes and steps count.
        facts: The declared facts of the private images. None of these is opened.
        on_progress: How far it is.

    Raises:
        InputError: The plan takes no steps, or steps have no gradient.
    """
    if not isinstance(config.method, Diffusion) or not plan.steps:
        raise InputError("a rehearsal is for the steps of a network, and this plan takes none: leave out --rehearse")
    rehearsal = _Rehearsal(config, config.method, plan, facts)
    (first,) = rehearsal.train(config.method, replace(rehearsal.steps, count=1))
    processes = Processes.joined()  # whose batches differ
    norm = processes.object_from_first(float(f"{first.median():.2g}") if len(first) else math.nan)
    if not 0 < norm < math.inf:
        raise InputError("a rehearsal found no gradient to clip: leave out --rehearse")
    done, whole, losses = 0, len(FACTORS) * plan.steps, {}
    for factor in FACTORS:
        rate = float(f"{factor * config.method.optimizer.learning_rate:.2g}")
        method = replace(config.method, optimizer=replace(config.method.optimizer, learning_rate=rate))
        for _ in rehearsal.train(method, replace(rehearsal.steps, max_norm=norm)):
            on_progress(done := done + 1, whole)
        losses[rate] = rehearsal.loss()
    best = min(losses, key=lambda rate: losses[rate])
    return Learning(best, norm, losses)


class _Rehearsal:
    """Trains on drawn images as the run to come will on private ones."""

    def __init__(self, config: Config, method: Diffusion, plan: Plan, facts: ImageFacts) -> None:
        keep_freed_memory()
        (whole,) = plan.poisson
        few = min(whole.expected_batch_size, max(_FEWEST, round(_PART * whole.expected_batch_size)))
        number = max(_IMAGES, 4 * few)
        # The mean of a step, and a mean of all records, have the standard deviation that they will have.
        noise = noise_of(whole) * few / whole.expected_batch_size
        self.steps = replace(whole, expected_batch_size=few, noise_multiplier=noise)
        self._before = [
            replace(release, noise_multiplier=noise_of(release) * number / plan.dataset_size)
            for release in plan.releases
            if isinstance(release, FullSum)
        ]
        drawn = draw_shapes(number + _HELD_OUT, facts.shape)
        if facts.num_classes:
            labels = np.arange(len(drawn)) % facts.num_classes
            drawn = replace(drawn, labels=labels, num_classes=facts.num_classes, class_names=facts.class_names)
        self._images, self._held_out = drawn.part(range(number)), drawn.part(range(number, len(drawn)))
        self._machine, self._seed, self._facts = config.machine, config.seed, facts
        self._device = choose_device(config.machine.device)
        self._starts = open_starts(method.start_folders)
        self._levels = method.noise_levels
        self._loss = replace(method.loss, noise_multiplicity=_COPIES, label_dropout=0.0)
        self._generator: DenoisingGenerator | None = None

    def train(self, method: Diffusion, steps: PoissonSums) -> Iterator[torch.Tensor]:
        """Train from the start, and yield the norms of the gradients of each step."""
        plan = Plan(dataset_size=len(self._images), delta=1e-9, releases=(*self._before, steps))
        mechanism = plan.start(strategy=self._machine.clipping)
        own = self._images.part(mechanism.processes.shard(len(self._images)))
        run = Run.in_memory(
            mechanism,
            machine=self._machine,
            device=self._device,
            seed=self._seed,
            starts=self._starts,
            num_records=len(own),
        )
        untrained = method.untrained(self._facts, seed=self._seed).to(self._device)
        training = method.train(untrained, own, run)
        while True:
            try:
                yield _norms(next(training))
            except StopIteration as end:
                self._generator = end.value
                return

    @torch.no_grad()
    def loss(self) -> float:
        """Return the loss of what was trained last, on drawn images that it has not seen; infinite, if it diverged."""
        assert self._generator is not None
        data = self._held_out
        labels = np.zeros(len(data), dtype=np.int64) if data.labels is None else data.labels
        batch = self._loss.draw(
            self._generator.seen_of(data.images).to(self._device),
            torch.from_numpy(labels).to(self._device),
            null_label=self._facts.num_classes,
            noise_levels=self._levels,
            random_bytes=random.Random(0).randbytes,
        )
        loss = float(self._loss(self._generator.denoiser.eval(), batch).mean())
        return loss if math.isfinite(loss) else math.inf


def _norms(progress: Progress) -> torch.Tensor:
    assert progress.diagnostics is not None
    return progress.diagnostics.grad_norms.reveal(because="a program drew the images")
