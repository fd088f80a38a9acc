"""The frozen values that settings are made of: `Config` and its tables.

`[privacy]` is exactly the claim; `[training]` may change speed and quality, never the claim.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

from dpdm.data import Channels, Fit, ImageDataset, open_dataset
from dpdm.diffusion import (
    DDIM,
    EDM,
    VE,
    VP,
    Churn,
    DenoisingLoss,
    DPMSolver,
    FromPrior,
    MatchedSolver,
    MomentMatched,
    StochasticDDIM,
    V,
)
from dpdm.networks import MLP, CompactUNet, Network, Own, UNet, Zero
from dpdm.privacy import (
    DPSGD,
    GaussianRelease,
    LayerWise,
    Mechanism,
    NonPrivate,
    OneBackwardEach,
    Strategy,
    Vectorized,
    gaussian_mu,
)
from dpdm.privacy.mechanism import Noise, Unit
from dpdm.privacy.search import Search
from dpdm.types import InputError, require_at_most, require_positive, require_seed, require_within

AnyPreconditioning = EDM | V | VP | VE | MomentMatched
_MOST_CENTRES, _MOST_ROUNDS, _MOST_AT_ONCE = 1000, 100, 2**20
_MOST_SAMPLERS, _SAMPLER = 16, re.compile("[a-z][a-z0-9_-]{0,31}")

AnySampler = DDIM | StochasticDDIM | Churn | DPMSolver | MatchedSolver | FromPrior


@dataclass(frozen=True, kw_only=True)
class Data:
    """`[data]`: which images, and the facts declared about them.

    `group` is what names the group of each image (see `open_dataset`); a group is then the unit of the claim.
    `name` is what messages, the release and the ledger call them (default: that of the source). `public` declares that
    the images are published already: a ledger limits nothing, and their labels tell how many classes there are.
    """

    source: str
    size: int | None = None
    fit: Fit = "crop"
    channels: Channels | None = None
    num_classes: int | None = None
    group: str | None = None
    name: str | None = None
    public: bool = False

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 0:
            raise InputError(f"num_classes must not be negative, not {self.num_classes}")
        if self.fit != "crop" and self.size is None:
            raise InputError(f"fit = {self.fit} says how images get to a size, and none is given: set data.size too")

    @property
    def unit(self) -> Unit:
        """What a claim about these images protects."""
        return "image" if self.group is None else "group"

    def open(self) -> ImageDataset:
        """Return the images as one fixed table."""
        opened = open_dataset(
            self.source,
            size=self.size,
            fit=self.fit,
            channels=self.channels,
            num_classes=self.num_classes,
            group=self.group,
            public=self.public,
        )
        return self.named(opened)

    def named(self, opened: ImageDataset) -> ImageDataset:
        """Return the images under the name that is declared for them, and as public as they are declared."""
        if self.name is None:
            return dataclasses.replace(opened, public=opened.public or self.public)
        return dataclasses.replace(opened, name=self.name, public=self.public)


@dataclass(frozen=True, kw_only=True)
class Prior:
    """`[prior]`: the mixture of Gaussians that is released before the first step, and its part of the budget.

    Args:
        share: Its part of the budget, as a share of μ² (`gaussian_mu`); the steps get the rest. It has no meaning
            without steps, since the prior then gets all.
        centres: Gaussians for each class.
        rounds: Of k-means, by which the centres are found; of no use to one centre.
        split: Relative budget of the overall mean, the class means, the shared covariance, the class covariances, and
            all k-means rounds together.
        max_deviation: What a record's deviation from a mean is clipped to: a root mean square per pixel.
    """

    share: float = 0.2
    centres: int = 10
    rounds: int = 3
    split: tuple[float, float, float, float, float] = (0.01, 0.25, 0.3, 0.1, 0.34)
    max_deviation: float = 0.5

    def __post_init__(self) -> None:
        require_positive(centres=self.centres, rounds=self.rounds)
        require_within(1e-6, 2, max_deviation=self.max_deviation)  # pixels are from -1 to 1
        require_at_most(_MOST_CENTRES, centres=self.centres)
        require_at_most(_MOST_ROUNDS, rounds=self.rounds)
        if not 0 < self.share < 1:
            raise InputError(f"share must be above 0 and below 1, not {self.share}")
        for part in self.split:
            require_within(1e-6, 1e6, split=part)

    def releases(self, *, epsilon: float, delta: float, alone: bool = False) -> tuple[GaussianRelease, ...]:
        """Return the releases in their order, with the noise that their share of (ε, δ) gives each.

        Args:
            epsilon: ε of the whole claim.
            delta: δ of the whole claim.
            alone: Whether no steps follow, so that all of the budget is for these.
        """
        *parts, rounds = self.split
        if self.centres > 1:
            parts += [rounds / self.rounds] * self.rounds
        share = 1.0 if alone else self.share
        whole = gaussian_mu(epsilon=epsilon, delta=delta)
        multipliers = [1 / (whole * math.sqrt(share * part / sum(parts))) for part in parts]
        return tuple(GaussianRelease(noise_multiplier=multiplier) for multiplier in multipliers)


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """`[privacy]`: the claim that is asked for.

    `epsilon` has no default but a preset's, for the images that the preset names: it is a person's decision.
    `dataset_size` declares a public figure, and the claim is about adding or removing one image; without it the real
    number is public, and the claim is about blanking one out. Where images are in groups (`data.group`), it is groups
    that are counted, selected and added, removed or blanked out. Without `expected_batch_size` it is a sixteenth of the
    size, from 64 to 2048. With `steps = 0` the prior is all that is released.
    `noise` is "continuous" or "grid" (see `DPSGD`).
    """

    epsilon: float | None = None
    delta: float = 1e-5
    dataset_size: int | None = None
    expected_batch_size: int | None = None
    steps: int = 500
    max_grad_norm: float = 1.0
    noise: Noise = "continuous"

    def plan(
        self,
        count_units: Callable[[], int],
        prior: Prior | None = None,
        *,
        unit: Unit = "image",
        search: Search | None = None,
    ) -> DPSGD:
        """Return the plan, its noise calibrated. `count_units` is called if no size is declared."""
        promised = require_epsilon(self)
        size = count_units() if self.dataset_size is None else self.dataset_size
        epsilon = promised if search is None else search.epsilon_of_one(epsilon=promised, delta=self.delta)
        return DPSGD(
            dataset_size=size,
            expected_batch_size=_batch_size(self.expected_batch_size, size),
            steps=self.steps,
            max_grad_norm=self.max_grad_norm,
            delta=self.delta,
            relation="replace_special" if self.dataset_size is None else "add_or_remove_one",
            noise=self.noise,
            unit=unit,
            earlier=prior.releases(epsilon=epsilon, delta=self.delta, alone=not self.steps) if prior else (),
            search=search,
        ).calibrate(epsilon=promised)


@dataclass(frozen=True, kw_only=True)
class NoPrivacy:
    """`[privacy]` of the kind "non-private": the same batches and steps, neither clipping nor noise, and no claim."""

    dataset_size: int | None = None
    expected_batch_size: int | None = None
    steps: int = 500

    def plan(self, count_units: Callable[[], int], prior: Prior | None = None, *, unit: Unit = "image") -> Mechanism:
        """Return the plan. `count_units` is called if no size is declared."""
        size = count_units() if self.dataset_size is None else self.dataset_size
        return NonPrivate(
            dataset_size=size,
            expected_batch_size=_batch_size(self.expected_batch_size, size),
            steps=self.steps,
            earlier=prior.releases(epsilon=1, delta=1e-5) if prior else (),
            unit=unit,
        )


@dataclass(frozen=True, kw_only=True)
class Training:
    """`[training]`: settings that change speed and quality, and never the claim.

    Args:
        learning_rate: Adam's, reached after `warmup`.
        warmup: Fraction of the steps over which the learning rate rises from zero.
        decay: Fraction of itself to which the learning rate falls by a cosine; 1 keeps it constant.
        ema_decay: Weight of the past in the average of the weights, which is what is released.
        physical_batch_size: Examples on the device at once; "auto" is what its memory holds and its speed wants.
        strategy: How clipped gradients are computed: "layer-wise" is the fastest, by rules for the layers of the
            package's networks; "one-backward-each" needs the least memory; "vectorized" is the reference.
        device: "auto" takes a GPU where there is one.
        precision: Of the network's calls; "auto" is bfloat16 where the hardware has it.
        tensorboard: Whether to write for TensorBoard too: what anyone may see into `watch/`, losses and norms into
            `private/`.
        seed: Of the network's initial weights and of where a prior's centres start, and of nothing else.
    """

    learning_rate: float = 4e-3
    warmup: float = 0.05
    decay: float = 0.1
    ema_decay: float = 0.999
    physical_batch_size: int | Literal["auto"] = "auto"
    strategy: Literal["layer-wise", "vectorized", "one-backward-each"] = "layer-wise"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require_within(1e-12, 100, learning_rate=self.learning_rate)
        if self.physical_batch_size != "auto":
            require_positive(physical_batch_size=self.physical_batch_size)
            require_at_most(_MOST_AT_ONCE, physical_batch_size=self.physical_batch_size)
        require_seed(seed=self.seed)
        for name, value in (("warmup", self.warmup), ("ema_decay", self.ema_decay)):
            if not 0 <= value < 1:
                raise InputError(f"{name} must be in [0, 1), not {value}")
        if not 0 <= self.decay <= 1:
            raise InputError(f"decay must be in [0, 1], not {self.decay}")

    @property
    def clipping(self) -> Strategy:
        """The strategy itself."""
        strategies: dict[str, Strategy] = {
            "vectorized": Vectorized(),
            "one-backward-each": OneBackwardEach(),
            "layer-wise": LayerWise(),
        }
        return strategies[self.strategy]

    def learning_rate_at(self, progress: float) -> float:
        """Return the learning rate when a fraction `progress` in [0, 1] of the steps is spent."""
        cosine = (1 + self.decay) / 2 + (1 - self.decay) / 2 * math.cos(math.pi * progress)
        return self.learning_rate * min(1.0, (progress + 1e-3) / max(self.warmup, 1e-3)) * cosine


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run: one TOML file.

    `sampler` is what images are made with unless a name among `samplers` is asked for. `prior` belongs to
    moment-matched preconditioning, which always has one, and to no other.
    """

    data: Data
    privacy: Privacy | NoPrivacy = field(default_factory=Privacy)
    prior: Prior | None = None
    network: Network = field(default_factory=CompactUNet)
    preconditioning: AnyPreconditioning = field(default_factory=MomentMatched)
    loss: DenoisingLoss = field(default_factory=DenoisingLoss)
    training: Training = field(default_factory=Training)
    sampler: AnySampler = field(default_factory=DDIM)
    samplers: dict[str, AnySampler] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.preconditioning, MomentMatched):
            object.__setattr__(self, "prior", self.prior or Prior())
        elif self.prior is not None:
            raise InputError("prior is for moment-matched preconditioning: set preconditioning.kind=moment-matched")
        require_samplers_trained(self.sampler, self.samplers, self.preconditioning, self.loss)

    def plan(self, count_units: Callable[[], int]) -> Mechanism:
        """Return the plan, its noise calibrated. `count_units` is called if no size is declared."""
        return self.privacy.plan(count_units, self.prior, unit=self.data.unit)


