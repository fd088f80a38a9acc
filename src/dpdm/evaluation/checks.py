"""What every score asks of the arrays and features it is given, said in one line where it is missing.

Features may be anybody's own: they are tried on a few images before anything is computed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dpdm.types import Images, InputError, Labels, refusing

if TYPE_CHECKING:
    from dpdm.evaluation.features import Features

Compute = Callable[[Images], Float[Tensor, "images features"]]
"""From uint8 images (number, height, width, channel) to feature vectors."""

_FEWEST_FEATURES = 2
_SAME = 1e-2  # of a feature vector's length: more than rounding differs by between batches of different sizes


def check_labels(what: str, labels: Labels, number: int, num_classes: int) -> None:
    """Raise InputError unless these are the classes of so many images: (number,) integers in [0, num_classes)."""
    if labels.shape != (number,) or not np.issubdtype(labels.dtype, np.integer):
        found = f"{labels.dtype} of shape {labels.shape}"
        raise InputError(f"{number} {what} images need as many integer labels, not {found}")
    low, high = (int(labels.min()), int(labels.max())) if number else (0, -1)
    if low < 0 or high >= num_classes:
        raise InputError(f"{what} labels must lie in 0..{num_classes - 1}, but run from {low} to {high}")


def check_features(a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."], *, fewest: int) -> None:
    """Raise InputError unless these are feature vectors of the same features, finite, and of enough images."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not a.shape[1]:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise InputError(f"both sets must be (images, features) of the same features, not {shapes}")
    if min(len(a), len(b)) < fewest:
        raise InputError(f"at least {fewest} images of each set are needed, not {len(a)} and {len(b)}")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise InputError("features are not finite: look at the extractor, and at the images given to it")


def check_described(features: "Features") -> None:
    """Raise InputError unless this is a value that has a name, a digest, and a way to build a function."""
    check_value("features", features, "a value such as Pixels(); features_by_name makes one of a name")
    for key, longest in (("name", 200), ("digest", 1000)):
        with refusing(f"{key} of {type(features).__name__} failed"):
            text = getattr(features, key, None)
        check_text(f"{key} of {type(features).__name__}", text, longest)


def built_features(features: "Features", shape: tuple[int, ...]) -> Compute:
    """Return what these features build, once it gave vectors for made-up images of `shape`: (height, width, channel).

    Raises:
        InputError: It is no such value, or what it builds is no function. Or the function fails on uint8 images of that
            shape. Or it gives something else than one finite vector of floating-point numbers for each image, whoever
            is beside the image.
    """
    check_described(features)
    with refusing(f"build of features {features.name!r} failed"):
        compute = features.build()
    if not callable(compute):
        raise InputError(f"build of features {features.name!r} must return a function, not {kind_of(compute)}")
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    before = images.copy()
    alone = feature_vectors(features.name, compute, images[:1])
    among_others = feature_vectors(features.name, compute, images, like=alone)
    if not np.array_equal(images, before):
        raise InputError(f"features {features.name!r} change the images they are given: let them work on a copy")
    if not torch.linalg.vector_norm(among_others[0] - alone[0]) <= _SAME * torch.linalg.vector_norm(alone[0]):
        raise InputError(
            f"features {features.name!r} give one image other numbers when it is looked at again among others: "
            "switch off what draws or mixes images, as module.eval() does"
        )
    return compute


def feature_vectors(
    name: str, compute: Compute, images: Images, *, like: Float[Tensor, "others features"] | None = None
) -> Float[Tensor, "images features"]:
    """Return the vectors that `compute` gives; raise InputError if they are none, or not as long as `like`'s."""
    with refusing(f"features {name!r} of uint8 images of shape {images.shape} failed"), torch.inference_mode():
        found: object = compute(images)
    if not isinstance(found, Tensor):
        wrong = kind_of(found)
    elif found.ndim != 2 or len(found) != len(images) or (like is not None and found.shape[1] != like.shape[1]):
        wrong = f"a tensor of shape {tuple(found.shape)}"
    elif not found.is_floating_point() or found.device.type != "cpu":
        wrong = f"{found.dtype} on {found.device}"
    elif found.shape[1] < _FEWEST_FEATURES:
        wrong = f"{found.shape[1]} of them an image"
    elif not torch.isfinite(found).all():
        wrong = "numbers that are not finite"
    else:
        return found
    shape = f"({len(images)}, features) on the CPU, at least {_FEWEST_FEATURES} features"
    wanted = f"finite floating-point numbers of shape {shape}"
    raise InputError(f"features {name!r} of {len(images)} images must be {wanted}, not {wrong}")


def check_value(what: str, value: object, wanted: str) -> None:
    """Raise InputError unless `value` is no class, and has a method `build`."""
    if isinstance(value, type) or not callable(getattr(value, "build", None)):
        missing = "" if isinstance(value, type) else ", which has no build()"
        raise InputError(f"{what} must be {wanted}, not {kind_of(value)}{missing}")


def check_text(what: str, text: object, longest: int = 200) -> None:
    """Raise InputError unless this is a text that can be printed, of at most `longest` bytes."""
    if not isinstance(text, str) or not text.strip() or not text.isprintable() or len(text.encode()) > longest:
        found = repr(text[:40]) if isinstance(text, str) else kind_of(text)
        raise InputError(f"{what} must be a printable text of at most {longest} bytes, not {found}")


def kind_of(value: object) -> str:
    """Say what something is that should be something else."""
    if isinstance(value, type):
        return f"the class {value.__name__}: write {value.__name__}(...)"
    return "None" if value is None else f"a value of type {type(value).__name__}"
