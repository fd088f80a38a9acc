"""The descending noise levels σ that sampling follows."""

import torch
from jaxtyping import Float64
from torch import Tensor

from dpdm.types import InputError, require_counts, require_within

LEAST_LEVEL, HIGHEST_LEVEL = 1e-6, 1e6
"""Noise levels that mean something for pixels in [-1, 1]."""


def karras_schedule(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Float64[Tensor, " levels"]:
    """Return `steps` descending noise levels and a final zero, evenly spaced in σ^(1/ρ).

    Args:
        steps: Number of sampler steps >= 1.
        sigma_min: Last level above zero.
        sigma_max: First level.
        rho: How much the steps concentrate near sigma_min.

    Source:
        Karras et al. 2022, eq. 5.
    """
    require_counts(steps=steps)
    require_within(0.1, 100, rho=rho)
    require_descending(sigma_max=sigma_max, sigma_min=sigma_min)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(first + ramp * (last - first)) ** rho, torch.zeros(1, dtype=torch.float64)])


def require_descending(*, sigma_max: float, sigma_min: float) -> None:
    """Raise InputError unless both are positive and the second is smaller."""
    require_within(LEAST_LEVEL, HIGHEST_LEVEL, sigma_min=sigma_min, sigma_max=sigma_max)
    if sigma_min >= sigma_max:
        raise InputError(f"sigma_min = {sigma_min:g} must be below sigma_max = {sigma_max:g}")
