"""DP-ImgSyn: private steps train a teacher, and public images of which it is surest stand for each class.

Private images are seen by the teacher alone. Its labels of public images are post-processing.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from dpdm.data import ImageDataset
from dpdm.methods import ema
from dpdm.methods.classifier import Labelled, LabelLoader, LabelLoss, small_cnn
from dpdm.methods.interface import ImageGenerator, Run
from dpdm.methods.labelled import ShowingGenerator, require_classes
from dpdm.methods.loader import random_images
from dpdm.methods.optimizer import Optimizer
from dpdm.methods.private_steps import Stepped, TakesSteps, steps_of
from dpdm.methods.public_classes import surest
from dpdm.methods.values import Budget, ImageFacts, Progress, Read, Sizes
from dpdm.privacy import AnyPlan, MechanismRun, PoissonSums
from dpdm.types import InputError, levels_to_tensor, require_counts, require_within

_MOST_WIDTH = 2**10
_LOSS = LabelLoss()
_PART = 512  # public images that the teacher sees at a time
_SHOWN = 4  # times that public images are labelled while there are steps to go: quarters, at which there are pictures


class TaughtGenerator(ShowingGenerator):
    """Public images, each under the class that a private teacher gives it; one is drawn for each label."""

    @property
    def remark(self) -> str:
        """How many classes hardly any public image shows, by the teacher's own answer."""
        lacking = int(((self.margins > 0).sum(1) < self.drawn_from).sum())
        if not lacking:
            return ""
        return (
            f"of {lacking} of {len(self.margins)} classes the private teacher finds too few public images: name nearer "
            "ones by --public"
        )


@dataclass(frozen=True, kw_only=True)
class Teacher(TakesSteps):
    """Labels public images by a classifier, the teacher, that private steps train.

    Args:
        per_class: Number of public images that each class keeps: those that the teacher is surest of.
        width: Channels of the teacher's first layer.
        optimizer: Adam for the teacher, and the average of its weights, which labels the images.

    Guarantees:
        * A private image, or a group of them, has one clipped gradient in a step, and no other use.
        * The method ignores any classes of the public images.

    Source:
        Soufleri, Ravikumar & Roy 2024 (DP-ImgSyn), without steps that move the public images.

    Example:
        >>> Teacher(per_class=500).plan(epsilon=1.0, dataset_size=60000, steps=60).steps
        60
    """

    kind: ClassVar[str] = "teacher"
    starts_from_images: ClassVar[bool] = True
    per_class: int = 1000
    width: int = 16
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-2, ema_decay=0.98))

    def __post_init__(self) -> None:
        require_counts(per_class=self.per_class, width=self.width)
        require_within(1, _MOST_WIDTH, width=self.width)
        if not isinstance(self.optimizer, Optimizer):
            raise InputError(f"optimizer must be Optimizer, not {type(self.optimizer).__name__}")

    def releases(self, budget: Budget) -> tuple[PoissonSums, ...]:
        """Return the teacher's steps."""
        return steps_of(budget)

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError without classes, or if a release could not hold their images."""
        require_classes(self.kind, facts, self.per_class)

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> TaughtGenerator:
        """Return a generator of black images."""
        self.require_images(facts)
        return TaughtGenerator(facts, self.per_class)

    def stepped(self, generator: ImageGenerator, *, seed: int = 0) -> Stepped:
        """Return what private steps train: a teacher with initial weights."""
        facts, device = generator.facts, generator.device
        teacher = small_cnn(facts.shape[0], facts.num_classes, width=self.width, seed=seed).to(device)
        return Stepped(teacher, _LOSS, lambda number: Labelled(*random_images(number, facts, 0, device)[:2]))

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, TaughtGenerator]:
        """Select, clip, add noise, update; then label public images by the teacher's average."""
        assert isinstance(generator, TaughtGenerator)
        stepped = self.stepped(generator, seed=run.seed)
        teacher = stepped.module
        average = ema.start(teacher).eval()
        adam = torch.optim.Adam(teacher.parameters())
        updates = run.resume(teacher=teacher, average=average, adam=adam)
        mechanism, load = run.mechanism, LabelLoader(data, run.device)
        at_once, finished = run.physical_batch_size(1, stepped.bytes_of_one), mechanism.finished
        while not mechanism.finished:
            rate = self.optimizer.learning_rate_at(mechanism.steps_spent / mechanism.plan.steps)
            adam.param_groups[0]["lr"] = rate
            with run.autocast():
                diagnostics = mechanism.backward(
                    _LOSS, teacher, num_records=data.num_units, load=load, physical_batch_size=at_once
                )
            adam.step()
            updates += 1
            ema.update(average, teacher, updates=updates, decay=self.optimizer.ema_decay)
            if mechanism.finished or mechanism.steps_spent % max(1, mechanism.plan.steps // _SHOWN) == 0:
                self._label(generator, average, run)
            yield run.took_step(diagnostics, generator, learning_rate=rate)
        if finished:  # before: a run that was stopped after its last step
            self._label(generator, average, run)
        return generator

    @torch.inference_mode()
    def _label(self, generator: TaughtGenerator, teacher: nn.Module, run: Run) -> None:
        """Keep of each class the public images of which the teacher is surest."""
        assert run.public is not None
        images = run.public.images
        starts = range(0, len(images), _PART)
        logits = [teacher(levels_to_tensor(images[start : start + _PART]).to(run.device)).cpu() for start in starts]
        chosen, margins = surest(torch.cat(logits), self.per_class)
        chosen = run.processes.from_first(chosen)
        generator.images.copy_(torch.from_numpy(images[chosen.numpy()]).movedim(-1, -3))
        generator.margins.copy_(run.processes.from_first(margins))

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Try a private step on made-up images."""
        self.stepped(generator, seed=run.seed).rehearse(mechanism, run)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes of labels and chosen images, without those of private steps, which `dpdm plan` measures."""
        classes, pixels = facts.num_classes, math.prod(facts.shape)
        seen = _PART * (4 * pixels + 16 * self.width * math.prod(facts.shape[1:]))
        return seen + 24 * public * classes + 3 * self.per_class * classes * pixels

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless margins are those of a choice: finite, and none above the one before it."""
        margins = read("margins")
        if not margins.isfinite().all() or not (margins[:, :-1] >= margins[:, 1:]).all():
            raise InputError(f"{where} holds margins of labels that no run comes to")
