"""The mechanism: batch selection, clipping, noise, accounting and journal as one thing, with one joint guarantee.

`MechanismRun` is the one stateful object: it makes the noisy sums of a plan, in their order and each once. All of them
pass its `_release`.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from torch import Tensor, nn

from dpdm.generators import no_shared_draws
from dpdm.privacy.batch_selection import one_ahead, physical_batches, poisson
from dpdm.privacy.clipping import (
    Batch,
    OneBackwardEach,
    PerExampleLoss,
    Strategy,
    clipped_grad_sum,
    clipped_row_sum,
    require_rows,
    require_trainable,
    trainable_parameters,
)
from dpdm.privacy.diagnostics import Diagnostics, Joined
from dpdm.privacy.entropy import Entropy, OperatingSystemEntropy
from dpdm.privacy.figures import Figures, figures_of, fingerprint, keep, kept_as
from dpdm.privacy.journal import Journal
from dpdm.privacy.noise import GRID_BITS, gaussian, grid_step, rounded
from dpdm.privacy.plan import AnyPlan, Plan
from dpdm.privacy.processes import Processes
from dpdm.privacy.rehearsal import Rehearsals
from dpdm.privacy.releases import STEPS, FullSum, PoissonSums, noise_of
from dpdm.privacy.sums import BoundedSum
from dpdm.privacy.unchanged import unchanged
from dpdm.types import InputError, RandomBytes, require_counts, require_in_range, require_positive

E = TypeVar("E", FullSum, PoissonSums)
LoadBatch = Callable[[Int64[ndarray, " batch"], RandomBytes], Batch]
"""Maps the indices of a physical batch, and one step's random bytes for the diffusion, to the tensors of a loss."""

LoadRows = Callable[[Int64[ndarray, " batch"], RandomBytes], Float[Tensor, "batch coordinates"]]
"""Maps the indices of a physical batch, and one step's random bytes, to one vector for each of these records."""


class Noisy(NamedTuple):
    """A noisy sum, which may be published, and the standard deviation of its noise."""

    values: Float64[Tensor, " coordinates"]
    std: float


