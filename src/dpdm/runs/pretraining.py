"""Pre-training on public images: what need not be learnt from private ones is learnt before, and costs no privacy.

The network is trained around public priors that carry the noise which the private prior will have. What it learns,
to turn a noisy mixture's guess into an image, carries over when the private prior takes the public one's place. Without
a prior it is trained as it is, to be tuned on private images (Ghalebikesabi et al. 2023).
"""

import math
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from dpdm.config import Machine, encode, encode_method
from dpdm.data import ImageDataset
from dpdm.diffusion import DenoisingLoss, GaussianMixture, MatchedPreconditioning, NoisyBatch
from dpdm.methods import Diffusion, ImageFacts, Prior, ema
from dpdm.methods.interface import Run
from dpdm.methods.prior import release_prior
from dpdm.methods.start import forget_classes
from dpdm.networks import DiffusersFolder
from dpdm.privacy import Earlier, Noisy
from dpdm.privacy.processes import Processes
from dpdm.privacy.sums import BoundedSum
from dpdm.runs.folder import PrivateFolder
from dpdm.runs.hardware import autocast, choose_device, keep_freed_memory
from dpdm.runs.start import require_free, save_start
from dpdm.types import InputError, images_to_tensor, require_name, require_positive

EPSILONS, SIZES = (0.2, 10.0), (2_000, 100_000)
"""The budgets and numbers of private records that one start serves."""

_BATCH = 512
_NEW_PRIOR = 100  # updates
_RECORDS_OF_A_PRIOR = 8_000
_LEARNING_RATE, _WARM_UP, _LAST, _EMA = 2e-3, 50, 0.05, 0.998
_MOST_NORM = 1.0  # of a gradient: one prior of very much noise must not undo what all others have taught
_FEWEST = 64  # public images
_PART = 4096  # images pooled at a time
MAKING = "making"
"""What a folder holds of a training that is not over."""


