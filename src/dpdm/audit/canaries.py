"""A training run with canaries in it, to be attacked: the whole of a plan, on the owner's images, for the audit alone.

Two kinds are planted, each by the toss of a fair coin. *Dirac canaries* are records whose gradient is one coordinate of
a block of parameters that nothing else uses, as long as clipping allows: the worst case that the claim covers, seen by
an adversary who sees every noisy sum. *Member canaries* are images of the data set, or whole groups where these are the
unit: what an adversary sees who has the trained generator alone. The block is part of no network, and nothing of such a
run is written to disk.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from numpy import ndarray
from torch import Tensor, nn

from dpdm.audit.opened import units_that_took_part
from dpdm.audit.parametric import as_sum
from dpdm.audit.repetition import Sum
from dpdm.config import Config, require_same_unit
from dpdm.data import ImageDataset
from dpdm.methods import ImageFacts, ImageGenerator
from dpdm.methods.values import PublicStart
from dpdm.privacy import MechanismRun, Noisy, OperatingSystemEntropy, Plan, PoissonSums, Strategy
from dpdm.privacy.clipping import Batch, PerExampleLoss
from dpdm.privacy.diagnostics import Diagnostics
from dpdm.privacy.mechanism import LoadBatch, LoadRows
from dpdm.privacy.releases import STEPS, ShardSums, noise_of
from dpdm.privacy.sums import BoundedSum
from dpdm.runs.hardware import choose_device
from dpdm.runs.run import Run
from dpdm.types import RandomBytes

_LOUD = 1000.0  # times the clipping norm: a Dirac canary's gradient before clipping
_ROUNDING = 2.0**-30  # standard deviations of noise: more than is lost where a sum is subtracted from the noisy one


@dataclass(frozen=True, eq=False)
class AuditedRun:
    """What an audited run gave away, and the coins.

    Args:
        plan: What was run: the audited plan.
        scores: Of the Dirac canaries: log-likelihood ratios of having taken part.
        took_part: Their coins.
        generator: The trained generator.
        members: Indices of the member canaries among the units of the data set.
        were_in: Their coins.
        sums: The noise of each of the prior's own sums.
    """

    plan: Plan
    scores: Float64[ndarray, " canaries"]
    took_part: Bool[ndarray, " canaries"]
    generator: ImageGenerator
    members: Int64[ndarray, " members"]
    were_in: Bool[ndarray, " members"]
    sums: list[Sum]


class Planted(nn.Module):
    """What a method trains, and beside it the block of parameters that only Dirac canaries touch.

    A planted batch is one of the method's, whatever it holds, and two tensors more. One says which coordinate of the
    block a record is about: 0 for a record with an image. The other says how loud a canary is.
    """

    def __init__(self, trained: nn.Module, canaries: int) -> None:
        super().__init__()
        self.trained = trained
        self.block = nn.Embedding(1 + canaries, 1)
        self._made: Callable[[Iterable[Tensor]], Batch] = tuple

    def plant(self, own: Batch, coordinate: Int[Tensor, " batch"], loudness: Float[Tensor, " batch"]) -> Batch:
        """Return a planted batch."""
        self._made = getattr(type(own), "_make", tuple)
        return (*own, coordinate, loudness)

    def own(self, planted: Batch) -> Batch:
        """Return the method's batch, as the method's loss takes it."""
        return self._made(planted[:-2])


@dataclass(frozen=True)
class PlantedLoss:
    """The method's loss of a record with an image; `loudness` times its own coordinate for a Dirac canary."""

    of_images: PerExampleLoss

    def __call__(self, module: nn.Module, batch: Batch) -> Float[Tensor, " batch"]:
        """Return one number for each record."""
        assert isinstance(module, Planted)
        *_, coordinate, loudness = batch
        images = torch.where(coordinate == 0, self.of_images(module.trained, module.own(batch)), 0)
        of_block: Tensor = module.block(coordinate)[:, 0] * loudness
        return images + of_block


