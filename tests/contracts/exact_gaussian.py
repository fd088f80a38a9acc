"""Images whose pixels are independent Gaussians, as a prior, and a network that adds nothing to it."""

import math

import torch
from torch import nn

from dpdm.diffusion import GaussianMixture, MomentMatched, PreconditionedDenoiser

MEAN, STD = 0.3, 0.5


class Constant(nn.Module):
    """A network that answers with the same number everywhere, and keeps what it saw."""

    def __init__(self, images_in: int, *, value: float = 0.0, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.images_in, self.value, self.dtype = images_in, value, dtype

    def forward(self, x, c_noise, labels):
        self.seen = x, c_noise, labels
        return torch.full_like(x[:, : x.shape[1] // self.images_in], self.value, dtype=self.dtype)


def prior(shape, *, mean=MEAN, std=STD):
    """Two classes, whose images are N(mean, std² I) alike: one variance wherever a prior has one."""
    dimensions = math.prod(shape)
    return GaussianMixture(
        centres=torch.full((2, dimensions), mean, dtype=torch.float64),
        classes=torch.arange(2),
        weights=torch.ones(2),
        vectors=torch.eye(dimensions, 3, dtype=torch.float64),
        axes=torch.eye(2, dtype=torch.float64).expand(2, 2, 2),
        class_variances=torch.full((2, 2), std**2, dtype=torch.float64),
        variances=torch.full((1,), std**2, dtype=torch.float64),
        floor=std**2,
        num_classes=2,
    )


def denoiser(shape, **of_prior):
    """The exact denoiser of such images."""
    return PreconditionedDenoiser(Constant(MomentMatched.images_in), MomentMatched().about(prior(shape, **of_prior)))
