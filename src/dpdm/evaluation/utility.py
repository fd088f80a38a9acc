"""Downstream utility: how well a classifier that saw only synthetic images does on others.

The protocol is the paper's: train on 90 % of the synthetic images, keep the epoch that is best on the other
10 %, and only then look at the test images, once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor, nn

from dpdm.evaluation.by_class import ByClass, by_class, confusion_of
from dpdm.evaluation.checks import check_labels, kind_of
from dpdm.evaluation.classifiers import CLASSIFIERS, Classifier
from dpdm.evaluation.protocol import QUICK, UtilityProtocol
from dpdm.evaluation.pupil import Pupil, check_classifiers, check_learns
from dpdm.types import Images, InputError, Labels, as_images, images_to_tensor, refusing, require_seed

_FEWEST_IMAGES = 10

OnUpdate = Callable[[int, int], None]
"""Called after each update with the number of updates done and their total."""


@dataclass(frozen=True)
class UtilityScore:
    """What one classifier, trained on synthetic images, scored on the test images.

    Args:
        accuracy: Share of the test images classified correctly, 0..1.
        low: Lower end of the 95 % bootstrap percentile interval. It covers the choice of test images only, not that of
            synthetic images or seed. The interval has no width where all answers are right, or all wrong.
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
    device: torch.device | str = "cpu",
    on_progress: OnUpdate | None = None,
) -> dict[str, UtilityScore]:
    """Train each classifier on the synthetic images and score it on the test images.

    Held-out *synthetic* images choose the best epoch: a choice on the test images would be selection on private data.
    All classifiers of one protocol take the same batches side by side, yet no score depends on the other classifiers.
    Torch's global random state does not change.

    Args:
        images: The synthetic images, uint8 (number, height, width[, channel]), at least 10.
        labels: Their classes, (number,) integers in [0, num_classes), at least two different ones.
        test_images: Images to test on, uint8 (number, height, width[, channel]), at least 10.
        test_labels: Their classes, (number,).
        num_classes: Number of classes, >= 2.
        protocol: How to train all classifiers: `QUICK` for a look, `DPIMAGEBENCH` (with `WideResidualNet`) to compare
            with published numbers. Default: a classifier's own `protocol`, else the paper's `UtilityProtocol()`.
        classifiers: The classifiers, by the names of their scores; your own, too (see `Classifier`). Default: the
            paper's three. `COLOUR_CLASSIFIERS` adds the residual network.
        seed: Seed >= 0 of split, initial weights, order, dropout and crops. On one machine it repeats the scores.
        device: The device that trains the classifiers.
        on_progress: A function that gets the number of updates done and their total, after each update.

    Returns:
        One score for each classifier, in the order of `classifiers`.

    Raises:
        InputError: The arrays do not fit together, a classifier is not as `Classifier` describes (tried before any
            training), or its outputs stop being finite.

    Privacy:
        The synthetic images are public. The test images may be private: then ε does not cover the scores, and
        they are for the data owner only. Nothing is trained or chosen on test images.

    Source:
        Dockhorn et al. 2023, section 5; Cao et al. 2021 (DP-Sinkhorn).

    Example:
        >>> images, labels = np.repeat(np.array([0, 255], np.uint8), 40)[:, None, None], np.repeat([0, 1], 40)
        >>> images = np.broadcast_to(images, (80, 8, 8)).copy()
        >>> scores = evaluate_utility(images, labels, images, labels, num_classes=2, protocol=UtilityProtocol(epochs=2))
        >>> list(scores)
        ['logreg', 'mlp', 'cnn']
    """
    require_testable(images, labels, test_images, test_labels, num_classes=num_classes, seed=seed)
    images, test_images = as_images("synthetic", images), as_images("test", test_images)
    protocols = _protocols(classifiers, protocol)
    scores, device = {}, torch.device(device)
    for name, pupil in _taught(images, labels, num_classes, classifiers, protocols, seed, device, on_progress).items():
        answers = pupil.answers(test_images)
        correct = answers == test_labels
        # Of n answers drawn with replacement from n, a binomial number is right: its quantiles need no drawing.
        low, high = binom.ppf((0.025, 0.975), len(correct), correct.mean()) / len(correct)
        scores[name] = UtilityScore(
            accuracy=float(correct.mean()),
            low=float(low),
            high=float(high),
            num_test=len(correct),
            epochs=protocols[name].num_epochs(len(images)),
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
    classifiers = {"the classifier": classifier}
    protocols = _protocols(classifiers, protocol)
    cpu = torch.device("cpu")
    (pupil,) = _taught(images, labels, num_classes, classifiers, protocols, seed, cpu, None).values()
    return pupil.module.eval().requires_grad_(False)


def _protocols(classifiers: Mapping[str, Classifier], asked: UtilityProtocol | None) -> dict[str, UtilityProtocol]:
    """Return how each classifier is trained: as it is asked for, else by its own protocol, else by the paper's."""
    check_classifiers(classifiers)
    if asked is not None:
        if not isinstance(asked, UtilityProtocol):
            raise InputError(f"protocol must be a UtilityProtocol such as QUICK, not {asked!r}")
        return dict.fromkeys(classifiers, asked)
    found = {}
    for name, classifier in classifiers.items():
        with refusing(f"protocol of classifier {name!r} failed"):
            own = getattr(classifier, "protocol", UtilityProtocol())
        if not isinstance(own, UtilityProtocol):
            raise InputError(
                f"protocol of classifier {name!r} must be a UtilityProtocol such as QUICK, not {kind_of(own)}"
            )
        found[name] = own
    return found


def _taught(
    images: Images,
    labels: Labels,
    num_classes: int,
    classifiers: Mapping[str, Classifier],
    protocols: Mapping[str, UtilityProtocol],
    seed: int,
    device: torch.device,
    on_progress: OnUpdate | None,
) -> dict[str, Pupil]:
    """Teach all classifiers, and return them as they were after their best epochs."""
    pupils = {
        name: _tried(name, classifier, images, labels, num_classes, protocols[name], seed, device)
        for name, classifier in classifiers.items()
    }
    updates = {protocol: protocol.num_updates(len(images)) for protocol in protocols.values()}
    done = 0
    for protocol in updates:
        side_by_side = [pupil for name, pupil in pupils.items() if protocols[name] == protocol]
        for _ in _lessons(side_by_side, images, labels, protocol, seed):
            done += 1
            if on_progress is not None:
                on_progress(done, sum(updates.values()))
    return {name: pupil.recall_best() for name, pupil in pupils.items()}


def _lessons(
    pupils: Sequence[Pupil], images: Images, labels: Labels, protocol: UtilityProtocol, seed: int
) -> Iterator[None]:
    """Teach pupils side by side by one protocol; yield after each update."""
    rng = np.random.default_rng(seed)
    train, held_out = _divided(len(images), protocol, rng)
    update = 0
    for epoch in range(1, protocol.num_epochs(len(images)) + 1):
        order = rng.permutation(train)
        for start in range(0, len(order), protocol.batch_size):
            x, y = _seen(images, labels, order[start : start + protocol.batch_size])
            rate = protocol.rate(update, len(images))
            update += 1
            for pupil in pupils:
                # for each pupil, or its dropout would depend on who else is taught
                with _seeded(seed, update, device=pupil.device):
                    pupil.learn(x, y, rate)
            yield
        for pupil in pupils:
            pupil.remember_if_best(epoch, images[held_out], labels[held_out])


def _divided(num_images: int, protocol: UtilityProtocol, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the images that are trained on, and of those held out."""
    num_train, _ = protocol.split(num_images)
    train, held_out = np.split(rng.permutation(num_images), [num_train])
    return train, held_out


def _seen(images: Images, labels: Labels, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
    return images_to_tensor(images[chosen]), torch.from_numpy(labels[chosen].astype(np.int64))


def _tried(
    name: str,
    classifier: Classifier,
    images: Images,
    labels: Labels,
    num_classes: int,
    protocol: UtilityProtocol,
    seed: int,
    device: torch.device,
) -> Pupil:
    """Return a new pupil, once another one of the same recipe has learnt from a few images."""
    train, held_out = _divided(len(images), protocol, np.random.default_rng(seed))
    x, y = _seen(images, labels, held_out[[0, 0, 0]])  # which are looked at before any training in any case
    _, channels, height, width = x.shape
    shape = (channels, height, width)
    with _seeded(seed, 0, device=device):
        pupil = Pupil(name, classifier, shape, num_classes, average=protocol.average, device=device)
    with _seeded(seed, 0, device=device):
        spare = Pupil(name, classifier, shape, num_classes, device=device)
        if not {*map(id, pupil.module.parameters())}.isdisjoint(map(id, spare.module.parameters())):
            raise InputError(f"build of classifier {name!r} must return a new module each time, not one it keeps")
        check_learns(spare, x, y, alone=len(train) % protocol.batch_size == 1 or protocol.batch_size == 1)
    return pupil


@contextmanager
def _seeded(*key: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of the device from `key`, and put them back afterwards."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # not torch.manual_seed: that would also reseed every other GPU, and nothing would put those back
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
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
