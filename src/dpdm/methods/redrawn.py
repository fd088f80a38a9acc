"""A public network that draws private evolution's candidates, and draws them again under noise: its variations.

Nothing here is private. The network is that of a `diffusers` folder, and stays as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from dpdm.data.procedural import tell_progress
from dpdm.diffusion import DDIM, DenoisingLoss, MomentMatched, PreconditionedDenoiser
from dpdm.methods import codec as codecs
from dpdm.methods import folders as pipelines
from dpdm.methods.denoising import DenoisingGenerator
from dpdm.methods.embedding import Embedding
from dpdm.methods.interface import ImageGenerator, Method, Run
from dpdm.methods.made_up import bytes_of_one
from dpdm.methods.populations import Pool, Population
from dpdm.methods.values import ImageFacts, PublicPart, PublicStart
from dpdm.methods.variations import Looks, Variations
from dpdm.networks import DiffusersFolder, DiffusersNetwork, PipelineFolder, TextToImageFolder, build_network
from dpdm.types import Images, InputError, refusing, require_positive, tensor_to_images

_AT_ONCE = 16  # images that the network sees


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """`[pipeline]`: the public network of a `diffusers` folder that draws candidates, and draws them again.

    Args:
        network: The folder. A release keeps its name, and the digests of its parts.
        level: Noise level under which images are drawn again at first; each round halves it. Pixels go from -1 to 1.
        steps: Number of noise levels at which the network is asked for an image.
        guidance: How far to go beyond what it draws for a class, away from what it draws without one (`DDIM`).

    Example:
        >>> Pipeline(network=DiffusersFolder(source="pipelines/small"), level=2.0).network.name
        'small'
    """

    network: DiffusersFolder | TextToImageFolder
    level: float = 5.0
    steps: int = 20
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.network, PipelineFolder):
            raise InputError(f"pipeline.network must be a diffusers folder, not {type(self.network).__name__}")
        if self.network.trains != "all":
            raise InputError(
                "pipeline.network.trains is for private steps, and its network stays as it is: leave it out"
            )
        require_positive(level=self.level)
        DDIM(steps=self.steps, guidance=self.guidance)

    def untrained(self, facts: ImageFacts) -> DenoisingGenerator:
        """Return what draws images of these facts, with the folder's weights if they are here.

        Raises:
            InputError: The folder is damaged, or not for such images, or knows no image without class, and there is
                guidance.
        """
        folder, classes = self.network, facts.num_classes
        folder.require_images(facts.shape, classes)
        known = classes + 1 if isinstance(folder, TextToImageFolder) else folder.spec.num_class_embeds
        if self.guidance and not (classes and known == classes + 1):
            raise InputError(f"pipeline.guidance: {folder.name} knows no images without class: set it to 0")
        preconditioning, seen = pipelines.of_scheduler(folder, MomentMatched()), pipelines.seen_by(folder, facts)
        network = build_network(folder, seen.shape, num_classes=classes)
        denoiser = PreconditionedDenoiser(network, preconditioning)
        sampler = DDIM(steps=self.steps, guidance=self.guidance)
        within = pipelines.sampler_within(preconditioning.noise_levels, sampler)
        codec = pipelines.codec_of(folder, network, facts)
        return DenoisingGenerator(denoiser, facts, within, unlabelled=bool(self.guidance), codec=codec)

    def memory(self, facts: ImageFacts, images: int) -> int:
        """Return the bytes that drawing so many images takes at most, with the network's weights."""
        with torch.device("meta"):
            generator = self.untrained(facts)
        one = bytes_of_one(DenoisingLoss(noise_multiplicity=1), generator.denoiser, generator.seen)
        weights = sum(4 * weight.numel() for weight in generator.parameters())
        return weights + _AT_ONCE * one + images * (4 * math.prod(generator.seen.shape) + 2 * math.prod(facts.shape))

    def rehearse(self, facts: ImageFacts, run: Run, *, halved: int) -> None:
        """Draw one image, and draw it again under the least noise of a run with so many rounds.

        Raises:
            InputError: The folder's network cannot, or has learnt no images under so much noise, or so little.
        """
        draws, label = PublicDraws(self, facts, run), torch.zeros(1, dtype=torch.long)
        least, most = draws.span
        if not least < self.level / 2**halved < self.level <= most:
            raise InputError(
                f"pipeline.level = {self.level:g}, halved {halved} times, must stay between {least:.3g} and "
                f"{most:.3g}, where {self.network.name} draws: set another level, or fewer rounds"
            )
        with refusing(f"{self.network.name} draws no images"):
            draws(label, draws(label), self.level / 2**halved)

    def begun_from(self, folder: str) -> "Pipeline":
        """Return it with this folder of its network."""
        return replace(self, network=self.network.begun_from(folder))

    def said(self) -> "Pipeline":
        """Return it in the form that a release stores."""
        return replace(self, network=self.network.said())