class WatchedRun(MechanismRun):
    """A run whose earlier releases, too, carry a block in which each canary that took part stands alone.

    A canary is one more record, whose contribution to every sum is `sensitivity` in its own coordinate: it keeps to
    the bound, and orthogonal to all other records. `scores` grows with every noisy sum; `sums` has the noise of each
    earlier release, block included, for whoever knows the records.
    """

    def __init__(self, plan: Plan, *, took_part: Bool[ndarray, " canaries"], strategy: Strategy) -> None:
        super().__init__(plan, None, entropy=OperatingSystemEntropy(), strategy=strategy)
        self._took_part = torch.from_numpy(took_part).double()
        self.scores = np.zeros(len(took_part))
        self.sums: list[Sum] = []
        self._planted: Planted | None = None

    def release(self, name: str, bounded: BoundedSum, *, num_records: int) -> Noisy:
        """Return the noisy sum; the block is looked at and taken off."""
        total, sensitivity = bounded
        noise_multiplier = noise_of(self.plan.at(self.spent))
        # What is no vector has no place for a block: it is for the mechanism to refuse.
        both = torch.cat([total, self._took_part * sensitivity]) if total.ndim == 1 else total
        noisy, std = super().release(name, BoundedSum(both, sensitivity), num_records=num_records)
        assert isinstance(self.plan, Plan)
        noise = as_sum(noisy - both, self.plan, noise_multiplier, sensitivity=sensitivity)
        self.sums.append(noise._replace(step=max(noise.step, _ROUNDING)))
        if both is total:
            return Noisy(noisy, std)
        seen = noisy[len(total) :].numpy() / sensitivity
        self.scores += log_likelihood_ratio(seen, noise_multiplier=noise_multiplier, sample_rate=1.0)
        return Noisy(noisy[: len(total)], std)

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
        """Take one step in which every Dirac canary that took part has its own coordinate of a block of parameters."""
        assert isinstance(self.plan, Plan)
        if self._planted is None or self._planted.trained is not module:
            self._planted = Planted(module, len(self.scores)).to(next(module.parameters()).device)
        release = self.plan.at(self.spent)
        assert isinstance(release, PoissonSums)
        loudness = _LOUD * release.max_norm * self._adds(release).numpy()
        diagnostics = super().backward(
            PlantedLoss(loss),
            self._planted,
            num_records=num_records + len(self.scores),
            load=_PlantedLoader(load, self._planted, num_records, loudness),
            physical_batch_size=physical_batch_size,
            name=name,
        )
        gradient = self._planted.block.weight.grad
        assert gradient is not None
        seen = gradient[1:, 0].double().cpu().numpy() * release.expected_batch_size / release.max_norm
        self.scores += self._log_likelihood_ratio(seen, release)
        return diagnostics

    def batch_sum(
        self,
        name: str,
        *,
        dimensions: int,
        num_records: int,
        load: LoadRows,
        physical_batch_size: int = 64,
    ) -> Noisy:
        """Return the noisy sum over a batch that canaries enter as all records do; the block is taken off."""
        assert isinstance(self.plan, Plan)
        release, canaries = self.plan.at(self.spent), len(self.scores)
        assert isinstance(release, PoissonSums)

        def planted(indices: Int64[ndarray, " batch"], draws: RandomBytes) -> Float[Tensor, "batch coordinates"]:
            images, others = indices[indices < num_records], indices[indices >= num_records] - num_records
            rows = torch.zeros(len(indices), dimensions + canaries, dtype=torch.float64)
            if len(images):  # indices ascend
                rows[: len(images), :dimensions] = load(images, draws)
            own = torch.from_numpy(others)
            rows[len(images) + torch.arange(len(own)), dimensions + own] = release.max_norm * self._adds(release)[own]
            return rows

        noisy, std = super().batch_sum(
            name,
            dimensions=dimensions + canaries,
            num_records=num_records + canaries,
            load=planted,
            physical_batch_size=physical_batch_size,
        )
        self.scores += self._log_likelihood_ratio(noisy[dimensions:].numpy() / release.max_norm, release)
        return Noisy(noisy[:dimensions], std)

    def _adds(self, release: PoissonSums) -> Float64[Tensor, " canaries"]:
        """Return what a canary adds: one if it took part, and nothing else. A shard's vector points the other way."""
        return 2 * self._took_part - 1 if isinstance(release, ShardSums) else self._took_part

    def _log_likelihood_ratio(
        self, seen: Float64[ndarray, " canaries"], release: PoissonSums
    ) -> Float64[ndarray, " canaries"]:
        """Return ln p(seen | canary took part) − ln p(seen | it did not), `seen` in units of the sensitivity."""
        noise, rate = noise_of(release), self.plan.rate(release)
        if not isinstance(release, ShardSums):
            return log_likelihood_ratio(seen, noise_multiplier=noise, sample_rate=rate)
        # Its shard adds half of the sensitivity, or minus that: of twice what is seen, by twice the noise, 1 or -1.
        one, other = (
            log_likelihood_ratio(sign * 2 * seen, noise_multiplier=2 * noise, sample_rate=rate) for sign in (1, -1)
        )
        ratio: Float64[ndarray, " canaries"] = one - other
        return ratio


