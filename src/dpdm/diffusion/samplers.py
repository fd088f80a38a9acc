"""From noise to images: integrating the probability-flow ODE or SDE of a denoiser along a schedule of noise levels.

A denoiser is a function (x, σ, labels) -> denoised images; a sampler is a frozen value that is called with one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dpdm.diffusion.noise_levels import NoiseLevels
from dpdm.diffusion.schedule import HIGHEST_LEVEL, karras_schedule
from dpdm.types import Denoiser, InputError, require_counts, require_within

_MOST_STEPS = 100_000  # of a sampler: published ones take 1,000 at most


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """What all samplers share: the schedule they follow, and guidance.

    Args:
        steps: Number of noise levels above zero.
        guidance: w, how far to go beyond the class's denoiser, away from that without a class; 0 is off. It doubles
            the calls, and needs a denoiser that was trained with label dropout.
        sigma_min: Last noise level above zero. The step from there to zero is the denoiser's answer itself.
        sigma_max: First noise level.
        rho: Concentration of the levels near sigma_min.
    """

    kind: ClassVar[str]
    steps: int = 50
    guidance: float = 0.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        require_counts(steps=self.steps)
        if self.steps > _MOST_STEPS:
            raise InputError(f"steps must be at most {_MOST_STEPS:,} in sampling, not {self.steps}")
        self.schedule()
        require_within(0, 1000, guidance=self.guidance)

    def schedule(self) -> Float64[Tensor, " levels"]:
        """Return the noise levels, descending to a final zero."""
        return karras_schedule(self.steps, sigma_min=self.sigma_min, sigma_max=self.sigma_max, rho=self.rho)

    def require_trained(self, noise_levels: NoiseLevels, *, name: str = "sampler") -> None:
        """Raise InputError if the sampler `name` visits noise levels outside `noise_levels`, those of training."""
        low, high = noise_levels.span
        if self.sigma_min < low:
            raise InputError(
                f"{name}.sigma_min = {self.sigma_min:g} is below all noise levels of training: "
                f"--set {name}.sigma_min={_three_digits(low, math.ceil)}"
            )
        if self.highest_level > high:
            raise InputError(
                f"{name} goes up to a noise level of {self.highest_level:g}, above all those of training: "
                f"--set {name}.sigma_max={_three_digits(high * self.sigma_max / self.highest_level, math.floor)}"
            )

    @property
    def highest_level(self) -> float:
        """The largest noise level at which the denoiser is called."""
        return self.sigma_max

    def __call__(
        self,
        denoiser: Denoiser,
        start: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
        *,
        generator: torch.Generator,
        null_label: int | None = None,
    ) -> Float[Tensor, "batch channel height width"]:
        """Return images.

        Args:
            denoiser: D(x; σ, labels).
            start: Standard normal draws.
            labels: The class of each image.
            generator: Where further draws come from, if the sampler makes any.
            null_label: The label that stands for "no label"; guidance needs it.

        Raises:
            InputError: There is guidance, and no null label.
        """
        if self.guidance:
            if null_label is None:
                raise InputError(
                    f"guidance = {self.guidance:g} needs images without label in training: "
                    "train with classes and loss.label_dropout above 0, or set guidance to 0"
                )
            denoiser = Guided(denoiser, guidance=self.guidance, null_label=null_label)
        levels = self.schedule().tolist()
        return self._integrate(denoiser, start * levels[0], labels, levels, generator)

    @abstractmethod
    def _integrate(
        self, denoiser: Denoiser, x: Tensor, labels: Tensor, levels: list[float], generator: torch.Generator
    ) -> Tensor:
        """Return what becomes of `x`, at the first of `levels`, at the last, which is zero."""


@dataclass(frozen=True)
class Guided:
    """A denoiser with classifier-free guidance: D(c) + w (D(c) − D(no class)).

    Source:
        Ho & Salimans 2022, eq. 6, for the denoiser instead of the noise: both are affine in one another.
    """

    denoiser: Denoiser
    guidance: float
    null_label: int

    def __call__(
        self,
        x: Float[Tensor, "batch channel height width"],
        sigma: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the guided denoised images."""
        conditional = self.denoiser(x, sigma, labels)
        unconditional = self.denoiser(x, sigma, torch.full_like(labels, self.null_label))
        return conditional + self.guidance * (conditional - unconditional)


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """Deterministic DDIM: Euler steps of dx/dσ = (x − D(x; σ)) / σ. Order 1, one denoiser call a step.

    Source:
        Song, Meng & Ermon 2021, eq. 13, in the variables of Karras et al. 2022, eq. 1 and 3.

    Example:
        >>> DDIM(steps=3).schedule().tolist()[0]
        80.0
    """

    kind: ClassVar[str] = "ddim"

    def _integrate(
        self, denoiser: Denoiser, x: Tensor, labels: Tensor, levels: list[float], generator: torch.Generator
    ) -> Tensor:
        for sigma, next_sigma in pairwise(levels):
            x = x + (next_sigma - sigma) * _slope(denoiser, x, sigma, labels)
        return x


