"""The autoencoder of a text-to-image pipeline: images become latents, which a U-Net learns, and images again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from dpdm.networks.condition_unet import leave_out
from dpdm.networks.diffusers_unet import imported
from dpdm.networks.frame import framed, unframed
from dpdm.networks.pipeline import REMEDY, only_named, weights_of
from dpdm.types import Images, InputError, images_to_tensor, refusing, require_at_most, require_counts, require_within

MOST: Final = 16.0
"""The range of latents, whose standard deviation is about one: a public constant, within what float16 has."""

_AT_ONCE = 4  # latents decoded at a time: the memory of an image is that of some dozens of its size


@dataclass(frozen=True, kw_only=True)
class Latents:
    """What an `AutoencoderKL` says of its latents.

    Args:
        channels: Of images.
        factor: Pixels of a side that become one position of a latent.
        scale: By which latents are multiplied.
        shift: What is taken off before.
    """

    channels: int = 3
    factor: int = 8
    scale: float = 0.18215
    shift: float = 0.0

    def __post_init__(self) -> None:
        require_counts(channels=self.channels, factor=self.factor)
        require_at_most(128, factor=self.factor, channels=self.channels)
        require_within(1e-6, 1e6, scale=self.scale)
        require_within(-1e6, 1e6, shift=self.shift)


class KLCodec(nn.Module):
    """Posterior means of an `AutoencoderKL`, less the shift and times the scale; and its decoder.

    Args:
        folder: The pipeline whose autoencoder it is.
        latents: What this says of them.
        shape: Of images: channels, height, width.
        latent: Of a latent.

    Guarantees:
        * `rows` computes each image by itself, in a batch of one, in float32: on one device, under one setting of
          threads, a row depends on its image alone, to the bit. Another device or number of threads may come to other
          last digits of it, and of no other row.
        * `state_dict` is empty: the weights are public, and no part of a release.
    """

    most, dtype = MOST, np.float16

    def __init__(
        self,
        folder: Any,  # noqa: ANN401 (a TextToImageFolder)
        latents: Latents,
        *,
        shape: tuple[int, int, int],
        latent: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.folder, self.latents, self.shape, self.latent = folder, latents, shape, latent
        self.vae: Any = None
        self.sha256 = ""

    def begin_from(self, part: Path, sha256: str) -> "KLCodec":
        """Take the weights in the folder of a pipeline's autoencoder, whose digest is `sha256`.

        Raises:
            InputError: They are damaged, or those of another autoencoder.
        """
        path = weights_of(part)
        with refusing(f"{path} is damaged, so {REMEDY}"), torch.device("cpu"), only_named(part) as named:
            vae, found = imported("diffusers").AutoencoderKL.from_pretrained(
                named,
                output_loading_info=True,
                torch_dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
            )
        for name in (*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]):
            raise InputError(f"{path} does not hold what config.json says ({name}): {REMEDY}")
        if not all(value.isfinite().all() for value in vae.state_dict().values()):
            raise InputError(f"{path} holds numbers that are not finite: {REMEDY}")
        if vae.config.in_channels != self.shape[0] or vae.config.latent_channels != self.latent[0]:
            raise InputError(f"{path} is of another autoencoder than the release names")
        self.vae, self.sha256 = vae.requires_grad_(False).eval(), sha256
        leave_out(self, {f"vae.{name}" for name in vae.state_dict()})
        return self

    @torch.inference_mode()
    def rows(self, images: Images) -> Float32[Tensor, "batch numbers"]:
        """Return a row for each image: its latent, the channels last, within a public range."""
        with _plainly(self._device):
            made = [self._of_one(images[number : number + 1]) for number in range(len(images))]
        return torch.cat(made)

    def decode(self, latents: Float[Tensor, "batch latent down across"]) -> Float[Tensor, "batch channel height width"]:
        """Return the images of latents."""
        z = latents.float() / self.latents.scale + self.latents.shift
        with torch.no_grad(), _plainly(self._device):
            starts = range(0, len(z), _AT_ONCE)
            drawn = torch.cat([self.vae.decode(z[start : start + _AT_ONCE]).sample for start in starts])
        return unframed(drawn, self.shape[1:])

    def _of_one(self, image: Images) -> Float32[Tensor, "1 numbers"]:
        whole = images_to_tensor(framed(image, self.sides))
        mean: Tensor = self.vae.encode(whole.to(self._device)).latent_dist.mode()
        latent = ((mean - self.latents.shift) * self.latents.scale).clamp(-self.most, self.most)
        return latent.permute(0, 2, 3, 1).flatten(1).float().cpu()

    @property
    def sides(self) -> tuple[int, ...]:
        """Height and width of what is encoded: an image, in a frame where autoencoder and unet need one."""
        return tuple(side * self.latents.factor for side in self.latent[1:])

    @property
    def _device(self) -> torch.device:
        first: Tensor = next(self.vae.parameters())
        return first.device


@contextmanager
def _plainly(device: torch.device) -> Iterator[None]:
    """Compute in float32, and on a GPU always by the same algorithms."""
    same = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with same, torch.autocast(device.type, enabled=False):
        yield
