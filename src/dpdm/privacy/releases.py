"""The entries of a plan: named noisy sums in their order, with what one record may add to each, and how often."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Literal, Self, get_args

from dpdm.privacy.accounting import Event, GaussianRelease, PoissonGaussianSteps, Relation, ShardGaussianSteps
from dpdm.types import InputError, require_in_range, require_name, whole_number

Unit = Literal["image", "group"]

STEPS = "steps"
"""What the steps of training are called in a plan, unless a method has other names for its Poisson sums."""

_NAME = re.compile("[a-z0-9][a-z0-9 ,._-]{0,63}")
MOST_SUMS = 10**6
_MOST_NAMES = 1000
MOST_EARLIER = 64


@dataclass(frozen=True, kw_only=True)
class FullSum:
    """One sum over all records.

    Args:
        name: The name of the sum, in words that a claim may hold.
        noise_multiplier: Standard deviation of its noise ÷ its L2 sensitivity; None until calibrated.

    Example:
        >>> Plan(dataset_size=60000, releases=(FullSum(name="class means", noise_multiplier=8.0),)).epsilon() < 0.5
        True
    """

    kind: ClassVar[str] = "full"
    name: str
    noise_multiplier: float | None = None
    count: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _require_name(self.name)
        _require_noise(self)

    def events(self, count: int, dataset_size: int) -> list[Event]:
        """Return the events of `count` such sums: none or one."""
        return [GaussianRelease(noise_multiplier=noise_of(self))] * count


@dataclass(frozen=True, kw_only=True)
class PoissonSums:
    """`count` sums, one after the other, each over a fresh batch that every record enters independently.

    Args:
        name: The name of the sums.
        count: How many.
        expected_batch_size: E: each record enters with probability E / N. Means are sums divided by this constant.
        max_norm: C, the L2 norm that each record's vector is clipped to: the sensitivity of each sum.
        noise_multiplier: Standard deviation of the noise ÷ C; None until calibrated.

    Example:
        >>> sums = PoissonSums(count=100, expected_batch_size=2048, noise_multiplier=1.5)
        >>> Plan(dataset_size=60000, releases=(sums,)).epsilon() < 3
        True
    """

    kind: ClassVar[str] = "poisson"
    event: ClassVar[type[PoissonGaussianSteps]] = PoissonGaussianSteps
    name: str = STEPS
    count: int
    expected_batch_size: int
    max_norm: float = 1.0
    noise_multiplier: float | None = None

    def __post_init__(self) -> None:
        _require_name(self.name)
        _require_noise(self)
        for name in ("count", "expected_batch_size"):  # one number has one spelling in a claim
            object.__setattr__(self, name, whole_number(_said(name), getattr(self, name)))
        if self.max_norm != math.inf:  # that of sums without clipping, which are not private
            require_in_range(max_grad_norm=self.max_norm)
        object.__setattr__(self, "max_norm", float(self.max_norm))

    @property
    def radius(self) -> float:
        """What each vector is clipped to."""
        return self.max_norm

    def out_of(self, dataset_size: int) -> int:
        """Return of how many a batch is chosen."""
        return dataset_size

    def events(self, count: int, dataset_size: int) -> list[Event]:
        """Return the events of `count` such sums."""
        rate = self.expected_batch_size / self.out_of(dataset_size)
        return [self.event(noise_multiplier=noise_of(self), sample_rate=rate, steps=count)] if count else []


@dataclass(frozen=True, kw_only=True)
class ShardSums(PoissonSums):
    """`count` sums, one after the other, each over a fresh batch of shards that every shard enters independently.

    Each record lies in one shard, whatever the others are. A shard's vector is any function of its records and of what
    was released before: one record may exchange it for any other. So it is clipped to S / 2, and moves by S at most.

    Args:
        shards: K, their number.
        expected_batch_size: E: each shard enters with probability E / K. Means are sums divided by this constant.
        max_norm: S, the sensitivity of each sum: twice the L2 norm that a shard's vector is clipped to.

    Example:
        >>> sums = ShardSums(shards=100, count=100, expected_batch_size=5, noise_multiplier=1.5)
        >>> sums.radius, Plan(dataset_size=60000, releases=(sums,)).epsilon() < 3
        (0.5, True)
    """

    kind: ClassVar[str] = "shards"
    event: ClassVar[type[PoissonGaussianSteps]] = ShardGaussianSteps
    shards: int

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shards", whole_number("shards", self.shards))

    @property
    def radius(self) -> float:
        """What each shard's vector is clipped to: half of the sensitivity."""
        return self.max_norm / 2

    def out_of(self, dataset_size: int) -> int:
        """Return the number of shards."""
        return self.shards


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """Noisy sums of a finished run: a run that begins with images drawn from its release counts them again.

    Nothing can show that the two are about other records. So both count, as if they were about the same.

    Args:
        run: What the finished run calls its images.
        noise_multiplier: Standard deviation of the noise ÷ the sensitivity.
        sample_rate: Probability by which each record entered a sum.
        count: How many sums.
        dataset_size: The declared number of records of that run.
        relation: What "neighbouring" meant.
        unit: What was protected.
    """

    run: str
    noise_multiplier: float
    sample_rate: float
    count: int
    dataset_size: int
    relation: Relation
    unit: Unit

    def __post_init__(self) -> None:
        require_name(self.run, "an earlier release")
        whole_number("count", self.count)
        whole_number("dataset_size", self.dataset_size)
        if self.relation not in get_args(Relation) or self.unit not in get_args(Unit):
            raise InputError("an earlier release has another relation or unit than there are")
        self.events()  # which refuses numbers of another kind

    def events(self) -> list[Event]:
        """Return what they cost."""
        noise, rate = self.noise_multiplier, self.sample_rate
        return [PoissonGaussianSteps(noise_multiplier=noise, sample_rate=rate, steps=self.count)]


