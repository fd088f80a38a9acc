"""Which matrices of a public network private steps train: private images say it, by one noisy sum.

Source:
    DP-SAPF (USENIX Security 2026): gradient norms of each image, normalised, and summed once. There they are squared.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion import DenoisingLoss, NoisyBatch, PreconditionedDenoiser
from dpdm.methods.interface import Run
from dpdm.methods.own_draws import Part, any_image, levels_of_each, parts_of
from dpdm.methods.start import MATRICES
from dpdm.methods.trained import marked
from dpdm.methods.values import ImageFacts
from dpdm.networks.low_rank import matrices
from dpdm.privacy import LayerWise
from dpdm.privacy.clipping import trainable_parameters
from dpdm.privacy.sums import BoundedSum, Rows, clipped_sum

_CALLS = 16_000  # of the network, with gradients, in all: a minute of two cores
_NUMBERS = 2**26  # of gradients at once: 256 MiB
_LONGEST = 1.0  # of an image's row


def choose_matrices(
    run: Run, data: ImageDataset, denoiser: PreconditionedDenoiser, number: int
) -> UInt8[Tensor, " matrix"]:
    """Return one for each of the matrices that get most of the images' votes, and zero for the others.

    An image's votes are the norms of its own gradient in each matrix. Noise levels and noise of this gradient are those
    that the image's pixels choose. The votes are one vector of length one: no image counts more than another. All votes
    together get noise, and the largest win.

    Guarantees:
        * What an image adds depends on this image, on its label and on what was released before, and is no longer than
          one. A gradient that is zero, or not finite, adds zero.
    """
    layers = matrices(denoiser.network)
    of_each = levels_of_each(run.mechanism.plan.dataset_size, calls=_CALLS)

    def cast() -> BoundedSum:
        return clipped_sum(_votes(denoiser, data, of_each, run.seed), dimensions=len(layers), max_norm=_LONGEST)

    noisy, _ = run.once(MATRICES, cast)
    return marked(noisy, number)


def rehearse_matrices(denoiser: PreconditionedDenoiser, facts: ImageFacts) -> None:
    """Make the votes of an image that nobody took."""
    next(_votes(denoiser, any_image(facts), 1, 0))


def _votes(denoiser: PreconditionedDenoiser, data: ImageDataset, of_each: int, seed: int) -> Iterator[Rows]:
    """Yield a row of gradient norms for each image, of length one or zero, and what it weighs."""
    weights = [layer.weight for layer in matrices(denoiser.network).values()]
    before = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    denoiser.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        strategy, loss = LayerWise(), DenoisingLoss(noise_multiplicity=of_each)
        most = _NUMBERS // sum(weight.numel() for weight in weights)
        for part in parts_of(data, of_each, seed=seed, most=most):
            found = strategy.squared_norms(loss, denoiser, _batch(part, next(denoiser.parameters()).device))
            squared: dict[Tensor, Tensor] = dict(zip(trainable_parameters(denoiser), found, strict=True))
            rows = _of_length_one(torch.stack([squared[weight] for weight in weights], dim=1).cpu())
            yield rows[: len(part.weights)], part.weights
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def _batch(part: Part, device: torch.device) -> NoisyBatch:
    """Return the images as a step takes them: with their noise at each of their levels."""
    copies = part.levels.shape[1]
    noise = part.noise[:, None].expand(-1, copies, -1, -1, -1)
    labels = part.labels[:, None].expand(-1, copies)
    return NoisyBatch(*(t.to(device) for t in (part.x, labels, part.sigma, noise.contiguous())))


def _of_length_one(squared: Float64[Tensor, "images matrix"]) -> Float64[Tensor, "images matrix"]:
    """Return the norms, divided by the norm of all of them; zero where that is zero or not finite."""
    whole = squared.sum(dim=1, keepdim=True)
    sound = (whole > 0) & whole.isfinite()
    return torch.where(sound, (squared / torch.where(sound, whole, 1)).sqrt(), 0)
