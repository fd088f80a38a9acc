"""The frozen values that settings are made of: `Config` and its tables.

`[data]`, `[privacy]` and `[machine]` are every run's; all other tables belong to the method. `[machine]` may change
when a run goes on, and never changes the claim.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dpdm.config.earlier import earlier_of, released_by
from dpdm.data import Channels, Fit, ImageDataset, is_built_in, open_dataset, open_public
from dpdm.methods import Budget, Diffusion, Method, TakesSteps
from dpdm.privacy import AnyPlan, Earlier, LayerWise, NonPrivate, OneBackwardEach, Plan, Strategy, Vectorized
from dpdm.privacy.plan import Noise
from dpdm.privacy.releases import Unit
from dpdm.privacy.search import Search
from dpdm.types import InputError, require_at_most, require_counts, require_counts_or_none, require_seed

_MOST_AT_ONCE = 2**20


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
        require_counts_or_none(num_classes=self.num_classes)
        if self.size is not None:
            require_counts(**{"data.size": self.size})
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
        if self.public and is_built_in(self.name) and opened.name != self.name:
            raise InputError(
                f"data.name = {self.name} is the name of a public data set, and these are not it: take another"
            )
        return dataclasses.replace(opened, name=self.name, public=self.public)


@dataclass(frozen=True, kw_only=True)
class Public:
    """`[public]`: images that are declared public, for methods that start from some.

    They are brought to the size of the private images in the same way (`data.fit`). The claim calls them by `name`
    (default: that of the source), and sets that they are joined from by `name` and a number. A finished run is a source
    too: images are drawn from its release. They are not public, and the claim counts what that release cost
    (`earlier`).
    """

    source: str
    name: str | None = None

    def open(self, shape: tuple[int, int, int], class_names: tuple[str, ...], fit: Fit) -> ImageDataset:
        """Return the images at the shape of private ones, which have these classes and were made square so."""
        opened = open_public(self.source, shape=shape, class_names=class_names, fit=fit)
        if self.name is None:
            return opened
        named = [dataclasses.replace(each, name=f"{self.name}, set {n}") for n, each in enumerate(opened.made_of, 1)]
        return dataclasses.replace(opened, name=self.name, made_of=tuple(named))

    @property
    def earlier(self) -> tuple[Earlier, ...]:
        """What the release cost that images are drawn from; nothing where images are public."""
        return released_by(self.source)


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """`[privacy]`: the claim that is asked for.

    `epsilon` has no default but a preset's, for the images that the preset names: it is a person's decision.
    `dataset_size` declares a public figure, and the claim is about adding or removing one image. Without `dataset_size`
    the real number is public, and the claim is about blanking one image out. Where images are in groups (`data.group`),
    it is groups that are counted, selected and added, removed or blanked out. `steps`, `expected_batch_size` and
    `max_grad_norm` are for methods that take steps (default: the method's own number; a sixteenth of the size, from 64
    to 2048; 1). `noise` is "continuous" or "grid" (see `Plan`).
    """

    kind: ClassVar[str] = "dp-sgd"
    epsilon: float | None = None
    delta: float = 1e-5
    dataset_size: int | None = None
    expected_batch_size: int | None = None
    steps: int | None = None
    max_grad_norm: float = 1.0
    noise: Noise = "continuous"

    def __post_init__(self) -> None:
        _require_counts_of(self)

    def plan(
        self,
        method: Method,
        count_units: Callable[[], int],
        *,
        unit: Unit = "image",
        search: Search | None = None,
        earlier: tuple[Earlier, ...] = (),
    ) -> Plan:
        """Return the plan, its noise calibrated. `count_units` is called if no size is declared.

        `earlier` is what a release cost from which public images are drawn; what starts bring along is found.
        """
        return method.plan(
            epsilon=require_epsilon(self),
            delta=self.delta,
            dataset_size=count_units() if self.dataset_size is None else self.dataset_size,
            steps=self.steps,
            expected_batch_size=self.expected_batch_size,
            max_grad_norm=self.max_grad_norm,
            relation="replace_special" if self.dataset_size is None else "add_or_remove_one",
            noise=self.noise,
            unit=unit,
            search=search,
            earlier=(*earlier, *earlier_of(method.start_folders)),
        )


@dataclass(frozen=True, kw_only=True)
class NoPrivacy:
    """`[privacy]` of the kind "non-private": the same sums and steps, neither clipping nor noise, and no claim."""

    kind: ClassVar[str] = "non-private"
    dataset_size: int | None = None
    expected_batch_size: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        _require_counts_of(self)

    def plan(
        self, method: Method, count_units: Callable[[], int], *, unit: Unit = "image", earlier: tuple[Earlier, ...] = ()
    ) -> AnyPlan:
        """Return the plan, which counts nothing `earlier`. `count_units` is called if no size is declared."""
        size = count_units() if self.dataset_size is None else self.dataset_size
        budget = Budget(1.0, 1e-5, size, self.steps, self.expected_batch_size)
        return NonPrivate(dataset_size=size, releases=method.releases(budget), unit=unit)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`[machine]`: settings for the speed on this machine. They may change when a run goes on.

    Args:
        physical_batch_size: Examples on the device at once. "auto" fits them to its memory and speed.
        strategy: How to compute clipped gradients. "layer-wise" is the fastest, by rules for the package's layers.
            "one-backward-each" needs the least memory. "vectorized" is the reference.
        device: The device. "auto" takes a GPU if there is one.
        precision: Precision of the network's calls. "auto" is bfloat16 where the hardware has it.
        checkpointing: Whether the backward pass computes blocks of a `diffusers` network again. It saves memory, and
            takes from a fourth more time to twice as much.
        tensorboard: Whether to write for TensorBoard, too: figures for anyone into `watch/`, losses and norms into
            `private/`.

    Example:
        >>> Machine(precision="float32").physical_batch_size
        'auto'
    """

    physical_batch_size: int | Literal["auto"] = "auto"
    strategy: Literal["layer-wise", "vectorized", "one-backward-each"] = "layer-wise"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpointing: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.checkpointing and self.strategy == "vectorized":
            raise InputError(
                "machine.checkpointing has no effect on the strategy vectorized, which keeps all: leave it out"
            )
        if self.physical_batch_size != "auto":
            require_counts(physical_batch_size=self.physical_batch_size)
            require_at_most(_MOST_AT_ONCE, physical_batch_size=self.physical_batch_size)

    @property
    def clipping(self) -> Strategy:
        """The strategy itself."""
        strategies: dict[str, Strategy] = {
            "vectorized": Vectorized(),
            "one-backward-each": OneBackwardEach(),
            "layer-wise": LayerWise(),
        }
        return strategies[self.strategy]


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run: one TOML file.

    Args:
        method: How a generator is made. In a file, `method` is its name, and its settings are tables beside `[data]`.
        seed: Of first weights and the like, and of nothing that keeps a secret.
        data: Which images.
        public: Which images that are declared public a method starts from, if it does.
        privacy: The claim that is asked for.
        machine: What makes it fast here.
    """

    data: Data
    method: Method = field(default_factory=Diffusion)
    seed: int = 0
    public: Public | None = None
    privacy: Privacy | NoPrivacy = field(default_factory=Privacy)
    machine: Machine = field(default_factory=Machine)

    def __post_init__(self) -> None:
        require_seed(seed=self.seed)

    def plan(self, count_units: Callable[[], int], **search: Search) -> AnyPlan:
        """Return the plan, its noise calibrated. `count_units` is called if no size is declared."""
        return self.privacy.plan(self.method, count_units, unit=self.data.unit, earlier=self.earlier, **search)

    @property
    def earlier(self) -> tuple[Earlier, ...]:
        """What a release cost from which the images are drawn that a method starts from."""
        return () if self.public is None else self.public.earlier


def _require_counts_of(privacy: Privacy | NoPrivacy) -> None:
    """Raise InputError if what counts something in [privacy] is no whole number; steps may be 0, for a better line."""
    require_counts_or_none(steps=privacy.steps)
    for name in ("dataset_size", "expected_batch_size"):
        if (number := getattr(privacy, name)) is not None:
            require_counts(**{name: number})


def require_epsilon(privacy: Privacy) -> float:
    """Return ε, or raise InputError if nobody gave it."""
    if privacy.epsilon is None:
        raise InputError(
            "epsilon is missing: only a preset has a default, and for its own images alone. Say how much may be learnt "
            "about one unit of privacy, such as --epsilon 1 (a strong promise) or --epsilon 10 (a weak one)"
        )
    return privacy.epsilon


def is_timed(method: Method) -> bool:
    """Whether a method takes steps, or has other settings, which can be fitted to a time."""
    return isinstance(method, TakesSteps) or bool(method.timed)


def require_timed(method: Method) -> None:
    """Raise InputError unless a method takes steps, or has other settings, which can be fitted to a time."""
    if not is_timed(method):
        raise InputError(f"the method {method.kind} takes no steps that could be timed: leave out --minutes")


def require_public_source(method: Method, *, given: bool) -> None:
    """Raise InputError unless public images are given exactly where a method starts from some."""
    if method.starts_from_images and not given:
        raise InputError(
            f"the method {method.kind} starts from public images: name some, by --public PATH, or --public shapes "
            "for drawn ones (in Python, public=...)"
        )
    if given and not method.starts_from_images:
        changed = " with these settings" if type(method).starts_from_images else ""
        raise InputError(
            f"the method {method.kind} starts from no public images{changed}: leave out --public, or name a method "
            "that does, by --method (dpdm advise ranks those for your images)"
        )


def require_same_unit(mechanism: AnyPlan, data: ImageDataset) -> None:
    """Raise InputError unless the unit of the plan is that of the images."""
    if mechanism.unit == "image" and data.groups is not None:
        raise InputError(
            f"{data.name} has groups of images, and the plan's unit is one image: set data.group, or unit='group'"
        )
    if mechanism.unit == "group" and data.groups is None:
        raise InputError(f"the plan's unit is one group, and {data.name} says of no image in which group it is")


def require_exact_size(mechanism: AnyPlan, data: ImageDataset) -> None:
    """Raise InputError if the plan claims an exact number of units, and there are others."""
    if mechanism.relation == "replace_special" and mechanism.dataset_size != data.num_units:
        units = {"image": "records", "group": "groups"}[mechanism.unit]
        raise InputError(
            f"dataset_size = {mechanism.dataset_size} is claimed as exact, and there are {data.num_units} {units}: "
            "correct it, or declare a public size with relation add_or_remove_one"
        )
