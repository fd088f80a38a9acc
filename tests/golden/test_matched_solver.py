"""MatchedSolver: exact for one Gaussian in a single step, of order 2 for a mixture."""

import pytest
import torch
from torch import nn

from dpdm.diffusion import (
    Churn,
    GaussianMixture,
    Guided,
    MatchedSolver,
    MomentMatched,
    PreconditionedDenoiser,
)
from dpdm.diffusion.preconditioning import EDM
from dpdm.networks import MLP
from dpdm.types import InputError


class Nothing(nn.Module):
    """A network that answers zero: what is left is the prior's own denoiser."""

    def forward(self, x, c_noise, labels):
        return x.new_zeros(len(x), x.shape[1] // 2, *x.shape[2:])


SHAPE, DIMENSIONS = (1, 2, 3), 6


def denoiser(centres):
    generator = torch.Generator().manual_seed(0)
    prior = GaussianMixture(
        centres=torch.randn(2 * centres, DIMENSIONS, generator=generator, dtype=torch.float64),
        classes=torch.arange(2).repeat_interleave(centres),
        weights=torch.ones(2 * centres),
        vectors=torch.linalg.qr(torch.randn(DIMENSIONS, 3, generator=generator, dtype=torch.float64)).Q,
        axes=torch.linalg.qr(torch.randn(2, 2, 2, generator=generator, dtype=torch.float64)).Q,
        class_variances=torch.tensor([[2.0, 0.3], [0.5, 3.0]]),
        variances=torch.tensor([0.2]),
        floor=0.05,
        num_classes=2,
    )
    network = Nothing()
    return PreconditionedDenoiser(network, MomentMatched().about(prior)), prior


def draw(sampler, denoiser, start, labels):
    return sampler(denoiser, start, labels, generator=torch.Generator().manual_seed(0), null_label=2)


START = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1] * 4)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_one_gaussian_takes_one_step(steps):
    matched, prior = denoiser(centres=1)
    x = draw(MatchedSolver(steps=steps), matched, START, LABELS)
    expected = prior.centres[LABELS] + prior.filtered(START.flatten(1), torch.sqrt, LABELS)
    torch.testing.assert_close(x.flatten(1), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.proof
def test_a_mixture_is_integrated_with_order_two():
    matched, prior = denoiser(centres=3)
    levels = {"sigma_max": 20.0, "sigma_min": 0.01}
    mean, z = prior.mean(LABELS), START.flatten(1)
    begin = (mean + prior.filtered(z, lambda v: (v + 400).sqrt(), LABELS)) / 20
    truth = draw(Churn(steps=2000, s_churn=0, **levels), matched, begin.view_as(START), LABELS)

    def error(steps):
        x = draw(MatchedSolver(steps=steps, **levels), matched, START, LABELS)
        return (x - truth).abs().mean().item()

    errors = [error(steps) for steps in (20, 40, 80)]
    assert errors[0] / errors[1] > 2.5
    assert errors[1] / errors[2] > 2.5


def test_it_takes_guidance_and_refuses_a_denoiser_without_a_prior():
    matched, _ = denoiser(centres=2)
    plain, guided = (draw(MatchedSolver(guidance=w), matched, START, LABELS) for w in (0.0, 1.0))
    assert not torch.allclose(plain, guided)
    other = PreconditionedDenoiser(MLP(width=8, blocks=1).build(SHAPE, num_classes=2), EDM())
    for wrong in (other, Guided(other, guidance=1.0, null_label=2)):
        with pytest.raises(InputError, match="moment-matched"):
            draw(MatchedSolver(), wrong, START.float(), LABELS)