def log_likelihood_ratio(
    seen: Float64[ndarray, " canaries"], *, noise_multiplier: float, sample_rate: float
) -> Float64[ndarray, " canaries"]:
    """Return ln p(seen | canary took part) − ln p(seen | it did not), `seen` in units of the sensitivity.

    The canary enters with probability q and then adds one: a mixture of two Gaussians against one.
    """
    of_one = (2 * seen - 1) / (2 * noise_multiplier**2)
    ratio: Float64[ndarray, " canaries"] = (
        np.logaddexp(math.log(sample_rate) + of_one, math.log1p(-sample_rate)) if (sample_rate < 1) else of_one
    )
    return ratio


def train_with_canaries(
    config: Config,
    plan: Plan,
    data: ImageDataset,
    *,
    public: ImageDataset | None = None,
    starts: tuple[PublicStart, ...] = (),
    canaries: int,
    members: int,
    coins: np.random.Generator,
) -> Iterator[int | AuditedRun]:
    """Train by `plan` with canaries planted; yield how far it is after each step, and in the end the outcome.

    Args:
        config: Method and machine of the run that is audited.
        plan: What is audited. Its relation is add-or-remove here: a canary that does not take part is not there.
        data: The images; `members` of them, or of their groups, take part only if their coin says so.
        public: The public images that the method starts from, if it does.
        starts: The public networks of which it begins with one, if it does.
        canaries: How many Dirac canaries, at least 2.
        members: How many member canaries, at least 2.
        coins: Tosses all coins; from the operating system's entropy.
    """
    require_same_unit(plan, data)
    plan = dataclasses.replace(plan, relation="add_or_remove_one")
    took_part, were_in = (_tossed(coins, number) for number in (canaries, members))
    chosen = np.sort(coins.choice(units_that_took_part(data), members, replace=False))
    seen = data.part(np.delete(np.arange(data.num_units), chosen[~were_in]))
    facts, device = ImageFacts(data.shape, data.class_names), choose_device(config.machine.device)
    mechanism = WatchedRun(plan, took_part=took_part, strategy=config.machine.clipping)
    run = Run.in_memory(
        mechanism,
        machine=config.machine,
        device=device,
        seed=config.seed,
        public=public,
        starts=starts,
        num_records=seen.num_units,
    )
    untrained = config.method.untrained(facts, seed=config.seed).to(device)
    training = config.method.train(untrained, seen, run)
    while True:
        try:
            yield next(training).steps_spent
        except StopIteration as end:
            generator: ImageGenerator = end.value
            break
    # A stamp among the weights: no release can be loaded or verified that has it.
    generator.register_buffer("of_an_audit", torch.ones((), device=device))
    yield AuditedRun(plan, mechanism.scores, took_part, generator.eval(), chosen, were_in, mechanism.sums)


def _tossed(coins: np.random.Generator, number: int) -> Bool[ndarray, " number"]:
    """Toss coins until both sides are there, which for more than forty of them is at once."""
    while True:
        tossed: Bool[ndarray, " number"] = coins.random(number) < 0.5
        if 0 < tossed.sum() < number:
            return tossed


class _PlantedLoader:
    """From selected indices to a planted batch: the units of the data set first, then a place for each Dirac canary."""

    def __init__(self, load: LoadBatch, planted: Planted, units: int, loudness: Float64[ndarray, " canaries"]) -> None:
        self._load, self._planted, self._units = load, planted, units
        self._loudness = np.concatenate([np.zeros(units), loudness])

    def __call__(self, indices: Int64[ndarray, " batch"], random_bytes: RandomBytes) -> Batch:
        own = self._load(np.minimum(indices, self._units - 1), random_bytes)
        coordinate = torch.from_numpy(np.maximum(indices - self._units + 1, 0)).to(own[0].device)
        loudness = torch.from_numpy(self._loudness[indices]).float().to(own[0].device)
        return self._planted.plant(own, coordinate, loudness)
