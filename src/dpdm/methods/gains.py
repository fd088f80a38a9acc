"""What private images say of public networks: which of several to begin with, and how far to follow it.

Each is one noisy sum. The votes choose a network, and the gains tell how far it is followed at each noise level.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion import GAIN_LEVELS, MatchedPreconditioning, PreconditionedDenoiser
from dpdm.methods.interface import Run
from dpdm.methods.own_draws import Part, any_image, levels_of_each, parts_of
from dpdm.methods.start import CHOICE, GAINS, load_start
from dpdm.methods.values import ImageFacts, PublicStart
from dpdm.privacy.sums import BoundedSum, Rows, clipped_sum, votes

_LEAST_LEFT = 0.05  # of the loss: no noise level goes without steps
_CALLS = 48_000  # of the network, in all: a minute of two cores


def choose_start(
    run: Run,
    data: ImageDataset,
    denoiser: PreconditionedDenoiser,
    facts: ImageFacts,
    starts: tuple[PublicStart, ...],
) -> PublicStart:
    """Return the start that most private images vote for, by one noisy sum; without asking them, if there is one alone.

    An image votes for the network whose correction leaves least of its residual, at noise levels and with noise that
    its pixels choose (see `release_gains`). `denoiser` is left with one network or another.

    Guarantees:
        * An image has one vote, which depends on this image, on its label and on what was released before.
    """
    if len(starts) == 1:
        return starts[0]

    def cast() -> BoundedSum:
        left = []
        for start in starts:
            load_start(denoiser.network, start, facts)
            parts = _Pairs(denoiser, data, _levels_of_each(run), run.seed).parts()
            none = torch.zeros(0, 2 * len(GAIN_LEVELS), dtype=torch.float64)  # a process may have no image
            pairs = torch.cat([none, *(rows for rows, _ in parts)])
            explained, squared = pairs.view(len(pairs), 2, len(GAIN_LEVELS)).sum(2).unbind(1)
            left.append(squared - 2 * explained)
        choices = torch.stack(left, dim=1).argmin(1)
        return votes([(choices[:, None], torch.from_numpy(data.weights))], bins=len(starts))

    noisy, _ = run.once(CHOICE, cast)
    return starts[int(noisy.argmax())]


class Gains(NamedTuple):
    """How far to follow a network at each of `GAIN_LEVELS`, and what it then leaves of the loss: both from 0 to 1."""

    of_levels: Float64[Tensor, " level"]
    left: Float64[Tensor, " level"]


def release_gains(run: Run, data: ImageDataset, denoiser: PreconditionedDenoiser) -> Gains:
    """Return how far to follow the network at each noise level, by one noisy sum.

    With the prior's denoiser a, the network's correction c and the residual r = x₀ − a, the loss at a noise level is
    least at Σ⟨c, r⟩ / Σ⟨c, c⟩ times the correction. An image tells both numbers at some levels, which its pixels
    choose. The unit of the numbers is such that a residual of the size that the prior expects has length one. The noise
    that an image gets is one of a few public images, which its pixels choose too. All numbers of an image are clipped
    as one vector. A gain is shrunk by one standard deviation of the noise, so that what is not told from noise is not
    followed. What is left of the loss is in the unit of the prior's own expectation, and rests on the same sum.

    Guarantees:
        * What an image adds depends on this image, on its label and on what was released before, on nothing else.
    """
    levels, of_each = len(GAIN_LEVELS), _levels_of_each(run)
    rows = _Pairs(denoiser, data, of_each, run.seed)

    def cast() -> BoundedSum:
        return clipped_sum(rows.parts(), dimensions=2 * levels, max_norm=math.sqrt(of_each))

    noisy, noise_std = run.once(GAINS, cast)
    explained, squared = noisy.view(2, levels)
    gains: Tensor = ((explained - noise_std) / squared.clamp(min=noise_std)).clamp(0, 1)
    gains = gains.nan_to_num(0)  # without noise, a network that adds nothing has 0 / 0
    asked = run.mechanism.plan.dataset_size * of_each / levels  # images at each level
    return Gains(gains, (1 - gains * (2 * explained - gains * squared) / asked).clamp(_LEAST_LEFT, 1))


def _levels_of_each(run: Run) -> int:
    return levels_of_each(run.mechanism.plan.dataset_size, calls=_CALLS)


def rehearse_gains(denoiser: PreconditionedDenoiser, facts: ImageFacts) -> None:
    """Make the rows of an image that nobody took, as many at once as of private ones."""
    next(_Pairs(denoiser, any_image(facts), 1, 0).parts())


class _Pairs:
    """(⟨c, r⟩, ⟨c, c⟩) of each image at some noise levels, zero at the others."""

    def __init__(self, denoiser: PreconditionedDenoiser, data: ImageDataset, of_each: int, seed: int) -> None:
        assert isinstance(denoiser.preconditioning, MatchedPreconditioning)
        self._denoiser, self._preconditioning, self._data = denoiser, denoiser.preconditioning, data
        self._of_each, self._seed = of_each, seed
        self._device = next(denoiser.parameters()).device

    @torch.no_grad()
    def parts(self) -> Iterator[Rows]:
        """Yield all images, part by part."""
        for part in parts_of(self._data, self._of_each, seed=self._seed):
            yield self._rows(part)[: len(part.weights)], part.weights

    def _rows(self, part: Part) -> Float[Tensor, "images pairs"]:
        """Return a row of zeros but for the levels of each image."""
        levels, chosen = len(GAIN_LEVELS), part.levels
        sigma = part.sigma.flatten().to(self._device)
        x, noise, labels = (
            t.repeat_interleave(self._of_each, dim=0).to(self._device) for t in (part.x, part.noise, part.labels)
        )
        noisy = x + sigma[:, None, None, None] * noise
        prior, correction = self._preconditioning.corrected(self._denoiser.network, noisy, sigma, labels)
        scale = self._preconditioning.loss_weight(sigma).double() / prior[0].numel()
        correction, residual = correction.flatten(1).double(), (x - prior).flatten(1).double()
        pairs = torch.stack([(correction * residual).sum(1) * scale, correction.square().sum(1) * scale], dim=1)
        rows = torch.zeros(len(chosen), 2, levels, dtype=torch.float64)
        rows.scatter_(2, chosen[:, None].expand(-1, 2, -1), pairs.cpu().view(len(chosen), self._of_each, 2).mT)
        return rows.flatten(1)