class Pretrained(NamedTuple):
    """One update made. All of it is public."""

    updates: int
    seconds: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Trains a start.

    Args:
        public: Images that are declared public, at the shape of the private ones.
        facts: Shape and classes of the private images, as they are declared. Public classes are theirs if all names
            are the same; else the network learns no classes, and priors have groups of public images.
        method: Network, preconditioning and prior, as private training will have them.
        minutes: How long.
        machine: Device and precision.
        seed: Of weights, priors and batches: all of it is public.
        earlier: What a release cost from which `public` was drawn, if it was (`open_drawn`).

    Under torchrun each process takes its part of every batch.
    """

    public: ImageDataset
    facts: ImageFacts
    method: Diffusion
    minutes: float = 30.0
    machine: Machine = Machine()  # noqa: RUF009 (frozen)
    seed: int = 0
    earlier: tuple[Earlier, ...] = ()

    def __post_init__(self) -> None:
        require_positive(minutes=self.minutes)
        require_name(self.public.name, "the public data (public.name)")
        if self.method.code is not None or isinstance(self.method.network, DiffusersFolder):
            raise InputError("a start is for one of dpdm's networks: set network.kind")
        if self.public.shape != self.facts.shape:
            raise InputError(f"{self.public.name} has images of shape {self.public.shape}, not {self.facts.shape}")
        if self.public.drawn != bool(self.earlier):
            raise InputError(
                f"{self.public.name}: images drawn from a release come with what it cost (earlier), no others"
            )
        if len(self.public) < _FEWEST:
            raise InputError(f"{self.public.name} has {len(self.public)} images: take at least {_FEWEST}")

    @property
    def labelled(self) -> bool:
        """Whether the public classes are those of the private images."""
        return self.public.labels is not None and self.public.class_names == self.facts.class_names

    def settings(self) -> dict[str, Any]:
        """Return what the start was made with and for."""
        tables = encode_method(replace(self.method, start=None))
        return {
            "classes": [*self.facts.class_names] if self.labelled else [],
            "epsilon": [*EPSILONS],
            "dataset_size": [*SIZES],
            "minutes": self.minutes,
            "seed": self.seed,
            "facts": {"shape": [*self.facts.shape], "class_names": [*self.facts.class_names]},
            **{name: tables[name] for name in ("network", "preconditioning", "prior") if name in tables},
        }

    def steps(self, folder: Path) -> Generator[Pretrained, None, None]:
        """Train, save now and then, and yield after every update; the same call goes on from what was saved.

        Args:
            folder: Where the start will be.

        Raises:
            InputError: The folder has another start, or other files.
            OSError: A file cannot be written; the disk may be full.
        """
        processes = Processes.joined()
        settings = self.settings() | {
            "public_images": self.public.digest(),
            "earlier": [encode(each) for each in self.earlier],
        }
        making = folder / MAKING if processes.first else None
        with processes.refused_together():
            require_free(folder)
            kept = PrivateFolder(making, {**settings, "machine": encode(self.machine)})
        loop = _Loop(self, processes)
        with processes.refused_together():
            updates = kept.restore(loop.state)
        updates = processes.object_from_first(updates)
        processes.share(loop.state.values())
        while (seconds := processes.object_from_first(loop.clock.seconds)) < 60 * self.minutes or not updates:
            begun = time.monotonic()
            loss = loop.update(updates, part=min(1.0, seconds / (60 * self.minutes)))
            if not math.isfinite(loss):
                raise InputError(f"{folder}: training diverged at update {updates + 1}: take another seed or network")
            updates += 1
            loop.clock.add(time.monotonic() - begun)
            kept.save_now_and_then(loop.state, updates)
            try:
                yield Pretrained(updates, loop.clock.seconds, loss)
            except GeneratorExit:
                kept.save(loop.state, updates)
                raise
        if processes.first:
            weights = loop.average.network.state_dict()
            save_start(folder, weights, self.public, self.settings() | {"updates": updates}, self.earlier)
            shutil.rmtree(folder / MAKING)


class Clock(nn.Module):
    """How long training has taken, before it was interrupted too."""

    passed: Float64[Tensor, ""]

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passed", torch.zeros((), dtype=torch.float64))

    @property
    def seconds(self) -> float:
        """How many seconds it has taken."""
        return float(self.passed)

    def add(self, seconds: float) -> None:
        """Count so many seconds more."""
        self.passed += seconds


class _Loop:
    """Network, average and optimizer; and the prior around which they are at present."""

    def __init__(self, of: Pretraining, processes: Processes) -> None:
        keep_freed_memory()
        self._of, self._processes = of, processes
        self._device = choose_device(of.machine.device)
        generator = replace(of.method, start=None).untrained(of.facts, seed=of.seed)
        if not of.labelled:
            forget_classes(generator.denoiser.network)
        self._denoiser = generator.denoiser.to(self._device)
        self.average = ema.start(self._denoiser).eval()
        self._optimizer = torch.optim.Adam([p for p in self._denoiser.parameters() if p.requires_grad])
        self.clock = Clock()
        self._groups: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    @property
    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What training goes on with."""
        network = self._denoiser.network
        return {
            "network": network,
            "average": self.average.network,
            "optimizer": self._optimizer,
            "clock": self.clock,
        }

    def update(self, updates: int, *, part: float) -> float:
        """Take one step, the time being spent to this part of it, and return the loss."""
        if updates % _NEW_PRIOR == 0 or not len(self._groups):
            random = np.random.default_rng([self._of.seed, updates // _NEW_PRIOR])
            self._groups = self._draw_groups(random)
            if self._of.method.prior is not None:
                self._draw_prior(self._of.method.prior, random)
        cosine = _LAST + (1 - _LAST) * (1 + math.cos(math.pi * part)) / 2
        for group in self._optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * cosine * min(1.0, (updates + 1) / _WARM_UP)
        batch = self._batch(np.random.default_rng([self._of.seed, updates, self._processes.rank]))
        self._optimizer.zero_grad()
        with autocast(self._of.machine.precision, self._device):
            loss = DenoisingLoss(noise_multiplicity=1)(self._denoiser, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in self._denoiser.parameters():
            if parameter.grad is not None:
                parameter.grad = self._processes.sum(parameter.grad) / self._processes.size
        nn.utils.clip_grad_norm_(self._denoiser.parameters(), _MOST_NORM)
        self._optimizer.step()
        ema.update(self.average, self._denoiser, updates=updates + 1, decay=_EMA)
        return float(self._processes.sum(loss.detach())) / self._processes.size  # of all, for all to stop together

    def _batch(self, random: np.random.Generator) -> NoisyBatch:
        """Return public images, each with one noisy copy."""
        public, facts, method = self._of.public, self._of.facts, self._of.method
        number = -(-_BATCH // self._processes.size)
        chosen = random.integers(len(public), size=number)
        x = images_to_tensor(public.images[chosen])
        labels = torch.from_numpy(self._groups[chosen])
        dropped = torch.from_numpy(random.random(number) < method.loss.label_dropout)
        u = (random.permutation(number) + random.random(number)) / number
        sigma = method.preconditioning.noise_levels.quantile(torch.from_numpy(u.clip(1e-9, 1 - 1e-9)))
        noise = torch.from_numpy(random.standard_normal(x.shape, dtype=np.float32))
        batch = (x, torch.where(dropped, facts.num_classes, labels)[:, None], sigma.float()[:, None], noise[:, None])
        return NoisyBatch(*(t.to(self._device) for t in batch))

    def _draw_prior(self, settings: Prior, random: np.random.Generator) -> None:
        """Put a new public prior in the place of the one before: other images, noise and groups."""
        some = random.permutation(len(self._of.public))[:_RECORDS_OF_A_PRIOR]
        classes = self._of.facts.num_classes
        data = ImageDataset(
            images=self._of.public.images[some],
            labels=self._groups[some] if classes else None,
            num_classes=classes,
            name=self._of.public.name,
            public=True,
        )
        prior = noisy_prior(settings, data, random).to(self._device)
        for denoiser in (self._denoiser, self.average):
            assert isinstance(denoiser.preconditioning, MatchedPreconditioning)
            denoiser.preconditioning.prior = prior

    @cached_property
    def _pooled(self) -> Float32[Tensor, "images pixels"]:
        """The public images in 4 × 4 pixels, made part by part."""
        images = self._of.public.images
        parts = (images_to_tensor(images[start : start + _PART]) for start in range(0, len(images), _PART))
        return torch.cat([adaptive_avg_pool2d(part, 4).flatten(1) for part in parts])

    def _draw_groups(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Return a class for each public image: its own, or one of groups of classes, or of images that look alike."""
        public, classes = self._of.public, self._of.facts.num_classes
        if self._of.labelled and public.labels is not None:
            return public.labels
        if not classes:
            return np.zeros(len(public), dtype=np.int64)
        if public.labels is not None and public.num_classes >= classes:
            return (random.permutation(public.num_classes) % classes)[public.labels]
        x = self._pooled
        firsts = x[torch.from_numpy(random.permutation(len(x))[:classes])]
        groups: NDArray[np.int64] = torch.cdist(x, firsts).argmin(1).numpy()
        return groups


def noisy_prior(settings: Prior, public: ImageDataset, random: np.random.Generator) -> GaussianMixture:
    """Return a prior of public images with the noise that a private one may have, of a budget and size in the range."""
    low, high = np.log(EPSILONS)
    epsilon = math.exp(random.uniform(low, high))
    records = math.exp(random.uniform(*np.log(SIZES)))
    multipliers = settings.releases(epsilon=epsilon, delta=1e-5, alone=bool(random.integers(2)))
    run = _PublicSums(multipliers, records / len(public), int(random.integers(2**31)))
    return release_prior(cast(Run, run), public, settings)


class _PublicSums:
    """Makes sums over public images as if there were as many as private ones, with the noise of the private sums."""

    def __init__(self, multipliers: dict[str, float], times: float, seed: int) -> None:
        self._multipliers, self._times, self.seed = multipliers, times, seed
        self._random = torch.Generator().manual_seed(seed)

    def once(self, name: str, make: Callable[[], BoundedSum]) -> Noisy:
        total, sensitivity = make()
        std = self._multipliers[name] * sensitivity
        noise = torch.randn(total.shape, generator=self._random, dtype=torch.float64)
        return Noisy(self._times * total + std * noise, std)
