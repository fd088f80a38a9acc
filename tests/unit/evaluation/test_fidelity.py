"""The whole comparison: which images enter, what the intervals cover, scores by class, and the same set given twice."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

from dpdm.evaluation import (
    Fidelity,
    Pixels,
    compare_features,
    density_coverage,
    draw_equally,
    evaluate_fidelity,
    frechet_distance,
    image_features,
    kernel_distance,
    precision_recall,
    refuse_same_images,
)
from dpdm.types import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

SCORES = ("frechet", "kernel", "precision", "recall", "density", "coverage")
FEATURES = Pixels(side=2)


def noise(number=120, *, seed=0, low=0, side=4):
    return np.random.default_rng(seed).integers(low, 256, (number, side, side, 1), dtype=np.uint8)


def gaussian(number, *, seed, shift=0.0):
    return shift + torch.randn(number, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(fidelity):
    return [getattr(fidelity, name).value for name in SCORES]


def test_the_scores_are_those_of_the_single_functions():
    images, reference = noise(low=60), noise(seed=1)
    found = evaluate_fidelity(images, reference, features=FEATURES)
    a, b = image_features(images, FEATURES), image_features(reference, FEATURES)
    expected = [frechet_distance(a, b), kernel_distance(a, b), *precision_recall(a, b), *density_coverage(a, b)]
    assert values(found) == pytest.approx(expected, rel=1e-4)
    assert (found.features, found.digest, found.num_images) == (FEATURES.name, FEATURES.digest, 120)
    assert found.per_class == ()


def test_precision_and_recall_are_not_exchanged():
    wide, narrow = gaussian(300, seed=0) * 10, gaussian(300, seed=1)
    found = compare_features(narrow, wide, features=FEATURES, resamples=0)
    assert found.precision.value > 0.9 > 0.3 > found.recall.value
    assert found.density.value > found.coverage.value


def test_features_computed_beforehand_give_the_same_as_images():
    images, reference = noise(150, low=60), noise(seed=1)
    ours, theirs = draw_equally(150, 120, limit=100, seed=3)
    made, real = image_features(images[ours], FEATURES), image_features(reference[theirs], FEATURES)
    once = compare_features(made, real, features=FEATURES, seed=3)
    assert once == evaluate_fidelity(images, reference, features=FEATURES, limit=100, seed=3)


def test_both_sides_get_as_many_images_drawn_by_the_seed():
    ours, theirs = draw_equally(500, 80, limit=1000, seed=1)
    assert len(ours) == len(theirs) == 80
    assert sorted(theirs) == list(range(80))
    assert len(set(ours)) == 80
    assert max(ours) > 400  # from the whole of a set that may be sorted by class
    assert not np.array_equal(ours, draw_equally(500, 80, seed=2)[0])
    assert [len(drawn) for drawn in draw_equally(500, 400, limit=60)] == [60, 60]


def test_no_score_depends_on_the_order_of_images():
    images, reference = noise(low=60), noise(seed=1)
    order = np.random.default_rng(5).permutation(120)
    straight = evaluate_fidelity(images, reference, features=FEATURES, resamples=0)
    mixed = evaluate_fidelity(images[order], reference[order[::-1]], features=FEATURES, resamples=0)
    assert values(mixed) == pytest.approx(values(straight), rel=1e-4)


def test_intervals_contain_their_scores_and_stay_in_range_and_can_be_left_out():
    ends = {"frechet": (0, np.inf), "kernel": (-np.inf, np.inf), "density": (0, np.inf)}
    for shift in (0.0, 0.5, 50.0):
        found = compare_features(gaussian(100, seed=0, shift=shift), gaussian(100, seed=1), features=FEATURES)
        for name in SCORES:
            score, (least, most) = getattr(found, name), ends.get(name, (0, 1))
            assert least <= score.low <= score.value <= score.high <= most
        assert found.frechet.low < found.frechet.value < found.frechet.high
    without = compare_features(gaussian(100, seed=0), gaussian(100, seed=1), features=FEATURES, resamples=0)
    assert {(getattr(without, name).low, getattr(without, name).high) for name in SCORES} == {(None, None)}


def test_intervals_are_as_wide_as_scores_of_fresh_draws_vary():
    student = 2.262  # the 97.5 % quantile of Student's t with 9 degrees of freedom, one less than there are resamples
    fresh, errors = [], []
    for seed in range(60):
        a, b = gaussian(150, seed=seed, shift=0.8), gaussian(150, seed=1000 + seed)
        found = compare_features(a, b, features=FEATURES, seed=seed)
        fresh.append(values(found))
        errors.append([(getattr(found, name).high - getattr(found, name).value) / student for name in SCORES])
    ratio = np.sqrt(np.mean(np.square(errors), axis=0)) / np.std(fresh, axis=0)
    assert dict(zip(SCORES, ratio, strict=True)) == pytest.approx(dict.fromkeys(SCORES, 1), abs=0.35)


def test_the_seed_fixes_everything():
    images, reference = noise(150, low=60), noise(seed=1)
    first, again, other = (
        evaluate_fidelity(images, reference, features=FEATURES, limit=100, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert values(first) != values(other)


def test_each_class_has_its_own_distance_if_it_has_the_images():
    images, reference = noise(300, low=60), noise(300, seed=1)
    labels = np.repeat([0, 1, 2, 3], [100, 60, 130, 10])
    reference_labels = np.repeat([0, 1, 2, 3], [80, 120, 49, 51])
    found = evaluate_fidelity(
        images,
        reference,
        features=FEATURES,
        labels=labels,
        reference_labels=reference_labels,
        num_classes=5,
        resamples=0,
    ).per_class
    assert [score.number for score in found] == [80, 60, 49, 10, 0]
    assert [score.frechet is None for score in found] == [False, False, True, True, True]
    ours, theirs = draw_equally(300, 300)
    of_class = images[ours][labels[ours] == 1], reference[theirs][reference_labels[theirs] == 1][:60]
    a, b = (image_features(part, FEATURES) for part in of_class)
    assert found[1].frechet == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_a_class_is_compared_with_its_own_class():
    labels = np.arange(200) % 2
    a = gaussian(200, seed=0) + 20 * torch.from_numpy(labels)[:, None]
    b = gaussian(200, seed=1) + 20 * torch.from_numpy(labels)[:, None]
    same = compare_features(a, b, features=FEATURES, labels=labels, reference_labels=labels, num_classes=2)
    crossed = compare_features(a, b, features=FEATURES, labels=labels, reference_labels=1 - labels, num_classes=2)
    assert max(score.frechet for score in same.per_class) < 1
    assert min(score.frechet for score in crossed.per_class) > 1000
    assert same.frechet == crossed.frechet


def test_progress_counts_features_and_then_comparisons():
    seen = []
    evaluate_fidelity(
        noise(250),
        noise(250, seed=1),
        features=FEATURES,
        labels=np.zeros(250, np.int64),
        reference_labels=np.zeros(250, np.int64),
        num_classes=2,
        resamples=3,
        on_progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert seen[:4] == [("features", done, 500) for done in (200, 250, 450, 500)]
    assert seen[4:] == [("scores", done, 6) for done in range(1, 7)]  # all, three halves, two classes


def test_the_same_images_on_both_sides_are_refused_and_a_few_are_not():
    images = noise(200)
    with pytest.raises(InputError, match="200 of 200 synthetic images are among the reference") as refused:
        evaluate_fidelity(images[::-1], images, features=FEATURES)
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="101 of 200"):
        refuse_same_images(np.concatenate([images[:101], noise(99, seed=1)]), images)
    refuse_same_images(np.concatenate([images[:100], noise(100, seed=1)]), images)
    refuse_same_images(images, images[:100])
    refuse_same_images(images ^ 1, images)
    refuse_same_images(images.reshape(200, 2, 8, 1), images)  # the same bytes are other images


def test_copies_are_found_beyond_the_images_that_are_drawn():
    images = noise(2000)
    with pytest.raises(InputError, match="2,000 of 2,000"):
        evaluate_fidelity(images, np.concatenate([images, noise(8000, seed=1)]), features=FEATURES, limit=50)


class NeverBuilt:
    name = digest = "never"

    def build(self):
        raise AssertionError("features were computed for what cannot be compared")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": np.zeros((60, 4), np.uint8)}, "synthetic images must be uint8"),
        ({"reference": np.zeros((60, 4, 4, 1))}, "reference images must be uint8"),
        (
            {"images": noise(49), "labels": np.zeros(49, np.int64)},
            "at least 50 images of each side, not 49 synthetic and 60 reference",
        ),
        ({"limit": 49}, "a limit of 49"),
        ({"limit": 0}, "limit must be"),
        ({"seed": -1}, "seed must be"),
        ({"resamples": 1}, "resamples must be 2 or more"),
        ({"resamples": -1}, "resamples must be a whole number from 0"),
        ({"labels": None}, "the synthetic images have no labels"),
        ({"reference_labels": None}, "the reference images have no labels"),
        ({"labels": np.zeros(59, np.int64)}, "60 synthetic images need as many integer labels"),
        ({"reference_labels": np.full(60, 3)}, "reference labels must lie in 0..2, but run from 3 to 3"),
        ({"num_classes": 0}, "num_classes must be"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line_and_before_the_features(change, said):
    arguments = {
        "images": noise(60),
        "reference": noise(60, seed=1),
        "labels": np.zeros(60, np.int64),
        "reference_labels": np.zeros(60, np.int64),
        "num_classes": 3,
    }
    with pytest.raises(InputError) as refused:
        evaluate_fidelity(**{**arguments, **change}, features=NeverBuilt())
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_torchmetrics_is_found_before_the_features(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(InputError, match=r"pip install 'dpdm\[fidelity\]'"):
        evaluate_fidelity(noise(60), noise(60, seed=1), features=NeverBuilt())


@pytest.mark.usefixtures("unchecked")
def test_sets_of_different_numbers_and_features_that_are_not_numbers_are_refused():
    a = gaussian(100, seed=0)
    for b, said in (
        (gaussian(90, seed=1), "the same number of images, not 100 and 90"),
        (a * torch.nan, "not finite"),
        (a[:, :2], r"of the same features"),
        (a[:49], "at least 50 images"),
    ):
        with pytest.raises(InputError, match=said):
            compare_features(a, b, features=FEATURES)


def test_a_report_is_plain_numbers():
    plain = dataclasses.asdict(compare_features(gaussian(60, seed=0), gaussian(60, seed=1), features=FEATURES))
    assert set(plain) == {field.name for field in dataclasses.fields(Fidelity)}
    assert {type(value) for name in SCORES for value in plain[name].values()} == {float}
