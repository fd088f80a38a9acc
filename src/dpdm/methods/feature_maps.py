"""Feature maps of unit length: what private images are summed in, and what a generator's images are compared in.

A map is a value. Built for images of one shape, it makes rows of private images: each row follows from its image alone,
to the bit. It also makes means of a generator's images, through which gradients pass.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.methods.embedding import Embedding
from dpdm.methods.interface import Run
from dpdm.methods.values import ImageFacts, PublicPart
from dpdm.types import Images, InputError, require_at_most, require_counts, require_within

_GRID = 2.0**19  # of random weights: with whole numbers as pixels, each sum below is exact in float64
_MOST_WEIGHTS = 10**8
_LEAST = 1e-200  # below the square of any float32
_MOST_PIXELS = 2**22  # of an image, for these sums
PART = 2**23
"""Numbers of rows at a time, unless one row has more."""


class FeatureMap(ABC):
    """A map that is built for images of one shape."""

    @abstractmethod
    def rows(self, run: Run, data: ImageDataset) -> Iterator[tuple[slice, Float[Tensor, "images features"]]]:
        """Yield parts of the private images and their rows, none longer than one: a row depends on its image alone."""

    @abstractmethod
    def means(self, x: Float[Tensor, "class images channel height width"]) -> Float32[Tensor, "class features"]:
        """Return the mean of the rows of each class's images in [-1, 1]."""


