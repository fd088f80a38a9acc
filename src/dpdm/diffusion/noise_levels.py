"""Noise levels σ: their distribution in training."""

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dpdm.diffusion.schedule import HIGHEST_LEVEL, require_descending
from dpdm.types import InputError, require_at_most, require_counts, require_within

Betas = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
"""How the β of a discrete process follow one another."""

_MOST_TIMES = 10_000  # of a discrete process: published ones have 1,000 to 4,000
_LEAST_SHARE = 1e-4  # of all noise levels, for training on these alone
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

    Example:
        >>> EDM(noise_levels=LogNormal(mean=-1.0)).noise_levels.mean
        -1.0
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
class DiscreteTimes:
    """σ_t = √((1 − ᾱ_t) / ᾱ_t) for t uniform in 0, …, times − 1, ᾱ_t being the product of all 1 − β up to t.

    ᾱ is computed in float32, as `diffusers` does: both then mean the same numbers.

    Args:
        schedule: How β goes from its first to its last value: "linear", "scaled_linear" (√β is linear), or
            "squaredcos_cap_v2", which does without both: ᾱ is a squared cosine, and β at most 0.999.
        times: How many levels there are.
        beta_start: The first β.
        beta_end: The last β.

    Source:
        Ho, Jain & Abbeel 2020, section 2 (linear); Rombach et al. 2022 (scaled); Nichol & Dhariwal 2021, eq. 17.
    """

    schedule: Betas = "linear"
    times: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Betas):
            raise InputError(f"schedule must be one of {', '.join(get_args(Betas))}, not {self.schedule!r}")
        require_counts(times=self.times)
        require_at_most(_MOST_TIMES, times=self.times)
        if self.times < 2:
            raise InputError("times must be at least 2")
        require_within(1e-6, 0.999, beta_start=self.beta_start, beta_end=self.beta_end)
        if self.beta_start > self.beta_end:
            raise InputError(f"beta_start = {self.beta_start:g} must be at most beta_end = {self.beta_end:g}")
        if not self.levels.diff().gt(0).all() or self.span[1] > HIGHEST_LEVEL:
            raise InputError(f"these betas come to noise levels above {HIGHEST_LEVEL:g}, or to equal ones")

    @property
    def levels(self) -> Float64[Tensor, " times"]:
        """All σ_t, rising."""
        return _discrete_levels(self.schedule, self.times, self.beta_start, self.beta_end)

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last."""
        return float(self.levels[0]), float(self.levels[-1])

    def quantile(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the σ below which a fraction `u` in (0, 1) of the training noise levels lies."""
        t = (u.double() * self.times).long().clamp(0, self.times - 1)
        return self.levels.to(u.device)[t].to(u.dtype)

    def t(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the t of a level; between two levels it is linear in ln σ. No step depends on values."""
        log = self.levels.to(sigma.device).log()
        parts = (sigma.double().log()[..., None] - log[:-1]) / log.diff()
        return parts.clamp(0, 1).sum(-1).to(sigma.dtype)


@functools.lru_cache(maxsize=8)
def _discrete_levels(schedule: str, times: int, beta_start: float, beta_end: float) -> Float64[Tensor, " times"]:
    with torch.device("cpu"):  # not on "meta", where there are no numbers
        if schedule == "squaredcos_cap_v2":
            cosines = [math.cos((i / times + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(times + 1)]
            betas = torch.tensor([min(1 - after / before, 0.999) for before, after in pairwise(cosines)])
        elif schedule == "scaled_linear":
            betas = torch.linspace(beta_start**0.5, beta_end**0.5, times) ** 2
        else:
            betas = torch.linspace(beta_start, beta_end, times)
        product = torch.cumprod(1 - betas, dim=0).double()
        return ((1 - product) / product).sqrt()


@dataclass(frozen=True, kw_only=True)
class Below:
    """The noise levels of another distribution that are not above one level.

    Args:
        base: That distribution.
        most: The level.
    """

    base: NoiseLevels
    most: float

    def __post_init__(self) -> None:
        if self._share < _LEAST_SHARE:
            raise InputError(f"hardly any noise level of training is below {self.most:g}: set it higher")

    @property
    def span(self) -> tuple[float, float]:
        """That of `base`, up to the level."""
        low, high = self.base.span
        return low, min(high, self.most)

    def quantile(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the σ below which a fraction `u` in (0, 1) of the training noise levels lies."""
        return self.base.quantile(u * self._share).clamp(max=self.most)

    @functools.cached_property
    def _share(self) -> float:
        """The part of `base` that is not above the level, by bisection: a quantile rises."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            within = self.base.quantile(torch.tensor(middle, dtype=torch.float64)) <= self.most
            low, high = (middle, high) if within else (low, middle)
        return low


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
