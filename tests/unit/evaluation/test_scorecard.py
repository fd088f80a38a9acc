"""Scores as JSON that can be read back, as lines, and the same from one process or several."""

import json

import numpy as np
import pytest

from dpdm.evaluation import (
    DPIMAGEBENCH,
    QUICK,
    Judge,
    Pixels,
    Scorecard,
    UtilityScore,
    compare_features,
    image_features,
    scorecard,
)

RNG = np.random.default_rng(0)
IMAGES, REFERENCE = (RNG.integers(0, 256, (71, 4, 4, 1), dtype=np.uint8) for _ in range(2))
LABELS = np.arange(71) % 3


def utility(confusion):
    table = np.array(confusion)
    return UtilityScore(
        table.trace() / table.sum(), 0.4, 0.6, int(table.sum()), 2, 1, 0.5, tuple(map(tuple, confusion))
    )


PAPERS = ("logreg", "mlp", "cnn")


def card(confusion=((5, 1), (2, 4)), *, fidelity=False, classifiers=PAPERS):
    sides = [image_features(images, Pixels(side=2)) for images in (IMAGES, REFERENCE)]
    found = compare_features(*sides, features=Pixels(side=2), resamples=2) if fidelity else None
    return Scorecard(dict.fromkeys(classifiers, utility(confusion)), found)


@pytest.mark.parametrize("fidelity", [False, True])
def test_a_scorecard_comes_back_from_its_json_whatever_else_is_there(fidelity):
    one = card(fidelity=fidelity)
    found = json.loads(json.dumps(one.as_json() | {"note": "loss 0.1"}))
    assert found["cnn"]["recalls"] == [5 / 6, 4 / 6]
    assert ("fidelity" in found) == fidelity
    assert Scorecard.from_json(found, num_classes=2) == one


def test_a_scorecard_in_colour_has_one_more_row_and_older_ones_without_it_are_read_as_before():
    one = card(classifiers=(*PAPERS, "resnet"))
    found = json.loads(json.dumps(one.as_json()))
    assert Scorecard.from_json(found, num_classes=2) == one
    assert one.cells() == dict.fromkeys(("LogReg", "MLP", "CNN", "ResNet"), "75.0")
    assert next(line for line in one.accuracies() if line.startswith("resnet  75.0 %"))
    assert next(row for row in one.recalls(["ant", "bee"]) if row.split() == ["LogReg", "MLP", "CNN", "ResNet"])
    del found["resnet"]
    assert Scorecard.from_json(found, num_classes=2) == card()
    with pytest.raises((LookupError, ValueError)):
        Scorecard.from_json(found | {"resnet": {"accuracy": 0.5}}, num_classes=2)


@pytest.mark.parametrize(
    "change",
    [
        {"mlp": None},
        {"mlp": {"accuracy": 0.5}},
        {"mlp": card().as_json()["mlp"] | {"confusion": [[1, 2]]}},
        {"mlp": card().as_json()["mlp"] | {"accuracy": "many"}},
        {"fidelity": {"features": "pixels"}},
    ],
)
def test_json_of_something_else_is_refused(change):
    with pytest.raises((LookupError, ValueError)):
        Scorecard.from_json(card().as_json() | change, num_classes=2)
    with pytest.raises(ValueError, match="another number of classes"):
        Scorecard.from_json(card().as_json(), num_classes=3)


def test_what_other_images_scored_stands_in_remarks():
    one, other = card(fidelity=True), card([[6, 0], [0, 6]], fidelity=True)
    assert next(one.accuracies(("real.npz", other))) == (
        "logreg  75.0 % [40.0, 60.0], balanced 75.0 %   (trained on real.npz: 100.0 %)"
    )
    heading, frechet, *_ = one.distances(("real.npz", other))
    assert heading == "on 71 images of each, pixels at 2 × 2:"
    assert frechet.startswith(f"frechet   {one.fidelity.frechet}   (real.npz: ")
    assert list(card().distances()) == []
    assert list(one.cells())[:4] == ["LogReg", "MLP", "CNN", "frechet"]
    assert len(one.cells()) == 9
    assert card().cells() == {"LogReg": "75.0", "MLP": "75.0", "CNN": "75.0"}


