"""The plan of a run: an ordered list of named noisy sums, fixed before the first. All of a claim follows from it.

`Plan` is a frozen value of public numbers. `NonPrivate` is the null object: the same sums without noise, and no claim.
`mechanism.MechanismRun` makes the sums of either, in their order and each once.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar, get_args

from dpdm.privacy.accounting import Accountant, Event, Relation, calibrate, encode_event, epsilon, round_up
from dpdm.privacy.clipping import Strategy
from dpdm.privacy.entropy import Entropy
from dpdm.privacy.releases import MOST_EARLIER, MOST_SUMS, Earlier, FullSum, NamedSums, PoissonSums, ShardSums, noise_of
from dpdm.privacy.search import Search
from dpdm.types import InputError, require_positive

if TYPE_CHECKING:
    from dpdm.privacy.mechanism import MechanismRun

Noise = Literal["continuous", "grid"]
_LEAST_DELTA = 1e-100


class _Startable(NamedSums):
    """What a run can be made of."""

    def start(
        self, journal: Path | None = None, *, entropy: Entropy | None = None, strategy: Strategy | None = None
    ) -> "MechanismRun":
        """Begin, or go on with, the run that `journal` counts: see `MechanismRun`."""
        from dpdm.privacy.mechanism import MechanismRun  # which is stated in terms of plans

        assert isinstance(self, AnyPlan)
        return MechanismRun(self, journal, entropy=entropy, strategy=strategy)


@dataclass(frozen=True, kw_only=True)
class Plan(_Startable):
    """Noisy sums in their order, and all of the claim. `Plan.dp_sgd` makes the plan of DP-SGD.

    Args:
        dataset_size: Declared number N of records, images or groups. Under "add_or_remove_one" a public figure that
            would read the same with one record more or fewer; under "replace_special" the exact count, which is public.
        releases: `FullSum`, `PoissonSums` and `ShardSums`, each with its own name, in the order in which they are made.
        delta: δ, below 1 / N.
        relation: What "neighbouring" means.
        noise: "continuous" adds float64 numbers to float64 sums. "grid" truncates every clipped vector of a batch to a
            grid, sums exactly, and rounds the noise to the same grid.
        unit: What is protected, and so what a record is: an image, or a group of images, such as all those of one
            person. A group is selected as a whole, and has one vector in a sum.
        search: The search that this run belongs to, if any. Only the best run is released; the claim covers all.
        earlier: Noisy sums of finished runs whose releases drew images for this one: they count again.

    Guarantees:
        * Each record, or shard, enters each Poisson sum independently with probability E / N, or E / K, a constant.
        * The noise that is drawn has the standard deviation that is accounted.
        * Every number of the plan is a constant: none is computed from the records.
        * On the grid every noisy sum is a whole number of `grid_step`s. A sum of truncated vectors is then the same
          in any order and grouping.

    Source:
        Accounting of add-or-remove and zero-out: Ponomareva et al. 2023. The grid needs no accounting of its own: for a
        whole number S, round(S + Z) = S + round(Z), so rounding is post-processing.

    Example:
        >>> plan = Plan(dataset_size=60000, releases=(FullSum(name="class means", noise_multiplier=3.73),))
        >>> round(plan.epsilon(), 2)
        1.0
    """

    kind: ClassVar[str] = "private"
    delta: float = 1e-5
    relation: Relation = "add_or_remove_one"
    noise: Noise = "continuous"
    search: Search | None = None
    earlier: tuple[Earlier, ...] = dataclasses.field(default=(), metadata={"said": "if any"})
    _asked: ClassVar[float | None] = None  # of what `calibrate` returned, and of nothing that was made from it
    _open: ClassVar[tuple[bool, ...]] = ()  # which figures `calibrate` chose

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(delta=self.delta)
        object.__setattr__(self, "delta", float(self.delta))
        object.__setattr__(self, "earlier", tuple(self.earlier))
        for each in self.earlier:
            if not isinstance(each, Earlier) or (each.relation, each.unit) != (self.relation, self.unit):
                raise InputError(
                    "earlier holds something else than noisy sums with the plan's relation and unit: a run can begin "
                    "with images drawn from a release if both protect the same, under the same relation"
                )
        if len(self.earlier) > MOST_EARLIER or self.planned + sum(each.count for each in self.earlier) > MOST_SUMS:
            raise InputError(
                f"earlier holds too many noisy sums: take at most {MOST_EARLIER} entries, and {MOST_SUMS:,} sums with "
                "the plan's own"
            )
        if not isinstance(self.search, Search | None):
            raise InputError(f"search must be a Search, not {type(self.search).__name__}")
        if self.relation not in get_args(Relation):
            raise InputError(f"relation must be one of {', '.join(get_args(Relation))}, not {self.relation!r}")
        if self.noise not in get_args(Noise):
            raise InputError(f"noise must be one of {', '.join(get_args(Noise))}, not {self.noise!r}")
        for release in self.poisson:
            if release.max_norm == math.inf:
                raise InputError(f"max_grad_norm of {release.name!r} is infinite: what is not clipped has no claim")
        if self.delta < _LEAST_DELTA:
            raise InputError(f"delta must be at least {_LEAST_DELTA}, not {self.delta}: below, float64 cannot follow")
        most = max([self.dataset_size, *(each.dataset_size for each in self.earlier)])
        if self.delta >= 1 / most:
            raise InputError(
                f"delta = {self.delta} is not below 1 / dataset_size = {1 / most:.2g}: such a claim "
                "would allow publishing a record outright; choose a smaller delta"
            )

    def events(self, *, made: int | None = None) -> list[Event]:
        """Return the events of the first `made` sums (default: all), after earlier ones; a begun search costs all."""
        made = self.planned if made is None else made
        events = [event for release, count in self._made(made) for event in release.events(count, self.dataset_size)]
        if not events:
            return []
        if self.search is not None:
            whole = [event for release in self.releases for event in release.events(release.count, self.dataset_size)]
            events = self.search.events(whole)
        return [*(event for each in self.earlier for event in each.events()), *events]

    def epsilon(self, *, made: int | None = None, accountant: Accountant = "pld") -> float:
        """Return ε at the plan's δ after the first `made` sums (default: all)."""
        return epsilon(self.events(made=made), delta=self.delta, relation=self.relation, accountant=accountant)

    def calibrate(self, *, epsilon: float) -> "Plan":
        """Return this plan with the least noise that keeps the whole of it at or below `epsilon`.

        Releases without noise all get the same noise multiplier. If none is without, the noise of all is scaled by one
        factor.

        Raises:
            InputError: When `epsilon` is not positive, or no amount of noise reaches it.
        """
        chosen = tuple(release.noise_multiplier is None for release in self.releases)

        def noisy(noise: float) -> "Plan":
            figures = [noise if r.noise_multiplier is None else r.noise_multiplier for r in self.releases]
            return with_noise(self, figures if any(chosen) else [noise * figure for figure in figures])

        noise = calibrate(lambda noise: noisy(noise).events(), target=epsilon, delta=self.delta, relation=self.relation)
        calibrated = noisy(noise)
        object.__setattr__(calibrated, "_asked", float(epsilon))
        object.__setattr__(calibrated, "_open", chosen)
        return calibrated

    @property
    def one_unit(self) -> str:
        """What one unit of protection is."""
        return {"image": "one image", "group": "one group of images"}[self.unit]

    @property
    def statement(self) -> str:
        """The claim in one line; ε is rounded up."""
        change = {"add_or_remove_one": "add or remove", "replace_special": "blank out"}[self.relation]
        of = [f"the best of {self.search.mean:g} runs on average, each of"] if self.search else []
        parts = ", ".join(
            [f"{change} {self.one_unit}", *self._before(), *of, *self._sums(), f"{self._accountant.upper()} accountant"]
        )
        # δ in full: rounded, it could be smaller than the δ that ε was computed at.
        return f"({round_up(self.epsilon())}, {self.delta!r})-DP, {parts}"

    def _before(self) -> Iterator[str]:
        """Say which earlier noisy sums count."""
        if self.earlier:
            runs = " and ".join(sorted({repr(each.run) for each in self.earlier}))
            yield f"earlier releases of {runs} (noisy sums: {sum(each.count for each in self.earlier):,})"

    def _sums(self) -> Iterator[str]:
        """Say what is released: neighbours of one kind together."""
        for full, same in groupby(self.releases, lambda release: isinstance(release, FullSum)):
            if full:
                number = len(list(same))
                yield f"{number} Gaussian release{'s' if number > 1 else ''}"
            else:
                for release in same:
                    assert isinstance(release, PoissonSums)
                    over = f" over {release.shards:,} shards" if isinstance(release, ShardSums) else ""
                    yield f"{release.count:,} Poisson steps{over} at q = {self.rate(release):.3g}"

    @property
    def _accountant(self) -> Accountant:
        """Whose bound ε is: PLD, unless it was unfit (see `accounting.epsilon`)."""
        return "pld" if self.epsilon() < self.epsilon(accountant="rdp") else "rdp"

    def claim(self, *, entropy: Entropy) -> dict[str, object]:
        """Return the claim for machines, as `privacy.json` holds it. An insecure entropy source voids the claim."""
        return {
            "private": entropy.secure,
            "statement": self.statement if entropy.secure else "NOT PRIVATE: noise and batches came from a known seed",
            "mechanism": "Gaussian noise on clipped sums" + (", Poisson batch selection" if self.steps else ""),
            "unit": self.one_unit,
            "relation": self.relation,
            "epsilon": round_up(self.epsilon()) if entropy.secure else None,
            "delta": self.delta,
            "epsilon_rdp": round_up(self.epsilon(accountant="rdp")) if entropy.secure else None,
            "dataset_size": self.dataset_size,
            "steps": self.steps,
            "releases": [dataclasses.asdict(release) for release in self.releases],
            "events": [encode_event(event) for event in self.events()],
            "accountant": {
                "pld": "dp-accounting, privacy loss distributions",
                "rdp": "dp-accounting, Rényi divergences",
            }[self._accountant],
            "noise": self.noise,
            "noise_source": type(entropy).__name__,
        }

    def noise_std(self, number: int, sensitivity: float) -> float:
        """Return the standard deviation of the noise on noisy sum `number` (from 0)."""
        return noise_of(self.at(number)) * sensitivity