def require_epsilon(privacy: Privacy) -> float:
    """Return ε, or raise InputError if nobody gave it."""
    if privacy.epsilon is None:
        raise InputError(
            "epsilon is missing: only a preset has a default, and for its own images alone. Say how much may be learnt "
            "about one unit of privacy, such as --epsilon 1 (a strong promise) or --epsilon 10 (a weak one)"
        )
    return privacy.epsilon


def require_same_unit(mechanism: Mechanism, data: ImageDataset) -> None:
    """Raise InputError unless the unit of the plan is that of the images."""
    if mechanism.unit == "image" and data.groups is not None:
        raise InputError(
            f"{data.name} has groups of images, and the plan's unit is one image: set data.group, or unit='group'"
        )
    if mechanism.unit == "group" and data.groups is None:
        raise InputError(f"the plan's unit is one group, and {data.name} says of no image in which group it is")


def require_exact_size(mechanism: Mechanism, data: ImageDataset) -> None:
    """Raise InputError if the plan claims an exact number of units, and there are others."""
    if mechanism.relation == "replace_special" and mechanism.dataset_size != data.num_units:
        units = {"image": "records", "group": "groups"}[mechanism.unit]
        raise InputError(
            f"dataset_size = {mechanism.dataset_size} is claimed as exact, and there are {data.num_units} {units}: "
            "correct it, or declare a public size with relation add_or_remove_one"
        )


