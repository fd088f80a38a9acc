"""Noise levels σ: their distribution in training."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dpdm.diffusion.schedule import require_descending
from dpdm.types import InputError, require_within

_CELLS = 2048  # of equal probability, in which a weight is one number


class NoiseLevels(Protocol):
    """A frozen value that says how σ is distributed in training."""

    @property
    def span(self) -> tuple[float, float]:
        """The least and the largest σ that training can meet: a sampler must stay between them."""
        ...

    def quantile(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the σ below which a fraction `u` in (0, 1) of the training noise levels lies."""
        ...


@dataclass(frozen=True)
class LogNormal:
    """ln σ ~ N(mean, std²).

    Source:
        Karras et al. 2022, Table 1 ("Noise distribution"), P_mean and P_std.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        require_within(1e-6, 100, std=self.std)
        require_within(-100, 100, mean=self.mean)

    @property
    def span(self) -> tuple[float, float]:
        """All positive numbers."""
        return 0.0, math.inf

    def quantile(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the σ below which a fraction `u` in (0, 1) of the training noise levels lies."""
        return torch.exp(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True, kw_only=True)
class LogUniform:
    """ln σ uniform between two levels.

    Source:
        Song et al. 2021, "VE SDE", in the form of Karras et al. 2022, Table 1 ("Noise distribution").
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        require_descending(sigma_max=self.sigma_max, sigma_min=self.sigma_min)

    @property
    def span(self) -> tuple[float, float]:
        """(sigma_min, sigma_max)."""
        return self.sigma_min, self.sigma_max

    def quantile(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the σ below which a fraction `u` in (0, 1) of the training noise levels lies."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """arctan σ uniform between the levels of two log signal-to-noise ratios, −2 ln σ: much weight on large σ.

    Source:
        Salimans & Ho 2022, section 2 (cosine schedule); bounds: Dockhorn et al. 2023, appendix, for ε = 0.2.
    """

    log_snr_min: float = -9.0
    log_snr_max: float = 13.0

    def __post_init__(self) -> None:
        require_within(-30, 30, log_snr_min=self.log_snr_min, log_snr_max=self.log_snr_max)
        if self.log_snr_min >= self.log_snr_max:
            raise InputError(f"log_snr_min = {self.log_snr_min:g} must be below log_snr_max = {self.log_snr_max:g}")

    @property
    def span(self) -> tuple[float, float]:
        """The σ of both ratios."""
        return math.exp(-self.log_snr_max / 2), math.exp(-self.log_snr_min / 2)

    def quantile(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the σ below which a fraction `u` in (0, 1) of the training noise levels lies."""
        low, high = (math.atan(sigma) for sigma in self.span)
        return torch.tan(low + (high - low) * u)


@dataclass(frozen=True, kw_only=True)
class VariancePreserving:
    """σ(t) of a variance-preserving SDE, σ² = exp(β_d t² / 2 + β_min t) − 1, for t uniform in [t_min, 1].

    Source:
        Song et al. 2021, "VP SDE", in the form of Karras et al. 2022, Table 1.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        require_within(1e-6, 50, beta_d=self.beta_d, beta_min=self.beta_min)
        require_within(1e-9, 0.999, t_min=self.t_min)

    @property
    def span(self) -> tuple[float, float]:
        """σ(t_min) and σ(1)."""
        low, high = self.sigma(torch.tensor([self.t_min, 1.0], dtype=torch.float64)).tolist()
        return low, high

    def sigma(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return σ(t)."""
        return torch.expm1(self.beta_d / 2 * t**2 + self.beta_min * t).sqrt()

    def t(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the t with σ(t) = `sigma`: the root of a quadratic, in the form that does not cancel for small σ."""
        exponent = torch.log1p(sigma**2)
        return 2 * exponent / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * self.beta_d * exponent))

    def quantile(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the σ below which a fraction `u` in (0, 1) of the training noise levels lies."""
        return self.sigma(self.t_min + (1 - self.t_min) * u)


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """Noise levels of another distribution, each as much more often as its weight is larger than the others'.

    Args:
        base: That distribution.
        levels: Noise levels, rising.
        weights: Of these, not negative and not all zero; between two levels they are linear in ln σ, beyond constant.
    """

    base: NoiseLevels
    levels: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def span(self) -> tuple[float, float]:
        """That of `base`."""
        return self.base.span

    def quantile(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the σ below which a fraction `u` in (0, 1) of the training noise levels lies."""
        edges = torch.linspace(0, 1, _CELLS + 1, dtype=torch.float64)
        at = self.base.quantile((edges[1:] + edges[:-1]) / 2).log().numpy()
        mass = torch.from_numpy(np.interp(at, np.log(self.levels), self.weights))
        below = torch.cat([torch.zeros(1, dtype=torch.float64), (mass / mass.sum()).cumsum(0)])
        base_u = np.interp(u.double().cpu().numpy(), below.numpy(), edges.numpy()).clip(1e-9, 1 - 1e-9)
        return self.base.quantile(torch.from_numpy(base_u)).to(u)
