"""Noise levels σ: their distribution in training, and the descending schedule that sampling follows."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dpdm.types import InputError, require_positive


@dataclass(frozen=True)
class LogNormal:
    """ln σ ~ N(mean, std²).

    Source:
        Karras et al. 2022, Table 1 ("Noise distribution"), P_mean and P_std.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        require_positive(std=self.std)
        if not math.isfinite(self.mean):
            raise InputError(f"mean must be a finite number, not {self.mean}")

    def quantile(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the σ below which a fraction `u` in (0, 1) of the training noise levels lies."""
        return torch.exp(self.mean + self.std * torch.special.ndtri(u))


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
    require_positive(steps=steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    if sigma_min >= sigma_max:
        raise InputError(f"sigma_min = {sigma_min:g} must be below sigma_max = {sigma_max:g}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(first + ramp * (last - first)) ** rho, torch.zeros(1, dtype=torch.float64)])
