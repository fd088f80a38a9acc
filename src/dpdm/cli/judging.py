"""How the verbs of scores open both sides of a comparison: what does not fit is refused before the first minute."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dpdm.cli.options import fail
from dpdm.terminal import show_progress, show_stages, tell

if TYPE_CHECKING:
    from dpdm.config import Data
    from dpdm.data import ImageDataset
    from dpdm.evaluation import Features, Judge, Labelled, Scorecard
    from dpdm.methods import ImageFacts
    from dpdm.privacy.processes import Processes
    from dpdm.runs import Release

_ENOUGH = 1000  # images that stand for any number of them
_OF_A_RUN = ("private/journal.jsonl", "release/privacy.json", "privacy.json")


def is_run(source: str) -> bool:
    """Whether there is a run, finished or not, in a folder of this name."""
    return any((Path(source) / place).is_file() for place in _OF_A_RUN)


class Real:
    """Opens real images at the size of synthetic ones, once for each size; both sides need labels."""

    def __init__(self, source: str, fit: str, group: str | None) -> None:
        self.source, self._options = source, {"fit": fit, "group": group}
        self._opened: dict[tuple[object, ...], ImageDataset] = {}

    def like(self, made: "ImageDataset", name: str) -> "ImageDataset":
        """Return the real images."""
        from dpdm.data import open_dataset
        from dpdm.types import InputError

        if not made.num_classes:
            fail(f"{name} has no labels: classifiers need them on both sides")
        channels, height, width = made.shape
        options: dict[str, Any] = {**self._options, "size": height if height == width else None, "channels": channels}
        key = (made.shape, made.num_classes)
        if key not in self._opened:
            try:
                self._opened[key] = open_dataset(self.source, **options)
            except InputError:  # perhaps nobody declared how many classes there are
                self._opened[key] = open_dataset(self.source, num_classes=made.num_classes, **options)
        if not self._opened[key].num_classes:
            fail(f"{self.source} has no labels: classifiers need them on both sides")
        return self._opened[key]


def named_alike(
    made: "ImageDataset", test: "ImageDataset", name: str, reference: str, remarks: list[str]
) -> "ImageDataset":
    """Return images whose labels are the places of their classes among the test images', and add to `remarks`."""
    from dpdm.evaluation import places_by_name

    places, remark = places_by_name(made.class_names, test.class_names, name, reference)
    remarks += [] if remark is None or remark in remarks else [remark]
    return replace(made, labels=places[_labelled(made)[1]], class_names=test.class_names)


def reference_like(data: "ImageDataset", reference: str, facts: "Data") -> "ImageDataset":
    """Return the public images that runs are compared on, framed as the private ones."""
    from dpdm.data import fit_of, open_dataset, read_location
    from dpdm.data.public import require_others_than

    if data.location:
        require_others_than(read_location(data.location).source, reference)

    opened = open_dataset(
        reference,
        size=facts.size,
        fit=fit_of(data.location),
        channels=data.shape[0],  # type: ignore[arg-type]
        num_classes=data.num_classes,
        public=True,
    )
    if opened.shape != data.shape:
        fail(f"{reference} has images of shape {opened.shape}, and {data.name} of {data.shape}: set data.size")
    if data.num_classes and opened.num_classes:
        remarks = list[str]()
        opened = named_alike(opened, data, reference, data.name, remarks)
        for remark in remarks:
            tell(remark)
    return opened


class Entrant(NamedTuple):
    """Images to be judged, and the real images of their size; of a run, black images stand for those it will draw."""

    source: str
    made: "ImageDataset"
    test: "ImageDataset"
    release: "Release | None"
    claim: str | None

    def images(self, count: int, seed: int, processes: "Processes") -> "ImageDataset":
        """Return the images; all processes share the work of drawing a run's."""
        import numpy as np

        if self.release is None:
            return self.made
        parts = []
        with show_progress(f"sampling {self.source}", count if processes.first else None) as advance:
            for part in self.release.sample_in_parts(count, seed=seed, processes=processes):
                parts.append(part)
                advance(len(part[0]) * processes.size, "")
        parts = processes.object_from_first(processes.in_turn(parts))
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        drawn = replace(self.made, images=images, labels=labels, class_names=self.release.facts.class_names)
        drawn = named_alike(drawn, self.test, self.source, self.test.name, [])  # what is to be told was told before
        require_fit(drawn, self.test, seed)
        return drawn


def enter(
    source: str, real: Real, *, num_classes: int | None, seed: int, remarks: list[str], count: int = 0
) -> Entrant:
    """Open images, or a run that will draw `count` of them; raise InputError unless they can be tested on real ones.

    What people should know of the names of classes is added to `remarks`.
    """
    from dpdm.data import open_dataset, read_claim
    from dpdm.runs import Release

    release = claim = None
    if is_run(source):
        release = Release.load(source)
        made, claim = _made_up(release.facts, count, source), release.statement
    else:
        made = open_dataset(source, num_classes=num_classes)
        claim = read_claim(Path(made.location)) if made.location.endswith(".npz") else None
    test = real.like(made, source)
    made = named_alike(made, test, source, real.source, remarks)
    require_fit(made, test, seed, stand_in=release is not None)
    return Entrant(source, made, test, release, claim)


def _made_up(facts: "ImageFacts", count: int, name: str) -> "ImageDataset":
    """Return black images of the shape and classes of those that a run will draw: as many, or enough."""
    import numpy as np

    from dpdm.data import ImageDataset

    channels, height, width = facts.shape
    images, classes = np.zeros((min(count, _ENOUGH), height, width, channels), np.uint8), facts.num_classes
    labels = np.arange(len(images)) % classes if classes else None
    return ImageDataset(images=images, labels=labels, num_classes=classes, class_names=facts.class_names, name=name)


def require_fit(data: "ImageDataset", test: "ImageDataset", seed: int, *, stand_in: bool = False) -> None:
    """Raise InputError unless classifiers of these images can be tested on those: before any is trained."""
    from dpdm.evaluation import refuse_same_images, require_testable

    if not stand_in:
        refuse_same_images(data.images, test.images)
    require_testable(*_labelled(data), *_labelled(test), num_classes=test.num_classes, seed=seed)


def features_of(
    named: str | None, beside: "ImageDataset | None", tests: "list[ImageDataset]", fewest: int
) -> "Features | None":
    """Return the features of that name, once it is sure that they work here for `fewest` images: before the hours."""
    from dpdm.evaluation import ClassifierFeatures, features_by_name, image_features, require_comparable

    if named is None:
        return None
    for test in tests:
        require_comparable(fewest, len(test))
    if named == "classifier":
        if beside is None:
            fail("the features of a classifier need real images to train it on: name them with --baseline")
        images, labels = _labelled(beside)
        return ClassifierFeatures(images=images, labels=labels, num_classes=beside.num_classes)
    features = features_by_name(named)
    for test in tests:
        image_features(test.images[:1], features)
    return features


def judged(judge: "Judge", data: "ImageDataset", test: "ImageDataset", name: str) -> "Scorecard":
    """Return what images scored on others, on the first process, which shows progress; all share the work."""
    with show_stages() as advance:

        def on_progress(what: str, done: int, total: int) -> None:
            if judge.processes.rank == 0:
                advance(f"{what} ({name})", done, total)

        return judge.score(_labelled(data), _labelled(test), test.num_classes, on_progress)


def _labelled(data: "ImageDataset") -> "Labelled":
    assert data.labels is not None
    return data.images, data.labels
