"""A training run with canaries in it, to be attacked: the whole of a plan, on the owner's images, for the audit alone.

Two kinds are planted, each by the toss of a fair coin. *Dirac canaries* are records whose gradient is one coordinate of
a block of parameters that nothing else uses, as long as clipping allows: the worst case that the claim covers, seen by
an adversary who sees every noisy sum. *Member canaries* are images of the data set, or whole groups where these are the
unit: what an adversary sees who has the trained generator alone. The block is part of no network, and nothing of such a
run is written to disk.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from numpy import ndarray
from torch import Tensor, nn

from dpdm.audit.parametric import as_sum
from dpdm.audit.repetition import Sum
from dpdm.config import Config, require_same_unit
from dpdm.data import ImageDataset
from dpdm.diffusion import DenoisingLoss, MatchedPreconditioning, NoisyBatch, PreconditionedDenoiser
from dpdm.privacy import MechanismRun, Noisy, OperatingSystemEntropy, Plan, Strategy
from dpdm.privacy.releases import noise_of
from dpdm.privacy.sums import BoundedSum
from dpdm.training import ema
from dpdm.training.hardware import autocast, choose_device
from dpdm.training.loader import Loader
from dpdm.training.prior import release_prior
from dpdm.training.release import ImageFacts, build_denoiser
from dpdm.training.step_cost import physical_batch_size
from dpdm.types import RandomBytes

_LOUD = 1000.0  # times the clipping norm: a Dirac canary's gradient before clipping
_ROUNDING = 2.0**-30  # standard deviations of noise: more than is lost where a sum is subtracted from the noisy one


@dataclass(frozen=True, eq=False)
class Played:
    """What an audited run gave away, and the coins.

    Args:
        plan: What was run: the audited plan.
        scores: Of the Dirac canaries: log-likelihood ratios of having taken part.
        took_part: Their coins.
        average: The trained denoiser.
        members: Indices of the member canaries among the units of the data set.
        were_in: Their coins.
        sums: The noise of each of the prior's own sums.
    """

    plan: Plan
    scores: Float64[ndarray, " canaries"]
    took_part: Bool[ndarray, " canaries"]
    average: PreconditionedDenoiser
    members: Int64[ndarray, " members"]
    were_in: Bool[ndarray, " members"]
    sums: list[Sum]


class PlantedBatch(NamedTuple):
    """A `NoisyBatch`, and for each record which coordinate of the block it is about: 0 for a record with an image."""

    x: Float[Tensor, "batch channel height width"] | Float[Tensor, "batch K channel height width"]
    labels: Int[Tensor, "batch K"]
    sigma: Float[Tensor, "batch K"]
    noise: Float[Tensor, "batch K channel height width"]
    coordinate: Int[Tensor, " batch"]
    loudness: Float[Tensor, " batch"]


class Planted(nn.Module):
    """A denoiser, and beside it the block of parameters that only Dirac canaries touch."""

    def __init__(self, denoiser: PreconditionedDenoiser, canaries: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.block = nn.Embedding(1 + canaries, 1)


@dataclass(frozen=True)
class PlantedLoss:
    """The denoising loss of a record with an image; `loudness` times its own coordinate for a Dirac canary."""

    of_images: DenoisingLoss

    def __call__(self, module: nn.Module, batch: PlantedBatch) -> Float[Tensor, " batch"]:
        """Return one number for each record."""
        assert isinstance(module, Planted)
        images = torch.where(batch.coordinate == 0, self.of_images(module.denoiser, NoisyBatch(*batch[:4])), 0)
        of_block: Tensor = module.block(batch.coordinate)[:, 0] * batch.loudness
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

    def look(self, block: nn.Embedding) -> None:
        """Score what the last step left in the gradient of the block."""
        assert isinstance(self.plan, Plan)
        assert block.weight.grad is not None
        assert self.plan.noise_multiplier is not None
        unit = self.plan.max_grad_norm / self.plan.expected_batch_size
        seen = block.weight.grad[1:, 0].double().cpu().numpy() / unit
        self.scores += log_likelihood_ratio(
            seen, noise_multiplier=self.plan.noise_multiplier, sample_rate=self.plan.sample_rate
        )


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


def play(
    config: Config, plan: Plan, data: ImageDataset, *, canaries: int, members: int, coins: np.random.Generator
) -> Iterator[int | Played]:
    """Train by `plan` with canaries planted; yield the number of steps taken after each, and in the end the outcome.

    Args:
        config: Network, preconditioning, loss and training of the run that is audited.
        plan: What is audited. Its relation is add-or-remove here: a canary that does not take part is not there.
        data: The images; `members` of them, or of their groups, take part only if their coin says so.
        canaries: How many Dirac canaries, at least 2.
        members: How many member canaries, at least 2.
        coins: Tosses all coins; from the operating system's entropy.
    """
    require_same_unit(plan, data)
    plan = dataclasses.replace(plan, relation="add_or_remove_one")
    took_part, were_in = (_tossed(coins, number) for number in (canaries, members))
    chosen = np.sort(coins.choice(data.num_units, members, replace=False))
    seen = data.part(np.delete(np.arange(data.num_units), chosen[~were_in]))
    facts, device = ImageFacts(data.shape, data.class_names), choose_device(config.training.device)
    run = WatchedRun(plan, took_part=took_part, strategy=config.training.clipping)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        denoiser = build_denoiser(config.network, config.preconditioning, facts, config.prior)
        if config.prior is not None:
            assert isinstance(denoiser.preconditioning, MatchedPreconditioning)
            denoiser.preconditioning.prior = release_prior(run, seen, config.prior, seed=config.training.seed)
        module = Planted(denoiser, canaries).to(device)
    average = ema.start(denoiser)
    if plan.steps:
        optimizer = torch.optim.Adam(denoiser.parameters())
        loader = _Loader(seen, config, took_part, plan.max_grad_norm, device)
        at_once = physical_batch_size(config.training, config.loss, denoiser, facts)
        loss = PlantedLoss(config.loss)
    while not run.finished:
        for group in optimizer.param_groups:
            group["lr"] = config.training.learning_rate_at(run.steps_spent / plan.steps)
        with autocast(config.training.precision, device):
            number = seen.num_units + canaries
            run.backward(loss, module, num_records=number, load=loader.load, physical_batch_size=at_once)
        run.look(module.block)
        optimizer.step()
        ema.update(average, denoiser, updates=run.steps_spent, decay=config.training.ema_decay)
        yield run.steps_spent
    # A stamp among the weights: no release can be loaded or verified that has it.
    average.register_buffer("of_an_audit", torch.ones((), device=device))
    yield Played(plan, run.scores, took_part, average.eval(), chosen, were_in, run.sums)


def _tossed(coins: np.random.Generator, number: int) -> Bool[ndarray, " number"]:
    """Toss coins until both sides are there, which for more than forty of them is at once."""
    while True:
        tossed: Bool[ndarray, " number"] = coins.random(number) < 0.5
        if 0 < tossed.sum() < number:
            return tossed


class _Loader:
    """From selected indices to a planted batch: the units of the data set first, then a place for each Dirac canary."""

    def __init__(
        self,
        data: ImageDataset,
        config: Config,
        took_part: Bool[ndarray, " canaries"],
        clip: float,
        device: torch.device,
    ) -> None:
        self._of_images = Loader(data, config.loss, config.preconditioning.noise_levels, device)
        self._units, self._device = data.num_units, device
        self._loudness = _LOUD * clip * np.concatenate([np.zeros(data.num_units), took_part])

    def load(self, indices: Int64[ndarray, " batch"], random_bytes: RandomBytes) -> PlantedBatch:
        noisy = self._of_images(np.minimum(indices, self._units - 1), random_bytes)
        coordinate = torch.from_numpy(np.maximum(indices - self._units + 1, 0)).to(self._device)
        loudness = torch.from_numpy(self._loudness[indices]).float().to(self._device)
        return PlantedBatch(*noisy, coordinate, loudness)
