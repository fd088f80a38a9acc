"""What is read from released sums: means, matrices, and which eigenvalues stand out of the noise."""

import math

import pytest
import torch

from dpdm.diffusion import spectrum
from dpdm.privacy import sums

GENERATOR = torch.Generator().manual_seed(0)


def second_moment(parts, **more):
    """The second moment of records that are all in one cell."""
    parts = [(rows, torch.zeros(len(rows), dtype=torch.long), weights) for rows, weights in parts]
    return sums.second_moments(parts, cells=1, **more)


def symmetric_matrix(released):
    return spectrum.symmetric_matrices(released, cells=1)[0]


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def ones(rows):
    return torch.ones(len(rows), dtype=torch.float64)


def test_means_and_counts_come_back_when_there_is_no_noise():
    rows, cell = normal(100, 4), torch.arange(100) % 3
    released = sums.cell_sums([(rows, cell, ones(rows))], cells=3, dimensions=4, max_norm=1e6, count_scale=7.0).total
    means, counts = spectrum.cell_means(released, cells=3, count_scale=7.0, least_count=1.0)
    assert counts.tolist() == pytest.approx([34, 33, 33])
    for index in range(3):
        torch.testing.assert_close(means[index], rows[cell == index].mean(0))


def test_a_group_enters_sums_and_counts_as_the_average_over_its_images():
    rows, cell, weights = normal(5, 4), torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0.5, 0.25, 0.25, 1, 1]).double()
    released = sums.cell_sums([(rows, cell, weights)], cells=2, dimensions=4, max_norm=1e6, count_scale=2.0).total
    torch.testing.assert_close(released[:4], 0.5 * rows[0] + 0.25 * rows[1])
    assert released[8:].tolist() == [1.5, 4.5]
    moment = symmetric_matrix(second_moment([(rows, weights)], dimensions=4, max_norm=1e6).total)
    torch.testing.assert_close(moment, sum(w * torch.outer(v, v) for v, w in zip(rows, weights, strict=True)))


def test_a_thin_cell_has_the_mean_of_all_and_the_least_count():
    rows, cell = normal(100, 4), torch.tensor([0] * 98 + [1] * 2)
    released = sums.cell_sums([(rows, cell, ones(rows))], cells=2, dimensions=4, max_norm=1e6, count_scale=1.0).total
    means, counts = spectrum.cell_means(released, cells=2, count_scale=1.0, least_count=5.0)
    assert counts[1] == 5
    torch.testing.assert_close(means[1], rows.mean(0))


def test_the_second_moment_comes_back_when_there_is_no_noise_in_any_parts():
    rows = normal(50, 6)
    whole = second_moment([(rows, ones(rows))], dimensions=6, max_norm=1e6).total
    parts = second_moment([(part, ones(part)) for part in (rows[:7], rows[7:])], dimensions=6, max_norm=1e6).total
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(symmetric_matrix(whole), rows.T @ rows)


def test_the_triangle_is_an_isometry():
    rows = normal(9, 6)
    vector = second_moment([(rows, ones(rows))], dimensions=6, max_norm=1e6).total
    assert torch.linalg.vector_norm(vector).item() == pytest.approx(torch.linalg.matrix_norm(rows.T @ rows).item())


def test_of_pure_noise_only_the_leading_direction_is_kept_and_the_edge_is_where_it_should_be():
    dimensions, noise_std = 300, 0.5
    noise = symmetric_matrix(noise_std * normal(dimensions * (dimensions + 1) // 2))
    largest = torch.linalg.eigvalsh(noise)[-1].item()
    assert largest == pytest.approx(noise_std * math.sqrt(2 * dimensions), rel=0.05)
    found = spectrum.denoised_spectrum(noise, noise_std=noise_std * 1.1, least_variance=1e-3)
    assert found.vectors.shape == (dimensions, 1)
    assert found.variances.item() == pytest.approx(1e-3)


def test_a_direction_that_stands_out_gets_the_variance_that_lies_along_it():
    dimensions, noise_std = 400, 0.05
    truth = normal(dimensions)
    truth /= truth.norm()
    edge = noise_std * math.sqrt(2 * dimensions)
    covariance = 3 * edge * torch.outer(truth, truth) + 0.02 * torch.eye(dimensions, dtype=torch.float64)
    noisy = covariance + symmetric_matrix(noise_std * normal(dimensions * (dimensions + 1) // 2))
    vectors, variances, floor = spectrum.denoised_spectrum(noisy, noise_std=noise_std, least_variance=1e-6)
    assert variances[0] > 4 * variances[1:].sum()  # a few directions of noise pass its edge by a little
    vectors, variances = vectors[:, :1], variances[:1]
    assert variances.item() == pytest.approx((vectors[:, 0] @ covariance @ vectors[:, 0]).item(), rel=0.1)
    assert floor == pytest.approx((covariance.trace().item() - variances.item()) / (dimensions - 1), rel=0.5)


def test_without_noise_the_spectrum_is_that_of_the_matrix():
    rows = normal(50, 6)
    matrix = rows.T @ rows
    vectors, variances, _ = spectrum.denoised_spectrum(matrix, noise_std=0.0, least_variance=1e-6)
    torch.testing.assert_close(vectors @ variances.diag() @ vectors.T, matrix)


def test_the_second_moments_of_cells_come_back_apart():
    rows, cell = normal(50, 4), torch.arange(50) % 3
    vector = sums.second_moments([(rows, cell, ones(rows))], cells=3, dimensions=4, max_norm=1e6).total
    found = spectrum.symmetric_matrices(vector, cells=3)
    for index in range(3):
        inside = rows[cell == index]
        torch.testing.assert_close(found[index], inside.T @ inside)
    assert vector.square().sum() == pytest.approx(found.square().sum().item()), "an isometry"


def test_matrices_move_to_what_they_share_by_the_part_that_is_noise():
    """Where they differ little from it, they become it; where they differ much, they stay; in between it is Stein's."""
    shared = torch.eye(6, dtype=torch.float64)
    noise = spectrum.symmetric_matrices(normal(3 * 21), cells=3)
    noise_std = torch.full((3,), 1.0, dtype=torch.float64)
    pure = spectrum.shrunk_towards(shared + noise, shared, noise_std=noise_std)
    assert (pure - shared).square().sum() < 0.3 * noise.square().sum()
    far = 100 * torch.ones(3, 6, 6, dtype=torch.float64)
    stays = spectrum.shrunk_towards(shared + far, shared, noise_std=noise_std)
    torch.testing.assert_close(stays, shared + far, rtol=1e-3, atol=0)
    different = spectrum.symmetric_matrices(2 * normal(2000 * 21), cells=2000)
    noisy = different + spectrum.symmetric_matrices(normal(2000 * 21), cells=2000)
    shrunk = spectrum.shrunk_towards(noisy, torch.zeros(6, 6).double(), noise_std=torch.ones(2000).double())
    assert (shrunk - different).square().sum() < 0.9 * (noisy - different).square().sum()
    torch.testing.assert_close(shrunk.mT, shrunk)