class Features(ABC):
    """A choice of features: public, all of it."""

    kind: ClassVar[str]

    @abstractmethod
    def dimensions(self, shape: tuple[int, int, int]) -> int:
        """Return the length of a row."""

    @abstractmethod
    def built(self, facts: ImageFacts, seed: int, device: torch.device) -> FeatureMap:
        """Return the map for images of these facts; raise InputError if it is not for them, or not there."""

    def require_images(self, shape: tuple[int, int, int]) -> None:
        """Raise InputError if the map would be too large for images of this shape."""
        return None

    def bytes_of_weights(self, shape: tuple[int, int, int]) -> int:
        """Return the bytes of the map itself."""
        return 12 * self.dimensions(shape)

    def bytes_of_one(self, shape: tuple[int, int, int]) -> int:
        """Return the bytes that the map takes for one image with gradients."""
        return 16 * self.dimensions(shape)

    @property
    def networks(self) -> tuple[str, ...]:
        """The name that a claim gives the trained public network behind the features; none without one."""
        return ()

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return the network with the digest of its weights."""
        return ()

    def said(self) -> Self:
        """Return the features in the form that a release stores."""
        return self


@dataclass(frozen=True, kw_only=True)
class Fourier(Features):
    """`[features] kind = "fourier"`: random Fourier features of a Gaussian kernel on pixels.

    Args:
        number: Number of random frequencies. A row has the cosine and the sine of each, so its length is exactly one.
        bandwidths: b of the kernel exp(-r² / 2b²), with r the root mean square difference of two images' pixels in
            [-1, 1]. Several share the frequencies equally: small ones see details, large ones pull in images that are
            far from all others. Public constants, never taken from private images.

    Source:
        Rahimi & Recht 2007; Harder, Adamczewski & Park 2021 (DP-MERF).

    Example:
        >>> MeanEmbedding(features=Fourier(number=200)).features.number
        200
    """

    kind: ClassVar[str] = "fourier"
    number: int = 1000
    bandwidths: tuple[float, ...] = (0.3, 0.6)

    def __post_init__(self) -> None:
        require_counts(number=self.number)
        require_at_most(_MOST_WEIGHTS, number=self.number)
        if not 1 <= len(self.bandwidths) <= self.number:
            raise InputError("bandwidths must be a list of one number or several, and no more than frequencies")
        for each in self.bandwidths:
            require_within(1e-3, 1e3, bandwidths=each)

    def dimensions(self, shape: tuple[int, int, int]) -> int:
        """Return the length of a row: two numbers for each frequency."""
        return 2 * self.number

    def require_images(self, shape: tuple[int, int, int]) -> None:
        """Raise InputError if the weights need too much memory."""
        _require_weights(shape, number=self.number)

    def built(self, facts: ImageFacts, seed: int, device: torch.device) -> FeatureMap:
        """Return the map, whose frequencies the seed draws."""
        scale = torch.tensor(self.bandwidths, dtype=torch.float64)[torch.arange(self.number) % len(self.bandwidths)]
        return _FourierMap(_drawn(facts.shape, self.number, seed), scale, device)


class _FourierMap(FeatureMap):
    def __init__(self, weights: Float64[Tensor, "pixels number"], bandwidths: Tensor, device: torch.device) -> None:
        # whole numbers of 1/255 are pixels in [-1, 1], and whole numbers of 1/_GRID weights of variance one
        self._weights, self._unit = weights, 1 / (255 * _GRID * bandwidths * math.sqrt(len(weights)))
        self._phases = (weights * self._unit * 255).float().to(device)

    def rows(self, run: Run, data: ImageDataset) -> Iterator[tuple[slice, Float64[Tensor, "images features"]]]:
        for part in _parts(len(data), 2 * len(self._unit)):
            yield part, _waves(((2 * _whole(data.images[part]) - 255) @ self._weights) * self._unit)

    def means(self, x: Float[Tensor, "class images channel height width"]) -> Float32[Tensor, "class features"]:
        return _waves(x.flatten(2) @ self._phases).mean(1)


def _waves(phases: Float[Tensor, "*images number"]) -> Float[Tensor, "*images features"]:
    return torch.cat([phases.cos(), phases.sin()], dim=-1) / math.sqrt(phases.shape[-1])


@dataclass(frozen=True, kw_only=True)
class NTK(Features):
    """`[features] kind = "ntk"`: the gradient of an untrained network with one hidden layer by all of its parameters.

    The network is Σ_j s_j relu(w_j · x + b_j) of pixels x in [0, 1], with signs s_j. A row is the gradient, scaled to
    length one.

    Args:
        width: Units of the hidden layer. A row has width × (pixels + 2) numbers.

    Source:
        Yang, Adamczewski, Sutherland, Li & Park 2023 (DP-NTK); Jacot, Gabriel & Hongler 2018.

    Example:
        >>> MeanEmbedding(features=NTK(width=64)).features.width
        64
    """

    kind: ClassVar[str] = "ntk"
    width: int = 128

    def __post_init__(self) -> None:
        require_counts(width=self.width)
        require_at_most(_MOST_WEIGHTS, width=self.width)

    def dimensions(self, shape: tuple[int, int, int]) -> int:
        """Return the length of a row: one number for each parameter."""
        return self.width * (math.prod(shape) + 2)

    def require_images(self, shape: tuple[int, int, int]) -> None:
        """Raise InputError if the weights need too much memory."""
        _require_weights(shape, width=self.width)

    def built(self, facts: ImageFacts, seed: int, device: torch.device) -> FeatureMap:
        """Return the map, whose network the seed draws."""
        random = torch.Generator().manual_seed(seed)
        signs = torch.randint(2, (self.width,), generator=random).mul(2).sub(1)
        weights = _drawn((1, 1, math.prod(facts.shape) + 1), self.width, seed)  # the last are those of a pixel of one
        return _NTKMap(weights, signs.double(), device)


class _NTKMap(FeatureMap):
    def __init__(self, weights: Float64[Tensor, "pixels width"], signs: Tensor, device: torch.device) -> None:
        self._weights, self._signs = weights, signs
        self._floats, self._float_signs = (weights / _GRID).float().to(device), signs.float().to(device)

    def rows(self, run: Run, data: ImageDataset) -> Iterator[tuple[slice, Float64[Tensor, "images features"]]]:
        for part in _parts(len(data), self._weights.numel()):
            x = _whole(data.images[part])
            x = torch.cat([x, torch.full((len(x), 1), 255.0, dtype=torch.float64)], dim=1)
            hidden = x @ self._weights  # exact, so that no image decides which units another one switches on
            on, last, x = self._scaled(hidden / (255 * _GRID), self._signs, x / 255)
            yield part, torch.cat([(on[:, :, None] * x[:, None]).flatten(1), last], dim=1)

    def means(self, x: Float[Tensor, "class images channel height width"]) -> Float32[Tensor, "class features"]:
        images = x.flatten(2).add(1).div(2)
        images = torch.cat([images, torch.ones_like(images[..., :1])], dim=2)
        on, last, images = self._scaled(images @ self._floats, self._float_signs, images)
        return torch.cat([(on.mT @ images).flatten(1) / x.shape[1], last.mean(1)], dim=1)

    @staticmethod
    def _scaled(hidden: Tensor, signs: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients by what a unit gets and by its sign, scaled so that all of an image's have length one.

        The gradient by the weight between pixel and unit is the product of the first and of the pixel.
        """
        on = (hidden > 0).to(hidden) * signs
        last = hidden.clamp(min=0)
        squares = on.square().sum(-1) * x.square().sum(-1) + last.square().sum(-1)
        scale = squares.clamp(min=1e-12).rsqrt()[..., None]  # where no unit is on, all is zero
        return on * scale, last * scale, x


