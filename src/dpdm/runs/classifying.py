"""A classifier of public images, whose layers tell what private images look like (the method `statistics`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dpdm.evaluation.layers import residual_layers
from dpdm.methods.layers import CLASSIFIER
from dpdm.methods.matching import moved
from dpdm.privacy.processes import Processes
from dpdm.runs.public_training import Loop, PublicTraining
from dpdm.types import InputError

_BATCH = 128
_DECAY, _SMOOTHING = 1e-2, 0.1
_SHIFT = 3  # pixels by which images are moved at random, at most


@dataclass(frozen=True, kw_only=True)
class Classifying(PublicTraining):
    """Trains a small residual network to tell the classes of public images; its layers are what is kept.

    Args:
        public: Labelled images that are declared public, at the shape of the private ones.

    The others are those of `PublicTraining`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.public.labels is None or self.public.num_classes < 2:
            raise InputError(
                f"{self.public.name} has no labels of two classes or more, which a classifier is trained on: name "
                "labelled images, or leave out --kind classifier"
            )
        if (channels := self.facts.shape[0]) not in (1, 3):
            raise InputError(f"{self.public.name}: a classifier is for grey or colour images, not {channels} channels")

    def settings(self) -> dict[str, Any]:
        """Return what the classifier was made with and for."""
        return super().settings() | {"preconditioning": {"kind": CLASSIFIER}}

    def begun(self, processes: Processes) -> "_Loop":
        """Return the network with first weights."""
        return _Loop(self, processes)


class _Loop(Loop):
    """The network, its last layer, and the optimizer."""

    rate, last = 2e-3, 0.02

    def __init__(self, of: Classifying, processes: Processes) -> None:
        super().__init__(of, processes)
        self._public = of.public
        self._layers = residual_layers(seed=of.seed).requires_grad_(True).to(self.device)
        width = self._layers(torch.zeros(1, *of.facts.shape, device=self.device))[-1].shape[1]
        self._head = nn.Linear(width, of.public.num_classes).to(self.device)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        self.parameters = [*self._layers.parameters(), *self._head.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=_DECAY)

    @property
    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What training goes on with."""
        return {"layers": self._layers, "head": self._head, "optimizer": self.optimizer, "clock": self.clock}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Those of the layers, without the last one."""
        return self._layers.state_dict()

    def loss(self, random: np.random.Generator) -> Tensor:
        """Return how badly classes are told, on public images that are moved by a few pixels."""
        x, labels = self._batch(random)
        return cross_entropy(self._head(self._layers(x)[-1]), labels, label_smoothing=_SMOOTHING)

    def _batch(self, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return public images from 0 to 255, each moved by a few pixels, and their classes."""
        assert self._public.labels is not None
        number = self.share_of(_BATCH)
        chosen = random.integers(len(self._public), size=number)
        x = torch.from_numpy(np.ascontiguousarray(self._public.images[chosen].transpose(0, 3, 1, 2))).float()
        down, across = (torch.from_numpy(random.integers(-_SHIFT, _SHIFT + 1, number)) for _ in range(2))
        x = moved(x, down, across, torch.zeros(number, dtype=torch.bool))
        return x.to(self.device), torch.from_numpy(self._public.labels[chosen]).to(self.device)
