"""Downstream utility: how well a classifier that saw only synthetic images does on others.

The protocol is the paper's: train on 90 % of the synthetic images, keep the epoch that is best on the other
10 %, and only then look at the test images, once.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn

from dpdm.evaluation.by_class import ByClass, by_class, confusion_of
from dpdm.evaluation.checks import check_labels
from dpdm.evaluation.classifiers import CLASSIFIERS, Classifier
from dpdm.evaluation.pupil import Pupil, check_classifiers, check_learns
from dpdm.types import (
    Images,
    InputError,
    Labels,
    as_images,
    images_to_tensor,
    require_counts,
    require_counts_or_none,
    require_positive,
    require_seed,
)

_FEWEST_IMAGES = 10

OnUpdate = Callable[[int, int], None]
"""Called after each update with the number of updates done and their total."""


@dataclass(frozen=True)
class UtilityProtocol:
    """How a classifier is trained: Adam, on a random part of the synthetic images.

    Args:
        epochs: Passes over the training part, >= 1.
        batch_size: Images per update, >= 1.
        learning_rate: Adam's, > 0.
        held_out: Share of the synthetic images on which the best epoch is chosen, in (0, 1).
        min_updates: Raises the number of epochs until there are this many updates, for small sets.
        decay: Whether the learning rate falls linearly to 0, which is what makes very few epochs reliable.

    Source:
        Dockhorn et al. 2023, section 5; the 90/10 split as in Cao et al. 2021 (DP-Sinkhorn).
    """

    epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 3e-4
    held_out: float = 0.1
    min_updates: int = 0
    decay: bool = False

    def __post_init__(self) -> None:
        require_counts(epochs=self.epochs, batch_size=self.batch_size)
        require_counts_or_none(min_updates=self.min_updates)
        require_positive(learning_rate=self.learning_rate)
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out must lie between 0 and 1, not {self.held_out}")

    def split(self, num_images: int) -> tuple[int, int]:
        """Return how many of `num_images` >= 2 are trained on, and how many are held out; neither is 0."""
        num_held_out = min(max(1, round(self.held_out * num_images)), num_images - 1)
        return num_images - num_held_out, num_held_out

    def num_epochs(self, num_images: int) -> int:
        """Return the number of epochs for `num_images` synthetic images."""
        updates_per_epoch = math.ceil(self.split(num_images)[0] / self.batch_size)
        return max(self.epochs, math.ceil(self.min_updates / updates_per_epoch))


QUICK = UtilityProtocol(epochs=2, batch_size=200, learning_rate=4e-3, min_updates=500, decay=True)
"""A look on two CPU cores: all images, but fewer epochs, with larger batches at a higher, falling learning rate.

