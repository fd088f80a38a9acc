"""DPDM: a diffusion model trained by DP-SGD, each example noised K times a step before its one gradient is clipped.

Source:
    Dockhorn, Cao, Vahdat & Kreis 2023 (TMLR).
"""

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion import (
    DDIM,
    DDPM,
    EDM,
    VE,
    VP,
    DenoisingLoss,
    MatchedSolver,
    MomentMatched,
    NoiseLevels,
    NoisyBatch,
    PreconditionedDenoiser,
    Preconditioning,
    V,
)
from dpdm.methods import codec as codecs
from dpdm.methods import ema, made_up
from dpdm.methods import folders as pipelines
from dpdm.methods.asked import ask
from dpdm.methods.codec import AnyLatents, Codec, Pose
from dpdm.methods.denoising import AnySampler, DenoisingGenerator, matched, require_sampler_names
from dpdm.methods.gains import choose_start, rehearse_gains
from dpdm.methods.interface import ImageGenerator, Method, Run
from dpdm.methods.loader import Loader, random_images
from dpdm.methods.matrices import rehearse_matrices
from dpdm.methods.optimizer import Optimizer
from dpdm.methods.prior import Prior, release_prior
from dpdm.methods.private_steps import Stepped, TakesSteps
from dpdm.methods.retrieval import Retrieval, Trajectories, require_public_denoiser
from dpdm.methods.start import Start, load_start, require_start
from dpdm.methods.values import Budget, ImageFacts, Progress, PublicPart, PublicStart, Read, Sizes
from dpdm.networks import CompactUNet, Network, Own, OwnNetwork, PipelineFolder, build_network, code_of, said_of
from dpdm.privacy import AnyPlan, FullSum, MechanismRun, PoissonSums
from dpdm.types import InputError, refusing

AnyPreconditioning = EDM | V | VP | VE | DDPM | MomentMatched

NETWORK = "denoiser.network."
"""What the names of a network's tensors begin with."""

PRIOR = "denoiser.preconditioning.prior."
"""What the names of the tensors of the prior around which a network is trained begin with."""

