"""Attacks on a trained denoiser: was this image used in training? Each gives a score, higher for "yes".

All of it is about private images: for the data owner, covered by no ε.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from numpy import ndarray
from scipy.integrate import trapezoid
from torch import Tensor

from dpdm.diffusion import PreconditionedDenoiser
from dpdm.privacy.auditing import LowerBounds, clopper_pearson, lower_bounds

_FALSE_ALARMS = (0.01, 0.001)
_PART = 256  # images at a time

Attack = Callable[
    [PreconditionedDenoiser, Float[Tensor, "batch channel height width"], Int[Tensor, " batch"]],
    Float[Tensor, " batch"],
]
"""Maps (denoiser, images (batch, channel, height, width), labels) to scores (batch,)."""


class Rate(NamedTuple):
    """True positives at a rate of false ones, with the 95 % interval of Clopper and Pearson."""

    false_positive_rate: float
    true_positive_rate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """How well one attack told members from others."""

    auc: float
    balanced_accuracy: float
    rates: tuple[Rate, ...]
    bounds: LowerBounds
    roc: tuple[Float64[ndarray, " points"], Float64[ndarray, " points"]]


@dataclass(frozen=True)
class LossThreshold:
    """Minus the mean weighted denoising error over fixed noise levels and draws, the same for every image.

    Source:
        Yeom et al. 2018 (loss threshold); Carlini et al. 2023 for diffusion models.
    """

    levels: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
    draws: int = 6

    def __call__(
        self,
        denoiser: PreconditionedDenoiser,
        x: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Return the scores."""
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros(len(x), device=x.device)
        for level in self.levels:
            sigma = x.new_full((len(x),), level)
            weight = float(denoiser.preconditioning.loss_weight(sigma[:1]))
            for _ in range(self.draws):
                noise = torch.randn((1, *x.shape[1:]), generator=generator).to(x.device)
                error = (denoiser(x + level * noise, sigma, labels) - x).square().flatten(1).mean(1)
                total -= weight * error
        return total / (len(self.levels) * self.draws)


@dataclass(frozen=True)
class StepwiseError:
    """SecMI: go up the deterministic path to `level`, one step further and back again, and compare.

    Source:
        Duan et al. 2023 (arXiv 2302.01316), in noise levels σ in place of time steps.
    """

    lowest: float = 0.02
    level: float = 0.35
    steps: int = 10

    def __call__(
        self,
        denoiser: PreconditionedDenoiser,
        x: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Return the scores."""
        levels = np.geomspace(self.lowest, self.level, self.steps + 1).tolist()
        levels.append(levels[-1] ** 2 / levels[-2])
        for low, high in pairwise(levels[:-1]):
            x = _along_the_path(denoiser, x, labels, low, high)
        further = _along_the_path(denoiser, x, labels, levels[-2], levels[-1])
        back = _along_the_path(denoiser, further, labels, levels[-1], levels[-2])
        return -(back - x).square().flatten(1).sum(1)


@dataclass(frozen=True)
class ProximalInitialization:
    """PIA: whether the noise that the denoiser sees in the image itself is what it sees after adding that noise.

    Source:
        Kong et al. 2024 (arXiv 2305.18355), with the fourth power, in noise levels σ.
    """

    lowest: float = 0.02
    level: float = 0.7

    def __call__(
        self,
        denoiser: PreconditionedDenoiser,
        x: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Return the scores."""
        own = _noise_seen(denoiser, x, labels, self.lowest)
        again = _noise_seen(denoiser, x + self.level * own, labels, self.level)
        return -(own - again).pow(4).flatten(1).sum(1)


ATTACKS: dict[str, Attack] = {
    "loss threshold": LossThreshold(),
    "SecMI": StepwiseError(),
    "PIA": ProximalInitialization(),
}


@torch.no_grad()
def attack_scores(
    attack: Attack,
    denoiser: PreconditionedDenoiser,
    x: Float[Tensor, "images channel height width"],
    labels: Int[Tensor, " images"],
) -> Float64[ndarray, " images"]:
    """Return the attack's score of each image."""
    parts = [attack(denoiser, *part) for part in zip(x.split(_PART), labels.split(_PART), strict=True)]  # type: ignore[no-untyped-call]
    return torch.cat(parts).double().cpu().numpy()


def judge(
    scores: Float64[ndarray, " images"], were_in: Bool[ndarray, " images"], *, delta: float, significance: float = 0.05
) -> Attacked:
    """Return how well `scores` tell members from others, and what that proves about ε at `delta`."""
    order = np.argsort(-scores, kind="stable")
    hits, present, absent = were_in[order], int(were_in.sum()), int((~were_in).sum())
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    true = np.concatenate([[0], (np.cumsum(hits) / present)[last_of_ties]])
    false = np.concatenate([[0], (np.cumsum(~hits) / absent)[last_of_ties]])
    rates = []
    for rate in _FALSE_ALARMS:
        found = float(true[false <= rate].max())
        low, high = clopper_pearson(round(found * present), present, significance=0.05)
        rates.append(Rate(rate, found, low, high))
    return Attacked(
        auc=float(trapezoid(true, false)),
        balanced_accuracy=float((true + 1 - false).max() / 2),
        rates=tuple(rates),
        bounds=lower_bounds(scores, were_in, delta=delta, significance=significance),
        roc=(false, true),
    )


def _along_the_path(
    denoiser: PreconditionedDenoiser,
    x: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    here: float,
    there: float,
) -> Float[Tensor, "batch channel height width"]:
    """Take one step of the deterministic path from noise level `here` to `there` (DDIM)."""
    return x + (there - here) * _noise_seen(denoiser, x, labels, here)


def _noise_seen(
    denoiser: PreconditionedDenoiser,
    x: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    level: float,
) -> Float[Tensor, "batch channel height width"]:
    seen: Tensor = (x - denoiser(x, x.new_full((len(x),), level), labels)) / level
    return seen
