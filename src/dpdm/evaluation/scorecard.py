"""What one set of images scored, by classifiers and by distances: as lines for people, as JSON for programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor

from dpdm.evaluation.classifiers import benchmark_classifiers, classifiers_for
from dpdm.evaluation.distances import inception_score
from dpdm.evaluation.features import ClassifierFeatures, Features, image_features
from dpdm.evaluation.fidelity import DISTANCES, Fidelity, Progress, Score, compare_features, draw_equally
from dpdm.evaluation.protocol import PROTOCOLS
from dpdm.evaluation.utility import OnUpdate, UtilityScore, evaluate_utility
from dpdm.types import Images, Labels, as_images

T = TypeVar("T")

Labelled = tuple[Images, Labels]
"""uint8 images (number, height, width, channel), and their classes: (number,) integers in [0, num_classes)."""

TITLES = {"logreg": "LogReg", "mlp": "MLP", "cnn": "CNN", "resnet": "ResNet", "wrn": "WRN-40-4"}
"""What people call the classifiers."""

_CPU = torch.device("cpu")
_MOST_SHOWN = 20  # classes
_MOST_COMPARED = 10_000  # images of a side, by distances


class _Processes(Protocol):
    """Those that share the work, seen from one of them: what it needs of `privacy.processes.Processes`."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def in_turn(self, mine: list[T]) -> list[T]: ...


@dataclass(frozen=True)
class Scorecard:
    """What one set of images scored.

    Args:
        utility: The score of each classifier that was trained on the images, by its key in `TITLES`.
        fidelity: Their distances from the test images; None if nobody asked.
    """

    utility: Mapping[str, UtilityScore]
    fidelity: Fidelity | None = None

    def as_json(self) -> dict[str, Any]:
        """Return all numbers by their names."""
        found: dict[str, Any] = {key: asdict(one) | one.by_class._asdict() for key, one in self.utility.items()}
        return found if self.fidelity is None else found | {"fidelity": asdict(self.fidelity)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any], *, num_classes: int) -> "Scorecard":
        """Return what `as_json` made this of, whatever else is there.

        Raises:
            LookupError: Something is missing.
            ValueError: Something is of another kind, or about another number of classes.
        """
        utility, fidelity = TypeAdapter(UtilityScore), TypeAdapter(Fidelity)
        keys = [key for key in TITLES if key in found]
        if not keys:
            raise LookupError("no classifier")
        card = cls(
            {key: utility.validate_python(found[key]) for key in keys},
            fidelity.validate_python(found["fidelity"]) if "fidelity" in found else None,
        )
        if {len(side) for one in card.utility.values() for side in (one.confusion, *one.confusion)} != {num_classes}:
            raise ValueError("another number of classes")
        return card

    @property
    def largest_class(self) -> float:
        """Share of the test images that are of the largest class, 0..1."""
        return next(iter(self.utility.values())).by_class.largest_class

    def cells(self) -> dict[str, str]:
        """Return accuracies in % and distances, as a row of a table with its headings."""
        accuracies = {TITLES[key]: f"{100 * one.accuracy:.1f}" for key, one in self.utility.items()}
        near = DISTANCES if self.fidelity else ()
        return accuracies | {key: f"{getattr(self.fidelity, key).value:.4g}" for key in near}

    def accuracies(self, beside: "Beside | None" = None) -> Iterator[str]:
        """Yield a line for each classifier, with a remark on what other images scored."""
        for key, one in self.utility.items():
            shown = f"{percent(one.accuracy)} [{100 * one.low:.1f}, {100 * one.high:.1f}]"
            other = "" if beside is None else f"   (trained on {beside[0]}: {percent(beside[1].utility[key].accuracy)})"
            yield f"{key:7} {shown}, balanced {percent(one.by_class.balanced_accuracy)}{other}"

    def recalls(self, names: Sequence[str]) -> Iterator[str]:
        """Yield what share of each class each classifier got right; of many classes, the least known."""
        rows = zip(names, *(one.by_class.recalls for one in self.utility.values()), strict=True)
        known = {name: [100 * share for share in shares if share is not None] for name, *shares in rows}
        known = {name: shares for name, shares in known.items() if shares}  # a class may have no test images
        by_best = sorted(known, key=lambda name: max(known[name]))
        shown = list(known) if len(known) <= _MOST_SHOWN else by_best[:_MOST_SHOWN]
        width = max(map(len, shown))
        more = "" if len(shown) == len(known) else f", the {len(shown)} least known of {len(known)} classes"
        yield f"recall of each class in %{more}:"
        yield "  ".join([" " * width, *(f"{TITLES[key]:>6}" for key in self.utility)])
        for name in shown:
            yield "  ".join([name.ljust(width), *(f"{share:6.1f}" for share in known[name])])

    def distances(self, beside: "Beside | None" = None) -> Iterator[str]:
        """Yield a line for each distance, if there are any, with a remark on what other images scored."""
        if self.fidelity is None:
            return
        yield f"on {self.fidelity.num_images:,} images of each, {self.fidelity.features}:"
        for key in (*DISTANCES, "inception"):
            if (score := getattr(self.fidelity, key)) is not None:
                other = "" if beside is None else f"   ({beside[0]}: {getattr(beside[1].fidelity, key).value:.4g})"
                yield f"{key:9} {score}{other}"


