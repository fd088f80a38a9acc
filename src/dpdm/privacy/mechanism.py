"""The mechanism: batch selection, clipping, noise, accounting and journal as one thing, with one joint guarantee.

`DPSGD` is the plan, a frozen value of public numbers from which everything else comes: q, the noise, the divisor and
the events that are accounted. `DPSGD.start` makes the one stateful object, through whose `_release` every noisy sum of
a run passes. `NonPrivate` is the null object: the same interface, and no claim.
"""

import dataclasses
import hashlib
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeVar, get_args

import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from torch import Tensor, nn

from dpdm.generators import no_shared_draws
from dpdm.privacy.accounting import (
    Accountant,
    Event,
    GaussianRelease,
    PoissonGaussianSteps,
    Relation,
    calibrate,
    encode_event,
    epsilon,
    round_up,
)
from dpdm.privacy.batch_selection import physical_batches, poisson
from dpdm.privacy.clipping import (
    Batch,
    OneBackwardEach,
    PerExampleLoss,
    Strategy,
    clipped_grad_sum,
    require_rows,
    require_trainable,
    trainable_parameters,
)
from dpdm.privacy.entropy import Entropy, OperatingSystemEntropy
from dpdm.privacy.journal import Journal
from dpdm.privacy.layerwise import LayerWise
from dpdm.privacy.noise import gaussian
from dpdm.privacy.processes import Processes
from dpdm.privacy.rehearsal import (
    CannotRun,
    MadeUp,
    made_up,
    moved_copy,
    rehearse,
    require_same_gradients,
)
from dpdm.privacy.search import Search
from dpdm.privacy.unchanged import unchanged
from dpdm.types import InputError, RandomBytes, Sensitive, refusing, require_in_range, require_positive

A = TypeVar("A")
B = TypeVar("B")
Noise = Literal["continuous", "grid"]
Unit = Literal["image", "group"]
LoadBatch = Callable[[Int64[ndarray, " batch"], RandomBytes], Batch]
"""Maps the indices of a physical batch, and one step's random bytes for the diffusion, to the tensors of a loss."""


_SAID_IF_ANOTHER: Final = {"said_if_another": True}  # a field that is encoded only where it is not the default
_SIX_DIGITS = 1e-6
_MOST_STEPS = 10**6
_LEAST_DELTA = 1e-100
_GRID_BITS = 24  # a clipped gradient's coordinates stay whole numbers in float32, and sums of 10^8 in float64


class Figures(NamedTuple):
    """The noise multipliers of a plan, the earlier releases' first, and the ε that they were calibrated to, if any."""

    noise: tuple[float, ...]
    asked: float | None = None


class Diagnostics(NamedTuple):
    """What one step saw of the private records, for the data owner's eyes: per example, before clipping."""

    losses: Sensitive[Float[Tensor, " batch"]]
    grad_norms: Sensitive[Float[Tensor, " batch"]]


