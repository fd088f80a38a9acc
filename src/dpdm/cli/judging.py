"""How the verbs of scores open two sides, draw, and judge: processes share the work, the first one shows it."""

import typing
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpdm.cli.options import fail
from dpdm.terminal import show_progress, show_stages

if TYPE_CHECKING:
    from dpdm.data import Channels, Fit, ImageDataset
    from dpdm.evaluation import Features, UtilityProtocol, UtilityScore
    from dpdm.methods import ImageFacts
    from dpdm.privacy.processes import Processes
    from dpdm.runs import Release

_ENOUGH = 1000  # images that stand for any number of them
_OF_A_RUN = ("private/journal.jsonl", "release/privacy.json", "privacy.json")


def is_run(source: str) -> bool:
    """Whether there is a run, finished or not, in a folder of this name."""
    return any((Path(source) / place).is_file() for place in _OF_A_RUN)


class Real:
    """Opens real images at the size of synthetic ones, once for each size."""

    def __init__(self, source: str, fit: str, group: str | None) -> None:
        self.source, self._fit, self._group = source, fit, group
        self._opened: dict[tuple[object, ...], ImageDataset] = {}

    def like(self, made: "ImageDataset | ImageFacts", name: str) -> "ImageDataset":
        """Return the real images; both sides need labels."""
        from dpdm.types import InputError

        if not made.num_classes:
            fail(f"{name} has no labels: classifiers need them on both sides")
        key = (made.shape, made.num_classes)
        if key not in self._opened:
            try:
                self._opened[key] = self._open(made.shape, None)
            except InputError:  # perhaps nobody declared how many classes there are
                self._opened[key] = self._open(made.shape, made.num_classes)
        real = self._opened[key]
        if not real.num_classes:
            fail(f"{self.source} has no labels: classifiers need them on both sides")
        return real

    def _open(self, shape: tuple[int, int, int], num_classes: int | None) -> "ImageDataset":
        from dpdm.data import open_dataset

        channels, height, width = shape
        return open_dataset(
            self.source,
            size=height if height == width else None,
            fit=typing.cast("Fit", self._fit),
            channels=typing.cast("Channels", channels),
            num_classes=num_classes,
            group=self._group,
        )


def named_alike(
    made: "ImageDataset", test: "ImageDataset", name: str, reference: str, remarks: list[str]
) -> "ImageDataset":
    """Return images whose labels are the places that their classes have among those of the test images.

    What people should know of it is added to `remarks`.
    """
    from dpdm.evaluation import places_by_name

    places, remark = places_by_name(made.class_names, test.class_names, name, reference)
    remarks += [] if remark is None else [remark]
    assert made.labels is not None
    return replace(made, labels=places[made.labels], class_names=test.class_names)


def require_fit(data: "ImageDataset", test: "ImageDataset", seed: int, *, stand_in: bool = False) -> None:
    """Raise InputError unless classifiers of these images can be tested on those: before any is trained."""
    from dpdm.evaluation import refuse_same_images, require_testable

    assert data.labels is not None
    assert test.labels is not None
    if not stand_in:
        refuse_same_images(data.images, test.images)
    require_testable(data.images, data.labels, test.images, test.labels, num_classes=test.num_classes, seed=seed)


def made_up(facts: "ImageFacts", count: int, name: str) -> "ImageDataset":
    """Return black images of the shape and classes of those that a run will draw: as many, or enough."""
    import numpy as np

    from dpdm.data import ImageDataset

    channels, height, width = facts.shape
    count = min(count, _ENOUGH)
    labels = np.arange(count) % max(1, facts.num_classes)
    return ImageDataset(
        images=np.zeros((count, height, width, channels), np.uint8),
        labels=labels if facts.num_classes else None,
        num_classes=facts.num_classes,
        class_names=facts.class_names,
        name=name,
    )


def draw(
    release: "Release", source: str, count: int, seed: int, processes: "Processes", test: "ImageDataset"
) -> "ImageDataset":
    """Return images of a run, with the classes of the test images; all processes share the work."""
    import numpy as np

    from dpdm.data import ImageDataset
    from dpdm.evaluation import places_by_name

    parts = []
    with show_progress(f"sampling {source}", count if processes.first else None) as advance:
        for part in release.sample_in_parts(count, seed=seed, processes=processes):
            parts.append(part)
            advance(len(part[0]) * processes.size, "")
    parts = processes.object_from_first(processes.in_turn(parts))
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    places, _ = places_by_name(release.facts.class_names, test.class_names, source, test.name)  # told before
    names = test.class_names
    return ImageDataset(images=images, labels=places[labels], num_classes=len(names), class_names=names, name=source)


Judge = Callable[["ImageDataset", "ImageDataset", str], dict[str, Any]]


