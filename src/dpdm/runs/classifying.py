"""A classifier of public images, whose layers tell what private images look like (the method `statistics`)."""

import math
import shutil
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dpdm.config import Machine, encode
from dpdm.data import ImageDataset
from dpdm.evaluation.layers import residual_layers
from dpdm.methods import ImageFacts
from dpdm.methods.layers import CLASSIFIER
from dpdm.methods.matching import moved
from dpdm.privacy import Earlier
from dpdm.privacy.processes import Processes
from dpdm.runs.folder import PrivateFolder
from dpdm.runs.hardware import autocast, choose_device, keep_freed_memory
from dpdm.runs.pretraining import MAKING, Clock, Pretrained
from dpdm.runs.start import require_free, save_start
from dpdm.types import InputError, require_name, require_positive

_BATCH, _RATE, _LAST, _WARM_UP = 128, 2e-3, 0.02, 50
_DECAY, _SMOOTHING = 1e-2, 0.1
_SHIFT = 3  # pixels by which images are moved at random, at most
_FEWEST = 64  # public images


@dataclass(frozen=True, kw_only=True)
class Classifying:
    """Trains a small residual network to tell the classes of public images; its layers are what is kept.

    Args:
        public: Labelled images that are declared public, at the shape of the private ones.
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
        require_name(self.public.name, "the public data (public.name)")
        name, shape = self.public.name, self.public.shape
        if self.public.labels is None or self.public.num_classes < 2:
            raise InputError(
                f"{name} has no labels of two classes or more, which a classifier is trained on: name labelled images, "
                "or leave out --kind classifier"
            )
        if shape != self.facts.shape:
            raise InputError(f"{name} has images of shape {shape}, not {self.facts.shape}")
        if shape[0] not in (1, 3):
            raise InputError(f"{name}: a classifier is for grey or colour images, not for {shape[0]} channels")
        if self.public.drawn != bool(self.earlier):
            raise InputError(f"{name}: images drawn from a release come with what it cost (earlier), no others")
        if len(self.public) < _FEWEST:
            raise InputError(f"{name} has {len(self.public)} images: take at least {_FEWEST}")

    @property
    def labelled(self) -> bool:
        """Whether the public classes are those of the private images."""
        return self.public.class_names == self.facts.class_names

    def settings(self) -> dict[str, Any]:
        """Return what the classifier was made with and for."""
        return {
            "classes": [],
            "minutes": self.minutes,
            "seed": self.seed,
            "facts": {"shape": [*self.facts.shape], "class_names": [*self.facts.class_names]},
            "preconditioning": {"kind": CLASSIFIER},
        }

    def steps(self, folder: Path) -> Generator[Pretrained, None, None]:
        """Train, save now and then, and yield after every update; the same call goes on from what was saved.

        Args:
            folder: Where the classifier will be.

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
        loop = _Loop(self, processes)
        with processes.refused_together():
            updates = kept.restore(loop.state)
        updates = processes.object_from_first(updates)
        processes.share(loop.state.values())
        while (seconds := processes.object_from_first(loop.clock.seconds)) < 60 * self.minutes or not updates:
            begun = time.monotonic()
            loss = loop.update(updates, part=min(1.0, seconds / (60 * self.minutes)))
            if not math.isfinite(loss):
                raise InputError(f"{folder}: training diverged at update {updates + 1}: take another seed")
            updates += 1
            loop.clock.add(time.monotonic() - begun)
            kept.save_now_and_then(loop.state, updates)
            try:
                yield Pretrained(updates, loop.clock.seconds, loss)
            except GeneratorExit:
                kept.save(loop.state, updates)
                raise
        if processes.first:
            weights = loop.layers.state_dict()
            save_start(folder, weights, self.public, self.settings() | {"updates": updates}, self.earlier)
            shutil.rmtree(folder / MAKING)


class _Loop:
    """The network, its last layer, and the optimizer."""

    def __init__(self, of: Classifying, processes: Processes) -> None:
        keep_freed_memory()
        self._of, self._processes = of, processes
        self._device = choose_device(of.machine.device)
        self.layers = residual_layers(seed=of.seed).requires_grad_(True).to(self._device)
        width = self.layers(torch.zeros(1, *of.facts.shape, device=self._device))[-1].shape[1]
        self._head = nn.Linear(width, of.public.num_classes).to(self._device)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        self._parameters = [*self.layers.parameters(), *self._head.parameters()]
        self._optimizer = torch.optim.AdamW(self._parameters, weight_decay=_DECAY)
        self.clock = Clock()

    @property
    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What training goes on with."""
        return {"layers": self.layers, "head": self._head, "optimizer": self._optimizer, "clock": self.clock}

    def update(self, updates: int, *, part: float) -> float:
        """Take one step, the time being spent to this part of it, and return the loss."""
        cosine = _LAST + (1 - _LAST) * (1 + math.cos(math.pi * part)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = _RATE * cosine * min(1.0, (updates + 1) / _WARM_UP)
        x, labels = self._batch(np.random.default_rng([self._of.seed, updates, self._processes.rank]))
        self._optimizer.zero_grad()
        with autocast(self._of.machine.precision, self._device):
            loss = cross_entropy(self._head(self.layers(x)[-1]), labels, label_smoothing=_SMOOTHING)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad = self._processes.sum(parameter.grad) / self._processes.size
        self._optimizer.step()
        return float(self._processes.sum(loss.detach())) / self._processes.size

    def _batch(self, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return public images from 0 to 255, each moved by a few pixels, and their classes."""
        public = self._of.public
        assert public.labels is not None
        number = -(-_BATCH // self._processes.size)
        chosen = random.integers(len(public), size=number)
        x = torch.from_numpy(np.ascontiguousarray(public.images[chosen].transpose(0, 3, 1, 2))).float()
        down, across = (torch.from_numpy(random.integers(-_SHIFT, _SHIFT + 1, number)) for _ in range(2))
        x = moved(x, down, across, torch.zeros(number, dtype=torch.bool))
        return x.to(self._device), torch.from_numpy(public.labels[chosen]).to(self._device)