def require_prior_planned(prior: Prior | None, preconditioning: AnyPreconditioning, mechanism: Mechanism) -> None:
    """Raise InputError unless moment-matched preconditioning, a prior, and the plan's releases for it come together."""
    if (prior is None) == isinstance(preconditioning, MomentMatched):
        raise InputError("a prior and moment-matched preconditioning come together: give both or neither")
    planned = 0 if prior is None else len(prior.releases(epsilon=1, delta=1e-5))
    if len(mechanism.earlier) != planned:
        raise InputError(
            f"the plan has {len(mechanism.earlier)} releases before its steps and its prior needs {planned}: "
            "give the plan earlier=prior.releases(epsilon=..., delta=...)"
        )


def require_sampler_names(names: Collection[object]) -> None:
    """Raise InputError unless these may be the names of samplers: few, short, and words of one form."""
    require_at_most(_MOST_SAMPLERS, samplers=len(names))
    for name in names:
        if not isinstance(name, str) or not _SAMPLER.fullmatch(name):
            said = ascii(name)[:80]
            raise InputError(f"a sampler is called {said}: take a letter, and then at most 31 of a-z, 0-9, _ and -")


def require_samplers_trained(
    usual: AnySampler, others: dict[str, AnySampler], preconditioning: AnyPreconditioning, loss: DenoisingLoss
) -> None:
    """Raise InputError if a sampler asks for noise levels or for a null class that training does not have.

    Or if the others are called what no release may hold.
    """
    require_sampler_names(others)
    named = {"sampler": usual, **{f"samplers.{name}": other for name, other in others.items()}}
    for name, sampler in named.items():
        if isinstance(sampler, FromPrior | MatchedSolver) and not isinstance(preconditioning, MomentMatched):
            kind = KIND_OF[type(sampler)]
            raise InputError(f"{name}.kind = {kind} needs moment-matched preconditioning, which has a prior")
        sampler.require_trained(preconditioning.noise_levels, name=name)
        if sampler.guidance and not loss.label_dropout:
            raise InputError(
                f"{name}.guidance = {sampler.guidance:g} needs images without label in training: "
                f"set loss.label_dropout above 0, or {name}.guidance to 0"
            )


def _batch_size(given: int | None, dataset_size: int) -> int:
    """Return `given`, or a sixteenth of the size, from 64 to 2048, and never more than there are."""
    return min(dataset_size, max(64, min(2048, dataset_size // 16))) if given is None else given


KIND_OF: dict[type, str] = {
    Privacy: "dp-sgd",
    NoPrivacy: "non-private",
    CompactUNet: "compact-unet",
    MLP: "mlp",
    UNet: "unet",
    Zero: "zero",
    Own: "own",
    EDM: "edm",
    V: "v",
    VP: "vp",
    VE: "ve",
    DDIM: "ddim",
    StochasticDDIM: "stochastic-ddim",
    Churn: "churn",
    DPMSolver: "dpm-solver++",
    MomentMatched: "moment-matched",
    MatchedSolver: "matched-solver",
    FromPrior: "prior",
}
"""What a table's `kind` calls each value, where it may hold one of several."""