def features_of(
    named: str | None, beside: "ImageDataset | None", tests: "list[ImageDataset]", fewest: int
) -> "Features | None":
    """Return the features of that name, once it is sure that they work here: before the classifiers' hours.

    `fewest` is the number of synthetic images, of the smallest source.
    """
    from dpdm.evaluation import ClassifierFeatures, features_by_name, image_features, require_comparable

    if named is None:
        return None
    for test in tests:
        require_comparable(fewest, len(test))
    if named != "classifier":
        features = features_by_name(named)
        for test in tests:
            image_features(test.images[:1], features)
        return features
    if beside is None or beside.labels is None:
        fail("the features of a classifier need real images to train it on: name them with --baseline")
    return ClassifierFeatures(images=beside.images, labels=beside.labels, num_classes=beside.num_classes)


def judging(features: "Features | None", quick: bool, seed: int, processes: "Processes", at_most: int | None) -> Judge:
    """Return what scores images against others, on the first process; all share the work.

    `at_most` is a number of images that all sides have, so that distances are comparable.
    """
    from dpdm.evaluation import (
        QUICK,
        ClassifierFeatures,
        UtilityProtocol,
        compare_features,
        draw_equally,
        image_features,
        inception_score,
    )

    protocol = QUICK if quick else UtilityProtocol()

    def judge(data: "ImageDataset", test: "ImageDataset", name: str) -> dict[str, Any]:
        scores = _utility(data, test, f"classifiers on {name}", protocol, seed, processes)
        report: dict[str, Any] = {key: asdict(score) | score.by_class._asdict() for key, score in scores.items()}
        if features is not None:
            import numpy as np
            import torch

            chosen = draw_equally(len(data), len(test), limit=min(10_000, at_most or 10_000), seed=seed)
            seen = []
            for images, indices in zip((data.images, test.images), chosen, strict=True):
                mine = images[indices[processes.rank :: processes.size]]
                what, total = f"features of {len(indices):,} images", len(mine) if processes.first else None
                with show_progress(what, total) as advance:
                    part = image_features(mine, features, on_progress=lambda done: advance(done, ""))
                seen.append(torch.cat(processes.in_turn([part]) or [part]))
            if processes.first:
                # The processes' parts come one after the other, and so must the labels.
                order = np.concatenate([np.arange(len(chosen[0]))[r :: processes.size] for r in range(processes.size)])
                assert data.labels is not None
                assert test.labels is not None
                with show_stages() as advance_to:
                    found = compare_features(
                        *seen,
                        features=features,
                        labels=data.labels[chosen[0][order]],
                        reference_labels=test.labels[chosen[1][order]],
                        num_classes=test.num_classes,
                        resamples=0 if quick else 5,
                        seed=seed,
                        on_progress=advance_to,
                    )
                report["fidelity"] = asdict(found)
                if isinstance(features, ClassifierFeatures):
                    probabilities = features.probabilities(data.images[chosen[0]])
                    report["fidelity"]["inception"] = {"value": inception_score(probabilities), "low": None}
        return report

    return judge


def _utility(
    data: "ImageDataset",
    test: "ImageDataset",
    what: str,
    protocol: "UtilityProtocol",
    seed: int,
    processes: "Processes",
) -> dict[str, "UtilityScore"]:
    """Return, on the first process, the score of each classifier; each process teaches some of them."""
    from dpdm.evaluation import evaluate_utility
    from dpdm.evaluation.classifiers import CLASSIFIERS

    assert data.labels is not None
    assert test.labels is not None
    names = list(CLASSIFIERS)[::-1]  # the slowest one first
    mine = [names[index] for index in processes.shard(len(names))]
    scores = {}
    with show_progress(what, None) as advance:
        if mine:
            scores = evaluate_utility(
                data.images,
                data.labels,
                test.images,
                test.labels,
                num_classes=test.num_classes,
                protocol=protocol,
                classifiers={name: CLASSIFIERS[name] for name in mine},
                seed=seed,
                on_progress=lambda done, total: advance(1, "", total if processes.first else None),
            )
    everyones = dict(processes.in_turn(list(scores.items())))
    return {name: everyones[name] for name in CLASSIFIERS if name in everyones}


def by_dp_sgd(train: "ImageDataset", test: "ImageDataset", epsilon: float) -> tuple[dict[str, Any], str]:
    """Return how well a CNN does that DP-SGD trained on the real images themselves, and its claim."""
    from dpdm.evaluation import by_class
    from dpdm.runs import train_private_classifier

    with show_progress(f"DP-SGD on {train.name}", None) as advance:
        trained = train_private_classifier(train, epsilon=epsilon, on_step=lambda total: advance(1, "", total))
    confusion = trained.confusion(test)
    right = sum(row[place] for place, row in enumerate(confusion))
    found = {"epsilon": epsilon, "accuracy": right / len(test), "confusion": confusion}
    return found | by_class(confusion)._asdict(), trained.statement