Release = FullSum | PoissonSums | ShardSums
"""One entry of a plan."""


@dataclass(frozen=True, kw_only=True)
class NamedSums:
    """Named noisy sums in their order: what plans with and without noise have in common."""

    dataset_size: int
    releases: tuple[Release, ...]
    unit: Unit = "image"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataset_size", whole_number("dataset_size", self.dataset_size))
        if self.unit not in get_args(Unit):
            raise InputError(f"unit must be one of {', '.join(get_args(Unit))}, not {self.unit!r}")
        object.__setattr__(self, "releases", tuple(self.releases))
        for release in self.releases:
            if type(release) not in (FullSum, PoissonSums, ShardSums):
                raise InputError(
                    f"releases holds a {type(release).__name__}: a plan is made of FullSum, PoissonSums and ShardSums"
                )
        names = [release.name for release in self.releases]
        if twice := [name for name in names if names.count(name) > 1] if len(names) <= _MOST_NAMES else ["too many"]:
            raise InputError(f"a plan's releases have up to {_MOST_NAMES} names, each its own: {twice[0]!r} is not")
        if not self.releases:
            raise InputError("a plan releases something: give it steps above 0, or releases")
        if self.planned > MOST_SUMS:
            raise InputError(f"steps must be at most {MOST_SUMS:,}: beyond, no accountant comes to an end")
        for release in self.releases:
            if isinstance(release, PoissonSums) and self.rate(release) > 1:
                number = release.out_of(self.dataset_size)
                of = f"shards = {number}" if isinstance(release, ShardSums) else f"dataset_size = {number}"
                raise InputError(
                    f"expected_batch_size = {release.expected_batch_size} is more than {of}, a sampling probability "
                    "above 1: choose a smaller batch"
                )

    @classmethod
    def dp_sgd(
        cls,
        *,
        releases: Mapping[str, float | None] | None = None,
        steps: int,
        expected_batch_size: int = 1,
        max_grad_norm: float = 1.0,
        noise_multiplier: float | None = None,
        **fields: Any,  # noqa: ANN401 (those of the class)
    ) -> Self:
        """Return the plan of DP-SGD with Poisson batch selection: sums over all records first, then steps.

        Args:
            releases: The noise multiplier of each sum before the steps, by its name and in order.
            steps: Number of noisy gradients; 0 for the earlier sums alone.
            expected_batch_size: E, the constant by which every noisy gradient sum is divided.
            max_grad_norm: Clipping norm C: the sensitivity of one gradient sum.
            noise_multiplier: Standard deviation of a step's noise ÷ C; None until calibrated.
            fields: `dataset_size`, and the other fields of the plan.

        Source:
            Abadi et al. 2016.

        Example:
            >>> plan = DPSGD(dataset_size=60000, expected_batch_size=2048, steps=100, noise_multiplier=1.5)
            >>> plan.epsilon() < 3
            True
        """
        before = [FullSum(name=name, noise_multiplier=noise) for name, noise in (releases or {}).items()]
        if steps != 0:
            whole_number("steps", steps)
        elif not before or isinstance(steps, bool):
            raise InputError(f"steps must be a number above 0, or 0 after other releases, not {steps}")
        if not steps:
            return cls(releases=tuple(before), **fields)
        taken = PoissonSums(
            count=steps,
            expected_batch_size=expected_batch_size,
            max_norm=max_grad_norm,
            noise_multiplier=noise_multiplier,
        )
        return cls(releases=(*before, taken), **fields)

    @property
    def planned(self) -> int:
        """The number of all noisy sums."""
        return sum(release.count for release in self.releases)

    @property
    def poisson(self) -> tuple[PoissonSums, ...]:
        """The entries that are sums over Poisson batches."""
        return tuple(release for release in self.releases if isinstance(release, PoissonSums))

    @property
    def full(self) -> tuple[FullSum, ...]:
        """The entries that are sums over all records."""
        return tuple(release for release in self.releases if isinstance(release, FullSum))

    @property
    def steps(self) -> int:
        """The number of sums over Poisson batches."""
        return sum(release.count for release in self.poisson)

    @property
    def _of_steps(self) -> PoissonSums | None:
        return self.poisson[-1] if self.steps else None

    @property
    def expected_batch_size(self) -> int:
        """E of the steps, 0 without any."""
        return self._of_steps.expected_batch_size if self._of_steps else 0

    @property
    def sample_rate(self) -> float:
        """Inclusion probability q of each record in each step."""
        return self.rate(self._of_steps) if self._of_steps else 0.0

    @property
    def max_grad_norm(self) -> float:
        """Clipping norm C of the steps."""
        return self._of_steps.max_norm if self._of_steps else math.inf

    @property
    def noise_multiplier(self) -> float | None:
        """Standard deviation of a step's noise ÷ C; None without steps or noise."""
        return self._of_steps.noise_multiplier if self._of_steps else None

    def rate(self, release: PoissonSums) -> float:
        """Return the probability q by which each record enters a batch of this entry."""
        return release.expected_batch_size / release.out_of(self.dataset_size)

    def at(self, number: int) -> Release:
        """Return the entry that noisy sum `number` (from 0) belongs to."""
        for release, end in zip(self.releases, accumulate(r.count for r in self.releases), strict=True):
            if number < end:
                return release
        raise InputError(f"all {self.planned} releases of this plan are spent: its claim allows no more")

    def with_steps(self, steps: int, *, expected_batch_size: int | None = None) -> Self:
        """Return this plan with another number of steps, and another batch, in its last entry over Poisson batches."""
        last = self.poisson[-1]
        batch = expected_batch_size or last.expected_batch_size
        other = dataclasses.replace(last, count=steps, expected_batch_size=batch)
        changed = [other if release is last else release for release in self.releases]
        return dataclasses.replace(self, releases=tuple(changed))

    def steps_among(self, made: int) -> int:
        """Return how many of the first `made` sums are over Poisson batches."""
        return sum(count for release, count in self._made(made) if isinstance(release, PoissonSums))

    def made_after(self, steps: int) -> int:
        """Return the number of sums made after `steps` steps, with those between that step and the next."""
        before = 0
        for release in self.releases:
            if isinstance(release, PoissonSums):
                if steps < release.count:
                    return before + steps
                steps -= release.count
            before += release.count
        return before

    def _made(self, made: int) -> Iterator[tuple[Release, int]]:
        for release in self.releases:
            yield release, max(0, min(made, release.count))
            made -= release.count


def noise_of(release: Release) -> float:
    """Return a release's noise multiplier.

    Raises:
        InputError: It has none yet.
    """
    if release.noise_multiplier is None:
        raise InputError("this plan has no noise yet: call .calibrate(epsilon=...) first")
    return release.noise_multiplier


def _require_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"a release is called {ascii(name)[:80]}: take up to 64 small letters, digits and spaces")


def _require_noise(release: Release) -> None:
    if release.noise_multiplier is not None:
        require_in_range(noise_multiplier=release.noise_multiplier)
        object.__setattr__(release, "noise_multiplier", float(release.noise_multiplier))


def _said(name: str) -> str:
    return {"count": "steps"}.get(name, name)
