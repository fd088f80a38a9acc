"""How the raw network F and the denoiser D are related, and how noise levels are drawn and weighted in training."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal, NamedTuple, Protocol, get_args

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from dpdm.diffusion.noise_levels import Cosine, DiscreteTimes, LogNormal, LogUniform, NoiseLevels, VariancePreserving
from dpdm.diffusion.prior import GaussianMixture
from dpdm.types import InputError, require_within

Prediction = Literal["epsilon", "v_prediction", "sample"]
"""What a network of `diffusers` may give."""

GAIN_LEVELS: Final = tuple(0.03 * (12 / 0.03) ** (level / 11) for level in range(12))
"""The noise levels at which a network has a gain, evenly in ln σ."""


class Preconditioning(Protocol):
    """A frozen value that says how network and denoiser are related."""

    images_in: ClassVar[int]
    """How many images the network sees at once."""

    @property
    def noise_levels(self) -> NoiseLevels:
        """The distribution of σ in training."""
        ...

    def denoise(
        self,
        network: nn.Module,
        x: Float[Tensor, "batch channel height width"],
        sigma: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Return D(x; σ, labels) from the raw network."""
        ...

    def loss_weight(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return λ(σ)."""
        ...


class Coefficients(NamedTuple):
    """The four functions of σ in D(x; σ) = c_skip x + c_out F(c_in x; c_noise)."""

    c_skip: Float[Tensor, "*shape"]
    c_out: Float[Tensor, "*shape"]
    c_in: Float[Tensor, "*shape"]
    c_noise: Float[Tensor, "*shape"]


class ScalarPreconditioning(ABC):
    """A preconditioning that is four functions of σ alone."""

    images_in: ClassVar[int] = 1
    c_noise_unit: ClassVar[float] = 1.0
    """What c_noise is divided by on its way to a network, which expects it to be of order one."""

    @abstractmethod
    def coefficients(self, sigma: Float[Tensor, "*shape"]) -> Coefficients:
        """Return c_skip, c_out, c_in, c_noise at each σ."""

    def denoise(
        self,
        network: nn.Module,
        x: Float[Tensor, "batch channel height width"],
        sigma: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Return D(x; σ, labels) (Karras et al. 2022, eq. 7)."""
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        raw = _one_image_each(network(_per_image(c_in) * x, c_noise / self.c_noise_unit, labels), x)
        denoised: Tensor = _per_image(c_skip) * x + _per_image(c_out) * raw.to(x.dtype)
        return denoised

    def loss_weight(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return λ(σ) = 1 / c_out², which makes it the plain squared error of the raw network."""
        return self.coefficients(sigma).c_out ** -2


@dataclass(frozen=True, kw_only=True)
class EDM(ScalarPreconditioning):
    """The preconditioning of Karras et al.: unit variance at the network's input and target for every σ.

    Args:
        sigma_data: Standard deviation of the data. A public constant (default: √(1/3), that of uniform [-1, 1]),
            never estimated from private images.
        noise_levels: Distribution of σ in training.

    Source:
        Karras et al. 2022, Table 1, column "Ours (EDM)".

    Example:
        >>> Diffusion(preconditioning=EDM(sigma_data=0.5)).preconditioning.sigma_data
        0.5
    """

    kind: ClassVar[str] = "edm"
    sigma_data: float = math.sqrt(1 / 3)
    noise_levels: LogNormal = field(default_factory=LogNormal)

    def __post_init__(self) -> None:
        require_within(1e-6, 100, sigma_data=self.sigma_data)

    def coefficients(self, sigma: Float[Tensor, "*shape"]) -> Coefficients:
        """Return c_skip, c_out, c_in, c_noise at each σ."""
        variance = sigma**2 + self.sigma_data**2
        return Coefficients(
            c_skip=self.sigma_data**2 / variance,
            c_out=sigma * self.sigma_data / variance.sqrt(),
            c_in=1 / variance.sqrt(),
            c_noise=sigma.log() / 4,
        )


@dataclass(frozen=True, kw_only=True)
class V(ScalarPreconditioning):
    """Prediction of the velocity: EDM's relation for data of unit variance, with more weight on large noise levels.

    The network gives −v, v = (n − σ x₀) / √(1+σ²); a network learns either sign.

    Source:
        Salimans & Ho 2022, section 4, in the variables of Karras et al.; Dockhorn et al. 2023 use it at ε = 0.2.

    Example:
        >>> Diffusion(preconditioning=V()).preconditioning == V()
        True
    """

    kind: ClassVar[str] = "v"
    noise_levels: Cosine = field(default_factory=Cosine)

    def coefficients(self, sigma: Float[Tensor, "*shape"]) -> Coefficients:
        """Return c_skip, c_out, c_in, c_noise at each σ."""
        variance = sigma**2 + 1
        return Coefficients(
            c_skip=1 / variance,
            c_out=sigma / variance.sqrt(),
            c_in=1 / variance.sqrt(),
            c_noise=sigma.atan() * (2 / math.pi),
        )


@dataclass(frozen=True, kw_only=True)
class VP(ScalarPreconditioning):
    """Prediction of the noise under a variance-preserving SDE.

    Source:
        Song et al. 2021; Karras et al. 2022, Table 1, column "VP", with M = 1000: the unit of their embedding of time.

    Example:
        >>> Diffusion(preconditioning=VP()).preconditioning == VP()
        True
    """

    kind: ClassVar[str] = "vp"
    c_noise_unit: ClassVar[float] = 1000.0
    noise_levels: VariancePreserving = field(default_factory=VariancePreserving)

    def coefficients(self, sigma: Float[Tensor, "*shape"]) -> Coefficients:
        """Return c_skip, c_out, c_in, c_noise at each σ."""
        return Coefficients(
            c_skip=torch.ones_like(sigma),
            c_out=-sigma,
            c_in=1 / (sigma**2 + 1).sqrt(),
            c_noise=self.c_noise_unit * self.noise_levels.t(sigma),
        )


@dataclass(frozen=True, kw_only=True)
class VE(ScalarPreconditioning):
    """Prediction of the negative noise under a variance-exploding SDE: the input is not scaled.

    Training sees no noise below the least level (default: 0.02), so samplers must not go below it.

    Source:
        Song et al. 2021; Karras et al. 2022, Table 1, column "VE".

    Example:
        >>> Diffusion(preconditioning=VE(), sampler=DDIM(sigma_min=0.02, sigma_max=50)).preconditioning == VE()
        True
    """

    kind: ClassVar[str] = "ve"
    noise_levels: LogUniform = field(default_factory=LogUniform)

    def coefficients(self, sigma: Float[Tensor, "*shape"]) -> Coefficients:
        """Return c_skip, c_out, c_in, c_noise at each σ."""
        one = torch.ones_like(sigma)
        return Coefficients(c_skip=one, c_out=sigma, c_in=one, c_noise=(sigma / 2).log())


@dataclass(frozen=True, kw_only=True)
class DDPM(ScalarPreconditioning):
    """The prediction of a network of `diffusers`, at the discrete times t of its scheduler: √ᾱ x + √(1 − ᾱ) n at t.

    The network's input is x / √(1+σ²), which has the variance of √ᾱ x₀ + √(1 − ᾱ) n; ᾱ = 1 / (1+σ²). The network gets t
    divided by the number of times.

    Args:
        prediction: The network's output: the noise ("epsilon"), x₀ ("sample"), or √ᾱ n − √(1 − ᾱ) x₀
            ("v_prediction").
        noise_levels: The noise levels of the scheduler.

    Source:
        Ho, Jain & Abbeel 2020, eq. 4 and 14; Salimans & Ho 2022, section 4; in the variables of Karras et al. 2022.

    Example:
        >>> DDPM(prediction="v_prediction").noise_levels.times
        1000
    """

    kind: ClassVar[str] = "ddpm"
    prediction: Prediction = "epsilon"
    noise_levels: DiscreteTimes = field(default_factory=DiscreteTimes)

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise InputError(f"prediction must be one of {', '.join(get_args(Prediction))}, not {self.prediction!r}")

    @property
    def c_noise_unit(self) -> float:  # type: ignore[override]
        """The number of times."""
        return float(self.noise_levels.times)

    def coefficients(self, sigma: Float[Tensor, "*shape"]) -> Coefficients:
        """Return c_skip, c_out, c_in, c_noise at each σ."""
        one, variance = torch.ones_like(sigma), sigma**2 + 1
        c_skip, c_out = {
            "epsilon": (one, -sigma),
            "v_prediction": (1 / variance, -sigma / variance.sqrt()),
            "sample": (torch.zeros_like(sigma), one),
        }[self.prediction]
        return Coefficients(c_skip=c_skip, c_out=c_out, c_in=1 / variance.sqrt(), c_noise=self.noise_levels.t(sigma))


@dataclass(frozen=True, kw_only=True)
class MomentMatched:
    """EDM about a prior: the network only learns what the prior's own denoiser gets wrong.

    This value is the choice alone: `about` couples it with a prior, once there is one.

    Example:
        >>> type(Diffusion().preconditioning) is MomentMatched
        True
    """

    kind: ClassVar[str] = "moment-matched"
    images_in: ClassVar[int] = 2
    noise_levels: LogNormal = field(default_factory=lambda: LogNormal(mean=-0.4))

    def about(self, prior: GaussianMixture, *, gains: bool = False) -> "MatchedPreconditioning":
        """Return the preconditioning itself, with or without a gain for each noise level."""
        return MatchedPreconditioning(self.noise_levels, prior, gains=gains)


class MatchedPreconditioning(nn.Module):
    """D(x; σ, c) = D₀(x; σ, c) + α(σ) c_out(σ) F((x − D₀) / σ, D₀; ln(σ) / 4, c), D₀ being the prior's posterior mean.

    The network sees the image and the noise as the prior tells them apart. c_out² is the mean variance that one of the
    prior's Gaussians leaves, tr(σ² Σ (Σ + σ² I)⁻¹) / d. α is one, or between the `gains` at `GAIN_LEVELS`, linear in
    ln σ: how far a network that was trained on other images is followed.

    Guarantees:
        * While F is zero, D is the exact posterior mean under the prior.
        * With one centre at zero and Σ = σ_d² I, D₀ is c_skip x of `EDM(sigma_data=σ_d)`. Then c_out, c_noise and λ are
          EDM's too, and both images that the network sees are multiples of c_in x.
    """

    images_in: ClassVar[int] = MomentMatched.images_in
    gains: Float64[Tensor, " level"] | None

    def __init__(self, noise_levels: NoiseLevels, prior: GaussianMixture, *, gains: bool = False) -> None:
        super().__init__()
        self.noise_levels = noise_levels
        self.prior = prior
        self.register_buffer("gains", torch.ones(len(GAIN_LEVELS), dtype=torch.float64) if gains else None)

    def denoise(
        self,
        network: nn.Module,
        x: Float[Tensor, "batch channel height width"],
        sigma: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Return D(x; σ, labels)."""
        prior, correction = self.corrected(network, x, sigma, labels)
        return prior + (correction if self.gains is None else _per_image(self._gain(sigma, self.gains)) * correction)

    def corrected(
        self,
        network: nn.Module,
        x: Float[Tensor, "batch channel height width"],
        sigma: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch channel height width"], Float[Tensor, "batch channel height width"]]:
        """Return D₀ and what the network would add to it, c_out F."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            prior = self.prior(x.flatten(1), sigma, labels).to(x.dtype).view_as(x)
            noise = (x - prior) / _per_image(sigma)
        raw = _one_image_each(network(torch.cat([noise, prior], dim=1), sigma.log() / 4, labels), x)
        return prior, _per_image(self.loss_weight(sigma).rsqrt()) * raw.to(x.dtype)

    def loss_weight(self, sigma: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return λ(σ) = 1 / c_out²."""
        return (1 / self.prior.mean_variance(sigma)).to(sigma.dtype)

    @staticmethod
    def _gain(sigma: Float[Tensor, " batch"], gains: Float64[Tensor, " level"]) -> Float[Tensor, " batch"]:
        """Return α(σ). No step depends on values: `vmap` passes through."""
        first, last = math.log(GAIN_LEVELS[0]), math.log(GAIN_LEVELS[-1])
        place = ((sigma.double().log() - first) / (last - first)).clamp(0, 1) * (len(GAIN_LEVELS) - 1)
        near = (1 - (place[:, None] - torch.arange(len(GAIN_LEVELS), device=sigma.device)).abs()).clamp(min=0)
        return (near @ gains).to(sigma.dtype)


class PreconditionedDenoiser(nn.Module):
    """D(x; σ, c) as a module: a raw network inside a preconditioning."""

    def __init__(self, network: nn.Module, preconditioning: Preconditioning) -> None:
        super().__init__()
        self.network = network
        self.preconditioning = preconditioning

    def forward(
        self,
        x: Float[Tensor, "batch channel height width"],
        sigma: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the denoised images."""
        return self.preconditioning.denoise(self.network, x, sigma, labels)


def _one_image_each(
    raw: object, x: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch channel height width"]:
    """Return a network's output, of the shape of `x`: any other would be spread over the batch by broadcasting."""
    if not isinstance(raw, Tensor) or raw.shape != x.shape or not raw.is_floating_point():
        found = f"{tuple(raw.shape)} {raw.dtype}" if isinstance(raw, Tensor) else type(raw).__name__
        raise InputError(f"a network must return one image for each, {tuple(x.shape)} of floats, not {found}")
    return raw


def _per_image(values: Float[Tensor, " batch"]) -> Float[Tensor, "batch 1 1 1"]:
    return values[:, None, None, None]
