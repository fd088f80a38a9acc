"""The theorem behind noise multiplicity: an example's gradient varies less with K copies, and weighs no more.

Var(gradient) = Var over examples of its mean + (mean over examples of its variance over draws) / K: the first term is a
floor, the second falls as 1/K (Dockhorn et al. 2023, Theorem 1 and its proof).
"""

import numpy as np
import pytest
import torch
from two_worlds import build, extreme, records

from dpdm.diffusion import DenoisingLoss, LogNormal
from dpdm.privacy import Vectorized, clipped_grad_sum

COPIES = [1, 2, 4, 8, 16, 32]
ONE_LEVEL = LogNormal(-1.2, 1e-6)
EXAMPLES, DRAWS = 6, 400


def gradients(copies, noise_levels, seed=0):
    """Return gradients over independent draws: (EXAMPLES, DRAWS, parameters)."""
    data, denoiser, loss = records(EXAMPLES), build(), DenoisingLoss(noise_multiplicity=copies, label_dropout=0.0)
    x, labels = (part.repeat_interleave(DRAWS, dim=0) for part in (data.x, data.labels))
    random_bytes = np.random.default_rng(seed).bytes
    batch = loss.draw(x, labels, null_label=0, noise_levels=noise_levels, random_bytes=random_bytes)
    (rows,) = (rows for rows, _ in Vectorized()(loss, denoiser, batch))
    return rows.view(EXAMPLES, DRAWS, -1)


def within(rows):
    """Return the total variance of a gradient over draws, its example given."""
    return rows.var(dim=1).sum(dim=1).mean().item()


@pytest.fixture(scope="module")
def at_one_level():
    return {copies: gradients(copies, ONE_LEVEL) for copies in COPIES}


def test_at_one_noise_level_the_variance_over_draws_falls_as_one_over_k(at_one_level):
    variances = [within(at_one_level[copies]) for copies in COPIES]
    assert np.polyfit(np.log(COPIES), np.log(variances), 1)[0] == pytest.approx(-1, abs=0.05)
    for copies, variance in zip(COPIES, variances, strict=True):
        assert variance * copies == pytest.approx(variances[0], rel=0.2)


def test_over_all_noise_levels_it_falls_at_least_so_fast_for_they_are_stratified():
    variances = [within(gradients(copies, LogNormal())) for copies in (1, 4, 32)]
    for copies, variance in zip((4, 32), variances[1:], strict=True):
        assert variance * copies < 1.2 * variances[0]
    assert variances[-1] * 32 < 0.9 * variances[0]


def test_the_variance_over_examples_and_draws_falls_towards_the_floor_that_examples_differ(at_one_level):
    means = torch.stack([at_one_level[copies].mean(dim=1) for copies in COPIES]).mean(dim=0)
    floor = means.var(dim=0, correction=0).sum().item()
    total = {copies: at_one_level[copies].flatten(0, 1).var(dim=0).sum().item() for copies in COPIES}
    assert total[1] > 1.5 * floor, "hardly any variance over draws: the test shows nothing"
    for copies in COPIES:
        assert total[copies] == pytest.approx(floor + (total[1] - floor) / copies, rel=0.1)


def test_the_mean_gradient_does_not_depend_on_k(at_one_level):
    few, many = at_one_level[1].mean(dim=1), at_one_level[32].mean(dim=1)
    error = (within(at_one_level[1]) / DRAWS) ** 0.5
    assert (few - many).norm(dim=1).mean().item() < 1.5 * error


@pytest.mark.parametrize("copies", COPIES)
def test_one_example_weighs_no_more_than_the_clipping_norm_whatever_k(copies):
    denoiser, loss = build(), DenoisingLoss(noise_multiplicity=copies)
    batch = loss.draw(
        extreme(1e6)[None].reshape(1, 1, 6, 6),
        torch.zeros(1, dtype=torch.long),
        null_label=3,
        noise_levels=LogNormal(),
        random_bytes=np.random.default_rng(0).bytes,
    )
    part = clipped_grad_sum(loss, denoiser, batch, max_grad_norm=0.5)
    assert part.sensitivity == 0.5
    assert 0.4999 < part.vector.norm().item() <= 0.5
