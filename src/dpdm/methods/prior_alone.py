"""The prior alone as a method: its images are exact draws of a mixture of Gaussians. No network, no steps."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion import GaussianMixture
from dpdm.methods import codec as codecs
from dpdm.methods.codec import AnyLatents
from dpdm.methods.interface import ImageGenerator, Method, Run
from dpdm.methods.prior import Prior, release_prior
from dpdm.methods.values import Budget, ImageFacts, Progress, PublicStart, Read, Sizes
from dpdm.privacy import AnyPlan, FullSum, MechanismRun


class MixtureGenerator(ImageGenerator):
    """Images drawn from a mixture of Gaussians, or decoded from its draws."""

    def __init__(self, mixture: GaussianMixture, facts: ImageFacts, codec: codecs.AnyCodec | None = None) -> None:
        super().__init__()
        self.mixture, self.facts, self.codec = mixture, facts, codec

    def draw(
        self, labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return exact draws, one for each label."""
        drawn = self.mixture.sample(labels, generator=random).float()
        return codecs.decoded(self.codec, drawn.view(-1, *codecs.seen_by(self.codec, self.facts).shape))

    @property
    def class_shares(self) -> tuple[float, ...] | None:
        """How frequent each class is, as the prior has released it."""
        return tuple(self.mixture.class_shares.tolist()) if self.facts.num_classes else None


@dataclass(frozen=True, kw_only=True)
class PriorAlone(Method):
    """Releases the prior alone: no network, no steps, seconds of work.

    Args:
        prior: Settings of the prior. `share` has no meaning here: the prior gets all of the budget.
        codec: The codec in whose latents the prior is learnt (default: none, in pixels).

    Example:
        >>> PriorAlone().plan(epsilon=1.0, dataset_size=60000).steps
        0
    """

    kind: ClassVar[str] = "prior"
    prior: Prior = field(default_factory=Prior)
    codec: AnyLatents | None = None

    def releases(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the prior's sums, whose noise is scaled to the whole budget."""
        budget.require_no_steps(self.kind)
        return self.prior.planned(budget, alone=True)

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> MixtureGenerator:
        """Return a generator with an empty mixture."""
        mixture = self.prior.placeholder(codecs.seen_by(self.codec, facts), sizes, below="mixture.")
        return MixtureGenerator(mixture, facts, codecs.untrained(self.codec, facts, seed=seed))

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, MixtureGenerator]:
        """Release the prior, and yield once."""
        assert isinstance(generator, MixtureGenerator)
        run.resume()
        mixture = release_prior(run, codecs.in_latents(run, generator.codec, data), self.prior)
        released = MixtureGenerator(mixture, generator.facts, generator.codec).to(run.device)
        yield run.made_sum(released)
        return released

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless a run of this plan can produce the mixture."""
        self.prior.require_possible(read, plan, codecs.seen_by(self.codec, facts), below="mixture.", where=where)
        codecs.require_same(self.codec, read, facts, where)

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError unless images are such as the codec is for."""
        codecs.require_images(self.codec, facts)

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Try the codec on a made-up image."""
        self.require_starts(generator, run.starts)

    def require_starts(self, generator: ImageGenerator, starts: Sequence[PublicStart]) -> None:
        """Raise InputError unless the codec's start is one, and for such images."""
        assert isinstance(generator, MixtureGenerator)
        codecs.rehearse(generator.codec, starts)

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes of the latents."""
        return codecs.memory_of(self.codec, facts, records)

    @property
    def start_folders(self) -> tuple[str, ...]:
        """The folder of the codec."""
        return codecs.folders_of(self.codec)

    @property
    def start_digests(self) -> tuple[str, ...]:
        """The SHA-256 of the codec's weights, as a release stores it."""
        return codecs.digests_of(self.codec)

    def begun_from(self, folders: Sequence[str]) -> "PriorAlone":
        """Return the method with this folder of its codec."""
        return replace(self, codec=codecs.begun_from(self.codec, folders))

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "PriorAlone":
        """Return the method in the form that a release stores: the codec by name and digest."""
        return replace(self, codec=codecs.said_of(self.codec, starts))
