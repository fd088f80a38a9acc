"""An autoencoder whose decoder is told the class, a flow on its codes, and what one private image loses by both."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int64, UInt8
from numpy import ndarray
from torch import Tensor, nn

from dpdm.data import ImageDataset
from dpdm.diffusion import DenoisingLoss
from dpdm.methods.halvings import Halvings
from dpdm.methods.loader import UnitLoader, own_normals
from dpdm.methods.small_generator import SmallGenerator
from dpdm.methods.values import ImageFacts
from dpdm.networks.real_nvp import RealNVP
from dpdm.types import RandomBytes

_LEAST = 1e-6  # mean square of a code, below which it is not scaled up


class FlowGenerator(SmallGenerator):
    """A decoder of codes, and the flow that makes codes of normal numbers.

    Args:
        facts: Of the images.
        latent: Numbers of a code.
        width: Of the decoder.
        couplings: Of the flow.
        coupling_width: Hidden units of each.
    """

    def __init__(self, facts: ImageFacts, *, latent: int, width: int, couplings: int, coupling_width: int) -> None:
        super().__init__(facts, latent=latent, width=width, counted=False)
        classes = max(1, facts.num_classes)
        self.flow = RealNVP(latent, classes=classes, couplings=couplings, width=coupling_width)

    def code(
        self, normal: Float[Tensor, "batch latent"], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch latent"]:
        """Return the codes that normal numbers stand for."""
        return self.flow.inverse(normal, labels)


class Lost(NamedTuple):
    """What is lost of each image, and how unlikely its code is."""

    errors: Float[Tensor, " batch"]
    unlikely: Float[Tensor, " batch"]


class Autoencoder(nn.Module):
    """All that private steps train: an encoder, which stays in `private/`, and the generator.

    Args:
        generator: The decoder and the flow.
        width: Channels of the encoder's first layer.
        code_noise: Standard deviation of what is added to a code, whose numbers have mean square one.
    """

    codes_stay: UInt8[Tensor, ""]

    def __init__(self, generator: FlowGenerator, *, width: int, code_noise: float) -> None:
        super().__init__()
        self.generator, self._code_noise = generator, code_noise
        self.register_buffer("codes_stay", torch.tensor(0, dtype=torch.uint8))
        self.halvings = Halvings(generator.facts.shape, width=width)
        self.head = nn.Linear(self.halvings.numbers, generator.latent)

    def keep_codes(self, average: nn.Module) -> None:
        """Let the average be what is trained, once; and from now on nothing of it but the flow, on codes that stay."""
        if not self.codes_stay:
            self.load_state_dict(average.state_dict())
            self.codes_stay.fill_(1)
        self.requires_grad_(False)
        self.generator.flow.requires_grad_(True)
        for p in self.parameters():
            p.grad = None

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch latent"],
    ) -> Lost:
        """Return ½ ‖D(z, c) − x‖² and −log p(z | c), up to a constant, of z = E(x) + noise; the latter moves no E."""
        raw = self.head(self.halvings(x)).to(noise)
        code = raw * (raw.square().mean(1, keepdim=True) + _LEAST).rsqrt() + self._code_noise * noise
        errors = (self.generator(code, labels) - x).square().flatten(1).sum(1) / 2
        normal, log_det = self.generator.flow(code.detach(), labels)
        return Lost(errors, normal.square().sum(1) / 2 - log_det)


class Coded(NamedTuple):
    """Private images with the noise of their codes."""

    images: Float[Tensor, "batch channel height width"]
    labels: Int[Tensor, " batch"]
    noise: Float[Tensor, "batch latent"]


@dataclass(frozen=True)
class CodeLoss:
    """ℓ = what is lost of an image, and how unlikely its code is: one number, and one clipped gradient, of both."""

    def __call__(self, network: nn.Module, batch: Coded) -> Float[Tensor, " batch"]:
        """Return the loss of each image."""
        errors, unlikely = network(*batch)
        loss: Tensor = errors + unlikely
        return loss


class CodeLoader(UnitLoader):
    """Maps the indices of units to images with noise for their codes: of a group, one of its images, at random.

    Args:
        data: The images.
        latent: Numbers of a code.
        device: Where the loss is computed.
    """

    def __init__(self, data: ImageDataset, latent: int, device: torch.device) -> None:
        super().__init__(data, DenoisingLoss(noise_multiplicity=1), device)
        self._latent = latent

    def _draw(self, images: Int64[ndarray, " batch"] | Int64[ndarray, "batch one"], random_bytes: RandomBytes) -> Coded:
        x, labels = self._clean(images.reshape(len(images)))
        return Coded(x, labels, own_normals((len(images), self._latent), random_bytes).to(self._device))
