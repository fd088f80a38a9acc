"""An autoencoder of public images, in whose latents private ones are learnt (`[codec]`).

Its latents are bounded, and a loss lets their standard deviation be that of images, so that whatever learns images
learns them. A little noise on them lets latents that are near to one another be images that are.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from dpdm.methods import ema
from dpdm.methods.codec import CODEC
from dpdm.networks.codec import ConvCodec
from dpdm.privacy.processes import Processes
from dpdm.runs.public_training import Loop, PublicTraining
from dpdm.types import images_to_tensor

SPREAD: Final = 0.4
"""The standard deviation of each channel of the latents of public images: a public constant."""

_BATCH = 32
_EDGES, _BALANCE = 0.5, 0.02  # the parts of the loss beside the squared error of pixels
_NOISE = 0.02  # on latents in training
_EMA = 0.995


class Coding(PublicTraining):
    """Trains a codec."""

    @property
    def called(self) -> str:
        """What claims call the public images: a start of the same ones has a name of its own."""
        return f"{self.public.name} (codec)"

    def settings(self) -> dict[str, Any]:
        """Return what the codec was made with and for."""
        return super().settings() | {"preconditioning": {"kind": CODEC}}

    def begun(self, processes: Processes) -> "_Loop":
        """Return the codec with first weights."""
        return _Loop(self, processes)


class _Loop(Loop):
    """The codec, and the average of its weights, which is kept."""

    rate, last, most_norm = 2e-3, 0.02, 1.0

    def __init__(self, of: Coding, processes: Processes) -> None:
        super().__init__(of, processes)
        self._public = of.public
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(of.seed)
            self._codec = ConvCodec(of.facts.shape)
        self._codec.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = ema.start(self._codec)
        self.parameters = [*self._codec.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters)

    @property
    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What training goes on with."""
        return {"codec": self._codec, "average": self._average, "optimizer": self.optimizer, "clock": self.clock}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The average of all weights."""
        return self._average.state_dict()

    def follow(self, updates: int) -> None:
        """Let the average follow."""
        ema.update(self._average, self._codec, updates=updates, decay=_EMA)

    def loss(self, random: np.random.Generator) -> Tensor:
        """Return the squared error of pixels, and of the differences of neighbours; and of the latents' own spread."""
        chosen = random.integers(len(self._public), size=self.share_of(_BATCH))
        x = images_to_tensor(self._public.images[chosen])
        mirrored = torch.from_numpy(random.random(len(x)) < 0.5)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x).to(self.device)
        latents = self._codec.encode(x)
        noise = torch.from_numpy(random.standard_normal(latents.shape, dtype=np.float32)).to(self.device)
        error = self._codec.decode(latents + _NOISE * noise).float() - x
        edges = sum(error.diff(dim=axis).square().mean() for axis in (2, 3))
        mean, std = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
        balance = mean.square().mean() + (std - SPREAD).square().mean()
        return error.square().mean() + _EDGES * edges + _BALANCE * balance