It can compare two sets of images with each other; its scores are not comparable with the paper's.
"""


@dataclass(frozen=True)
class UtilityScore:
    """What one classifier, trained on synthetic images, scored on the test images.

    Args:
        accuracy: Share of the test images classified correctly, 0..1.
        low: Lower end of the 95 % bootstrap percentile interval. It covers the choice of test images only,
            not that of synthetic images or seed; it has no width where all answers are right, or all wrong.
        high: Upper end of that interval.
        num_test: Number of test images.
        epochs: Epochs trained.
        best_epoch: The epoch that was kept, from 1; of equally good ones the latest.
        held_out_accuracy: That epoch's accuracy on the held-out synthetic images, 0..1.
        confusion: Numbers of test images, a row for each true class, in it a column for each answered one.
    """

    accuracy: float
    low: float
    high: float
    num_test: int
    epochs: int
    best_epoch: int
    held_out_accuracy: float
    confusion: tuple[tuple[int, ...], ...]

    @property
    def by_class(self) -> ByClass:
        """Recall of each class, balanced accuracy, and the share of the largest class."""
        return by_class(self.confusion)


def evaluate_utility(
    images: Images,
    labels: Labels,
    test_images: Images,
    test_labels: Labels,
    *,
    num_classes: int,
    protocol: UtilityProtocol | None = None,
    classifiers: Mapping[str, Classifier] = CLASSIFIERS,
    seed: int = 0,
    on_progress: OnUpdate | None = None,
) -> dict[str, UtilityScore]:
    """Train each classifier on the synthetic images and score it on the test images.

    The best epoch is chosen on held-out *synthetic* images: choosing it on the test images would be selection on
    private data. All classifiers take the same batches side by side, so that progress is linear in time, yet no
    score depends on which others are asked for. Runs on the CPU; leaves torch's global random state as it was.

    Args:
        images: The synthetic images, uint8 (number, height, width[, channel]), at least 10.
        labels: Their classes, (number,) integers in [0, num_classes), at least two different ones.
        test_images: Images to test on, uint8 (number, height, width[, channel]), at least 10.
        test_labels: Their classes, (number,).
        num_classes: Number of classes, >= 2.
        protocol: How to train; `QUICK` for a look (default: the paper's `UtilityProtocol()`).
        classifiers: What to train, by the name its score gets; anybody's own too, see `Classifier`.
        seed: >= 0; fixes split, initial weights, order and dropout. Same seed, same machine, same scores.
        on_progress: Called after each update with the number of updates done and their total.

    Returns:
        One score for each classifier, in the order of `classifiers`.

    Raises:
        InputError: The arrays do not fit together, a classifier is not what `Classifier` says, which is tried before
            anything is trained, or its outputs stop being finite.

    Privacy:
        The synthetic images are public. The test images may be private: then ε does not cover the scores, and
        they are for the data owner only. Nothing is trained or chosen on test images.

    Source:
        Dockhorn et al. 2023, section 5; Cao et al. 2021 (DP-Sinkhorn).
    """
    require_testable(images, labels, test_images, test_labels, num_classes=num_classes, seed=seed)
    images, test_images = as_images("synthetic", images), as_images("test", test_images)
    protocol = protocol or UtilityProtocol()
    scores = {}
    for name, pupil in _taught(images, labels, num_classes, protocol, classifiers, seed, on_progress).items():
        answers = pupil.answers(test_images)
        correct = answers == test_labels
        # Of n answers drawn with replacement from n, a binomial number is right: its quantiles need no drawing.
        low, high = binom.ppf((0.025, 0.975), len(correct), correct.mean()) / len(correct)
        scores[name] = UtilityScore(
            accuracy=float(correct.mean()),
            low=float(low),
            high=float(high),
            num_test=len(correct),
            epochs=protocol.num_epochs(len(images)),
            best_epoch=pupil.best_epoch,
            held_out_accuracy=pupil.best_accuracy,
            confusion=confusion_of(test_labels, answers, num_classes),
        )
    return scores


def require_testable(
    images: Images, labels: Labels, test_images: Images, test_labels: Labels, *, num_classes: int, seed: int = 0
) -> None:
    """Raise InputError unless `evaluate_utility` takes these arguments: before other work that would be lost."""
    _check_teaches("synthetic", images, labels, num_classes, seed)
    _check_enough("test", test_images, test_labels, num_classes)
    made, real = (" × ".join(map(str, as_images("all", side).shape[1:])) for side in (images, test_images))
    if made != real:
        raise InputError(f"synthetic and test images must agree in height × width × channel, not be {made} and {real}")


def train_classifier(
    images: Images,
    labels: Labels,
    *,
    num_classes: int,
    classifier: Classifier = CLASSIFIERS["cnn"],
    protocol: UtilityProtocol = QUICK,
    seed: int = 0,
) -> nn.Module:
    """Train one classifier just as `evaluate_utility` does, and return it as of its best epoch, ready to answer.

    The arguments are those of `evaluate_utility`, and so are the refusals.

    Privacy:
        Trained on private images, the module is as private as these.
    """
    _check_teaches("training", images, labels, num_classes, seed)
    images = as_images("training", images)
    (pupil,) = _taught(images, labels, num_classes, protocol, {"the classifier": classifier}, seed, None).values()
    return pupil.module.eval().requires_grad_(False)


def _taught(
    images: Images,
    labels: Labels,
    num_classes: int,
    protocol: UtilityProtocol,
    classifiers: Mapping[str, Classifier],
    seed: int,
    on_progress: OnUpdate | None,
) -> dict[str, Pupil]:
    """Teach all classifiers side by side, and return them as they were after their best epochs."""
    if not isinstance(protocol, UtilityProtocol):
        raise InputError(f"protocol must be a UtilityProtocol such as QUICK, not {protocol!r}")
    check_classifiers(classifiers)
    rng = np.random.default_rng(seed)
    num_train, _ = protocol.split(len(images))
    train, held_out = np.split(rng.permutation(len(images)), [num_train])
    epochs, starts = protocol.num_epochs(len(images)), range(0, num_train, protocol.batch_size)

    def seen(chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        return images_to_tensor(images[chosen]), torch.from_numpy(labels[chosen].astype(np.int64))

    few = seen(held_out[[0, 0, 0]])  # of the images that are looked at before any training in any case
    alone = num_train % protocol.batch_size == 1 or protocol.batch_size == 1
    pupils = {
        name: _tried(name, classifier, *few, num_classes, alone, seed) for name, classifier in classifiers.items()
    }
    update, num_updates = 0, epochs * len(starts)
    for epoch in range(1, epochs + 1):
        order = rng.permutation(train)
        for start in starts:
            x, y = seen(order[start : start + protocol.batch_size])
            rate = protocol.learning_rate * (1 - update / num_updates if protocol.decay else 1)
            update += 1
            for pupil in pupils.values():
                with _seeded(seed, update):  # for each pupil, or its dropout would depend on who else is taught
                    pupil.learn(x, y, rate)
            if on_progress is not None:
                on_progress(update, num_updates)
        for pupil in pupils.values():
            pupil.remember_if_best(epoch, images[held_out], labels[held_out])
    return {name: pupil.recall_best() for name, pupil in pupils.items()}


def _tried(name: str, classifier: Classifier, x: Tensor, y: Tensor, num_classes: int, alone: bool, seed: int) -> Pupil:
    """Return a new pupil, once another one of the same recipe has learnt from these images."""
    _, channels, height, width = x.shape
    with _seeded(seed, 0):
        pupil = Pupil(name, classifier, (channels, height, width), num_classes)
    with _seeded(seed, 0):
        spare = Pupil(name, classifier, (channels, height, width), num_classes)
        if not {*map(id, pupil.module.parameters())}.isdisjoint(map(id, spare.module.parameters())):
            raise InputError(f"build of classifier {name!r} must return a new module each time, not one it keeps")
        check_learns(spare, x, y, alone=alone)
    return pupil


@contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Seed torch's global CPU generator from `key`, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would also reseed every GPU, and nothing would put those back
        torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        yield


def _check_enough(what: str, images: Images, labels: Labels, num_classes: int) -> None:
    """Raise InputError unless these are enough labelled images."""
    as_images(what, images)
    if len(images) < _FEWEST_IMAGES:
        raise InputError(f"a classifier needs at least {_FEWEST_IMAGES} {what} images, not {len(images)}")
    check_labels(what, labels, len(images), num_classes)


def _check_teaches(what: str, images: Images, labels: Labels, num_classes: int, seed: int) -> None:
    """Raise InputError unless a classifier can be taught by these images."""
    _check_enough(what, images, labels, num_classes)
    if len(np.unique(labels)) < 2:
        raise InputError(f"all {what} images are of class {labels[0]}: a classifier needs at least two classes")
    require_seed(seed=seed)