_GAINS, _CHOICE = "denoiser.preconditioning.gains", "choice"
_STEPS = 500
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Diffusion(TakesSteps):
    """Trains a denoiser with DP-SGD, around a released prior or from nothing.

    Args:
        network: The network to train: one of the package's, or that of a `diffusers` folder, whose scheduler fixes the
            preconditioning. Or a `torch.nn.Module`, which is copied with its weights, or a function that makes one
            (`MakeNetwork`), under the run's seed.
        preconditioning: The relation of network and denoiser.
        prior: The prior of moment-matched preconditioning (default there: `Prior()`; else none).
        loss: Noise multiplicity and label dropout.
        optimizer: Learning rate and average.
        sampler: The sampler of the generator.
        samplers: Other samplers, by name, that a release offers.
        start: A network trained on public images before. Around a prior, the plan may then have no steps. Private
            images choose one of several.
        codec: The codec in whose latents the network learns (default: none, in pixels). A start needs the same.
        retrieval: Settings for public images that begin each trajectory; private steps then train only the rest.

    Example:
        >>> plan = Diffusion(preconditioning=EDM()).plan(epsilon=1.0, dataset_size=60000, steps=100)
        >>> [(release.name, release.count) for release in plan.releases]
        [('steps', 100)]
    """

    kind: ClassVar[str] = "diffusion"
    network: Network | OwnNetwork = field(default_factory=CompactUNet)
    preconditioning: AnyPreconditioning = field(default_factory=MomentMatched)
    prior: Prior | None = None
    loss: DenoisingLoss = field(default_factory=DenoisingLoss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    sampler: AnySampler = field(default_factory=DDIM)
    samplers: dict[str, AnySampler] = field(default_factory=dict)
    start: Start | None = None
    codec: AnyLatents | None = None
    retrieval: Retrieval | None = None

    def __post_init__(self) -> None:
        wanted: dict[str, Any] = {"loss": DenoisingLoss, "optimizer": Optimizer, "samplers": dict}
        optional = {"prior": Prior, "start": Start, "codec": Codec | Pose, "retrieval": Retrieval}
        for name, kind in (wanted | {name: kind | None for name, kind in optional.items()}).items():
            if not isinstance(value := getattr(self, name), kind):
                raise InputError(f"{name} must be {getattr(kind, '__name__', kind)}, not {type(value).__name__}")
        if isinstance(self.network, PipelineFolder):
            if self.prior is not None or self.start is not None or self.codec is not None:
                raise InputError("a diffusers folder is a start of its own: leave out prior, start and codec")
            object.__setattr__(self, "preconditioning", pipelines.of_scheduler(self.network, self.preconditioning))
        if isinstance(self.preconditioning, MomentMatched):
            object.__setattr__(self, "prior", self.prior or Prior())
        elif self.prior is not None:
            raise InputError("prior is for moment-matched preconditioning: set preconditioning.kind=moment-matched")
        folder = isinstance(self.network, PipelineFolder)
        if self.retrieval is not None:
            pipelines.require_pixels(self.network)
            require_public_denoiser(begun=folder or self.start is not None, prior=self.prior is not None)
            object.__setattr__(self, "starts_from_images", True)  # of this one
        if folder or self.retrieval is not None:
            within = partial(pipelines.sampler_within, self.noise_levels)
            object.__setattr__(self, "sampler", within(self.sampler))
            object.__setattr__(self, "samplers", {name: within(each) for name, each in self.samplers.items()})
        if self.start is not None and self.code is not None:
            raise InputError("start is for one of dpdm's networks: leave it out")
        if self.start is not None and self.start.private and self.prior is None:
            raise InputError(
                "start.gains, and the choice of starts or matrices, are for moment-matched preconditioning: without "
                "a prior, name one start, set start.gains=false, and leave chosen out of start.trains"
            )
        require_sampler_names(self.samplers)
        for name, sampler in self._named().items():
            self._require_trained(name, sampler)

    @property
    def noise_levels(self) -> NoiseLevels:
        """The noise levels of private steps, unless gains weigh them."""
        whole = self.preconditioning.noise_levels
        return whole if self.retrieval is None else self.retrieval.late(whole)

    def _named(self) -> dict[str, AnySampler]:
        return {"sampler": self.sampler, **{f"samplers.{name}": each for name, each in self.samplers.items()}}

    def _require_trained(self, name: str, sampler: AnySampler) -> None:
        """Raise InputError if a sampler asks for noise levels or for a null class that training does not have."""
        if not callable(sampler):
            raise InputError(f"{name} must be one of dpdm's samplers, not {type(sampler).__name__}")
        if isinstance(sampler, MatchedSolver) and self.prior is None:
            raise InputError(f"{name}.kind = {sampler.kind} needs moment-matched preconditioning, which has a prior")
        sampler.require_trained(self.noise_levels, name=name)
        if sampler.guidance and not self.loss.label_dropout:
            raise InputError(
                f"{name}.guidance = {sampler.guidance:g} needs images without label in training: "
                f"set loss.label_dropout above 0, or {name}.guidance to 0"
            )

    @property
    def _guided(self) -> bool:
        return any(sampler.guidance for sampler in (self.sampler, *self.samplers.values()))

    def releases(self, budget: Budget) -> tuple[FullSum | PoissonSums, ...]:
        """Return the prior's sums, if there is one, and the steps."""
        if budget.steps == 0 and self.start is not None and self.prior is not None:
            if self.start.trains != type(self.start).trains:
                raise InputError("start.trains is for private steps, and privacy.steps=0 takes none: leave it out")
            return (*self.prior.planned(budget, alone=True), *self.start.planned(budget))
        if budget.steps == 0:
            raise InputError("privacy.steps = 0 trains no network: take the method prior (--method prior), or steps")
        steps = PoissonSums(
            count=_STEPS if budget.steps is None else budget.steps,
            expected_batch_size=budget.batch_size,
            max_norm=budget.max_grad_norm,
        )
        if self.prior and self.start and self.prior.share + self.start.share >= 1:
            raise InputError("prior.share and start.share leave nothing for the steps: let them be below 1 together")
        before = self.prior.planned(budget, alone=False) if self.prior else ()
        return (*before, *(self.start.planned(budget) if self.start else ()), steps)

    def untrained(self, facts: ImageFacts, *, seed: int = 0, sizes: Sizes | None = None) -> DenoisingGenerator:
        """Return a generator with initial weights, around an empty prior."""
        seen = pipelines.seen_by(self.network, codecs.seen_by(self.codec, facts))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            images_in = self.preconditioning.images_in
            network = build_network(self.network, seen.shape, num_classes=facts.num_classes, images_in=images_in)
        preconditioning: Preconditioning
        if isinstance(self.preconditioning, MomentMatched):
            assert self.prior is not None
            with_gains = self.start is not None and self.start.gains
            prior = self.prior.placeholder(seen, sizes, below=PRIOR)
            preconditioning = self.preconditioning.about(prior, gains=with_gains)
        else:
            preconditioning = self.preconditioning
        choice = None
        if self.start is not None:
            choice = self.start.trained.widest(network) if self.start.trained.chosen else None
            self.start.trained.freeze(network, choice)
        denoiser, unlabelled = PreconditionedDenoiser(network.train(), preconditioning), self.loss.label_dropout > 0
        codec: Any = codecs.untrained(self.codec, facts, seed=seed) or pipelines.codec_of(self.network, network, facts)
        trajectories = None if self.retrieval is None else Trajectories(self.retrieval, seen)
        of_generator: dict[str, Any] = {"choice": choice, "codec": codec, "trajectories": trajectories}
        return DenoisingGenerator(denoiser, facts, self.sampler, unlabelled=unlabelled, **of_generator)

    def stepped(self, generator: ImageGenerator, *, seed: int = 0) -> Stepped:
        """Return what private steps train: the denoiser, with noisy copies of images or latents."""
        assert isinstance(generator, DenoisingGenerator)
        denoiser, facts, loss = self._denoiser(generator, seed=seed), generator.seen, self.loss

        def noisy(number: int) -> NoisyBatch:
            x, labels, _ = random_images(number, facts, 0, generator.device)
            null, levels = facts.num_classes, self.preconditioning.noise_levels
            return loss.draw(x, labels, null_label=null, noise_levels=levels, random_bytes=Random(0).randbytes)

        counted = partial(made_up.bytes_of_one, loss, denoiser, facts)
        return Stepped(denoiser, loss, noisy, copies=loss.noise_multiplicity, counted=counted)

    def _denoiser(self, generator: DenoisingGenerator, *, seed: int) -> PreconditionedDenoiser:
        """Return the generator's denoiser, or one with A and B (`Trained`)."""
        denoiser = generator.denoiser
        if self.start is None or self.start.trained.rank is None:
            return denoiser
        network = self.start.trained.stepped(denoiser.network, generator.choice, seed=seed)
        return PreconditionedDenoiser(network, denoiser.preconditioning)

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, DenoisingGenerator]:
        """Release the prior, and gains; then select, draw, clip, add noise, update, average."""
        assert isinstance(generator, DenoisingGenerator)
        average = ema.start(generator.denoiser).eval()
        denoiser = self._denoiser(generator, seed=run.seed)
        optimizer = torch.optim.Adam(denoiser.parameters())
        also = {} if generator.trajectories is None else {"trajectories": generator.trajectories}
        updates = run.resume(network=denoiser.network, average=average.network, optimizer=optimizer, **also)
        mechanism = run.mechanism  # reserved before hours are spent on latents or trajectories
        data = codecs.in_latents(run, generator.codec, data)
        if self.prior is not None:
            prior = release_prior(run, data, self.prior).to(run.device)
            for each in (denoiser, average):
                matched(each).prior = prior
        if self.start is not None and not updates:
            start = choose_start(run, data, average, generator.seen, self._denoisers(run.starts))
            for each in (generator.denoiser, average):
                load_start(each.network, start, generator.seen)
        if generator.trajectories is not None and run.public is not None and not updates:
            generator.trajectories.fill(run, average, generator.seen_of, null_label=generator.null_label)
        noise_levels = ask(self.start, self.noise_levels, generator, denoiser, average, data, run)
        released = generator.around(average)
        if not mechanism.plan.steps:
            yield run.made_sum(released)
            return released
        load = Loader(data, self.loss, noise_levels, run.device)
        at_once = run.physical_batch_size(
            self.loss.noise_multiplicity, lambda: made_up.bytes_of_one(self.loss, denoiser, generator.seen)
        )
        while not mechanism.finished:
            rate = self.optimizer.learning_rate_at(mechanism.steps_spent / mechanism.plan.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with run.autocast():
                diagnostics = mechanism.backward(
                    self.loss, denoiser, num_records=data.num_units, load=load, physical_batch_size=at_once
                )
            optimizer.step()
            updates += 1
            ema.update(average, denoiser, updates=updates, decay=self.optimizer.ema_decay)
            yield run.took_step(diagnostics, released, learning_rate=rate)
        return released

    def rehearse(self, generator: ImageGenerator, plan: AnyPlan, mechanism: MechanismRun, run: Run) -> None:
        """Try gradients, clipping and every sampler on made-up images."""
        assert isinstance(generator, DenoisingGenerator)
        self.require_starts(generator, run.starts)
        if isinstance(self.network, PipelineFolder):
            self.network.require_weights()
        if self.retrieval is not None and run.public is not None:
            self.retrieval.entries(run.public, generator.facts, seed=run.seed)
        if self.start is not None and self.start.private:
            with refusing("the network fails on made-up images"):
                rehearse_gains(generator.denoiser, generator.seen)
                if self.start.trained.chosen:
                    rehearse_matrices(generator.denoiser, generator.seen)
        if plan.steps:
            denoiser = self._denoiser(generator, seed=run.seed)
            with run.autocast():
                made_up.require_trainable(self.loss, denoiser, generator.seen, plan, mechanism, run)
        for name, sampler in self._named().items():
            made_up.require_images_by(generator.sampled_by(sampler).shortened()[0], name)

    def require_starts(self, generator: ImageGenerator, starts: Sequence[PublicStart]) -> None:
        """Raise InputError unless networks and codec fit this method's, and images of the generator's facts."""
        assert isinstance(generator, DenoisingGenerator)
        codecs.rehearse(generator.codec, starts)
        for start in self._denoisers(tuple(starts)):
            latents = codecs.latents_of(self.codec, starts[-1])
            require_start(start, self.preconditioning, codec=latents, guided=self._guided)
            load_start(copy.deepcopy(generator.denoiser.network), start, generator.seen)

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if guidance needs classes that are missing, or a codec or folder is for other images."""
        codecs.require_images(self.codec, facts)
        if isinstance(self.network, PipelineFolder):
            pipelines.require_classes(self.network, facts, self.loss)
        if not facts.num_classes and any(sampler.guidance for sampler in self._named().values()):
            raise InputError("guidance goes away from images without label, and these have no classes: set it to 0")

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless a run of this plan can produce the prior."""
        if self.prior is not None:
            self.prior.require_possible(read, plan, codecs.seen_by(self.codec, facts), below=PRIOR, where=where)
        codecs.require_same(self.codec, read, facts, where)
        if self.retrieval is not None:
            self.retrieval.require_possible(read, facts, where)
        if self.start is None:
            return
        if not self.start.sha256:
            raise InputError(f"{where} is of a run with a start, and config.toml lacks start.sha256")
        if self.start.gains and not ((read(_GAINS) >= 0) & (read(_GAINS) <= 1)).all():
            raise InputError(f"{where} holds gains that are not from 0 to 1")
        if number := self.start.trained.chosen:
            choice = read(_CHOICE).long()
            if choice.max() > 1 or choice.sum() != number:
                raise InputError(f"{where} holds another choice of matrices than one of {number}")
        if not plan.steps:  # nothing private has changed the public network
            with torch.device("meta"):
                names = self.untrained(facts).denoiser.network.state_dict()
            self.start.require_same({name: read(f"{NETWORK}{name}") for name in names}, where)

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the trained networks of a diffusers folder."""
        return self.network.names if isinstance(self.network, PipelineFolder) else ()

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return them with the digests of their weights."""
        return pipelines.parts_of(self.network)

    @property
    def start_folders(self) -> tuple[str, ...]:
        """The folders of networks trained on public images, the codec's last."""
        return (*(() if self.start is None else self.start.sources), *codecs.folders_of(self.codec))

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of starts, or that of a diffusers pipeline."""
        return (self.network.source,) if isinstance(self.network, PipelineFolder) else self.start_folders

    @property
    def start_digests(self) -> tuple[str, ...]:
        """The SHA-256 of the weights of each, as a release stores it."""
        return (*(() if self.start is None else self.start.sha256), *codecs.digests_of(self.codec))

    def begun_from(self, folders: Sequence[str]) -> "Diffusion":
        """Return the method with these folders of its starts and, last, its codec; or of its diffusers pipeline."""
        if isinstance(self.network, PipelineFolder):
            return replace(self, network=self.network.begun_from(folders[0]))
        sources = self._denoisers(tuple(folders))
        start = None if self.start is None else replace(self.start, sources=sources)
        return replace(self, start=start, codec=codecs.begun_from(self.codec, folders))

    def _denoisers(self, starts: tuple[T, ...]) -> tuple[T, ...]:
        """Return those of the starts that are denoisers: all but the codec, which is the last."""
        return starts[: len(starts) - len(codecs.folders_of(self.codec))]

    def memory(self, facts: ImageFacts, *, public: int, records: int) -> int:
        """Return the bytes of latents and public trajectories, without those of steps, which `dpdm plan` measures."""
        bank = 0 if self.retrieval is None else self.retrieval.memory(codecs.seen_by(self.codec, facts))
        return bank + codecs.memory_of(self.codec, facts, records) + pipelines.memory_of(self.network, facts, records)

    @property
    def code(self) -> OwnNetwork | None:
        """The network, if its code is outside the package."""
        return code_of(self.network)

    @property
    def foreign(self) -> str | None:
        """The prefix of the names of weights whose code is outside the package, if there are any."""
        return NETWORK if self.code is not None or isinstance(self.network, Own) else None

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "Diffusion":
        """Return the method in the form that a release stores."""
        assert isinstance(generator, DenoisingGenerator)
        begun = None if self.start is None else self.start.said(self._denoisers(tuple(starts)))
        network, codec = said_of(self.network, generator.denoiser.network), codecs.said_of(self.codec, starts)
        return replace(self, network=network, start=begun, codec=codec)

    def answers(self, generator: ImageGenerator) -> Float[Tensor, "2 channel height width"]:
        """Return the denoiser's output for two noisy copies of made-up images."""
        assert isinstance(generator, DenoisingGenerator)
        denoiser, one = generator.denoiser, replace(self.loss, noise_multiplicity=1)
        x, labels, sigma, noise = made_up.first(2, made_up.made_up_batch(one, denoiser, generator.seen))
        answers: Float[Tensor, "2 channel height width"] = denoiser(x + noise[:, 0], sigma[:, 0], labels[:, 0])
        return answers

    def with_code(self, network: OwnNetwork) -> Method:
        """Return the method with the code of its network, which settings lack."""
        return replace(self, network=network) if isinstance(self.network, Own) else super().with_code(network)
