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
from torch import nn

from dpdm.evaluation.by_class import ByClass, by_class, confusion_of
from dpdm.evaluation.checks import (
    built_classifier,
    check_classifiers,
    check_labels,
    check_learns,
    learn,
    logits_of,
)
from dpdm.evaluation.classifiers import CLASSIFIERS, Classifier
from dpdm.types import Images, InputError, Labels, as_images, images_to_tensor, require_positive

_FEWEST_IMAGES = 10
_NUM_RESAMPLES = 10_000
_PHYSICAL_BATCH_SIZE = 1000  # images classified at once when nothing is learnt


@dataclass(frozen=True)
class UtilityProtocol:
    """How a classifier is trained: Adam, on a random part of the synthetic images.

    Attributes:
        epochs: passes over the training part, >= 1.
        batch_size: images per update, >= 1.
        learning_rate: Adam's, > 0.
        held_out: share of the synthetic images on which the best epoch is chosen, in (0, 1).
        min_updates: raises the number of epochs until there are this many updates, for small sets.
        decay: whether the learning rate falls linearly to 0, which is what makes very few epochs reliable.

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
        require_positive(epochs=self.epochs, batch_size=self.batch_size, learning_rate=self.learning_rate)
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

    Attributes:
        accuracy: share of the test images classified correctly, 0..1.
        low: lower end of the 95 % bootstrap percentile interval. It covers the choice of test images only,
            not that of synthetic images or seed; it has no width where all answers are right, or all wrong.
        high: upper end of that interval.
        num_test: number of test images.
        epochs: epochs trained.
        best_epoch: the epoch that was kept, from 1; of equally good ones the latest.
        held_out_accuracy: that epoch's accuracy on the held-out synthetic images, 0..1.
        confusion: numbers of test images, a row for each true class, in it a column for each answered one.
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
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, UtilityScore]:
    """Train each classifier on the synthetic images and score it on the test images.

    The best epoch is chosen on held-out *synthetic* images: choosing it on the test images would be selection on
    private data. All classifiers take the same batches side by side, so that progress is linear in time, yet no
    score depends on which others are asked for. Runs on the CPU; leaves torch's global random state as it was.

    Args:
        images: the synthetic images, uint8 (number, height, width[, channel]), at least 10.
        labels: their classes, (number,) integers in [0, num_classes), at least two different ones.
        test_images: images to test on, uint8 (number, height, width[, channel]), at least 10.
        test_labels: their classes, (number,).
        num_classes: number of classes, >= 2.
        protocol: how to train; the paper's `UtilityProtocol()` if not given, `QUICK` for a look.
        classifiers: what to train, by the name its score gets; anybody's own too, see `Classifier`.
        seed: >= 0; fixes split, initial weights, order and dropout. Same seed, same machine, same scores.
        on_progress: called after each update with the number of updates done and their total.

    Returns:
        One score for each classifier, in the order of `classifiers`.

    Raises:
        InputError: if the arrays do not fit together, a classifier is not what `Classifier` says, which is tried before
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
        low, high = _bootstrap_interval(int(correct.sum()), len(correct), np.random.default_rng(seed))
        scores[name] = UtilityScore(
            accuracy=float(correct.mean()),
            low=low,
            high=high,
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
    _check_labelled("synthetic", images, labels, num_classes)
    _check_labelled("test", test_images, test_labels, num_classes)
    _check_trainable("synthetic", labels, seed)
    _check_together(as_images("synthetic", images), as_images("test", test_images))


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

    Args:
        images: uint8 (number, height, width[, channel]), at least 10.
        labels: their classes, (number,) integers in [0, num_classes), at least two different ones.
        num_classes: number of classes, >= 2.
        classifier: what to train.
        protocol: how to train it.
        seed: >= 0; fixes split, initial weights, order and dropout.

    Raises:
        InputError: if the arrays do not fit together, or the outputs stop being finite.

    Privacy:
        Trained on private images, the module is as private as these.
    """
    _check_labelled("training", images, labels, num_classes)
    _check_trainable("training", labels, seed)
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
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, "_Pupil"]:
    """Teach all classifiers side by side, and return them as they were after their best epochs."""
    if not isinstance(protocol, UtilityProtocol):
        raise InputError(f"protocol must be a UtilityProtocol such as QUICK, not {protocol!r}")
    check_classifiers(classifiers)
    _, height, width, channels = images.shape
    rng = np.random.default_rng(seed)
    num_train, _ = protocol.split(len(images))
    train, held_out = np.split(rng.permutation(len(images)), [num_train])
    epochs = protocol.num_epochs(len(images))
    starts = range(0, num_train, protocol.batch_size)

    pupils = {}
    for name, classifier in classifiers.items():
        with _seeded(seed, 0):
            module = built_classifier(name, classifier, (channels, height, width), num_classes)
        with _seeded(seed, 0):
            spare = built_classifier(name, classifier, (channels, height, width), num_classes)
            if not {*map(id, module.parameters())}.isdisjoint(map(id, spare.parameters())):
                raise InputError(f"build of classifier {name!r} must return a new module each time, not one it keeps")
            few = held_out[[0, 0, 0]]  # of the images that are looked at before any training in any case
            x, y = images_to_tensor(images[few]), torch.from_numpy(labels[few].astype(np.int64))
            alone = num_train % protocol.batch_size == 1 or protocol.batch_size == 1
            check_learns(name, spare, x, y, num_classes=num_classes, alone=alone)
        pupils[name] = _Pupil(name, module, num_classes)

    update, num_updates = 0, epochs * len(starts)
    for epoch in range(1, epochs + 1):
        order = rng.permutation(train)
        for start in starts:
            batch = order[start : start + protocol.batch_size]
            x, y = images_to_tensor(images[batch]), torch.from_numpy(labels[batch].astype(np.int64))
            rate = protocol.learning_rate * (1 - update / num_updates if protocol.decay else 1)
            update += 1
            for pupil in pupils.values():
                # seeded for each pupil, or its dropout would depend on who else is taught
                with _seeded(seed, update):
                    pupil.learn(x, y, rate)
            if on_progress is not None:
                on_progress(update, num_updates)
        for pupil in pupils.values():
            pupil.remember_if_best(epoch, images[held_out], labels[held_out])

    return {name: pupil.recall_best() for name, pupil in pupils.items()}


class _Pupil:
    """One classifier while it learns, with the weights of its best epoch so far."""

    def __init__(self, name: str, module: nn.Module, num_classes: int) -> None:
        self.name = name
        self.module = module
        self.num_classes = num_classes
        self.optimizer = torch.optim.Adam(module.parameters())
        self.best_epoch = 0
        self.best_accuracy = -1.0
        self.best_weights: dict[str, torch.Tensor] = {}

    def learn(self, x: torch.Tensor, y: torch.Tensor, learning_rate: float) -> None:
        """Make one update on a batch."""
        self.module.train()
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.zero_grad()
        learn(self.name, self.module, x, y, num_classes=self.num_classes)
        self.optimizer.step()

    @torch.inference_mode()
    def answers(self, images: Images) -> Labels:
        """Return the class of each image."""
        self.module.eval()
        answers = []
        for start in range(0, len(images), _PHYSICAL_BATCH_SIZE):
            x = images_to_tensor(images[start : start + _PHYSICAL_BATCH_SIZE])
            logits = logits_of(self.name, self.module, x, num_classes=self.num_classes)
            # A loss that was not finite shows up here too: the weights never recover from its gradient.
            if not torch.isfinite(logits).all():
                raise InputError(f"{self.name} diverged, its outputs are not finite: lower the learning rate")
            answers.append(logits.argmax(dim=1))
        return np.asarray(torch.cat(answers).numpy())

    def remember_if_best(self, epoch: int, images: Images, labels: Labels) -> None:
        """Keep the weights if no earlier epoch did better on these images."""
        accuracy = float((self.answers(images) == labels).mean())
        # Of equals the latest: where a small held-out part is soon answered perfectly, it has learnt the most.
        if accuracy >= self.best_accuracy:
            self.best_epoch, self.best_accuracy = epoch, accuracy
            self.best_weights = {name: weight.clone() for name, weight in self.module.state_dict().items()}

    def recall_best(self) -> "_Pupil":
        """Go back to the weights of the best epoch."""
        self.module.load_state_dict(self.best_weights)
        return self


@contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Seed torch's global CPU generator from `key`, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed: that would also reseed every GPU, and nothing would put those back
        torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        yield


def _bootstrap_interval(num_correct: int, num_test: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % percentile interval of the accuracy under resampling of the test images."""
    # Of n answers drawn with replacement from n, a binomial number is correct: no need to draw the answers.
    resampled = rng.binomial(num_test, num_correct / num_test, size=_NUM_RESAMPLES) / num_test
    low, high = np.quantile(resampled, (0.025, 0.975))
    return float(low), float(high)


def _check_labelled(what: str, images: Images, labels: Labels, num_classes: int) -> None:
    """Raise InputError unless these are enough labelled images."""
    as_images(what, images)
    if len(images) < _FEWEST_IMAGES:
        raise InputError(f"a classifier needs at least {_FEWEST_IMAGES} {what} images, not {len(images)}")
    check_labels(what, labels, len(images), num_classes)


def _check_trainable(what: str, labels: Labels, seed: int) -> None:
    """Raise InputError unless a classifier can be taught these classes."""
    if len(np.unique(labels)) < 2:
        raise InputError(f"all {what} images are of class {labels[0]}: a classifier needs at least two classes")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, not {seed}")


def _check_together(images: Images, test_images: Images) -> None:
    """Raise InputError unless a classifier of these synthetic images can be tested on those images."""
    if images.shape[1:] != test_images.shape[1:]:
        shapes = f"{_shape(images)} and {_shape(test_images)}"
        raise InputError(f"synthetic and test images must agree in height × width × channel, not be {shapes}")


def _shape(images: Images) -> str:
    """Say the shape of an image as a person would."""
    return " × ".join(map(str, images.shape[1:]))