class MechanismRun:
    """One run of a plan: the only way from records to noisy sums.

    Guarantees:
        * Every noisy sum is one planned event; the plan's last is followed by refusal, never by more.
        * Sums are made in the plan's order, each under its planned name.
        * Per step one batch is selected, each of its examples is clipped once, and noise is added once. This is so
          however many physical batches it took, and even if nobody was selected.
        * A run that crashed has spent what its journal reserved, and repeats none of it.
        * On several processes, each with its own records: one batch in all, noise once, the same noisy sums on each.
    """

    def __init__(
        self,
        plan: AnyPlan,
        journal: Path | None = None,
        *,
        entropy: Entropy | None = None,
        strategy: Strategy | None = None,
    ) -> None:
        """Begin, or go on with, the run that `journal` counts.

        Args:
            plan: What may be released.
            journal: The run's journal file; None counts in memory, for as long as the process lives.
            entropy: Where selection and noise come from (default: the operating system).
            strategy: How clipped gradients are computed; changes speed and memory only.
        """
        for release in plan.releases if isinstance(plan, Plan) else ():
            noise_of(release)
        entropy = entropy or OperatingSystemEntropy()
        self.processes = Processes.joined()
        first = self.processes.object_from_first((plan, entropy.secure))
        same = kept_as(plan, first[0]) is not None and entropy.secure == first[1]
        self.processes.require(same, "their plan")

        def claim_of(figures: Any) -> str | None:  # noqa: ANN401 (of a file)
            kept = keep(plan, Figures(tuple(map(float, figures["noise"])), figures["asked"]))
            return None if kept is None else fingerprint(kept, secure=entropy.secure)

        with self.processes.refused_together():
            self._journal = Journal(
                journal if self.processes.first else None,
                claim=fingerprint(plan, secure=entropy.secure),
                planned=plan.planned,
                figures=figures_of(plan)._asdict(),
                claim_of=claim_of,
            )
        if (found := self._journal.figures) is not None:
            plan = keep(plan, Figures(tuple(found["noise"]), found["asked"])) or plan
        self.plan = self.processes.object_from_first(plan)
        self._journal.spent = self.processes.object_from_first(self._journal.spent)
        self._made = self._journal.spent  # a resumed run never makes again what was reserved before
        self._entropy = entropy
        self._strategy = strategy or OneBackwardEach()
        self._process = os.getpid()
        self._using = threading.RLock()
        self._rehearsals = Rehearsals(self._strategy)
        self.disclosures: list[str] = []

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a run cannot be copied: each copy would spend the same releases once more")

    @property
    def spent(self) -> int:
        """How many of the plan's noisy sums are made or were lost in a crash."""
        return self._made

    @property
    def steps_spent(self) -> int:
        """How many of the plan's steps are behind this run: taken, or lost in a crash."""
        return self.plan.steps_among(self._made)

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
        self._rehearsals.rehearse(loss, module, batch)

    def _require_rehearsed(self, loss: PerExampleLoss, module: nn.Module, batch: Batch) -> None:
        """Rehearse what nobody has rehearsed."""
        self._rehearsals.require(loss, module, batch)

    def backward(
        self,
        loss: PerExampleLoss,
        module: nn.Module,
        *,
        num_records: int,
        load: LoadBatch,
        physical_batch_size: int = 64,
        name: str = STEPS,
    ) -> Diagnostics:
        """Take one step: put the private gradient into `.grad` of each trainable parameter of `module`.

        That is (Σ clipped gradients + noise) / expected_batch_size over a freshly selected batch. What an optimizer
        or an average does with it is post-processing.

        Args:
            loss: One number for each example, averaged over its noisy copies; may not mix examples.
            module: The network, or the denoiser around it.
            num_records: The real number of this process's records; secret, used for batch selection only.
            load: Maps the selected indices to the tensors that `loss` takes, one row for each index, or fewer where
                some records contribute nothing. Its random bytes are of the operating system.
            physical_batch_size: Examples on the device at once; changes speed and memory only.
            name: What the plan calls this sum.

        Returns:
            Losses and gradient norms.

        Raises:
            InputError: The plan's next sum is another one, the plan is spent, or `num_records` is not the declared size
                under "replace_special". Or the module, the loss or what `load` gives is not as `clipped_grad_sum` wants
                it. Or the module's tensors change as it is called. In each of these cases nothing is released.
        """
        with self._alone():
            require_trainable(module)
            parameters, diagnostics = trainable_parameters(module), Joined(self.disclosures)

            def clipped(batch: Batch, records: int, entry: PoissonSums, grid: float | None) -> Tensor:
                require_rows(batch, records)
                self._require_rehearsed(loss, module, batch)
                part = clipped_grad_sum(
                    loss, module, batch, max_grad_norm=entry.radius, strategy=self._strategy, grid=grid, records=records
                )
                diagnostics.add(part.losses, part.grad_norms)
                return part.vector

            total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
            entry = self._next(name, PoissonSums)
            with unchanged(module, loss):  # until the whole batch is seen, and before anything is released
                self._add_batch(entry, clipped, total, num_records, load, physical_batch_size)
            gradient = self._release(total, sensitivity=entry.max_norm) / entry.expected_batch_size
            for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):  # type: ignore[no-untyped-call]
                parameter.grad = part.view_as(parameter).to(parameter.dtype)
            return diagnostics.joined()

    def batch_sum(
        self, name: str, *, dimensions: int, num_records: int, load: LoadRows, physical_batch_size: int = 64
    ) -> Noisy:
        """Return the noisy sum of one clipped vector for each record of a freshly selected batch.

        Args:
            name: What the plan calls this sum.
            dimensions: Length of each vector.
            num_records: The real number of this process's records; secret, used for batch selection only.
            load: Maps the selected indices, and random bytes, to one vector for each of them. A record's vector depends
                on this record, its own draws, and what was released before, on nothing else.
            physical_batch_size: Records at once; changes speed and memory only.

        Raises:
            InputError: The plan's next sum is another one, the plan is spent, or `num_records` is not the declared size
                under "replace_special". Or `load` gives other than one vector for each record.

        Guarantees:
            * One record more or fewer moves the sum before noise by at most the plan's `max_norm`.
        """
        require_counts(dimensions=dimensions)
        with self._alone():
            entry = self._next(name, PoissonSums)

            def clipped(rows: Tensor, records: int, entry: PoissonSums, grid: float | None) -> Tensor:
                if rows.ndim != 2 or rows.shape[1] != dimensions or len(rows) > records:
                    raise InputError(
                        f"{records} records came with vectors of shape {tuple(rows.shape)}: give each record one of "
                        f"{dimensions} numbers"
                    )
                return clipped_row_sum(rows.detach(), max_norm=entry.radius, grid=grid)

            total = torch.zeros(dimensions, dtype=torch.float64)
            self._add_batch(entry, clipped, total, num_records, load, physical_batch_size)
            noisy = self._release(total, sensitivity=entry.max_norm)
            return Noisy(noisy, self.plan.noise_std(self._made - 1, entry.max_norm))

    def _add_batch(
        self,
        entry: PoissonSums,
        clipped: Callable[[Any, int, PoissonSums, float | None], Tensor],
        total: Float64[Tensor, " coordinates"],
        num_records: int,
        load: Callable[[Int64[ndarray, " batch"], RandomBytes], Any],
        physical_batch_size: int,
    ) -> None:
        """Add what `clipped` gives for a freshly selected batch to `total`."""
        self._require_declared_size(num_records, entry.out_of(self.plan.dataset_size))
        require_counts(physical_batch_size=physical_batch_size)
        selected = poisson(num_records, sample_rate=self.plan.rate(entry), random_bytes=self._stream("selection"))
        draws = self._stream("diffusion")
        grid = grid_step(entry.max_norm) if self.plan.noise == "grid" else None
        batches = physical_batches(selected, physical_batch_size)
        with no_shared_draws():
            for records, loaded in one_ahead(lambda indices: (len(indices), load(indices, draws)), batches):
                total += clipped(loaded, records, entry, grid)

    def release(self, name: str, bounded: BoundedSum, *, num_records: int) -> Noisy:
        """Return a sum over all records with the plan's noise; what follows from it may be published.

        Args:
            name: What the plan calls this sum.
            bounded: The sum over this process's records, and its sensitivity, as the functions of `sums` state it.
            num_records: The real number of this process's records; secret.

        Raises:
            InputError: The plan's next sum is another one, or the plan is spent. Or the total is no float64 vector, or
                the sensitivity no positive number. Or `num_records` is not the declared size under "replace_special".
        """
        total, sensitivity = bounded
        _require_vector(total, sensitivity)
        require_in_range(sensitivity=sensitivity)
        with self._alone():
            self._next(name, FullSum)
            self.processes.require_same(repr((name, total.shape, sensitivity)), "the shape or the sensitivity of a sum")
            self._require_declared_size(num_records, self.plan.dataset_size)
            if self.plan.noise == "grid":  # rounding moves each of two neighbouring sums by half a step a coordinate
                sensitivity /= 1 - math.sqrt(len(total)) * 2.0**-GRID_BITS
            noisy = self._release(total, sensitivity=sensitivity)
            return Noisy(noisy, self.plan.noise_std(self._made - 1, sensitivity))

    def _next(self, name: str, kind: type[E]) -> E:
        """Return the plan's next entry, or raise InputError if it is not of this name and kind."""
        entry = self.plan.at(self._made)
        if not isinstance(entry, kind) or entry.name != name:
            how = "a sum over a random batch" if isinstance(entry, PoissonSums) else "a sum over all records"
            raise InputError(f"the plan's next release is {entry.name!r}, {how}, and not {name!r}: make it first")
        return entry

    def _release(
        self, total: Float64[Tensor, " coordinates"], *, sensitivity: float
    ) -> Float64[Tensor, " coordinates"]:
        """Add the noise of the plan's next event: the one method that every noisy sum passes."""
        _require_vector(total, sensitivity)
        with self._alone():
            if self._made == self._journal.spent and not self._journal.reserve(self._at_once()):
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
                    total, noise = (total / step).round() * step, rounded(noise / step) * step
                if noise.shape != total.shape:  # broadcast, one noise would cover several numbers, and cancel
                    raise AssertionError(f"noise of shape {tuple(noise.shape)} for a sum of shape {tuple(total.shape)}")
                total = total + noise
            return self.processes.from_first(total)

    def _at_once(self) -> int:
        """Return how many sums to reserve: a hundredth of the steps, and sums over all records one by one."""
        entry, before = self.plan.at(self._made), 0
        if isinstance(entry, FullSum):
            return 1
        for release in self.plan.releases:
            before += release.count
            if release is entry:
                break
        return min(max(1, self.plan.steps // 100), before - self._made)

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

    def _require_declared_size(self, num_records: int, declared: int) -> None:
        if self.plan.relation != "replace_special":
            return
        number = int(self.processes.sum(torch.tensor(num_records)))
        if number != declared:
            units = {"image": "records", "group": "groups"}[self.plan.unit]
            raise InputError(
                f"dataset_size = {declared} is claimed as exact, and there are {number} {units}: "
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
