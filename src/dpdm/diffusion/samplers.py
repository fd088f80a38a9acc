"""From noise to images: integrating the probability-flow ODE or SDE of a denoiser along a schedule of noise levels.

A denoiser is a function (x, σ, labels) -> denoised images; a sampler is a frozen value that is called with one.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dpdm.diffusion.noise_levels import karras_schedule
from dpdm.types import Denoiser, InputError, require_positive


class Sampler(Protocol):
    """A frozen value that turns a denoiser, labels and a generator into images."""

    def schedule(self) -> Float64[Tensor, " levels"]:
        """Return the noise levels, descending to a final zero."""
        ...

    def __call__(
        self,
        denoiser: Denoiser,
        start: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "batch channel height width"]:
        """Return images from standard normal `start`; further draws come from `generator`."""
        ...


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """Deterministic DDIM: Euler steps of dx/dσ = (x − D(x; σ)) / σ. Order 1, one denoiser call a step.

    Source:
        Song, Meng & Ermon 2021, eq. 13, in the variables of Karras et al. 2022, eq. 1 and 3.
    """

    steps: int = 50
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        self.schedule()

    def schedule(self) -> Float64[Tensor, " levels"]:
        """Return the noise levels, descending to a final zero."""
        return karras_schedule(self.steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)

    def __call__(
        self,
        denoiser: Denoiser,
        start: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "batch channel height width"]:
        """Return images; `generator` is not needed, all randomness being in `start`."""
        levels = self.schedule().tolist()
        x: Tensor = start * levels[0]
        for sigma, next_sigma in pairwise(levels):
            x = x + (next_sigma - sigma) * _slope(denoiser, x, sigma, labels)
        return x


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Heun steps of the ODE, each after adding a little fresh noise ("churn"). Order 2 without churn.

    Args:
        steps: Number of steps; two denoiser calls each, the last one has one.
        s_churn: Amount of fresh noise over the whole schedule; 0 is the deterministic Heun sampler.
        s_min: Churn only where s_min <= σ <= s_max.
        s_max: See s_min.
        s_noise: Standard deviation of the fresh noise.
        sigma_min: Last noise level above zero.
        sigma_max: First noise level.
        rho: Concentration of the steps near sigma_min.

    Source:
        Karras et al. 2022, Algorithm 2, with γ at most √2 − 1.
    """

    steps: int = 40
    s_churn: float = 10.0
    s_min: float = 0.025
    s_max: float = 50.0
    s_noise: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        self.schedule()
        if not self.s_churn >= 0:
            raise InputError(f"s_churn must not be negative, not {self.s_churn}")
        require_positive(s_noise=self.s_noise)

    def schedule(self) -> Float64[Tensor, " levels"]:
        """Return the noise levels, descending to a final zero."""
        return karras_schedule(self.steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)

    def __call__(
        self,
        denoiser: Denoiser,
        start: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "batch channel height width"]:
        """Return images; the fresh noise is drawn from `generator`."""
        levels = self.schedule().tolist()
        x: Tensor = start * levels[0]
        for sigma, next_sigma in pairwise(levels):
            gamma = min(self.s_churn / self.steps, math.sqrt(2) - 1) if self.s_min <= sigma <= self.s_max else 0.0
            if gamma > 0:
                raised = sigma * (1 + gamma)
                fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
                x = x + math.sqrt(raised**2 - sigma**2) * self.s_noise * fresh
                sigma = raised
            slope = _slope(denoiser, x, sigma, labels)
            euler = x + (next_sigma - sigma) * slope
            if next_sigma > 0:
                slope = (slope + _slope(denoiser, euler, next_sigma, labels)) / 2
            x = x + (next_sigma - sigma) * slope
        return x


def _slope(denoiser: Denoiser, x: Tensor, sigma: float, labels: Tensor) -> Tensor:
    """Return dx/dσ = (x − D(x; σ)) / σ (Karras et al. 2022, eq. 1 and 3 with σ(t) = t)."""
    return (x - denoiser(x, x.new_full((len(x),), sigma), labels)) / sigma
