"""How near synthetic images are to real ones as a set: every distance on one extractor's features, with intervals.

`evaluate_fidelity` is the whole way from images to scores; `compare_features` is its second half, for features that are
there already. It needs `pip install dpdm[fidelity]`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dpdm.evaluation.checks import built_features, check_described, check_features, check_labels
from dpdm.evaluation.distances import (
    FEWEST_IMAGES,
    frechet_distance,
    frechet_distance_of_any_number,
    kernel_distance,
    neighbourhood_scores,
    torchmetrics,
)
from dpdm.evaluation.features import Features, image_features
from dpdm.types import Images, InputError, Labels, as_images, require_counts, require_counts_or_none, require_seed

Progress = Callable[[str, int, int], None]
"""Called with what is computed, how much of it is done, and its total."""

_SAME = 0.5  # share of the synthetic images above which finding them among the reference is no coincidence
_RANGES = {  # the unbiased kernel distance may be negative
    "frechet": (0.0, np.inf),
    "kernel": (-np.inf, np.inf),
    "precision": (0.0, 1.0),
    "recall": (0.0, 1.0),
    "density": (0.0, np.inf),
    "coverage": (0.0, 1.0),
}

DISTANCES = tuple(_RANGES)
"""The names of the scores."""


@dataclass(frozen=True)
class Score:
    """A score, and a 95 % interval around it; low and high are None if there were no resamples.

    The interval is the score ± t standard errors, cut to the range of the score. The standard error is the standard
    deviation of the score over random halves of both sets: a half drawn without replacement varies around the whole as
    the whole varies around the truth, for scores that are about linear in their images. A bootstrap would not do:
    images drawn twice are each other's nearest neighbours, and a Fréchet distance of fewer different images is larger.
    Halves are larger too, but only their spread is used.

    It covers which images happened to be drawn on both sides. It covers neither the generator's training and seed, nor
    the choice of features, nor the bias of a Fréchet distance: that of the distributions may well lie below.

    Source:
        Shao & Wu 1989 (the delete-d jackknife).
    """

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{interval}"


@dataclass(frozen=True)
class ClassFidelity:
    """The images of one class.

    Args:
        number: Images of this class that were compared, on each side.
        frechet: Their Fréchet distance; None for fewer than 50. It is the more biased the fewer images there are.
    """

    number: int
    frechet: float | None


@dataclass(frozen=True)
class Fidelity:
    """How near synthetic images are to others as a set.

    Args:
        features: Name of the features.
        digest: Their weights and preparation; scores with different ones are not comparable.
        num_images: Images on each side; scores with different numbers are not comparable.
        frechet: Fréchet distance, 0 or more; small is near.
        kernel: Kernel distance; small is near, and below 0 is chance.
        precision: Share of the synthetic images among the others, 0..1.
        recall: Share of the others among the synthetic images, 0..1.
        density: How densely synthetic images lie where others do, about 1 for the same distribution.
        coverage: Share of the others with a synthetic image near, 0..1.
        per_class: One for each class, in order; empty without labels.
        inception: Inception score of the synthetic images by themselves, if anybody computed it.
    """

    features: str
    digest: str
    num_images: int
    frechet: Score
    kernel: Score
    precision: Score
    recall: Score
    density: Score
    coverage: Score
    per_class: tuple[ClassFidelity, ...]
    inception: Score | None = None


def evaluate_fidelity(
    images: Images,
    reference: Images,
    *,
    features: Features,
    labels: Labels | None = None,
    reference_labels: Labels | None = None,
    num_classes: int = 0,
    limit: int = 10_000,
    resamples: int = 10,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Fidelity:
    """Compare synthetic images with reference images by all distances on one extractor's features.

    Args:
        images: The synthetic images, uint8 (number, height, width[, channel]), at least 50.
        reference: Images to compare with, at least 50. Images that the generator did not see tell most.
        features: The features to compare in; your own, too (see `Features`).
        labels: Classes of the synthetic images, (number,) integers in [0, num_classes), if scored by class.
        reference_labels: Classes of the reference images. Give both labels or none.
        num_classes: Number of classes, with labels.
        limit: Most images of each side. Both sides get the same number, drawn at random.
        resamples: Pairs of halves for the intervals, 2 or more; 0 for no intervals. A pair takes about half as long as
            the scores: for 10,000 images and 1280 features, a quarter of a minute on one core.
        seed: Seed of draws and halves.
        on_progress: A function that gets "features" or "scores", the amount done, and the total.

    Raises:
        InputError: The arrays do not fit together, both sides share images, or the features are not as `Features`
            describes. No features are computed then.

    Privacy:
        The reference may be private: then ε does not cover the scores, and they are for the data owner only.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> a, b = (rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8) for _ in range(2))
        >>> evaluate_fidelity(a, b, features=dpdm.evaluation.Pixels(), resamples=0).frechet.value > 0
        True
    """
    images, reference = as_images("synthetic", images), as_images("reference", reference)
    # before the features, which take minutes
    _check_labels(labels, reference_labels, len(images), len(reference), num_classes)
    _check_resamples(resamples, seed)
    refuse_same_images(images, reference)
    ours, theirs = draw_equally(len(images), len(reference), limit=limit, seed=seed)
    for shape in sorted({images.shape[1:], reference.shape[1:]}):
        built_features(features, shape)
    done = 0

    def advance(number: int) -> None:
        nonlocal done
        done += number
        if on_progress is not None:
            on_progress("features", done, 2 * len(ours))

    return compare_features(
        image_features(images[ours], features, on_progress=advance),
        image_features(reference[theirs], features, on_progress=advance),
        features=features,
        labels=None if labels is None else labels[ours],
        reference_labels=None if reference_labels is None else reference_labels[theirs],
        num_classes=num_classes,
        resamples=resamples,
        seed=seed,
        on_progress=on_progress,
    )


def compare_features(
    made: Float[Tensor, "images features"],
    real: Float[Tensor, "images features"],
    *,
    features: Features,
    labels: Labels | None = None,
    reference_labels: Labels | None = None,
    num_classes: int = 0,
    resamples: int = 10,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Fidelity:
    """Compare two equally large sets of images by their features, at least 50 each.

    The other arguments are those of `evaluate_fidelity`; of `features`, only name and digest are used.

    Raises:
        InputError: The sets do not fit together.
    """
    check_described(features)
    check_features(made, real, fewest=FEWEST_IMAGES)
    if len(made) != len(real):
        raise InputError(f"both sides need the same number of images, not {len(made)} and {len(real)}")
    _check_labels(labels, reference_labels, len(made), len(real), num_classes)
    _check_resamples(resamples, seed)
    number, classes = len(made), range(num_classes if labels is not None else 0)
    steps = iter(range(1, 2 + resamples + len(classes)))

    def advance() -> None:
        done = next(steps)
        if on_progress is not None:
            on_progress("scores", done, 1 + resamples + len(classes))

    values = _all_scores(made, real, seed)
    advance()
    rng, halves = np.random.default_rng(seed), []
    for _ in range(resamples):
        ours, theirs = (torch.from_numpy(rng.permutation(number)[: number // 2]) for _ in range(2))
        halves.append(_all_scores(made[ours], real[theirs], seed))
        advance()
    per_class = []
    for label in classes:
        per_class.append(_class_fidelity(made[labels == label], real[reference_labels == label]))
        advance()
    scores = {name: _score(values[name], [half[name] for half in halves], *_RANGES[name]) for name in DISTANCES}
    return Fidelity(features.name, features.digest, number, per_class=tuple(per_class), **scores)


def draw_equally(
    number: int, others: int, *, limit: int = 10_000, seed: int = 0
) -> tuple[Int64[np.ndarray, " compared"], Int64[np.ndarray, " compared"]]:
    """Draw which images to compare, as folders come class by class: as many of `number` as of `others`.

    Raises:
        InputError: See `require_comparable`.
    """
    require_seed(seed=seed)
    require_comparable(number, others, limit=limit)
    count = min(number, others, limit)
    ours, theirs = (np.random.default_rng(seed).permutation(size)[:count] for size in (number, others))
    return ours, theirs


def require_comparable(number: int, others: int, *, limit: int = 10_000) -> None:
    """Raise InputError unless so many synthetic and reference images can be compared here: before work is lost.

    They must be at least 50 each within `limit`, and torchmetrics must be installed.
    """
    require_counts(limit=limit)
    if min(number, others, limit) < FEWEST_IMAGES:
        found = f"{number} synthetic and {others} reference images and a limit of {limit}"
        raise InputError(f"fidelity needs at least {FEWEST_IMAGES} images of each side, not {found}")
    torchmetrics("fid")


def refuse_same_images(images: Images, reference: Images) -> None:
    """Raise InputError if most synthetic images are, to the last pixel, among the reference images."""
    images, reference = as_images("synthetic", images), as_images("reference", reference)
    if images.shape[1:] != reference.shape[1:] or not len(images):
        return
    known = {hash(image.tobytes()) for image in reference}
    same = sum(hash(image.tobytes()) in known for image in images)
    if same > _SAME * len(images):
        raise InputError(
            f"{same:,} of {len(images):,} synthetic images are among the reference images, to the last pixel: "
            "the same images are on both sides, give others as reference"
        )


def _all_scores(made: Tensor, real: Tensor, seed: int) -> dict[str, float]:
    values = frechet_distance_of_any_number(made, real), kernel_distance(made, real, seed=seed)
    return dict(zip(DISTANCES, (*values, *neighbourhood_scores(made, real)), strict=True))


def _score(value: float, halves: list[float], low: float, high: float) -> Score:
    """Return a score with its interval within [low, high]; without one if there are no halves."""
    if not halves:
        return Score(value)
    # Student's t rather than 1.96, as the standard error itself rests on few halves.
    margin = float(scipy.stats.t.ppf(0.975, len(halves) - 1) * np.std(halves, ddof=1))
    # The score too: rounding may leave a Fréchet distance of nothing a little below 0.
    return Score(value, min(max(value - margin, low), value), max(min(value + margin, high), value))


def _class_fidelity(made: Tensor, real: Tensor) -> ClassFidelity:
    """Return the score of one class, on as many images of both sides, as the distance is biased."""
    number = min(len(made), len(real))
    return ClassFidelity(number, frechet_distance(made[:number], real[:number]) if number >= FEWEST_IMAGES else None)


def _check_resamples(resamples: int, seed: int) -> None:
    """Raise InputError unless a spread can be computed, or none is asked for."""
    require_seed(seed=seed)
    require_counts_or_none(resamples=resamples)
    if resamples < 0 or resamples == 1:
        raise InputError(f"resamples must be 2 or more for intervals, or 0 for none, not {resamples}")


def _check_labels(
    labels: Labels | None, reference_labels: Labels | None, number: int, others: int, num_classes: int
) -> None:
    """Raise InputError unless both sides have labels, or neither has."""
    if (labels is None) != (reference_labels is None):
        missing = "synthetic" if labels is None else "reference"
        raise InputError(f"the {missing} images have no labels: scores by class need those of both sides")
    if labels is not None and reference_labels is not None:
        require_counts(num_classes=num_classes)
        check_labels("synthetic", labels, number, num_classes)
        check_labels("reference", reference_labels, others, num_classes)