@dataclass(frozen=True, kw_only=True)
class NonPrivate(_Startable):
    """The null object: the same sums in the same order, without noise, without clipping in steps, without a claim.

    For public data, and to measure what privacy costs in quality.

    Example:
        >>> plan = NonPrivate.dp_sgd(dataset_size=60000, expected_batch_size=2048, steps=100)
        >>> plan.steps  # batches are random, and nothing is claimed
        100
    """

    kind: ClassVar[str] = "non-private"
    delta: ClassVar[float | None] = None
    relation: ClassVar[Relation] = "add_or_remove_one"
    noise: ClassVar[Noise] = "continuous"
    search: ClassVar[Search | None] = None
    earlier: ClassVar[tuple[Earlier, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        unclipped = [
            dataclasses.replace(release, max_norm=math.inf) if isinstance(release, PoissonSums) else release
            for release in self.releases
        ]
        object.__setattr__(self, "releases", tuple(unclipped))

    @property
    def statement(self) -> str:
        """That nothing is claimed."""
        return (
            f"NOT PRIVATE: {self.steps:,} steps without clipping or noise; never publish what comes of private images"
        )

    def epsilon(self, *, made: int | None = None, accountant: Accountant = "pld") -> float:
        """Return infinity, once something is released."""
        return 0.0 if made == 0 else math.inf

    def claim(self, *, entropy: Entropy) -> dict[str, object]:
        """Return what `privacy.json` holds: that nothing is claimed."""
        return {"private": False, "statement": self.statement, "epsilon": None, "delta": None, "steps": self.steps}

    def noise_std(self, number: int, sensitivity: float) -> float:
        """Return zero."""
        return 0.0


AnyPlan = Plan | NonPrivate
"""What a run is started with."""
P = TypeVar("P", bound=AnyPlan)

DPSGD = Plan.dp_sgd
"""The plan of DP-SGD: see `Plan.dp_sgd`."""


def with_noise(plan: P, noise: Sequence[float]) -> P:
    """Return the plan with these noise multipliers, in order; releases without noise are left out if they are fewer."""
    given = iter(noise)
    everywhere = len(noise) == len(plan.releases)
    releases = [
        dataclasses.replace(release, noise_multiplier=next(given))
        if everywhere or release.noise_multiplier is not None
        else release
        for release in plan.releases
    ]
    return dataclasses.replace(plan, releases=tuple(releases))