@dataclass(frozen=True, kw_only=True)
class StochasticDDIM(Sampler):
    """Euler-Maruyama steps of the reverse SDE dx = 2 (x − D(x; σ)) / σ dσ + √(2σ) dw. One denoiser call a step.

    It forgets the errors of early steps, and makes new ones of its own: weak order 1.

    Source:
        Song et al. 2021, eq. 6, in the variables of Karras et al. 2022, eq. 6 with β = 1/σ; the "stochastic DDIM" of
        Dockhorn et al. 2023, which is not the ancestral step of Song, Meng & Ermon.

    Example:
        >>> StochasticDDIM(steps=50).steps
        50
    """

    kind: ClassVar[str] = "stochastic-ddim"

    def _integrate(
        self, denoiser: Denoiser, x: Tensor, labels: Tensor, levels: list[float], generator: torch.Generator
    ) -> Tensor:
        for sigma, next_sigma in pairwise(levels):
            slope = _slope(denoiser, x, sigma, labels)
            if next_sigma == 0:
                return x - sigma * slope
            fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + 2 * (next_sigma - sigma) * slope + math.sqrt(2 * (sigma - next_sigma) * sigma) * fresh
        return x


@dataclass(frozen=True, kw_only=True)
class Churn(Sampler):
    """Heun steps of the ODE, each after adding a little fresh noise ("churn"). Order 2 without churn.

    A step makes two denoiser calls, and the last step makes one.

    Args:
        s_churn: Amount of fresh noise over the whole schedule; 0 is the deterministic Heun sampler.
        s_min: Churn only where s_min <= σ <= s_max.
        s_max: See s_min.
        s_noise: Standard deviation of the fresh noise.

    Source:
        Karras et al. 2022, Algorithm 2, with γ at most √2 − 1.

    Example:
        >>> Churn(steps=20, s_churn=0).steps  # without fresh noise: Heun's method
        20
    """

    kind: ClassVar[str] = "churn"
    steps: int = 40
    s_churn: float = 10.0
    s_min: float = 0.025
    s_max: float = 50.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(0, 1e6, s_churn=self.s_churn)
        require_within(0, HIGHEST_LEVEL, s_min=self.s_min)
        if self.s_max < math.inf:  # infinite: churn at all high levels
            require_within(0, HIGHEST_LEVEL, s_max=self.s_max)
        if not self.s_min <= self.s_max:
            raise InputError(f"s_min = {self.s_min:g} must not be above s_max = {self.s_max:g}")
        require_within(1e-6, 100, s_noise=self.s_noise)

    @property
    def highest_level(self) -> float:
        """The largest noise level at which the denoiser is called, after churn."""
        levels: list[float] = self.schedule().tolist()
        return max(sigma * (1 + self._gamma(sigma)) for sigma in levels)

    def _gamma(self, sigma: float) -> float:
        return min(self.s_churn / self.steps, math.sqrt(2) - 1) if self.s_min <= sigma <= self.s_max else 0.0

    def _integrate(
        self, denoiser: Denoiser, x: Tensor, labels: Tensor, levels: list[float], generator: torch.Generator
    ) -> Tensor:
        for sigma, next_sigma in pairwise(levels):
            gamma = self._gamma(sigma)
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


@dataclass(frozen=True, kw_only=True)
class DPMSolver(Sampler):
    """DPM-Solver++(2M): exact in the linear part of the ODE, a line through the denoiser's last two outputs elsewhere.

    Order 2 with one denoiser call a step. From 15 to 25 steps make good images.

    Source:
        Lu et al. 2022 (DPM-Solver++), Algorithm 2, with α = 1 and λ = −ln σ.

    Example:
        >>> DPMSolver(steps=20).steps
        20
    """

    kind: ClassVar[str] = "dpm-solver++"
    steps: int = 20

    def _integrate(
        self, denoiser: Denoiser, x: Tensor, labels: Tensor, levels: list[float], generator: torch.Generator
    ) -> Tensor:
        before: tuple[Tensor, float] | None = None
        for sigma, next_sigma in pairwise(levels):
            denoised = denoiser(x, x.new_full((len(x),), sigma), labels)
            if next_sigma == 0:
                return denoised
            length = math.log(sigma / next_sigma)
            target = denoised
            if before is not None:
                last_denoised, last_length = before
                target = denoised + (denoised - last_denoised) * (length / (2 * last_length))
            x = (next_sigma / sigma) * x + (1 - next_sigma / sigma) * target
            before = denoised, length
        return x


def _three_digits(value: float, rounded: Callable[[float], int]) -> str:
    """Return `value` to three significant digits, rounded up or down."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{rounded(value / unit) * unit:.3g}"


def _slope(denoiser: Denoiser, x: Tensor, sigma: float, labels: Tensor) -> Tensor:
    """Return dx/dσ = (x − D(x; σ)) / σ (Karras et al. 2022, eq. 1 and 3 with σ(t) = t)."""
    return (x - denoiser(x, x.new_full((len(x),), sigma), labels)) / sigma