@dataclass(frozen=True, kw_only=True)
class PublicFeatures(Features):
    """`[features] kind = "public"`: features of a public network, and their squares.

    The features of an image are the maps of all layers, at all positions: one vector. A row joins two of these, the
    features and their squares, each scaled to length one. The row itself has length one, whatever the number of
    positions. Its sum holds the first and the second moment.

    Args:
        embedding: The network, and the size at which it sees images (default: EfficientNet-Lite0 at 32 pixels, which
            needs `pip install 'dpdm[fidelity]'`). "random-convnets" has places in its last layer,
            and gives that alone; "pixels" are as they are. Gradients pass, so a TorchScript file is refused.

    Source:
        Harder, Jalali Asadabadi, Sutherland & Park 2023 (DP-MEPF).

    Example:
        >>> PublicFeatures(embedding=Embedding(features="random-convnet", size=32)).embedding.size
        32
    """

    kind: ClassVar[str] = "public"
    embedding: Embedding = field(default_factory=lambda: Embedding(size=32))

    def dimensions(self, shape: tuple[int, int, int]) -> int:
        """Return the length of a row: two numbers for each one of the maps."""
        return 2 * self.embedding.number_of_maps(shape)

    def built(self, facts: ImageFacts, seed: int, device: torch.device) -> FeatureMap:
        """Return the map."""
        return _PublicMap(self.embedding, facts.shape, device)

    @property
    def networks(self) -> tuple[str, ...]:
        """The name that a claim gives the network, if its weights were trained."""
        return self.embedding.network

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return it with the digest of its weights."""
        return self.embedding.parts()

    def said(self) -> Self:
        """Return the features in the form that a release stores."""
        return replace(self, embedding=self.embedding.said())

    def bytes_of_one(self, shape: tuple[int, int, int]) -> int:
        """Return how much memory an image takes: a thousand numbers for each pixel in a network, by far, and rows."""
        return 4000 * self.embedding.size**2 + 32 * self.dimensions(shape)


class _PublicMap(FeatureMap):
    def __init__(self, embedding: Embedding, shape: tuple[int, int, int], device: torch.device) -> None:
        self._embedding, self._dimensions = embedding, 2 * embedding.number_of_maps(shape)
        self._maps = embedding.maps(shape, device)

    def rows(self, run: Run, data: ImageDataset) -> Iterator[tuple[slice, Float64[Tensor, "images features"]]]:
        for part, maps in self._embedding.maps_of_private(run, data, _parts(len(data), self._dimensions)):
            whole = maps.double()
            yield part, torch.cat([_exactly_one(whole), _exactly_one(whole.square())], dim=1) / math.sqrt(2)

    def means(self, x: Float[Tensor, "class images channel height width"]) -> Float32[Tensor, "class features"]:
        rows = self._maps(x.flatten(0, 1).add(1).mul(127.5))
        return _moments(rows).view(*x.shape[:2], -1).mean(1)


def _moments(rows: Float[Tensor, "*images features"]) -> Float[Tensor, "*images moments"]:
    unit, squares = (torch.nn.functional.normalize(each, dim=-1) for each in (rows, rows.square()))
    return torch.cat([unit, squares], dim=-1) / math.sqrt(2)


def _exactly_one(rows: Float64[Tensor, "images numbers"]) -> Float64[Tensor, "images numbers"]:
    """Return rows of length one, each from whole numbers whose squares have an exact sum in float64; zero stays zero.

    So a row is the same to the bit in whatever order it is summed, and on however many cores.
    """
    largest = rows.abs().amax(1, keepdim=True).clamp(min=_LEAST)
    finest = 2.0 ** ((53 - (rows.shape[1] - 1).bit_length()) // 2)
    whole = (rows * (finest / largest)).round()
    return whole / whole.square().sum(1, keepdim=True).clamp(min=1).sqrt()


def _require_weights(shape: tuple[int, int, int], **number: int) -> None:
    pixels, (name, count) = math.prod(shape), *number.items()
    require_at_most(_MOST_PIXELS, **{"the number of pixels × channels": pixels})
    require_at_most(_MOST_WEIGHTS, **{f"features.{name} × pixels × channels": count * pixels})


def _drawn(shape: tuple[int, int, int], number: int, seed: int) -> Float64[Tensor, "pixels number"]:
    """Return normal weights, as whole numbers of 1/_GRID."""
    random = torch.Generator().manual_seed(seed)
    normal = torch.randn(math.prod(shape), number, generator=random, dtype=torch.float64)
    return normal.mul_(_GRID).round_().clamp_(-8 * _GRID, 8 * _GRID)


def _whole(images: Images) -> Float64[Tensor, "images pixels"]:
    """Return pixels from 0 to 255, in the order in which networks have them."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).flatten(1).double()


def _parts(number: int, dimensions: int) -> Iterator[slice]:
    step = max(1, min(4096, PART // dimensions))
    yield from (slice(start, min(number, start + step)) for start in range(0, number, step))


AnyFeatures = Fourier | PublicFeatures | NTK