@dataclass(frozen=True, kw_only=True)
class DPSGD:
    """DP-SGD with Poisson batch selection, and what is released before it: the plan, and all of the claim.

    Args:
        dataset_size: Declared number N of records, images or groups. Under "add_or_remove_one" a public figure that
            would read the same with one record more or fewer; under "replace_special" the exact count, which is public.
        expected_batch_size: E, the constant by which every noisy sum is divided.
        steps: Number of noisy gradients; 0 if the earlier releases are all.
        max_grad_norm: Clipping norm C: the sensitivity of one gradient sum.
        noise_multiplier: Standard deviation of a step's noise ÷ C; None until calibrated, and if there are no steps.
        delta: δ, below 1 / N.
        relation: What "neighbouring" means.
        earlier: Gaussian releases that come before the first step, in this order; the claim covers them.
        noise: "continuous" adds float64 numbers to float64 sums. "grid" truncates every clipped gradient to a grid,
            sums exactly, and rounds the noise to the same grid.
        unit: What is protected, and so what a record is in all of this: an image, or a group of images, say all those
            of one person. A group is selected as a whole, and has one gradient.
        search: Given if the run is one of a search, of which the best alone is released; the claim covers all of it.

    Guarantees:
        * Each record enters each step independently with probability E / N, a constant.
        * The noise that is drawn has the standard deviation that is accounted.
        * Every number of the plan is a constant: none is computed from the records.
        * On the grid every noisy sum is a whole number of `grid_step`s, and a sum of truncated gradients is the same
          in any order and grouping.

    Source:
        Abadi et al. 2016; accounting of add-or-remove and zero-out: Ponomareva et al. 2023. The grid needs no
        accounting of its own: for a whole number S, round(S + Z) = S + round(Z), so rounding is post-processing.
    """

    dataset_size: int
    expected_batch_size: int
    steps: int
    max_grad_norm: float = 1.0
    noise_multiplier: float | None = None
    delta: float = 1e-5
    relation: Relation = "add_or_remove_one"
    earlier: tuple[GaussianRelease, ...] = ()
    noise: Noise = "continuous"
    unit: Unit = field(default="image", metadata=_SAID_IF_ANOTHER)
    search: Search | None = None
    _asked: ClassVar[float | None] = None  # of what `calibrate` returned, and of nothing that was made from it

    def __post_init__(self) -> None:
        require_positive(
            dataset_size=self.dataset_size,
            expected_batch_size=self.expected_batch_size,
            delta=self.delta,
        )
        if self.noise == "grid" and not 2.0**-64 <= self.max_grad_norm <= 2.0**64:
            said = str(self.max_grad_norm)[:30]
            raise InputError(f"max_grad_norm = {said} is beyond the grid's arithmetic: take 1, say")
        require_in_range(max_grad_norm=self.max_grad_norm)
        if self.noise_multiplier is not None:
            require_in_range(noise_multiplier=self.noise_multiplier)
        object.__setattr__(self, "earlier", _gaussian_releases(self.earlier))
        if not isinstance(self.search, Search | None):
            raise InputError(f"search must be a Search, not {type(self.search).__name__}")
        _require_something(self.steps, self.earlier)
        for name in ("dataset_size", "expected_batch_size", "steps"):  # one number has one spelling in a claim
            if (number := int(getattr(self, name))) != getattr(self, name):
                raise InputError(f"{name} must be a whole number, not {getattr(self, name)}")
            object.__setattr__(self, name, number)
        for name in ("max_grad_norm", "delta", "noise_multiplier"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        if not self.steps:  # a number without a meaning would be free to say anything
            object.__setattr__(self, "noise_multiplier", None)
        if self.relation not in get_args(Relation):
            raise InputError(f"relation must be one of {', '.join(get_args(Relation))}, not {self.relation!r}")
        if self.noise not in get_args(Noise):
            raise InputError(f"noise must be one of {', '.join(get_args(Noise))}, not {self.noise!r}")
        _require_unit(self.unit)
        if self.expected_batch_size > self.dataset_size:
            raise InputError(
                f"expected_batch_size = {self.expected_batch_size} is more than dataset_size = {self.dataset_size}, "
                "a sampling probability above 1: choose a smaller batch"
            )
        if self.delta < _LEAST_DELTA:
            raise InputError(f"delta must be at least {_LEAST_DELTA}, not {self.delta}: below, float64 cannot follow")
        if self.delta >= 1 / self.dataset_size:
            raise InputError(
                f"delta = {self.delta} is not below 1 / dataset_size = {1 / self.dataset_size:.2g}: such a claim "
                "would allow publishing a record outright; choose a smaller delta"
            )

    @property
    def sample_rate(self) -> float:
        """Inclusion probability q of each record in each step."""
        return self.expected_batch_size / self.dataset_size

    def events(self, *, steps: int | None = None) -> list[Event]:
        """Return what is accounted: the earlier releases and `steps` (default: all) Poisson Gaussian steps."""
        taken = self.steps if steps is None else steps
        events: list[Event] = [*self.earlier]
        if taken:
            noise = self._noise_multiplier()
            events.append(PoissonGaussianSteps(noise_multiplier=noise, sample_rate=self.sample_rate, steps=taken))
        return self.search.events(events) if self.search else events

    def events_made(self, number: int) -> list[Event]:
        """Return what the first `number` releases of the plan cost; all of a search, once it has begun."""
        if self.search:
            return self.events() if number else []
        steps = max(0, number - len(self.earlier))
        return [*self.earlier[:number]] if not steps else self.events(steps=steps)

    def epsilon(self, *, steps: int | None = None, accountant: Accountant = "pld") -> float:
        """Return ε at the plan's δ after `steps` steps (default: all)."""
        return epsilon(self.events(steps=steps), delta=self.delta, relation=self.relation, accountant=accountant)

    def calibrate(self, *, epsilon: float) -> "DPSGD":
        """Return this plan with the least noise that keeps the whole of it at or below `epsilon`.

        It is the steps' noise that is chosen. Without steps, all earlier releases' noise is scaled by one factor.

        Raises:
            InputError: When `epsilon` is not positive, or no amount of noise reaches it.
        """

        def with_noise(noise: float) -> "DPSGD":
            if self.steps:
                return dataclasses.replace(self, noise_multiplier=noise)
            scaled = [GaussianRelease(noise_multiplier=noise * release.noise_multiplier) for release in self.earlier]
            return dataclasses.replace(self, earlier=tuple(scaled))

        noise = calibrate(
            lambda noise: with_noise(noise).events(), target=epsilon, delta=self.delta, relation=self.relation
        )
        calibrated = with_noise(noise)
        object.__setattr__(calibrated, "_asked", float(epsilon))
        return calibrated

    @property
    def one_unit(self) -> str:
        """What one unit of protection is."""
        return {"image": "one image", "group": "one group of images"}[self.unit]

    @property
    def statement(self) -> str:
        """The claim in one line; ε is rounded up."""
        change = {"add_or_remove_one": "add or remove", "replace_special": "blank out"}[self.relation]
        before = [f"{len(self.earlier)} Gaussian releases"] if self.earlier else []
        steps = [f"{self.steps:,} Poisson steps at q = {self.sample_rate:.3g}"] if self.steps else []
        of = [f"the best of {self.search.mean:g} runs on average, each of"] if self.search else []
        made = ", ".join([f"{change} {self.one_unit}", *of, *before, *steps, f"{self._accountant.upper()} accountant"])
        # δ in full: rounded, it could be smaller than the δ that ε was computed at.
        return f"({round_up(self.epsilon())}, {self.delta!r})-DP, {made}"

    @property
    def _accountant(self) -> Accountant:
        """Whose bound ε is: PLD, unless it was unfit (see `accounting.epsilon`)."""
        return "pld" if self.epsilon() < self.epsilon(accountant="rdp") else "rdp"

    def claim(self, *, entropy: Entropy) -> dict[str, object]:
        """Return the claim for machines: what `privacy.json` holds. An insecure source voids it."""
        of_steps = {"expected_batch_size": self.expected_batch_size, "max_grad_norm": self.max_grad_norm}
        return {
            "private": entropy.secure,
            "statement": self.statement if entropy.secure else "NOT PRIVATE: noise and batches came from a known seed",
            "mechanism": "DP-SGD, Poisson batch selection, Gaussian noise" if self.steps else "Gaussian noise",
            "unit": self.one_unit,
            "relation": self.relation,
            "epsilon": round_up(self.epsilon()) if entropy.secure else None,
            "delta": self.delta,
            "epsilon_rdp": round_up(self.epsilon(accountant="rdp")) if entropy.secure else None,
            "dataset_size": self.dataset_size,
            "steps": self.steps,
            **(of_steps if self.steps else {}),
            "events": [encode_event(event) for event in self.events()],
            "accountant": {
                "pld": "dp-accounting, privacy loss distributions",
                "rdp": "dp-accounting, Rényi divergences",
            }[self._accountant],
            "noise": self.noise,
            "noise_source": type(entropy).__name__,
        }

    def start(
        self, journal: Path | None = None, *, entropy: Entropy | None = None, strategy: Strategy | None = None
    ) -> "MechanismRun":
        """Begin, or go on with, the run that `journal` counts.

        Args:
            journal: The run's journal file; None counts in memory, for as long as the process lives.
            entropy: Where selection and noise come from; the operating system unless a test says otherwise.
            strategy: How clipped gradients are computed; changes speed and memory only.
        """
        if self.steps:
            self._noise_multiplier()
        return MechanismRun(self, journal, entropy=entropy or OperatingSystemEntropy(), strategy=strategy)

    def noise_std(self, number: int, sensitivity: float) -> float:
        """Return the standard deviation of the noise on release `number` (from 0; the earlier ones come first)."""
        if number < len(self.earlier):
            return self.earlier[number].noise_multiplier * sensitivity
        return self._noise_multiplier() * sensitivity

    def _noise_multiplier(self) -> float:
        if self.noise_multiplier is None:
            raise InputError("this plan has no noise yet: call .calibrate(epsilon=...) first")
        return self.noise_multiplier


@dataclass(frozen=True, kw_only=True)
class NonPrivate:
    """The null object: the same batches, steps and earlier releases without noise, gradients not clipped, no claim.

    For public data, and to see what privacy costs in quality.
    """

    dataset_size: int
    expected_batch_size: int
    steps: int
    max_grad_norm: float = field(default=math.inf, init=False)
    relation: Relation = field(default="add_or_remove_one", init=False)
    noise: Noise = field(default="continuous", init=False)
    earlier: tuple[GaussianRelease, ...] = ()
    unit: Unit = field(default="image", metadata=_SAID_IF_ANOTHER)

    def __post_init__(self) -> None:
        require_positive(dataset_size=self.dataset_size, expected_batch_size=self.expected_batch_size)
        object.__setattr__(self, "earlier", _gaussian_releases(self.earlier))
        _require_unit(self.unit)
        _require_something(self.steps, self.earlier)
        if self.expected_batch_size > self.dataset_size:
            raise InputError(
                f"expected_batch_size = {self.expected_batch_size} is more than dataset_size = {self.dataset_size}: "
                "choose a smaller batch"
            )

    @property
    def sample_rate(self) -> float:
        """Inclusion probability of each record in each step."""
        return self.expected_batch_size / self.dataset_size

    @property
    def statement(self) -> str:
        """That nothing is claimed."""
        return (
            f"NOT PRIVATE: {self.steps:,} steps without clipping or noise; never publish what comes of private images"
        )

    def epsilon(self, *, steps: int | None = None, accountant: Accountant = "pld") -> float:
        """Return infinity, once something is released."""
        return math.inf if self.earlier or steps is None or steps else 0.0

    def claim(self, *, entropy: Entropy) -> dict[str, object]:
        """Return what `privacy.json` holds: that nothing is claimed."""
        return {"private": False, "statement": self.statement, "epsilon": None, "delta": None, "steps": self.steps}

    def start(
        self, journal: Path | None = None, *, entropy: Entropy | None = None, strategy: Strategy | None = None
    ) -> "MechanismRun":
        """Begin, or go on with, the run that `journal` counts."""
        return MechanismRun(self, journal, entropy=entropy or OperatingSystemEntropy(), strategy=strategy)

    def noise_std(self, number: int, sensitivity: float) -> float:
        """Return zero."""
        return 0.0


Mechanism = DPSGD | NonPrivate
"""A plan: what training is given."""
P = TypeVar("P", bound=Mechanism)


def figures_of(plan: Mechanism) -> Figures:
    """Return the noise multipliers of a plan, and the ε that `calibrate` was given for them."""
    noise = [release.noise_multiplier for release in plan.earlier]
    if isinstance(plan, NonPrivate):
        return Figures(tuple(noise))
    return Figures((*noise, *([] if plan.noise_multiplier is None else [plan.noise_multiplier])), plan._asked)


def keep(plan: P, figures: Figures) -> P | None:
    """Return the plan with figures that were computed before, or None if a person asked for others.

    A figure is computed once, and kept: another processor, or another numpy, computes it to other last digits. So what
    `calibrate` was asked for is compared, and of figures that were given, six digits.
    """
    here = figures_of(plan)
    if len(here.noise) != len(figures.noise):
        return None
    count = len(plan.earlier)
    mine, there = here.noise, figures.noise
    if here.asked is not None and figures.asked is not None:
        if here.asked != figures.asked:
            return None
        # The steps' noise follows from ε; without steps, the one factor that all earlier noise has.
        mine, there = (mine[:count], there[:count]) if plan.steps else (_scaled(mine), _scaled(there))
    if not all(math.isclose(a, b, rel_tol=_SIX_DIGITS) for a, b in zip(mine, there, strict=True)):
        return None
    changes: dict[str, Any] = {"earlier": tuple(GaussianRelease(noise_multiplier=n) for n in figures.noise[:count])}
    if len(figures.noise) > count:
        changes["noise_multiplier"] = figures.noise[count]
    kept = dataclasses.replace(plan, **changes)
    object.__setattr__(kept, "_asked", figures.asked)
    return kept


def kept_as(plan: Mechanism, other: Mechanism) -> Mechanism | None:
    """Return `other`, a plan that was begun before, if a person asked for the same in `plan`; else None."""
    same = type(plan) is type(other) and keep(plan, figures_of(other)) == other
    return other if same else None


def _scaled(noise: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(multiplier / noise[0] for multiplier in noise)


class MechanismRun:
    """One run of a `DPSGD` plan: the only way from records to noisy gradients.

    Guarantees:
        * Every noisy sum is one planned event; the plan's last is followed by refusal, never by more.
        * Per step one batch is selected, each of its examples clipped once, and noise added once, however many
          physical batches it took and even if nobody was selected.
        * A run that crashed has spent what its journal reserved, and repeats none of it.
        * On several processes, each with its own records: one batch in all, noise once, the same noisy sums on each.
    """

    def __init__(self, plan: Mechanism, journal: Path | None, *, entropy: Entropy, strategy: Strategy | None) -> None:
        self.processes = Processes.joined()
        first = self.processes.object_from_first((plan, entropy.secure))
        same = kept_as(plan, first[0]) is not None and entropy.secure == first[1]
        self.processes.require(same, "their plan")

        def claim_of(figures: Any) -> str | None:  # noqa: ANN401 (of a file)
            kept = keep(plan, Figures(tuple(map(float, figures["noise"])), figures["asked"]))
            return None if kept is None else _fingerprint(kept, entropy)

        planned, figures = len(plan.earlier) + plan.steps, figures_of(plan)
        with self.processes.refused_together():
            self._journal = Journal(
                journal if self.processes.first else None,
                claim=_fingerprint(plan, entropy),
                planned=planned,
                figures=figures._asdict() if plan.earlier or figures.asked is not None else None,
                claim_of=claim_of,
            )
        if (found := self._journal.figures) is not None:
            plan = keep(plan, Figures(tuple(found["noise"]), found["asked"])) or plan
        self.plan = self.processes.object_from_first(plan)
        self._journal.spent = self.processes.object_from_first(self._journal.spent)
        self._block = max(1, plan.steps // 100)
        self._made = self._journal.spent  # a resumed run never makes again what was reserved before
        self._entropy = entropy
        self._strategy = strategy or OneBackwardEach()
        self._process = os.getpid()
        self._using = threading.RLock()
        self._rehearsed: weakref.WeakKeyDictionary[nn.Module, set[object]] = weakref.WeakKeyDictionary()
        self.disclosures: list[str] = []

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a run cannot be copied: each copy would spend the same releases once more")

    @property
    def spent(self) -> int:
        """How many of the plan's noisy sums, earlier releases included, are made or were lost in a crash."""
        return self._made

    @property
    def steps_spent(self) -> int:
        """How many of the plan's steps are behind this run: taken, or lost in a crash."""
        return max(0, self._made - len(self.plan.earlier))

    @property
    def finished(self) -> bool:
        """Whether the plan has nothing left to release."""
        return self._made >= self._journal.planned

    def rehearse(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> None:
        """Refuse whatever `backward` would refuse of a network, a loss or a strategy, before anything is released.

        Args:
            loss: What `backward` will be given.
            module: The network, or the denoiser around it; a copy of it runs.
            batch: A few made-up examples, of public content alone, with all labels and noise levels that real ones
                can have: what depends on them shows only then.

        Raises:
            InputError: See `rehearsal.rehearse`; or the strategy gives other gradients than one backward pass each.
        """
        self._rehearse(loss, module, MadeUp(batch, rounding=1e-4))
        self._rehearsed.setdefault(module, set()).add(_case(loss, module))

    def _rehearse(self, loss: PerExampleLoss, module: nn.Module, example: MadeUp) -> None:
        example = example._replace(rows=rehearse(loss, module, example.batch))
        if isinstance(self._strategy, LayerWise):
            self._strategy.check(loss, module, example)
        elif not isinstance(self._strategy, OneBackwardEach):
            wrong = f"the strategy {self._strategy!r} gives other gradients than one backward pass for each example"
            with refusing("the strategy fails on a made-up batch", CannotRun):
                require_same_gradients(self._strategy, loss, moved_copy(module), example, otherwise=wrong)

    def _require_rehearsed(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> None:
        """Rehearse what nobody has rehearsed, on made-up examples of the shapes of `batch` that the network takes."""
        rehearsed = self._rehearsed.setdefault(module, set())
        if not len(batch[0]) or (case := _case(loss, module)) in rehearsed:
            return
        failed: CannotRun | None = None
        for example in made_up(batch):
            try:
                self._rehearse(loss, module, example)
                rehearsed.add(case)
            except CannotRun as error:  # what is made up knows nothing of what a loss demands of its numbers
                failed = failed or error
        if case not in rehearsed:
            raise InputError(
                f"{failed}: call MechanismRun.rehearse with made-up examples of your own first"
            ) from failed

    def backward(
        self,
        loss: PerExampleLoss,
        module: nn.Module,
        *,
        num_records: int,
        load: LoadBatch,
        physical_batch_size: int = 64,
    ) -> Diagnostics:
        """Take one step: put the private gradient into `.grad` of each trainable parameter of `module`.

        That is (Σ clipped gradients + noise) / expected_batch_size over a freshly selected batch. What an optimizer
        or an average does with it is post-processing.

        Args:
            loss: One number for each example, averaged over its noisy copies; may not mix examples.
            module: The network, or the denoiser around it.
            num_records: The real number of this process's records (images, or groups, whichever is the plan's unit);
                secret, used for batch selection only.
            load: Maps the selected indices to the tensors that `loss` takes, one row for each index, or fewer where
                some records contribute nothing; called once for each physical batch, with random bytes for noisy copies
                that a seed of the config cannot repeat.
            physical_batch_size: Examples on the device at once; changes speed and memory only.

        Returns:
            Losses and gradient norms, as `Sensitive`.

        Raises:
            InputError: The earlier releases of the plan are not made, the plan is spent, or `num_records` is not the
                declared size under "replace_special"; or the module, the loss or what `load` gives is not as
                `clipped_grad_sum` wants it; or the module's tensors change as it is called. Nothing is released then.
        """
        with self._alone():
            return self._backward(loss, module, num_records, load, physical_batch_size)

    def _backward(
        self, loss: PerExampleLoss, module: nn.Module, num_records: int, load: LoadBatch, physical_batch_size: int
    ) -> Diagnostics:
        if self._made < len(self.plan.earlier):
            raise InputError(f"the plan has {len(self.plan.earlier)} releases before its first step: make them first")
        self._require_declared_size(num_records)
        require_positive(physical_batch_size=physical_batch_size)
        require_trainable(module)
        parameters = trainable_parameters(module)
        selected = poisson(num_records, sample_rate=self.plan.sample_rate, random_bytes=self._stream("selection"))
        draws = self._stream("diffusion")
        grid = grid_step(self.plan.max_grad_norm) if self.plan.noise == "grid" else None
        total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
        losses, norms = [], []
        batches = physical_batches(selected, physical_batch_size)
        with no_shared_draws(), unchanged(module, loss):
            for records, batch in _one_ahead(lambda indices: (len(indices), load(indices, draws)), batches):
                require_rows(batch, records)
                self._require_rehearsed(loss, module, batch)
                part = clipped_grad_sum(
                    loss,
                    module,
                    batch,
                    max_grad_norm=self.plan.max_grad_norm,
                    strategy=self._strategy,
                    grid=grid,
                    records=records,
                )
                total += part.vector
                losses.append(part.losses.reveal(because="joined over physical batches"))
                norms.append(part.grad_norms.reveal(because="joined over physical batches"))
        gradient = self._release(total, sensitivity=self.plan.max_grad_norm) / self.plan.expected_batch_size
        for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):  # type: ignore[no-untyped-call]
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        empty = torch.zeros(0)
        return Diagnostics(
            Sensitive(torch.cat(losses or [empty]), self.disclosures),
            Sensitive(torch.cat(norms or [empty]), self.disclosures),
        )

    def release(
        self, total: Float64[Tensor, " coordinates"], *, sensitivity: float, num_records: int
    ) -> Float64[Tensor, " coordinates"]:
        """Return `total` with the noise of the plan's next earlier release; what follows from it may be published.

        Args:
            total: A sum over this process's records that one record moves by at most `sensitivity` in L2 norm: one
                dimension, float64, since a matrix could get one noise for several of its numbers. Flatten what has
                more.
            sensitivity: That bound; the noise has standard deviation noise_multiplier · sensitivity.
            num_records: The real number of this process's records; secret.

        Raises:
            InputError: `total` is no float64 vector; `sensitivity` is no positive number; the plan's earlier releases
                are made, and what is left are steps, which `backward` takes; or `num_records` is not the declared size
                under "replace_special".
        """
        _require_vector(total, sensitivity)
        require_in_range(sensitivity=sensitivity)
        with self._alone():
            return self._release_earlier(total, sensitivity, num_records)

    def _release_earlier(self, total: Tensor, sensitivity: float, num_records: int) -> Tensor:
        self.processes.require_same(repr((total.shape, sensitivity)), "the shape or the sensitivity of a sum")
        self._require_declared_size(num_records)
        if self._made >= len(self.plan.earlier):
            raise InputError("the plan's next event is a step on a random batch, which only `backward` takes")
        if self.plan.noise == "grid":  # rounding moves each of two neighbouring sums by half a step a coordinate
            sensitivity /= 1 - math.sqrt(len(total)) * 2.0**-_GRID_BITS
        return self._release(total, sensitivity=sensitivity)

    def _release(
        self, total: Float64[Tensor, " coordinates"], *, sensitivity: float
    ) -> Float64[Tensor, " coordinates"]:
        """Add the noise of the plan's next event: the one method that every noisy sum passes."""
        _require_vector(total, sensitivity)
        with self._alone():
            if self._made == self._journal.spent and not self._journal.reserve(self._block):
                raise InputError(
                    f"all {self._journal.planned} releases of this plan are spent: its claim allows no more"
                )
            random_bytes, number = self._stream("noise"), self._made
            self._made += 1  # before there is anything that could be released
            total = self.processes.sum(torch.where(total.isfinite(), total, 0))
            if self.processes.first:
                std = self.plan.noise_std(number, sensitivity)
                noise = gaussian(len(total), std=std, random_bytes=random_bytes).to(total.device)
                if self.plan.noise == "grid":
                    step = grid_step(sensitivity)  # sums of truncated gradients are whole numbers of steps before
                    total, noise = (total / step).round() * step, _rounded(noise / step) * step
                if noise.shape != total.shape:  # broadcast, one noise would cover several numbers, and cancel
                    raise AssertionError(f"noise of shape {tuple(noise.shape)} for a sum of shape {tuple(total.shape)}")
                total = total + noise
            return self.processes.from_first(total)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Refuse a second thread, and a fork: either would spend a release of the plan twice."""
        if os.getpid() != self._process:
            raise InputError("this run belongs to the process that started it: a fork would spend its releases twice")
        if not self._using.acquire(blocking=False):
            raise InputError("another thread is using this run: its releases are made one after the other")
        try:
            yield
        finally:
            self._using.release()

    def _require_declared_size(self, num_records: int) -> None:
        if self.plan.relation != "replace_special":
            return
        number = int(self.processes.sum(torch.tensor(num_records)))
        if number != self.plan.dataset_size:
            units = {"image": "records", "group": "groups"}[self.plan.unit]
            raise InputError(
                f"dataset_size = {self.plan.dataset_size} is claimed as exact, and there are {number} {units}: "
                "correct it, or declare a public size with relation add_or_remove_one"
            )

    def settle(self) -> None:
        """Record that nothing beyond the releases made so far was produced: call after a clean stop's checkpoint."""
        if os.getpid() == self._process:  # a fork knows nothing of what its parent made since
            self._journal.settle(self._made)

    def spend_rest(self) -> None:
        """Count as spent all that is left of the plan: nothing of it will be made."""
        self._journal.reserve(self._journal.planned)
        self._made = self._journal.spent

    def close(self) -> None:
        """Let go of the journal without settling: what was reserved stays spent."""
        self._journal.close()

    def _stream(self, purpose: str) -> RandomBytes:
        mine = purpose if self.processes.first else f"{purpose} of process {self.processes.rank}"
        return self._entropy.stream(mine, self._made)


def _fingerprint(plan: Mechanism, entropy: Entropy) -> str:
    """Return a digest of all that a plan claims."""
    # Settings that came later than some journals are left out where they have no effect.
    said = repr((plan, entropy.secure)).replace(", unit='image'", "").replace(", search=None)", ")")
    return hashlib.sha256(said.encode()).hexdigest()


def grid_step(sensitivity: float) -> float:
    """Return the step of the grid for sums of this sensitivity: a power of two, at least 2^24 times smaller."""
    return 2.0 ** (math.floor(math.log2(sensitivity)) - _GRID_BITS)


def _rounded(noise: Float64[Tensor, " coordinates"]) -> Float64[Tensor, " coordinates"]:
    """Round with halves up: so that rounding noise beside a whole number is rounding their sum, ties included."""
    whole = noise.floor()
    return whole + (noise - whole >= 0.5)


def _require_vector(total: Tensor, sensitivity: float) -> None:
    """Raise InputError unless `total` is a float64 vector, each of whose numbers gets noise of its own."""
    if not isinstance(total, Tensor) or total.ndim != 1 or total.dtype != torch.float64 or total.requires_grad:
        what = f"{total.dtype} of shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
        raise InputError(
            f"a sum to be released must be a float64 vector without gradient, not {what}: give total.detach()."
            "double().flatten()"
        )
    if not isinstance(sensitivity, float | int):
        raise InputError(f"sensitivity must be one number, not {type(sensitivity).__name__}")
    if sensitivity != math.inf:  # that of steps without clipping, which are not private
        require_positive(sensitivity=sensitivity)


def _case(loss: PerExampleLoss, module: nn.Module) -> tuple[object, ...]:
    """Return what a rehearsal holds for: the loss, what is trained, and the mode of every layer."""
    trained = tuple(p.requires_grad for p in module.parameters())
    return loss, trained, tuple(layer.training for layer in module.modules())


def _gaussian_releases(earlier: Iterable[GaussianRelease]) -> tuple[GaussianRelease, ...]:
    """Return the releases before a plan's steps as a value that nobody can change, of the one kind they may be."""
    releases = tuple(earlier)
    for release in releases:
        if type(release) is not GaussianRelease:
            raise InputError(
                f"earlier holds a {type(release).__name__}: what is released before the steps is full sums"
            )
    return releases


def _require_unit(unit: Unit) -> None:
    if unit not in get_args(Unit):
        raise InputError(f"unit must be one of {', '.join(get_args(Unit))}, not {unit!r}")


def _require_something(steps: int, earlier: tuple[GaussianRelease, ...]) -> None:
    """Raise InputError if a plan releases nothing."""
    if not 0 <= steps < math.inf or not (steps or earlier):
        raise InputError(f"steps must be a number above 0, or 0 after earlier releases, not {steps}")
    if steps > _MOST_STEPS:
        raise InputError(f"steps must be at most {_MOST_STEPS:,}, not {steps}: beyond, no accountant comes to an end")


def _one_ahead(load: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Yield `load` of each item in order; a thread is at the next one while the caller works on this one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: Future[B] | None = None
        for item in items:
            before, ahead = ahead, pool.submit(load, item)
            if before is not None:
                yield before.result()
        if ahead is not None:
            yield ahead.result()
