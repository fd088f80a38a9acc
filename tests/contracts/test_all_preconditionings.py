"""What every preconditioning promises: a new one is added to TOYS, and to nothing else."""

import math
from typing import get_args

import exact_gaussian
import pytest
import torch
from exact_gaussian import Constant

from dpdm.diffusion import DDPM, EDM, VE, VP, MomentMatched, PreconditionedDenoiser, V
from dpdm.methods.diffusion import AnyPreconditioning
from dpdm.types import InputError

SHAPE = (1, 3, 4)
TOYS = {kind: kind() for kind in (EDM, V, VP, VE, DDPM)} | {
    MomentMatched: MomentMatched().about(exact_gaussian.prior(SHAPE, std=1.0))
}
LABELS = torch.tensor([0, 1, 2, 0])  # two classes, and none
SIGMA = torch.tensor([0.02, 0.5, 1.0, 80.0], dtype=torch.float64)
SIGMAS = torch.logspace(-3, 2, 51, dtype=torch.float64)
every_preconditioning = pytest.mark.parametrize("kind", TOYS, ids=lambda kind: kind.kind)


def images(seed=0, dtype=torch.float64):
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def denoised(kind, x, sigma=SIGMA, labels=LABELS, *, value=0.0, dtype=None):
    """Return the denoised images where the network answers with `value`, and what the network saw."""
    network = Constant(kind.images_in, value=value, dtype=dtype)
    return PreconditionedDenoiser(network, TOYS[kind])(x, sigma.to(x.dtype), labels), network.seen


def test_every_preconditioning_is_among_the_toys():
    assert set(get_args(AnyPreconditioning)) == set(TOYS)
    assert len({kind.kind for kind in TOYS}) == len(TOYS)


@every_preconditioning
def test_without_noise_the_image_comes_back_whatever_the_network_says(kind):
    x = images()
    for sigma in (1e-3, 1e-5):
        answer, _ = denoised(kind, x, torch.full((4,), sigma, dtype=torch.float64), value=7.0)
        assert (answer - x).abs().max().item() < 10 * sigma


@every_preconditioning
def test_the_loss_weight_makes_the_squared_error_that_of_the_raw_network(kind):
    """D is affine in the network's answer F, so that λ (D(F) − D(0))² = F²."""
    x, raw = images(), 1.7
    moved = denoised(kind, x, value=raw)[0] - denoised(kind, x)[0]
    weighted = TOYS[kind].loss_weight(SIGMA)[:, None, None, None] * moved**2
    torch.testing.assert_close(weighted, torch.full_like(x, raw**2), rtol=1e-9, atol=0)


@every_preconditioning
def test_the_network_sees_as_many_images_as_are_said_the_labels_and_a_rising_number_of_order_one(kind):
    levels = TOYS[kind].noise_levels.quantile(torch.tensor([0.001, 0.3, 0.7, 0.999], dtype=torch.float64))
    _, (seen, c_noise, labels) = denoised(kind, images(), levels)
    assert seen.shape == (4, kind.images_in * SHAPE[0], *SHAPE[1:])
    assert seen.isfinite().all()
    assert torch.equal(labels, LABELS)
    assert (c_noise.diff() > 0).all()
    assert c_noise.abs().max() < 5


@every_preconditioning
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_answer_has_the_precision_of_the_image_when_the_network_s_has_not(kind, dtype):
    x = images(dtype=dtype)
    coarse, _ = denoised(kind, x, value=1.0, dtype=torch.bfloat16)
    assert coarse.dtype == dtype
    assert coarse.shape == x.shape
    torch.testing.assert_close(coarse, denoised(kind, x, value=1.0)[0])


@every_preconditioning
def test_each_image_is_denoised_by_its_own_level_and_label_alone(kind):
    x = images()
    together, _ = denoised(kind, x, value=1.0)
    for i in range(4):
        alone, _ = denoised(kind, x[i : i + 1], SIGMA[i : i + 1], LABELS[i : i + 1], value=1.0)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-9, atol=1e-12)


@every_preconditioning
def test_noise_levels_of_training_rise_with_the_quantile_and_stay_in_their_span(kind):
    levels = TOYS[kind].noise_levels
    sigma = levels.quantile(torch.linspace(0.001, 0.999, 999, dtype=torch.float64))
    if kind is DDPM:  # whose levels are discrete: neighbours may be one, and the ends are among them
        assert (sigma.diff() >= 0).all()
        assert (sigma[::10].diff() > 0).all()
        assert levels.span[0] <= sigma[0] < sigma[-1] <= levels.span[1]
        return
    assert (sigma.diff() > 0).all()
    assert levels.span[0] < sigma[0]
    assert sigma[-1] < levels.span[1]


@every_preconditioning
def test_a_network_that_returns_another_shape_is_refused_in_one_line(kind):
    network = torch.nn.Flatten()
    network.forward = lambda x, c_noise, labels: x.new_zeros(4, 1, 1, 1)
    with pytest.raises(InputError, match="one image for each"):
        PreconditionedDenoiser(network, TOYS[kind])(images(), SIGMA, LABELS)


@pytest.mark.parametrize(
    ("preconditioning", "sigma_data"),
    [*((EDM(sigma_data=scale), scale) for scale in (0.5, math.sqrt(1 / 3), 1.0, 3.0)), (V(), 1.0)],
    ids=repr,
)
def test_edm_and_v_give_the_network_input_and_target_of_unit_variance(preconditioning, sigma_data):
    """Of data of the assumed scale. The others do not promise it."""
    c_skip, c_out, c_in, _ = preconditioning.coefficients(SIGMAS)
    ones = torch.ones_like(SIGMAS)
    torch.testing.assert_close(c_in**2 * (sigma_data**2 + SIGMAS**2), ones)
    # F* = (y − c_skip (y + σn)) / c_out, y and n independent
    target = ((1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * SIGMAS**2) / c_out**2
    torch.testing.assert_close(target, ones, rtol=1e-9, atol=0)
    # so F = 0 is the best answer for Gaussian data: the target cannot be predicted from the input
    covariance = (1 - c_skip) * sigma_data**2 - c_skip * SIGMAS**2
    torch.testing.assert_close(covariance, torch.zeros_like(SIGMAS), rtol=0, atol=1e-12)
