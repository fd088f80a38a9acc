"""A small autoencoder of convolutions: an image becomes fewer numbers from -1 to 1, its latent, and an image again."""

import copy
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, pixel_shuffle, pixel_unshuffle, relu, silu

from dpdm.types import Images, images_to_tensor

FACTOR: Final = 4
"""Pixels of a side that become one position of a latent."""

_GREY, _COLOUR = 4, 8  # channels of a latent
_FINE, _COARSE = 32, 64  # channels at a half and at a fourth of the image's resolution
_GROUP = 16
_AT_ONCE = 16  # images, when exact: few, for float64
_OF_NUMBERS, _MOST_NUMBERS = 2**12, 2**8
_OF_WEIGHTS, _MOST_WEIGHTS = 2**14, 2**3
# A product of two is a multiple of 2⁻²⁶ below 2¹¹, and a convolution adds fewer than 2¹⁰ of them: 47 of the 53 bits of
# float64. So its sums are exact, in whatever order they are made.


def latent_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the shape of the latents of images of this shape: (channel, height, width) both."""
    channels, height, width = shape
    return _GREY if channels == 1 else _COLOUR, -(-height // FACTOR), -(-width // FACTOR)


class ConvCodec(nn.Module):
    """An encoder and a decoder. Sides that FACTOR does not divide are continued at their edges, and cut again.

    Guarantees:
        * `levels` are the same, to the bit, whatever images are beside one, and on however many cores: each sum is
          exact, and all else is done number by number.
    """

    most, dtype = 1.0, np.uint8

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape, self.latent = shape, latent_shape(shape)
        self.encoder = _Encoder(shape[0], self.latent[0])
        self.decoder = _Decoder(self.latent[0], shape[0])

    def encode(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch latent down across"]:
        """Return the latents of images in [-1, 1], as training has them: in the precision of the weights."""
        latents: Tensor = self.encoder(self._whole(x))
        return latents

    def decode(self, latents: Float[Tensor, "batch latent down across"]) -> Float[Tensor, "batch channel height width"]:
        """Return the images of latents."""
        _, height, width = self.shape
        return self.decoder(latents)[..., :height, :width]  # type: ignore[no-any-return]

    @torch.inference_mode()
    def levels(self, images: Images) -> Float32[Tensor, "batch numbers"]:
        """Return a row for each image: its latent in levels from 0 to 255, as images have them, the channels last."""
        encoder = copy.deepcopy(self.encoder).cpu().double()
        x = images_to_tensor(images).double()
        parts = (x[start : start + _AT_ONCE] for start in range(0, len(x), _AT_ONCE))
        latents = torch.cat([encoder(self._whole(part), exact=True) for part in parts])
        return ((latents + 1) * 127.5).round().permute(0, 2, 3, 1).flatten(1).float()

    def _whole(self, x: Tensor) -> Tensor:
        _, height, width = self.shape
        return pad(x, (0, -width % FACTOR, 0, -height % FACTOR), mode="replicate")


class _Encoder(nn.Module):
    """Convolutions and ReLU: nothing whose last digit depends on how a processor takes several numbers at once."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * channels, _FINE, 3, padding=1)
        self.shrink = nn.Conv2d(_FINE, _COARSE, 3, stride=2, padding=1)
        self.conv1 = nn.Conv2d(_COARSE, _COARSE, 3, padding=1)
        self.conv2 = nn.Conv2d(_COARSE, _COARSE, 3, padding=1)
        self.head = nn.Conv2d(_COARSE, latent, 1)

    def forward(self, x: Tensor, *, exact: bool = False) -> Tensor:
        conv = _exactly if exact else _as_it_is
        x = relu(conv(self.stem, pixel_unshuffle(x, 2)))
        x = relu(conv(self.shrink, x))
        x = x + conv(self.conv2, relu(conv(self.conv1, x)))
        raw = conv(self.head, relu(x))
        return raw / (1 + raw * raw).sqrt()


class _Decoder(nn.Module):
    def __init__(self, latent: int, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(latent, _COARSE, 3, padding=1)
        self.coarse = nn.ModuleList(_Block(_COARSE) for _ in range(2))
        self.grow = nn.Conv2d(_COARSE, 4 * _FINE, 1)
        self.fine = _Block(_FINE)
        self.norm = nn.GroupNorm(_FINE // _GROUP, _FINE)
        self.head = nn.Conv2d(_FINE, 4 * channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.stem(latents)
        for block in self.coarse:
            x = block(x)
        x = self.fine(pixel_shuffle(self.grow(x), 2))
        return pixel_shuffle(self.head(silu(self.norm(x))), 2)


class _Block(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(width // _GROUP, width) for _ in range(2))
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        return x + change


def _as_it_is(layer: nn.Conv2d, x: Tensor) -> Tensor:
    result: Tensor = layer(x)
    return result


def _exactly(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return what a convolution in float64 makes of numbers and weights that are rounded until all sums are exact."""
    numbers = (x * _OF_NUMBERS).round().div(_OF_NUMBERS).clamp(-_MOST_NUMBERS, _MOST_NUMBERS)
    weight, bias = (
        (w * _OF_WEIGHTS).round().div(_OF_WEIGHTS).clamp(-_MOST_WEIGHTS, _MOST_WEIGHTS)
        for w in (layer.weight, _bias(layer))
    )
    padding: Any = layer.padding
    return conv2d(numbers, weight, bias, stride=layer.stride, padding=padding)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
