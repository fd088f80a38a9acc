"""Distances of two sets of features against closed forms, torchmetrics, and the definitions written out in loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from dpdm.evaluation import density_coverage, frechet_distance, inception_score, kernel_distance, precision_recall
from dpdm.evaluation.distances import neighbourhood_scores

pytestmark = pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features")  # torchmetrics, of memory


def standardised(number, dimensions, *, seed):
    """Draws whose sample mean is exactly zero and whose sample covariance is exactly the identity."""
    x = torch.randn(number, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x -= x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T


def draws(number, dimensions, *, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(number, dimensions, generator=generator, dtype=torch.float64)


class Identity(nn.Module):
    """Stands in for Inception, so that torchmetrics takes features as they are."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features

    def forward(self, features):
        return features


def updated(metric, real, made):
    metric.set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(made, real=False)
    return metric.compute()


def test_the_frechet_distance_of_two_gaussians_is_the_closed_form():
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    scales = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    a, b = standardised(500, 3, seed=0), standardised(400, 3, seed=1) * scales + mean
    expected = 1 + 4 + 0.25 + 0.25 + 1 + 4
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(expected, rel=1e-4)


def test_the_frechet_distance_of_gaussians_whose_covariances_do_not_commute():
    a, b = standardised(500, 2, seed=0), standardised(500, 2, seed=1)
    first = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -0.7], [-0.7, 3.0]], dtype=torch.float64)
    # of 2 × 2 matrices, (tr √M)² = tr M + 2 √det M
    trace_of_root = math.sqrt((first @ second).trace() + 2 * math.sqrt(first.det() * second.det()))
    expected = first.trace() + second.trace() - 2 * trace_of_root
    found = frechet_distance(a @ torch.linalg.cholesky(first).T, b @ torch.linalg.cholesky(second).T)
    assert found == pytest.approx(expected.item(), rel=1e-6)


def test_the_frechet_distance_is_that_of_torchmetrics():
    made, real = draws(120, 8, seed=0, shift=0.3), draws(90, 8, seed=1)
    expected = updated(FrechetInceptionDistance(feature=Identity(8)), real, made)
    assert frechet_distance(made, real) == pytest.approx(expected.item(), rel=1e-9)


def test_the_kernel_distance_is_that_of_torchmetrics_where_a_subset_is_all():
    made, real = draws(80, 8, seed=0, shift=0.3), draws(80, 8, seed=1)
    mean, _ = updated(KernelInceptionDistance(feature=Identity(8), subsets=1, subset_size=80), real, made)
    assert kernel_distance(made, real) == pytest.approx(mean.item(), rel=1e-9)


def test_over_subsets_the_kernel_distance_is_that_of_torchmetrics_up_to_the_choice_of_subsets():
    made, real = draws(400, 4, seed=0, shift=0.5), draws(300, 4, seed=1)
    mean, spread = updated(KernelInceptionDistance(feature=Identity(4), subsets=200, subset_size=50), real, made)
    found = kernel_distance(made, real, subsets=200, subset_size=50)
    assert found == pytest.approx(mean.item(), abs=4 * spread.item() / math.sqrt(200))
    assert abs(found) > 20 * spread.item() / math.sqrt(200), "this test needs a distance that is seen"


def test_the_kernel_distance_by_hand():
    # one feature: k(x, y) = (xy + 1)³; within a: k(0, 1) = 1; within b: k(1, 2) = 27; across: 1, 1, 8, 27
    a = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    assert kernel_distance(a, b) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_the_inception_score_is_that_of_torchmetrics():
    logits = draws(200, 7, seed=0) * 3
    metric = InceptionScore(feature=Identity(7), splits=1)
    metric.set_dtype(torch.float64)
    metric.update(logits)
    with pytest.warns(UserWarning, match="degrees of freedom"):  # of the spread over its one part
        expected, _ = metric.compute()
    assert inception_score(logits.softmax(1)) == pytest.approx(expected.item(), rel=1e-9)


def test_the_inception_score_by_hand():
    sure = torch.eye(5).repeat(4, 1)
    assert inception_score(sure) == pytest.approx(5)
    assert inception_score(sure[:1].repeat(9, 1)) == pytest.approx(1)
    assert inception_score(torch.full((9, 5), 0.2)) == pytest.approx(1)
    # half of the images undecided between two classes, half sure of a third: the average is (1/4, 1/4, 1/2)
    mixed = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    assert inception_score(mixed) == pytest.approx(2)


def by_definition(made, real, k):
    """Precision, recall, density and coverage in plain loops."""

    def reach(points, i):
        return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    made, real = made.tolist(), real.tolist()
    of_made, of_real = ([reach(points, i) for i in range(len(points))] for points in (made, real))
    distances = [[math.dist(x, y) for y in made] for x in real]
    rows, columns = range(len(real)), range(len(made))
    precision = np.mean([any(distances[i][j] <= of_real[i] for i in rows) for j in columns])
    recall = np.mean([any(distances[i][j] <= of_made[j] for j in columns) for i in rows])
    density = sum(distances[i][j] < of_real[i] for i in rows for j in columns) / (k * len(made))
    coverage = np.mean([any(distances[i][j] < of_real[i] for j in columns) for i in rows])
    return precision, recall, density, coverage


@pytest.mark.parametrize("seed", range(12))
def test_neighbourhood_scores_are_the_definitions(seed, monkeypatch):
    monkeypatch.setattr("dpdm.evaluation.distances._ROWS", 7)  # several blocks, the last of them shorter
    rng = np.random.default_rng(seed)
    dimensions, k = int(rng.integers(1, 5)), int(rng.integers(1, 6))
    made = draws(int(rng.integers(8, 40)), dimensions, seed=seed, shift=10 + rng.uniform(0, 2))
    real = draws(int(rng.integers(8, 40)), dimensions, seed=seed + 100, shift=10)
    precision, recall, density, coverage = by_definition(made, real, k)
    assert precision_recall(made, real, neighbours=k) == pytest.approx((precision, recall))
    assert density_coverage(made, real, neighbours=k) == pytest.approx((density, coverage))
    assert neighbourhood_scores(made, real, support=k, density=k) == pytest.approx(
        (precision, recall, density, coverage)
    )


def test_each_pair_of_scores_keeps_its_own_number_of_neighbours_when_computed_together():
    made, real = draws(60, 3, seed=0, shift=0.7), draws(50, 3, seed=1)
    for support, density in ((3, 5), (5, 2)):
        expected = *by_definition(made, real, support)[:2], *by_definition(made, real, density)[2:]
        assert neighbourhood_scores(made, real, support=support, density=density) == pytest.approx(expected)


def test_neighbourhood_scores_by_hand():
    # on a line, with one neighbour: real balls (-1, 1), (0, 2), (1, 9) around 0, 1, 5 have radii 1, 1, 4
    real = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)
    # 0.5 lies in two balls, 6 in one, 20 in none; among the synthetic images themselves the radii are 5.5, 5.5, 14
    made = torch.tensor([[0.5], [6.0], [20.0]], dtype=torch.float64)
    assert density_coverage(made, real, neighbours=1) == pytest.approx((3 / 3, 1))
    assert precision_recall(made, real, neighbours=1) == pytest.approx((2 / 3, 1))
    assert precision_recall(made[1:], real[:2], neighbours=1) == (0, 1)
    assert density_coverage(made[1:], real, neighbours=1) == pytest.approx((1 / 2, 1 / 3))
