"""A sampler for moment-matched preconditioning: exact where the network adds nothing to the prior's Gaussian."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from dpdm.diffusion.preconditioning import MatchedPreconditioning
from dpdm.diffusion.prior import Gain, GaussianMixture
from dpdm.diffusion.samplers import Guided, Sampler
from dpdm.types import Denoiser, InputError


@dataclass(frozen=True, kw_only=True)
class MatchedSolver(Sampler):
    """Steps that are exact for the prior's Gaussian, and second-order for the rest. One denoiser call a step.

    Let m be the class's mean, and z = (Σ + σ² I)^(-1/2) (x − m). In a direction of variance v the probability-flow ODE
    is dz = −G dθ, with θ = arctan(σ / √v) and G = (Σ + σ² I)^(1/2) Σ^(-1/2) (D − W) / σ. W is the Gaussian's own
    denoiser. If D = W, a single step goes from any σ to the image. For G a step takes the line through its last two
    values.

    It needs moment-matched preconditioning.

    Source:
        The multistep rule of DPM-Solver++ (Lu et al. 2022) with θ, direction by direction, for its time.

    Example:
        >>> MatchedSolver(steps=10).steps
        10
    """

    kind: ClassVar[str] = "matched-solver"
    steps: int = 12

    def _integrate(
        self, denoiser: Denoiser, x: Tensor, labels: Tensor, levels: list[float], generator: torch.Generator
    ) -> Tensor:
        prior = _prior(denoiser)
        mean = prior.mean(labels)

        def filtered(values: Tensor, gain: Gain) -> Tensor:
            return prior.filtered(values, gain, labels)

        z = (x / levels[0]).flatten(1).double()
        before: tuple[Tensor, float] | None = None
        for sigma, next_sigma in pairwise(levels):
            noisy = (mean + filtered(z, _at(sigma, lambda v, s: (v + s**2).sqrt()))).to(x.dtype).view_as(x)
            denoised = denoiser(noisy, x.new_full((len(x),), sigma), labels).flatten(1).double()
            by_gaussian = mean + filtered(z, _at(sigma, lambda v, s: v * (v + s**2).rsqrt()))
            g = filtered(denoised - by_gaussian, _at(sigma, lambda v, s: ((v + s**2) / v).sqrt() / s))
            z = z + filtered(g, lambda v, a=sigma, b=next_sigma: _angle(a, v) - _angle(b, v))  # type: ignore[misc]
            if before is not None:
                last, last_sigma = before

                def half(v: Tensor, a: float = last_sigma, b: float = sigma, c: float = next_sigma) -> Tensor:
                    return (_angle(b, v) - _angle(c, v)) ** 2 / (2 * (_angle(a, v) - _angle(b, v)))

                z = z + filtered(g - last, half)
            before = g, sigma
        return (mean + filtered(z, torch.sqrt)).to(x.dtype).view_as(x)


def _prior(denoiser: Denoiser) -> GaussianMixture:
    """Return the prior of a denoiser, within guidance or not."""
    inner = denoiser.denoiser if isinstance(denoiser, Guided) else denoiser
    preconditioning = getattr(inner, "preconditioning", None)
    if not isinstance(preconditioning, MatchedPreconditioning):
        raise InputError("this sampler needs moment-matched preconditioning, which has a prior")
    return preconditioning.prior


def _at(sigma: float, gain: Callable[[Tensor, float], Tensor]) -> Gain:
    """Return `gain`, of variances and σ, at this σ."""
    return lambda variances: gain(variances, sigma)


def _angle(sigma: float, variances: Tensor) -> Tensor:
    return torch.atan(sigma / variances.sqrt())
