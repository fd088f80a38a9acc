"""DPDM: a diffusion model trained by DP-SGD, each example noised K times a step before its one gradient is clipped.

Source:
    Dockhorn, Cao, Vahdat & Kreis 2023 (TMLR).
"""

import copy
import math
import re
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion import (
    DDIM,
    DDPM,
    EDM,
    GAIN_LEVELS,
    VE,
    VP,
    Churn,
    DenoisingLoss,
    DPMSolver,
    MatchedPreconditioning,
    MatchedSolver,
    MomentMatched,
    NoiseLevels,
    PreconditionedDenoiser,
    Preconditioning,
    StochasticDDIM,
    V,
    Weighted,
)
from dpdm.methods import ema, made_up
from dpdm.methods.folders import of_scheduler, require_classes, sampler_within
from dpdm.methods.gains import choose_start, rehearse_gains, release_gains
from dpdm.methods.interface import (
    Budget,
    ImageFacts,
    ImageGenerator,
    Method,
    Progress,
    PublicPart,
    PublicStart,
    Read,
    Run,
    Sizes,
)
from dpdm.methods.loader import Loader
from dpdm.methods.prior import Prior, release_prior
from dpdm.methods.start import Start, load_start
from dpdm.networks import CompactUNet, DiffusersFolder, Network, Own, OwnNetwork, build_network, code_of, said_of
from dpdm.privacy import AnyPlan, FullSum, MechanismRun, PoissonSums
from dpdm.types import InputError, refusing, require_at_most, require_within

AnyPreconditioning = EDM | V | VP | VE | DDPM | MomentMatched
AnySampler = DDIM | StochasticDDIM | Churn | DPMSolver | MatchedSolver

NETWORK = "denoiser.network."
"""What the names of a network's tensors begin with."""

PRIOR = "denoiser.preconditioning.prior."
"""What the names of the tensors of the prior around which a network is trained begin with."""

_GAINS = "denoiser.preconditioning.gains"
_MOST_SAMPLERS, _SAMPLER = 16, re.compile("[a-z][a-z0-9_-]{0,31}")
_STEPS = 500


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """`[optimizer]`: Adam, and the average of the weights, which is what is released.

    Args:
        learning_rate: Adam's, reached after `warmup`.
        warmup: Fraction of the steps over which the learning rate rises from zero.
        decay: Fraction of itself to which the learning rate falls by a cosine; 1 keeps it constant.
        ema_decay: Weight of the past in the average of the weights.
    """

    learning_rate: float = 4e-3
    warmup: float = 0.05
    decay: float = 0.1
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        require_within(1e-12, 100, learning_rate=self.learning_rate)
        for name, value in (("warmup", self.warmup), ("ema_decay", self.ema_decay)):
            if not 0 <= value < 1:
                raise InputError(f"{name} must be in [0, 1), not {value}")
        if not 0 <= self.decay <= 1:
            raise InputError(f"decay must be in [0, 1], not {self.decay}")

    def learning_rate_at(self, progress: float) -> float:
        """Return the learning rate when a fraction `progress` in [0, 1] of the steps is spent."""
        cosine = (1 + self.decay) / 2 + (1 - self.decay) / 2 * math.cos(math.pi * progress)
        return self.learning_rate * min(1.0, (progress + 1e-3) / max(self.warmup, 1e-3)) * cosine