class PublicDraws:
    """Images that the network of a pipeline draws; the same on all processes.

    Args:
        pipeline: The network, and how it draws.
        facts: Of the images.
        run: Has the device and the public seed.

    Raises:
        InputError: See `Pipeline.untrained`; or its weights are not here.
    """

    def __init__(self, pipeline: Pipeline, facts: ImageFacts, run: Run) -> None:
        pipeline.network.require_weights()
        self.level, self._run, self._random = pipeline.level, run, torch.Generator().manual_seed(run.seed)
        self._generator = pipeline.untrained(facts).to(run.device).eval()

    def require_named(self, public: Sequence[PublicPart] | None) -> None:
        """Raise InputError unless a claim, if there is one, names the parts that draw here, as they were read."""
        network = self._generator.denoiser.network
        assert isinstance(network, DiffusersNetwork)
        if public is not None and not {*network.begun_with} <= {(part.name, part.sha256) for part in public}:
            raise InputError("the pipeline's folder was changed since the run has begun: begin again")

    @property
    def span(self) -> tuple[float, float]:
        """The least and the highest noise level of the sampler."""
        return self._generator.sampler.sigma_min, self._generator.sampler.sigma_max

    def __call__(self, labels: Int[Tensor, " images"], of: Images | None = None, level: float | None = None) -> Images:
        """Return an image for each label: drawn from noise, or from other images under noise.

        Args:
            labels: The class of each.
            of: Images to be drawn again (default: noise alone).
            level: The standard deviation of the noise on these, or on their latents (default: the sampler's first).
        """
        generator, processes = self._generator, self._run.processes
        sampler = generator.sampler if level is None else replace(generator.sampler, sigma_max=level)
        noise = torch.randn((len(labels), *generator.seen.shape), generator=self._random)
        channels, height, width = generator.facts.shape
        images = torch.zeros(len(labels), height, width, channels, dtype=torch.uint8)
        mine = torch.tensor([*processes.shard(len(labels))], dtype=torch.long)
        for done, part in enumerate(torch.split(mine, _AT_ONCE)):
            x, known = noise[part].to(self._run.device), labels[part].to(self._run.device)
            with torch.inference_mode(), self._run.autocast():
                if of is not None:
                    x = x + generator.seen_of(of[part.numpy()]).to(x) / sampler.sigma_max
                null, none = generator.null_label, torch.Generator()  # DDIM draws nothing further
                drawn = sampler(generator.denoiser, x, known, generator=none, null_label=null)
                images[part] = torch.from_numpy(tensor_to_images(codecs.decoded(generator.codec, drawn)))
            tell_progress("images by the public network", done * _AT_ONCE + len(part), len(mine))
        return processes.sum(images).numpy()

    def pool(self, number: int, of: Pool | None) -> Pool:
        """Return `number` images of each class: the network's own, or as many of a pool, drawn again under noise."""
        classes = max(1, self._generator.facts.num_classes)
        labels = torch.arange(classes).repeat_interleave(number)
        images = self(labels) if of is None else self(labels, of.images, self.level)
        return Pool(images, [*torch.arange(len(labels)).view(-1, number)], labels.numpy())


class Redrawn(Variations):
    """Candidates that a public network draws again: a child is made of its parent under noise, each round of less.

    Source:
        Lin et al. 2024 (variations by image to image, of a decreasing degree); Meng et al. 2022 (SDEdit).
    """

    def __init__(self, pool: Pool, looks: Looks, run: Run, draws: PublicDraws) -> None:
        super().__init__(pool, looks, run, strength=0.0)
        self._draws, self._level = draws, draws.level

    def first(self, number: int) -> Population:
        """Return the pool, which has so many candidates of each class."""
        made_of = torch.stack(self._pool.of_class)
        images = torch.from_numpy(self._pool.images)
        return Population(made_of, drawn=images.view(*made_of.shape, *images.shape[1:]))

    def narrow(self, shares: list[float]) -> None:
        """Let children be more alike: under half the noise."""
        self._level /= 2

    def children(self, parents: Population, weights: Float64[Tensor, "class candidate"] | None = None) -> Population:
        """Return as many candidates as there are parents: of those drawn by their weights, or one of each."""
        assert parents.drawn is not None
        classes, number = parents.made_of.shape
        again = [self.drawn_again(number, None if weights is None else weights[label]) for label in range(classes)]
        of = torch.stack([images[chosen] for images, chosen in zip(parents.drawn, again, strict=True)])
        labels = torch.arange(classes).repeat_interleave(number)
        drawn = torch.from_numpy(self._draws(labels, of.flatten(0, 1).numpy(), self._level))
        return Population(parents.made_of.gather(1, torch.stack(again)), drawn=drawn.view_as(of))


class ByPublicNetworks(Method):
    """A method that may draw images by one public network, and look at them by another: a claim names both."""

    embedding: Embedding | None
    pipeline: Pipeline | None

    @property
    def networks(self) -> tuple[str, ...]:
        """The names that a claim gives the network that draws, and that of the features, if it was trained."""
        of_features = self.embedding.network if self.embedding else ()
        return (*(self.network.names if self.network else ()), *of_features)

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return these networks with the digests of their weights."""
        return (*pipelines.parts_of(self.network), *(self.embedding.parts() if self.embedding else ()))

    @property
    def folders(self) -> tuple[str, ...]:
        """The place of the network that draws."""
        return (self.network.source,) if self.network else ()

    def begun_from(self, folders: Sequence[str]) -> "ByPublicNetworks":
        """Return the method with this folder of its network."""
        if self.pipeline is None:
            return self
        return replace(self, pipeline=self.pipeline.begun_from(folders[0]))  # type: ignore[type-var]

    @property
    def network(self) -> PipelineFolder | None:
        """The folder of the network that draws, if there is one."""
        return self.pipeline.network if self.pipeline else None

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "ByPublicNetworks":
        """Return the method in the form that a release stores."""
        embedding = None if self.embedding is None else self.embedding.said()
        pipeline = None if self.pipeline is None else self.pipeline.said()
        return replace(self, embedding=embedding, pipeline=pipeline)  # type: ignore[type-var]
