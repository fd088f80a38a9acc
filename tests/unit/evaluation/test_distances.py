"""What the distances of sets of features say of clouds that are alike, apart, or lack a part."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpdm.evaluation import (
    density_coverage,
    frechet_distance,
    inception_score,
    kernel_distance,
    nearest,
    precision_recall,
)
from dpdm.types import InputError


def cloud(number=200, *, seed=0, centres=((0.0,) * 6,)):
    """Standard normal draws around each centre in turn."""
    noise = torch.randn(number, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise + torch.tensor(centres, dtype=torch.float64)[torch.arange(number) % len(centres)]


NEAR, FAR = (0.0,) * 6, (100.0,) * 6


def test_a_cloud_against_itself_is_perfect():
    a = cloud()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert precision_recall(a, a) == (1, 1)
    assert density_coverage(a, a) == (1, 1)
    assert kernel_distance(a, a) < 0  # unbiased: not even an image's likeness to itself is counted within a set


def test_clouds_that_are_far_apart_have_nothing_of_one_another():
    a, b = cloud(), cloud(seed=1, centres=(FAR,))
    assert precision_recall(a, b) == (0, 0)
    assert density_coverage(a, b) == (0, 0)
    assert frechet_distance(a, b) == pytest.approx(6 * 100**2, rel=0.05)
    assert kernel_distance(a, b) > 1e6


def test_where_half_of_the_modes_are_missing_precision_stays_and_recall_and_coverage_halve():
    real = cloud(400, centres=(NEAR, FAR))
    precision, recall = precision_recall(real[::2], real)
    density, coverage = density_coverage(real[::2], real)
    assert (precision, recall) == (1, 0.5)
    assert coverage == 0.5
    # all images in one of two balls' places: each meets as many balls there as before, but there are twice the images
    assert density == pytest.approx(1)
    recall_of_part, precision_of_all = precision_recall(real, real[::2])
    assert (recall_of_part, precision_of_all) == (0.5, 1)


def test_draws_of_one_distribution_have_the_density_and_coverage_that_theory_expects():
    density, coverage = density_coverage(cloud(1500, seed=1), cloud(1500, seed=2), neighbours=3)
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(1 - 2**-3, abs=0.03)


def test_the_kernel_distance_of_two_draws_of_one_distribution_is_zero_on_average():
    found = [kernel_distance(cloud(60, seed=seed), cloud(60, seed=1000 + seed)) for seed in range(200)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(200)
    assert min(found) < 0 < max(found)


def test_ten_subsets_use_every_image_of_ten_times_their_size_once(monkeypatch):
    seen = []
    monkeypatch.setattr("torchmetrics.image.kid.poly_mmd", lambda x, y: seen.append((x, y)) or torch.zeros(()))
    numbers = torch.arange(100.0)[:, None]
    kernel_distance(numbers, numbers + 1000, subsets=10, subset_size=10)
    assert len(seen) == 10
    assert sorted(torch.cat([x for x, _ in seen]).flatten().tolist()) == list(range(100))
    assert sorted(torch.cat([y for _, y in seen]).flatten().tolist()) == list(range(1000, 1100))


def test_subsets_are_as_the_seed_says():
    a, b = cloud(), cloud(seed=1, centres=((0.5,) * 6,))
    first, again, other = (kernel_distance(a, b, subset_size=50, seed=seed) for seed in (3, 3, 4))
    assert first == again != other


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_distance_depends_on_the_order_of_images(seed):
    a, b = cloud(70), cloud(60, seed=1, centres=((0.7,) * 6,))
    rng = np.random.default_rng(seed)
    x, y = a[rng.permutation(70)], b[rng.permutation(60)]
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert precision_recall(x, y) == precision_recall(a, b)
    assert density_coverage(x, y) == density_coverage(a, b)
    assert inception_score(x.softmax(1)) == pytest.approx(inception_score(a.softmax(1)))
    some = a[:60]
    assert kernel_distance(some[rng.permutation(60)], y) == pytest.approx(kernel_distance(some, b), rel=1e-9)


def test_a_frechet_distance_of_too_few_images_is_refused():
    with pytest.raises(InputError, match="fewer than 50"):
        frechet_distance(cloud(), cloud(49))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, precision_recall, density_coverage])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(200), "of the same features, not"),
        (torch.zeros(200, 7), r"not \(200, 6\) and \(200, 7\)"),
        (torch.full((200, 6), torch.nan), "not finite"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_features_that_do_not_fit_together_are_refused_in_one_line(distance, wrong, said):
    with pytest.raises(InputError, match=said) as refused:
        distance(cloud(), wrong)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda a: kernel_distance(a, a[:1]), "at least 2 images"),
        (lambda a: kernel_distance(a, a, subset_size=1), "subset_size must be 2 or more"),
        (lambda a: kernel_distance(a, a, subsets=0), "subsets must be"),
        (lambda a: kernel_distance(a, a, seed=-1), "seed must be"),
        (lambda a: precision_recall(a, a[:3]), "3 neighbours need more real images than that, not 3"),
        (lambda a: precision_recall(a[:3], a), "3 neighbours need more synthetic images than that, not 3"),
        (lambda a: density_coverage(a, a[:5]), "5 neighbours need more real images than that, not 5"),
        (lambda a: density_coverage(a[:0], a), "at least 1 images"),
        (lambda a: precision_recall(a, a, neighbours=0), "neighbours must be"),
        (lambda a: inception_score(a), "were these logits"),
        (lambda a: inception_score(a[0].softmax(0)), r"\(images, classes\), not of shape \(6,\)"),
        (lambda a: inception_score(a[:0]), r"\(images, classes\), not of shape \(0, 6\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_computed_is_refused(call, said):
    with pytest.raises(InputError, match=said):
        call(cloud())


def test_the_nearest_are_in_order_and_no_point_is_its_own_neighbour(monkeypatch):
    monkeypatch.setattr("dpdm.evaluation.distances._ROWS", 7)  # several blocks, the last of them shorter
    a, b = cloud(20), cloud(30, seed=1)
    for points, others in ((a, b), (a, a)):
        expected = torch.cdist(points, others).square()
        if points is others:
            expected.fill_diagonal_(torch.inf)
        found = expected.sort(dim=1)
        rows, squared, indices = zip(*nearest(points, others, count=4), strict=True)
        assert [(row.start, row.stop) for row in rows] == [(0, 7), (7, 14), (14, 20)]
        torch.testing.assert_close(torch.cat(squared), found.values[:, :4])
        assert torch.equal(torch.cat(indices), found.indices[:, :4])


def test_one_synthetic_image_has_a_density_and_a_coverage():
    density, coverage = density_coverage(cloud(1), cloud(50))
    assert density > 0
    assert 0 < coverage < 1