def test_of_many_classes_the_least_known_are_shown_and_none_without_test_images():
    confusion = np.diag([10] * 30)
    confusion[7], confusion[9, 10] = 0, 5
    names = [f"class {number}" for number in range(30)]
    heading, _, first, *rest = card(confusion.tolist()).recalls(names)
    assert heading == "recall of each class in %, the 20 least known of 29 classes:"
    assert first.split() == ["class", "9", "66.7", "66.7", "66.7"]
    assert len(rest) == 19
    assert not any("class 7 " in line for line in rest)


class Together:
    """Processes one after the other: the first, which comes last, takes what the others have left."""

    def __init__(self, rank, size, left):
        self.rank, self.size, self._left, self._calls = rank, size, left, 0

    def in_turn(self, mine):
        self._calls += 1
        left = self._left.setdefault(self._calls, {})
        left[self.rank] = mine
        if self.rank:
            return []
        longest = max(map(len, left.values()))
        return [item for turn in range(longest) for rank in range(self.size) for item in left[rank][turn : turn + 1]]


@pytest.fixture
def asked(monkeypatch):
    """Scores at once, of any classifiers; a list of what they were asked for."""
    asked = []

    def evaluate(*_, classifiers, protocol, **__):
        asked.append((list(classifiers), protocol))
        return {name: utility([[1, 2]] * 2) for name in classifiers}

    monkeypatch.setattr(scorecard, "evaluate_utility", evaluate)
    return asked


@pytest.mark.parametrize(("channels", "more"), [(1, []), (3, ["resnet"]), (4, ["resnet"])])
@pytest.mark.parametrize(("name", "protocol"), [("quick", QUICK), ("paper", None)])
def test_images_in_colour_are_judged_by_a_residual_network_too(channels, more, name, protocol, asked):
    sides = [(np.repeat(images, channels, axis=3), LABELS) for images in (IMAGES, REFERENCE)]
    judge = Judge(features=None, protocol=name, at_most=60, seed=3, processes=Together(0, 1, {}))
    assert list(judge.score(*sides, 3, lambda *_: None).utility) == [*PAPERS, *more]
    assert asked == [([*PAPERS, *more][::-1], protocol)]


def test_by_the_protocol_of_dpimagebench_one_network_judges_whatever_the_channels(asked):
    judge = Judge(features=None, protocol="dpimagebench", at_most=60, seed=3, processes=Together(0, 1, {}))
    found = judge.score((IMAGES, LABELS), (REFERENCE, LABELS), 3, lambda *_: None)
    assert asked == [(["resnet"], DPIMAGEBENCH)], "on a processor"
    assert Scorecard.from_json(json.loads(json.dumps(found.as_json())), num_classes=2) == found
    with pytest.raises(LookupError):
        Scorecard.from_json({}, num_classes=2)


@pytest.mark.usefixtures("asked")
def test_processes_score_together_what_one_does_alone():
    told = []

    def scored(rank, size, left):
        processes = Together(rank, size, left)
        judge = Judge(features=Pixels(side=2), protocol="quick", at_most=60, seed=3, processes=processes)
        told.clear()
        return judge.score((IMAGES, LABELS), (REFERENCE, LABELS), 3, lambda *progress: told.append(progress))

    alone = scored(0, 1, {})
    assert told == [
        ("features", 60, 60),
        ("features of real images", 60, 60),
        *[("scores", n, 4) for n in (1, 2, 3, 4)],
    ]
    left = {}
    assert scored(1, 2, left) == Scorecard({}, None)
    together = scored(0, 2, left)
    assert together == alone
    assert list(together.utility) == ["logreg", "mlp", "cnn"]
    assert together.fidelity.num_images == 60
