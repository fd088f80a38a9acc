"""What a diffusion model releases: a denoiser, with a sampler that draws from it."""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dpdm.diffusion import (
    DDIM,
    Churn,
    DPMSolver,
    MatchedPreconditioning,
    MatchedSolver,
    NoiseLevels,
    PreconditionedDenoiser,
    StochasticDDIM,
)
from dpdm.methods import codec as codecs
from dpdm.methods.interface import ImageGenerator
from dpdm.methods.retrieval import Trajectories
from dpdm.methods.values import ImageFacts, PublicPart
from dpdm.networks import KLCodec, TextToImageFolder
from dpdm.types import Images, InputError, require_at_most

_FAR = 0.1  # of a gain, on average over noise levels: with less, the network is hardly followed
_MOST_SAMPLERS, _SAMPLER = 16, re.compile("[a-z][a-z0-9_-]{0,31}")
AnySampler = DDIM | StochasticDDIM | Churn | DPMSolver | MatchedSolver


class DenoisingGenerator(ImageGenerator):
    """Images drawn by a sampler from a denoiser, or decoded from its draws.

    Args:
        denoiser: The network, and what is around it.
        facts: Of the images.
        sampler: What draws.
        unlabelled: Whether the network knows images without label.
        codec: What decodes draws, where they are latents.
        choice: One for each matrix of the network that private images chose, zero for the others; None without choice.
        trajectories: Where draws begin, if it is not with noise alone.
    """

    choice: UInt8[Tensor, " matrix"] | None

    def __init__(
        self,
        denoiser: PreconditionedDenoiser,
        facts: ImageFacts,
        sampler: AnySampler,
        *,
        unlabelled: bool,
        codec: codecs.AnyCodec | None = None,
        choice: UInt8[Tensor, " matrix"] | None = None,
        trajectories: Trajectories | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("choice", choice)
        self.denoiser, self.facts, self.sampler, self.codec = denoiser, facts, sampler, codec
        self.trajectories = trajectories
        self.null_label = facts.num_classes if facts.num_classes and unlabelled else None

    def draw(
        self, labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return what the sampler makes of standard normal draws, one image for each label.

        With retrieval it makes it of ends of public trajectories, which these draws bring to its first noise level.
        """
        start = torch.randn((len(labels), *self.seen.shape), generator=random, device=labels.device)
        if self.trajectories is not None:
            start = start + self.trajectories.draw(labels, random=random) / self.sampler.sigma_max
        drawn = self.sampler(self.denoiser, start, labels, generator=random, null_label=self.null_label)
        return codecs.decoded(self.codec, drawn)

    @property
    def folder(self) -> TextToImageFolder | None:
        """The pipeline whose public weights are no part of its state, if it begins with one of texts and latents."""
        return self.codec.folder if isinstance(self.codec, KLCodec) else None

    @property
    def parts(self) -> tuple[PublicPart, ...]:  # type: ignore[override]
        """The unet and the autoencoder of `folder`."""
        return () if self.folder is None else tuple(PublicPart(*part) for part in self.folder.for_drawing)

    def supply(self, part: PublicPart, path: Path) -> None:
        """Take the public weights of a part of its pipeline from the part's folder."""
        assert self.folder is not None
        self.folder.supply(part.name, path, self.denoiser.network, self.codec)

    @property
    def seen(self) -> ImageFacts:
        """The facts of what the denoiser sees: latents, or images themselves."""
        return codecs.seen_by(self.codec, self.facts)

    def seen_of(self, images: Images) -> Float[Tensor, "images channel height width"]:
        """Return what the denoiser sees of images."""
        return codecs.seen_of(self.codec, images)

    @property
    def noise_levels(self) -> NoiseLevels:
        """Those that training meets."""
        whole = self.denoiser.preconditioning.noise_levels
        return whole if self.trajectories is None else self.trajectories.of.late(whole)

    @property
    def class_shares(self) -> tuple[float, ...] | None:
        """How frequent each class is, as the prior has released it; None without a prior."""
        preconditioning = self.denoiser.preconditioning
        if not isinstance(preconditioning, MatchedPreconditioning) or not self.facts.num_classes:
            return None
        return tuple(preconditioning.prior.class_shares.tolist())

    @property
    def remark(self) -> str:
        """Whether the public network that it began with hardly helps, as the released gains tell."""
        preconditioning = self.denoiser.preconditioning
        gains = preconditioning.gains if isinstance(preconditioning, MatchedPreconditioning) else None
        if gains is None or float(gains.mean()) > _FAR:
            return ""
        return (
            "the public start hardly helps: its images are far from the private ones. The method prior, or another "
            "start, may serve better; that is a new run, whose ε comes on top of this one's"
        )

    def around(self, denoiser: PreconditionedDenoiser) -> "DenoisingGenerator":
        """Return the same with another denoiser."""
        return self._with(denoiser, self.sampler)

    def sampled_by(self, sampler: AnySampler) -> "DenoisingGenerator":
        """Return the same with another sampler.

        Raises:
            InputError: The sampler asks for noise levels that training has not met.
        """
        if not callable(sampler):
            raise InputError("sampler must be one of dpdm's samplers")
        sampler.require_trained(self.noise_levels)
        return self._with(self.denoiser, sampler)

    def shortened(self) -> tuple["DenoisingGenerator", float]:
        """Return one whose sampler takes two steps at most."""
        steps = min(2, self.sampler.steps)
        return self.sampled_by(replace(self.sampler, steps=steps)), self.sampler.steps / steps

    def _with(self, denoiser: PreconditionedDenoiser, sampler: AnySampler) -> "DenoisingGenerator":
        return DenoisingGenerator(
            denoiser,
            self.facts,
            sampler,
            unlabelled=self.null_label is not None,
            codec=self.codec,
            choice=self.choice,
            trajectories=self.trajectories,
        )


def require_sampler_names(names: Collection[object]) -> None:
    """Raise InputError unless these may be the names of samplers: few, short, and words of one form."""
    require_at_most(_MOST_SAMPLERS, samplers=len(names))
    for name in names:
        if not isinstance(name, str) or not _SAMPLER.fullmatch(name):
            said = ascii(name)[:80]
            raise InputError(f"a sampler is called {said}: take a letter, and then at most 31 of a-z, 0-9, _ and -")


def matched(denoiser: PreconditionedDenoiser) -> MatchedPreconditioning:
    """Return what a denoiser around a prior has: the prior, and perhaps gains."""
    assert isinstance(denoiser.preconditioning, MatchedPreconditioning)
    return denoiser.preconditioning
