"""Training on public images, of whatever kind: for so many minutes, and on from where it was interrupted."""

import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn

from dpdm.config import Machine, encode
from dpdm.data import ImageDataset
from dpdm.methods import ImageFacts
from dpdm.privacy import Earlier
from dpdm.privacy.processes import Processes
from dpdm.runs.folder import PrivateFolder
from dpdm.runs.hardware import autocast, choose_device, keep_freed_memory
from dpdm.runs.public import require_named
from dpdm.runs.start import require_free, save_start
from dpdm.types import InputError, require_positive

MAKING = "making"
"""What a folder holds of a training that is not over."""

_FEWEST = 64  # public images


class Pretrained(NamedTuple):
    """One update made. All of it is public."""

    updates: int
    seconds: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class PublicTraining(ABC):
    """Trains a network on public images: what it is, its subclasses say.

    Args:
        public: Images that are declared public, at the shape of the private ones.
        facts: Shape and classes of the private images, as they are declared.
        minutes: How long.
        machine: Device and precision.
        seed: Of weights and batches: all of it is public.
        earlier: What a release cost from which `public` was drawn, if it was (`open_drawn`).

    Under torchrun each process takes its part of every batch.
    """

    public: ImageDataset
    facts: ImageFacts
    minutes: float = 30.0
    machine: Machine = field(default_factory=Machine)
    seed: int = 0
    earlier: tuple[Earlier, ...] = ()

    def __post_init__(self) -> None:
        require_positive(minutes=self.minutes)
        name = self.public.name
        require_named(self.public, self.called)
        if self.public.shape != self.facts.shape:
            raise InputError(f"{name} has images of shape {self.public.shape}, not {self.facts.shape}")
        if self.public.claim or self.public.drawn != bool(self.earlier):
            raise InputError(f"{name}: images drawn from a release come with what it cost (earlier), no others")
        if len(self.public) < _FEWEST:
            raise InputError(f"{name} has {len(self.public)} images: take at least {_FEWEST}")

    @property
    def labelled(self) -> bool:
        """Whether the public classes are those of the private images."""
        return self.public.labels is not None and self.public.class_names == self.facts.class_names

    @property
    def called(self) -> str:
        """What claims call the public images of this training."""
        return self.public.name

    def settings(self) -> dict[str, Any]:
        """Return what the network was made with and for."""
        return {
            "classes": [],
            "minutes": self.minutes,
            "seed": self.seed,
            "facts": {"shape": [*self.facts.shape], "class_names": [*self.facts.class_names]},
        }

    @abstractmethod
    def begun(self, processes: Processes) -> "Loop":
        """Return the network, with first weights, and what trains it."""

    def steps(self, folder: Path) -> Generator[Pretrained, None, None]:
        """Train, save now and then, and yield after every update; the same call goes on from what was saved.

        Args:
            folder: Where the network will be.

        Raises:
            InputError: The folder has another start, or other files.
            OSError: A file cannot be written; the disk may be full.
        """
        processes = Processes.joined()
        asked = self.settings() | {
            "public_images": self.public.digest(),
            "earlier": [encode(each) for each in self.earlier],
        }
        with processes.refused_together():
            require_free(folder)
            making = folder / MAKING if processes.first else None
            kept = PrivateFolder(making, {**asked, "machine": encode(self.machine)})
        loop = self.begun(processes)
        with processes.refused_together():
            updates = kept.restore(loop.state)
        updates = processes.object_from_first(updates)
        processes.share(loop.state.values())
        while (seconds := processes.object_from_first(loop.clock.seconds)) < 60 * self.minutes or not updates:
            begun = time.monotonic()
            loss = loop.update(updates, part=min(1.0, seconds / (60 * self.minutes)))
            if not math.isfinite(loss):
                raise InputError(f"{folder}: training diverged at update {updates + 1}: take another seed or network")
            updates += 1
            loop.clock.add(time.monotonic() - begun)
            kept.save_now_and_then(loop.state, updates)
            try:
                yield Pretrained(updates, loop.clock.seconds, loss)
            except GeneratorExit:
                kept.save(loop.state, updates)
                raise
        if processes.first:
            settings = self.settings() | {"updates": updates}
            save_start(folder, loop.weights, self.public, settings, self.earlier, name=self.called)
            shutil.rmtree(folder / MAKING)


class Clock(nn.Module):
    """How long training has taken, before it was interrupted too."""

    passed: Float64[Tensor, ""]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passed", torch.zeros((), dtype=torch.float64))

    @property
    def seconds(self) -> float:
        """How many seconds it has taken."""
        return float(self.passed)

    def add(self, seconds: float) -> None:
        """Count so many seconds more."""
        self.passed += seconds


class Loop(ABC):
    """What is trained, and how: the learning rate rises over the first updates, and falls by a cosine."""

    rate: ClassVar[float]
    last: ClassVar[float]
    """The part of `rate` that is left at the end."""

    warm_up: ClassVar[int] = 50
    most_norm: ClassVar[float | None] = None
    """What the norm of a gradient is clipped to."""

    optimizer: torch.optim.Optimizer
    parameters: Sequence[nn.Parameter]

    def __init__(self, of: PublicTraining, processes: Processes) -> None:
        keep_freed_memory()
        self.processes, self.clock, self.device = processes, Clock(), choose_device(of.machine.device)
        self._seed, self._precision = of.seed, of.machine.precision

    @property
    @abstractmethod
    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What training goes on with."""

    @property
    @abstractmethod
    def weights(self) -> Mapping[str, Shaped[Tensor, "..."]]:
        """What is kept in the end."""

    @abstractmethod
    def loss(self, random: np.random.Generator) -> Float[Tensor, ""]:
        """Return the loss of this process's part of a batch, which `random` draws."""

    def prepare(self, updates: int) -> None:
        """Get ready for another update, after so many."""
        return None

    def follow(self, updates: int) -> None:
        """Do what comes after an update, the last of so many."""
        return None

    def update(self, updates: int, *, part: float) -> float:
        """Take one step, the time being spent to this part of it, and return the loss."""
        self.prepare(updates)
        cosine = self.last + (1 - self.last) * (1 + math.cos(math.pi * part)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * cosine * min(1.0, (updates + 1) / self.warm_up)
        self.optimizer.zero_grad()
        with autocast(self._precision, self.device):
            loss = self.loss(np.random.default_rng([self._seed, updates, self.processes.rank]))
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = self.processes.sum(parameter.grad) / self.processes.size
        if self.most_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.most_norm)
        self.optimizer.step()
        self.follow(updates + 1)
        return float(self.processes.sum(loss.detach())) / self.processes.size  # of all, for all to stop together

    def share_of(self, batch: int) -> int:
        """Return how many images of a batch this process takes."""
        return -(-batch // self.processes.size)