class DenoisingGenerator(ImageGenerator):
    """Images drawn by a sampler from a denoiser."""

    def __init__(
        self, denoiser: PreconditionedDenoiser, facts: ImageFacts, sampler: AnySampler, *, unlabelled: bool
    ) -> None:
        super().__init__()
        self.denoiser, self.facts, self.sampler = denoiser, facts, sampler
        self.null_label = facts.num_classes if facts.num_classes and unlabelled else None

    def draw(
        self, labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float[Tensor, "batch channel height width"]:
        """Return what the sampler makes of standard normal draws, one image for each label."""
        start = torch.randn((len(labels), *self.facts.shape), generator=random, device=labels.device)
        return self.sampler(self.denoiser, start, labels, generator=random, null_label=self.null_label)

    @property
    def class_shares(self) -> tuple[float, ...] | None:
        """How frequent each class is, as the prior has released it; None without a prior."""
        preconditioning = self.denoiser.preconditioning
        if not isinstance(preconditioning, MatchedPreconditioning) or not self.facts.num_classes:
            return None
        return tuple(preconditioning.prior.class_shares.tolist())

    def around(self, denoiser: PreconditionedDenoiser) -> "DenoisingGenerator":
        """Return the same with another denoiser."""
        return DenoisingGenerator(denoiser, self.facts, self.sampler, unlabelled=self.null_label is not None)

    def sampled_by(self, sampler: AnySampler) -> "DenoisingGenerator":
        """Return the same with another sampler.

        Raises:
            InputError: The sampler asks for noise levels that training has not met.
        """
        if not callable(sampler):
            raise InputError("sampler must be one of dpdm's samplers")
        sampler.require_trained(self.denoiser.preconditioning.noise_levels)
        return DenoisingGenerator(self.denoiser, self.facts, sampler, unlabelled=self.null_label is not None)

    def shortened(self) -> tuple["DenoisingGenerator", float]:
        """Return one whose sampler takes two steps at most."""
        steps = min(2, self.sampler.steps)
        return self.sampled_by(replace(self.sampler, steps=steps)), self.sampler.steps / steps


@dataclass(frozen=True, kw_only=True)
class Diffusion(Method):
    """Trains a denoiser with DP-SGD, around a released prior or from nothing.

    Args:
        network: What to train: one of the package's networks, or that of a `diffusers` folder, whose scheduler says the
            preconditioning; a `torch.nn.Module`, of which a copy is trained from the
            weights it has; or what makes one (`MakeNetwork`), under the run's seed.
        preconditioning: How network and denoiser are related.
        prior: What moment-matched preconditioning is about, which always has one (default: `Prior()`); else None.
        loss: Noise multiplicity and label dropout.
        optimizer: Learning rate and average.
        sampler: What the generator draws with.
        samplers: Others, by name, that a release keeps for whoever samples.
        start: A network that was trained on public images before; around a prior, steps may then be none. Of several,
            private images choose one.
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

    def __post_init__(self) -> None:
        wanted: dict[str, Any] = {"loss": DenoisingLoss, "optimizer": Optimizer, "samplers": dict}
        wanted |= {"prior": Prior | None, "start": Start | None}
        for name, kind in wanted.items():
            if not isinstance(value := getattr(self, name), kind):
                raise InputError(f"{name} must be {getattr(kind, '__name__', kind)}, not {type(value).__name__}")
        if isinstance(self.network, DiffusersFolder):
            if self.prior is not None or self.start is not None:
                raise InputError("a diffusers folder is a start of its own, without a prior: leave out prior and start")
            object.__setattr__(self, "preconditioning", of_scheduler(self.network, self.preconditioning))
            object.__setattr__(self, "sampler", sampler_within(self.preconditioning, self.sampler))
            within = {name: sampler_within(self.preconditioning, each) for name, each in self.samplers.items()}
            object.__setattr__(self, "samplers", within)
        if isinstance(self.preconditioning, MomentMatched):
            object.__setattr__(self, "prior", self.prior or Prior())
        elif self.prior is not None:
            raise InputError("prior is for moment-matched preconditioning: set preconditioning.kind=moment-matched")
        if self.start is not None and self.code is not None:
            raise InputError("start is for one of dpdm's networks: leave it out")
        if self.start is not None and self.start.private and self.prior is None:
            raise InputError(
                "start.gains, and the choice of one of several starts, are for moment-matched preconditioning: without "
                "a prior, name one start and set start.gains=false"
            )
        require_sampler_names(self.samplers)
        for name, sampler in self._named().items():
            self._require_trained(name, sampler)

    def _named(self) -> dict[str, AnySampler]:
        return {"sampler": self.sampler, **{f"samplers.{name}": each for name, each in self.samplers.items()}}

    def _require_trained(self, name: str, sampler: AnySampler) -> None:
        """Raise InputError if a sampler asks for noise levels or for a null class that training does not have."""
        if not callable(sampler):
            raise InputError(f"{name} must be one of dpdm's samplers, not {type(sampler).__name__}")
        if isinstance(sampler, MatchedSolver) and self.prior is None:
            raise InputError(f"{name}.kind = {sampler.kind} needs moment-matched preconditioning, which has a prior")
        sampler.require_trained(self.preconditioning.noise_levels, name=name)
        if sampler.guidance and not self.loss.label_dropout:
            raise InputError(
                f"{name}.guidance = {sampler.guidance:g} needs images without label in training: "
                f"set loss.label_dropout above 0, or {name}.guidance to 0"
            )

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
        """Return a generator with first weights, around a prior that knows nothing."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            images_in = self.preconditioning.images_in
            network = build_network(self.network, facts.shape, num_classes=facts.num_classes, images_in=images_in)
        preconditioning: Preconditioning
        if isinstance(self.preconditioning, MomentMatched):
            assert self.prior is not None
            with_gains = self.start is not None and self.start.gains
            prior = self.prior.placeholder(facts, sizes, below=PRIOR)
            preconditioning = self.preconditioning.about(prior, gains=with_gains)
        else:
            preconditioning = self.preconditioning
        if self.start is not None:
            self.start.freeze(network)
        denoiser = PreconditionedDenoiser(network.train(), preconditioning)
        return DenoisingGenerator(denoiser, facts, self.sampler, unlabelled=self.loss.label_dropout > 0)

    def train(
        self, generator: ImageGenerator, data: ImageDataset, run: Run
    ) -> Generator[Progress, None, DenoisingGenerator]:
        """Release the prior, and gains; then select, draw, clip, add noise, update, average."""
        assert isinstance(generator, DenoisingGenerator)
        denoiser = generator.denoiser
        average = ema.start(denoiser).eval()
        optimizer = torch.optim.Adam(denoiser.parameters())
        updates = run.resume(network=denoiser.network, average=average.network, optimizer=optimizer)
        noise_levels: NoiseLevels = self.preconditioning.noise_levels
        if self.prior is not None:
            prior = release_prior(run, data, self.prior).to(run.device)
            for each in (denoiser, average):
                _matched(each).prior = prior
        if self.start is not None and not updates:
            start = choose_start(run, data, average, generator.facts)
            for each in (denoiser, average):
                load_start(each.network, start, generator.facts)
        if self.start is not None and self.start.gains:
            gains = release_gains(run, data, average)
            for each in (denoiser, average):
                _matched(each).gains = gains.of_levels.to(run.device)
            left = tuple(gains.left.tolist())
            noise_levels = Weighted(base=noise_levels, levels=GAIN_LEVELS, weights=left)
        released, mechanism = generator.around(average), run.mechanism
        if not mechanism.plan.steps:
            yield run.made_sum(released)
            return released
        load = Loader(data, self.loss, noise_levels, run.device)
        at_once = run.physical_batch_size(
            self.loss.noise_multiplicity, lambda: made_up.bytes_of_one(self.loss, denoiser, generator.facts)
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
        if isinstance(self.network, DiffusersFolder):
            self.network.require_weights()
        for start in run.starts:
            if start.preconditioning != self.preconditioning.kind:
                raise InputError(
                    f"the start of {start.part.name} is for preconditioning.kind = {start.preconditioning}, not "
                    f"{self.preconditioning.kind}: make one by dpdm pretrain --like"
                )
            load_start(copy.deepcopy(generator.denoiser.network), start, generator.facts)
        if self.start is not None and self.start.private:
            with refusing("the network fails on made-up images"):
                rehearse_gains(generator.denoiser, generator.facts)
        if plan.steps:
            with run.autocast():
                made_up.require_trainable(self.loss, generator.denoiser, generator.facts, plan, mechanism, run)
        for name, sampler in self._named().items():
            made_up.require_images_by(replace_sampler(generator, sampler), name)

    def require_images(self, facts: ImageFacts) -> None:
        """Raise InputError if guidance goes away from classes that are not there, or a folder is for other images."""
        if isinstance(self.network, DiffusersFolder):
            require_classes(self.network, facts, self.loss)
        if not facts.num_classes and any(sampler.guidance for sampler in self._named().values()):
            raise InputError("guidance goes away from images without label, and these have no classes: set it to 0")

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless the prior is one that a run of this plan can come to."""
        if self.prior is not None:
            self.prior.require_possible(read, plan, facts, below=PRIOR, where=where)
        if self.start is None:
            return
        if not self.start.sha256:
            raise InputError(f"{where} is of a run with a start, and config.toml lacks start.sha256")
        if self.start.gains and not ((read(_GAINS) >= 0) & (read(_GAINS) <= 1)).all():
            raise InputError(f"{where} holds gains that are not from 0 to 1")
        if not plan.steps:  # nothing private has changed the public network
            with torch.device("meta"):
                names = self.untrained(facts).denoiser.network.state_dict()
            self.start.require_same({name: read(f"{NETWORK}{name}") for name in names}, where)

    @property
    def networks(self) -> tuple[str, ...]:
        """The network of a diffusers folder, which somebody trained."""
        return (self.network.name,) if isinstance(self.network, DiffusersFolder) else ()

    def network_parts(self) -> tuple[PublicPart, ...]:
        """Return it with the digest of its weights."""
        network = self.network
        return (PublicPart(network.name, network.digest),) if isinstance(network, DiffusersFolder) else ()

    @property
    def start_folders(self) -> tuple[str, ...]:
        """The folders of networks that were trained on public images."""
        return () if self.start is None else self.start.sources

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders of starts, or that of a diffusers pipeline."""
        return (self.network.source,) if isinstance(self.network, DiffusersFolder) else self.start_folders

    @property
    def start_digests(self) -> tuple[str, ...]:
        """The SHA-256 of the weights of each, as a release names it."""
        return () if self.start is None else self.start.sha256

    def begun_from(self, folders: Sequence[str]) -> "Diffusion":
        """Return the method with these as its starts, or with this as its diffusers folder."""
        if isinstance(self.network, DiffusersFolder):
            return replace(self, network=replace(self.network, source=folders[0], unet=None))
        return self if self.start is None else replace(self, start=replace(self.start, sources=tuple(folders)))

    @property
    def code(self) -> OwnNetwork | None:
        """The network, if its code is not the package's."""
        return code_of(self.network)

    @property
    def foreign(self) -> str | None:
        """What the names of those weights begin with whose code is not the package's, if there are any."""
        return NETWORK if self.code is not None or isinstance(self.network, Own) else None

    def said(self, generator: ImageGenerator, starts: Sequence[PublicStart] = ()) -> "Diffusion":
        """Return the method as settings can say it."""
        assert isinstance(generator, DenoisingGenerator)
        begun = None if self.start is None else self.start.said(starts)
        return replace(self, network=said_of(self.network, generator.denoiser.network), start=begun)

    def answers(self, generator: ImageGenerator) -> Float[Tensor, "2 channel height width"]:
        """Return what the denoiser makes of two noisy copies of made-up images."""
        assert isinstance(generator, DenoisingGenerator)
        denoiser, one = generator.denoiser, replace(self.loss, noise_multiplicity=1)
        x, labels, sigma, noise = made_up.first(2, made_up.made_up_batch(one, denoiser, generator.facts))
        answers: Float[Tensor, "2 channel height width"] = denoiser(x + noise[:, 0], sigma[:, 0], labels[:, 0])
        return answers

    def with_code(self, network: OwnNetwork) -> Method:
        """Return the method with the code of its network, which settings do not have."""
        if not isinstance(self.network, Own):
            return super().with_code(network)
        return replace(self, network=network)


def require_sampler_names(names: Collection[object]) -> None:
    """Raise InputError unless these may be the names of samplers: few, short, and words of one form."""
    require_at_most(_MOST_SAMPLERS, samplers=len(names))
    for name in names:
        if not isinstance(name, str) or not _SAMPLER.fullmatch(name):
            said = ascii(name)[:80]
            raise InputError(f"a sampler is called {said}: take a letter, and then at most 31 of a-z, 0-9, _ and -")


def _matched(denoiser: PreconditionedDenoiser) -> MatchedPreconditioning:
    """Return what a denoiser around a prior has: the prior, and perhaps gains."""
    assert isinstance(denoiser.preconditioning, MatchedPreconditioning)
    return denoiser.preconditioning


def replace_sampler(generator: DenoisingGenerator, sampler: AnySampler) -> DenoisingGenerator:
    """Return the generator with another sampler, whose steps are two at most."""
    return generator.sampled_by(sampler).shortened()[0]