Beside = tuple[str, Scorecard]
"""What other images are called, and what they scored on the same test images."""


def percent(share: float) -> str:
    """Say a share of 0..1."""
    return f"{100 * share:.1f} %"


@dataclass(frozen=True, kw_only=True)
class Judge:
    """How images are scored: by the classifiers for their channels and, on `features` if there are any, by distances.

    Args:
        features: Where images are compared; None for classifiers alone.
        protocol: How classifiers are trained: a name of `PROTOCOLS`. By "quick", distances have no intervals; by
            "dpimagebench", `benchmark_classifiers` are trained alone.
        at_most: Images that all sides have, so that distances are comparable; 10,000 are compared at most.
        seed: Fixes everything.
        processes: Those that share the work. The first one has the scores, the others have empty scorecards.
        device: Where `benchmark_classifiers` are trained; others are on the CPU, wherever this runs.
    """

    features: Features | None
    protocol: str
    at_most: int
    seed: int
    processes: _Processes
    device: torch.device = _CPU

    def score(self, made: Labelled, test: Labelled, num_classes: int, on_progress: Progress) -> Scorecard:
        """Score (images, labels) by others of the same shape and classes.

        Raises:
            InputError: See `evaluate_utility` and `evaluate_fidelity`.
        """
        card = Scorecard(self._utility(made, test, num_classes, on_progress))
        if self.features is None:
            return card
        return replace(card, fidelity=self._fidelity(self.features, made, test, num_classes, on_progress))

    def _utility(
        self, made: Labelled, test: Labelled, num_classes: int, on_progress: Progress
    ) -> dict[str, UtilityScore]:
        benchmark, scores = self.protocol == "dpimagebench", {}
        device = self.device if benchmark else _CPU
        channels = as_images("synthetic", made[0]).shape[-1]
        classifiers = benchmark_classifiers(device) if benchmark else classifiers_for(channels)
        names = list(classifiers)[::-1]  # the slowest one first
        if mine := names[self.processes.rank :: self.processes.size]:
            scores = evaluate_utility(
                *made,
                *test,
                num_classes=num_classes,
                protocol=PROTOCOLS[self.protocol],
                classifiers={name: classifiers[name] for name in mine},
                seed=self.seed,
                device=device,
                on_progress=partial(on_progress, "classifiers"),
            )
        everyones = dict(self.processes.in_turn(list(scores.items())))
        return {name: everyones[name] for name in classifiers if name in everyones}

    def _fidelity(
        self, features: Features, made: Labelled, test: Labelled, num_classes: int, on_progress: Progress
    ) -> Fidelity | None:
        ours, theirs = draw_equally(len(made[0]), len(test[0]), limit=min(self.at_most, _MOST_COMPARED), seed=self.seed)
        images, labels, real, real_labels = made[0][ours], made[1][ours], test[0][theirs], test[1][theirs]
        seen = [
            self._features(images, features, partial(on_progress, "features")),
            self._features(real, features, partial(on_progress, "features of real images")),
        ]
        if self.processes.rank:
            return None
        found = compare_features(
            *seen,
            features=features,
            labels=labels,
            reference_labels=real_labels,
            num_classes=num_classes,
            resamples=0 if self.protocol == "quick" else 5,
            seed=self.seed,
            on_progress=on_progress,
        )
        if isinstance(features, ClassifierFeatures):
            found = replace(found, inception=Score(inception_score(features.probabilities(images))))
        return found

    def _features(self, images: Images, features: Features, on_part: OnUpdate) -> Tensor:
        """Return, on the first process, the features of all images; each process computes some of them."""
        done, size = 0, self.processes.size
        mine = images[self.processes.rank :: size]

        def advance(number: int) -> None:
            nonlocal done
            on_part(done := done + number, len(mine))

        part = image_features(mine, features, on_progress=advance)
        whole = part.new_empty(len(images), part.shape[1])
        for rank, theirs in enumerate(self.processes.in_turn([part])):
            whole[rank::size] = theirs
        return whole
