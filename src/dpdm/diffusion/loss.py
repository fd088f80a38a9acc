"""The denoising loss of one example, averaged over its K noisy copies (noise multiplicity).

The draws are made by `draw`, outside of the loss. So the loss is deterministic, and every clipping strategy computes
the same function. So noise multiplicity is a property of the loss and not of the privacy mechanism.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from dpdm.diffusion.noise_levels import NoiseLevels
from dpdm.diffusion.preconditioning import PreconditionedDenoiser
from dpdm.types import InputError, RandomBytes, require_at_most, require_counts

_MOST_COPIES = 2**16  # of an example


class NoisyBatch(NamedTuple):
    """Clean images with the draws of their K noisy copies: everything the loss needs, one row for each example.

    An example is one image, or a group of them; then each copy has a clean image of its own.
    """

    x: Float[Tensor, "batch channel height width"] | Float[Tensor, "batch K channel height width"]
    labels: Int[Tensor, "batch K"]
    sigma: Float[Tensor, "batch K"]
    noise: Float[Tensor, "batch K channel height width"]


@dataclass(frozen=True, kw_only=True)
class DenoisingLoss:
    """ℓ = mean over k and pixels of λ(σ_k) (D(x_k + σ_k n_k; σ_k, c_k) − x_k)².

    All x_k are one image, or draws from the images of one group (`choose`): one example, one loss.

    Args:
        noise_multiplicity: K, the number of noisy copies of an example in a step. More copies make its gradient less
            random. They cost time, and no privacy.
        label_dropout: Probability that a copy's label becomes the null class, for guidance. Each copy has its own draw.

    Source:
        Dockhorn et al. 2023, eq. 6 (noise multiplicity); Karras et al. 2022, eq. 8 (weighting).

    Example:
        >>> Diffusion(loss=DenoisingLoss(noise_multiplicity=32)).loss.noise_multiplicity
        32
    """

    noise_multiplicity: int = 8
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        require_counts(noise_multiplicity=self.noise_multiplicity)
        require_at_most(_MOST_COPIES, noise_multiplicity=self.noise_multiplicity)
        if not 0 <= self.label_dropout < 1:
            raise InputError(f"label_dropout must be in [0, 1), not {self.label_dropout}")

    def choose(self, sizes: Int64[np.ndarray, " batch"], *, random_bytes: RandomBytes) -> Int64[np.ndarray, "batch K"]:
        """Draw which image of its group each copy of an example shows, uniformly and independently.

        Args:
            sizes: Number of images of each group.
            random_bytes: Source of sixteen bytes for each group. `draw` may get the same bytes: it uses another part of
                the generator's period.

        Returns:
            Numbers from 0 to the group's size less one.
        """
        chosen = np.empty((len(sizes), self.noise_multiplicity), dtype=np.int64)
        for i, size in enumerate(sizes):
            generator = np.random.Philox(key=int.from_bytes(random_bytes(16), "little")).jumped()
            chosen[i] = np.random.Generator(generator).integers(size, size=self.noise_multiplicity)
        return chosen

    def draw(
        self,
        x: Float[Tensor, "batch channel height width"] | Float[Tensor, "batch K channel height width"],
        labels: Int[Tensor, " batch"] | Int[Tensor, "batch K"],
        *,
        null_label: int,
        noise_levels: NoiseLevels,
        random_bytes: RandomBytes,
    ) -> NoisyBatch:
        """Draw σ, n and dropped labels for all copies of each example.

        Sixteen bytes of its own key each example. So its draws depend neither on the other examples of the batch nor on
        how a batch is split. The K noise levels of an example are stratified: one from each K-th of their distribution,
        in random order. This keeps every marginal, and lowers the gradient's variance.

        Args:
            x: Clean images in [-1, 1]: one for each example, or one for each of its copies.
            labels: Their classes, one for each image in `x`.
            null_label: The class that stands for "no label".
            noise_levels: Distribution of σ.
            random_bytes: Source of sixteen bytes for each example.
        """
        copies = self.noise_multiplicity
        noise = np.empty((len(x), copies, *x.shape[-3:]), dtype=np.float32)
        u = np.empty((len(x), copies))
        dropped = np.empty((len(x), copies), dtype=bool)
        for i in range(len(x)):
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(random_bytes(16), "little")))
            generator.standard_normal(out=noise[i], dtype=np.float32)
            u[i] = (generator.permutation(copies) + generator.random(copies)) / copies
            dropped[i] = generator.random(copies) < self.label_dropout
        sigma = noise_levels.quantile(torch.from_numpy(u.clip(1e-9, 1 - 1e-9)))
        copied = labels if labels.ndim == 2 else labels[:, None].expand(-1, copies)
        return NoisyBatch(
            x=x,
            labels=torch.where(torch.from_numpy(dropped).to(labels.device), null_label, copied),
            sigma=sigma.to(x),
            noise=torch.from_numpy(noise).to(x),
        )

    def __call__(self, denoiser: nn.Module, batch: NoisyBatch) -> Float[Tensor, " batch"]:
        """Return the loss of each example. `denoiser` is a `PreconditionedDenoiser`."""
        assert isinstance(denoiser, PreconditionedDenoiser)
        x, labels, sigma, noise = batch
        clean = x if x.ndim == noise.ndim else x[:, None]
        noisy = clean + sigma[:, :, None, None, None] * noise
        denoised = denoiser(noisy.flatten(0, 1), sigma.flatten(), labels.flatten()).view_as(noisy)
        errors = (denoised - clean).square().flatten(2).mean(dim=2)
        weights = denoiser.preconditioning.loss_weight(sigma)
        weighted: Tensor = weights * errors
        return weighted.mean(dim=1)
