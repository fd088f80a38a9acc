"""What every score asks of the arrays, features and classifiers it is given, told in one line where it is missing.

Features and classifiers may be anybody's own: they are tried on a few images before anything is computed or trained.
"""

import unicodedata
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpdm.types import Images, InputError, Labels, refusing

if TYPE_CHECKING:
    from dpdm.evaluation.classifiers import Classifier
    from dpdm.evaluation.features import Features

_LONGEST_NAME, _LONGEST_DIGEST = 200, 1000  # bytes
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


def check_described(features: "Features") -> None:
    """Raise InputError unless this is a value that has a name, a digest, and a way to build a function."""
    _require_value("features", features, "build", "a value such as Pixels(); features_by_name makes one of a name")
    for key, longest in (("name", _LONGEST_NAME), ("digest", _LONGEST_DIGEST)):
        with refusing(f"{key} of {type(features).__name__} failed"):
            text = getattr(features, key, None)
        _check_text(f"{key} of {type(features).__name__}", text, longest)


def built_features(
    features: "Features", shape: tuple[int, ...]
) -> Callable[[Images], Float[Tensor, "images features"]]:
    """Return the function that these features build, once it gave vectors for made-up images.

    Args:
        features: Anybody's.
        shape: (height, width, channel) of the images that it will be used on.

    Raises:
        InputError: It is no such value; or what it builds is no function, fails on uint8 images of that shape, or gives
            something else than one finite vector of floating-point numbers for each image, whoever is beside it.
    """
    check_described(features)
    with refusing(f"build of features {features.name!r} failed"):
        compute = features.build()
    if not callable(compute):
        raise InputError(f"build of features {features.name!r} must return a function, not {_kind(compute)}")
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
    name: str, compute: Callable[[Images], Tensor], images: Images, *, like: Tensor | None = None
) -> Float[Tensor, "images features"]:
    """Return the vectors that `compute` gives; InputError if they are none, or not as long as those of `like`."""
    with refusing(f"features {name!r} of uint8 images of shape {images.shape} failed"), torch.inference_mode():
        found: object = compute(images)
    if not isinstance(found, Tensor):
        wrong = _kind(found)
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
    wanted = (
        f"floating-point numbers of shape ({len(images)}, features) on the CPU, at least {_FEWEST_FEATURES} features"
    )
    raise InputError(f"features {name!r} of {len(images)} images must be finite {wanted}, not {wrong}")


def check_classifiers(classifiers: "Mapping[str, Classifier]") -> None:
    """Raise InputError unless these are classifiers by names that can be printed and told apart."""
    if not isinstance(classifiers, Mapping) or not classifiers:
        raise InputError(f"classifiers must be a dict from names to classifiers, not {_kind(classifiers)}")
    seen: set[str] = set()
    for name, classifier in classifiers.items():
        _check_text("name of a classifier", name, _LONGEST_NAME)
        plain = unicodedata.normalize("NFKC", name).casefold().strip()
        if plain in seen:
            raise InputError(f"two classifiers have names that look alike: {name!r}")
        seen.add(plain)
        _require_value(f"classifier {name!r}", classifier, "build", "a value such as CNN()")


def built_classifier(
    name: str,
    classifier: "Classifier",
    shape: tuple[int, int, int],
    num_classes: int,
) -> nn.Module:
    """Return the untrained module; InputError if it is none, or has nothing to learn with."""
    with refusing(f"build of classifier {name!r} failed"):
        module: object = classifier.build(shape, num_classes)
    if not isinstance(module, nn.Module):
        raise InputError(f"build of classifier {name!r} must return a torch.nn.Module, not {_kind(module)}")
    if not any(weight.requires_grad for weight in module.parameters()):
        raise InputError(f"classifier {name!r} has no weight to be trained")
    return module


def check_learns(name: str, module: nn.Module, x: Tensor, y: Tensor, *, num_classes: int, alone: bool) -> None:
    """Raise InputError unless the module takes these images, alone and together, and can learn from them.

    Args:
        name: What the classifier is called.
        module: A spare one, whose state afterwards is of no matter.
        x: A few images, as a network sees them.
        y: Their classes.
        num_classes: How many there are.
        alone: Whether it will have to learn from one image by itself, which batch normalisation cannot.
    """
    module.eval()
    if not torch.isfinite(logits_of(name, module, x[:1], num_classes=num_classes)).all():
        raise InputError(f"classifier {name!r} gives logits that are not finite before it has learnt anything")
    learn(name, module, x, y, num_classes=num_classes)
    if all(weight.grad is None for weight in module.parameters()):
        raise InputError(f"classifier {name!r} learns nothing: no weight has a gradient")
    if alone:
        module.train()
        learn(name, module, x[:1], y[:1], num_classes=num_classes)


def learn(name: str, module: nn.Module, x: Tensor, y: Tensor, *, num_classes: int) -> None:
    """Put the gradients of one batch's cross entropy into `.grad`."""
    logits = logits_of(name, module, x, num_classes=num_classes)
    with refusing(f"classifier {name!r}, learning from {len(x)} images failed"):
        torch.autograd.backward(nn.functional.cross_entropy(logits, y))


def logits_of(name: str, module: nn.Module, x: Tensor, *, num_classes: int) -> Float[Tensor, "images classes"]:
    """Return one number for each image and class; raise InputError if the module gives anything else."""
    with refusing(f"classifier {name!r} on images of shape {tuple(x.shape)} failed"):
        found: object = module(x)
    wanted = (len(x), num_classes)
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape != wanted:
        is_one = isinstance(found, Tensor)
        wrong = f"{found.dtype} of shape {tuple(found.shape)}" if is_one else _kind(found)  # type: ignore[attr-defined]
        raise InputError(f"classifier {name!r} must give floating-point logits of shape {wanted}, not {wrong}")
    return found


def _require_value(what: str, value: object, method: str, wanted: str) -> None:
    """Raise InputError unless `value` is no class, and has the method."""
    if isinstance(value, type) or not callable(getattr(value, method, None)):
        missing = "" if isinstance(value, type) else f", which has no {method}()"
        raise InputError(f"{what} must be {wanted}, not {_kind(value)}{missing}")


def _check_text(what: str, text: object, longest: int) -> None:
    """Raise InputError unless this is a text that can be printed, and not too long."""
    if not isinstance(text, str) or not text.strip() or not text.isprintable() or len(text.encode()) > longest:
        found = repr(text[:40]) if isinstance(text, str) else _kind(text)
        raise InputError(f"{what} must be a printable text of at most {longest} bytes, not {found}")


def _kind(value: object) -> str:
    """Say what something is that should be something else."""
    if isinstance(value, type):
        return f"the class {value.__name__}: write {value.__name__}(...)"
    return "None" if value is None else f"a value of type {type(value).__name__}"
