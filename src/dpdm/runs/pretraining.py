"""Pre-training on public images: what need not be learnt from private ones is learnt before, and costs no privacy.

The network is trained around public priors that carry the noise which the private prior will have. What it learns,
to turn a noisy mixture's guess into an image, carries over when the private prior takes the public one's place. Without
a prior it is trained as it is, to be tuned on private images (Ghalebikesabi et al. 2023).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from dpdm.config import encode_method
from dpdm.data import ImageDataset
from dpdm.diffusion import DenoisingLoss, GaussianMixture, MatchedPreconditioning, NoisyBatch
from dpdm.methods import Diffusion, Prior, ema
from dpdm.methods.codec import AnyCodec, Codec, from_rows, latents_of, load_codec, require_images, seen_by
from dpdm.methods.interface import Run
from dpdm.methods.prior import release_prior
from dpdm.methods.start import forget_classes
from dpdm.methods.values import PublicStart
from dpdm.networks import PipelineFolder
from dpdm.networks.codec import ConvCodec
from dpdm.privacy import Noisy
from dpdm.privacy.processes import Processes
from dpdm.privacy.sums import BoundedSum
from dpdm.runs.kept import keep_rows
from dpdm.runs.public_training import Loop, PublicTraining
from dpdm.runs.start import open_start
from dpdm.types import Images, InputError, levels_to_tensor

EPSILONS, SIZES = (0.2, 10.0), (2_000, 100_000)
"""The budgets and numbers of private records that one start serves."""

_BATCH = 512
_NEW_PRIOR = 100  # updates
_RECORDS_OF_A_PRIOR = 8_000
_LEARNING_RATE, _EMA = 2e-3, 0.998
_MOST_NORM = 1.0  # of a gradient: one prior of very much noise must not undo what all others have taught
_PART = 4096  # images pooled at a time


@dataclass(frozen=True, kw_only=True)
class Pretraining(PublicTraining):
    """Trains a start.

    Args:
        facts: Public classes are those of the private images if all names are the same. Else the network learns no
            classes, and priors have groups of public images.
        method: Network, preconditioning, prior and codec, as private training will have them.

    The others are those of `PublicTraining`.
    """

    method: Diffusion

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method.code is not None or isinstance(self.method.network, PipelineFolder):
            raise InputError("a start is for one of dpdm's networks: set network.kind")
        require_images(self.method.codec, self.facts)

    @property
    def alone(self) -> Diffusion:
        """The method without what it begins with."""
        return replace(self.method, start=None, retrieval=None)

    @cached_property
    def codec(self) -> PublicStart | None:
        """The codec in whose latents the network is trained: read once."""
        return open_start(self.method.codec.source) if isinstance(self.method.codec, Codec) else None

    def settings(self) -> dict[str, Any]:
        """Return what the start was made with and for."""
        tables = encode_method(self.alone)
        shape, latents = [*seen_by(self.method.codec, self.facts).shape], latents_of(self.method.codec, self.codec)
        return {
            **super().settings(),
            "classes": [*self.facts.class_names] if self.labelled else [],
            "label_dropout": self.method.loss.label_dropout,
            "epsilon": [*EPSILONS],
            "dataset_size": [*SIZES],
            "facts": {"shape": shape, "class_names": [*self.facts.class_names]},
            **({"codec": latents} if latents else {}),
            **{name: tables[name] for name in ("network", "preconditioning", "prior") if name in tables},
        }

    def begun(self, processes: Processes) -> "_Loop":
        """Return the network with first weights."""
        return _Loop(self, processes)


class _Loop(Loop):
    """Network, average and optimizer; and the prior around which they are at present."""

    rate, last = _LEARNING_RATE, 0.05
    most_norm = _MOST_NORM

    def __init__(self, of: Pretraining, processes: Processes) -> None:
        super().__init__(of, processes)
        self._of = of
        generator = of.alone.untrained(of.facts, seed=of.seed)
        if not of.labelled:
            forget_classes(generator.denoiser.network)
        self._seen = of.public.images
        if generator.codec is not None:
            self._seen = _latents(generator.codec, of.codec, of.public.images)
        self._denoiser = generator.denoiser.to(self.device)
        self.average = ema.start(self._denoiser).eval()
        self.parameters = [*self._denoiser.parameters()]
        self.optimizer = torch.optim.Adam([p for p in self.parameters if p.requires_grad])
        self._groups: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    @property
    def state(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What training goes on with."""
        network, average = self._denoiser.network, self.average.network
        return {"network": network, "average": average, "optimizer": self.optimizer, "clock": self.clock}

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The average of all weights."""
        return self.average.network.state_dict()

    def prepare(self, updates: int) -> None:
        """Take a new prior now and then, of other images, noise and groups."""
        if updates % _NEW_PRIOR and len(self._groups):
            return
        random = np.random.default_rng([self._of.seed, updates // _NEW_PRIOR])
        self._groups = self._draw_groups(random)
        if self._of.method.prior is not None:
            self._draw_prior(self._of.method.prior, random)

    def follow(self, updates: int) -> None:
        """Let the average follow."""
        ema.update(self.average, self._denoiser, updates=updates, decay=_EMA)

    def loss(self, random: np.random.Generator) -> Tensor:
        """Return the denoising loss of public images, each with one noisy copy."""
        return DenoisingLoss(noise_multiplicity=1)(self._denoiser, self._batch(random)).mean()

    def _batch(self, random: np.random.Generator) -> NoisyBatch:
        """Return public images, each with one noisy copy."""
        facts, method = self._of.facts, self._of.method
        number = self.share_of(_BATCH)
        chosen = random.integers(len(self._seen), size=number)
        x = levels_to_tensor(self._seen[chosen])
        labels = torch.from_numpy(self._groups[chosen])
        dropped = torch.from_numpy(random.random(number) < method.loss.label_dropout)
        u = (random.permutation(number) + random.random(number)) / number
        sigma = method.preconditioning.noise_levels.quantile(torch.from_numpy(u.clip(1e-9, 1 - 1e-9)))
        noise = torch.from_numpy(random.standard_normal(x.shape, dtype=np.float32))
        batch = (x, torch.where(dropped, facts.num_classes, labels)[:, None], sigma.float()[:, None], noise[:, None])
        return NoisyBatch(*(t.to(self.device) for t in batch))

    def _draw_prior(self, settings: Prior, random: np.random.Generator) -> None:
        """Put a new public prior in the place of the one before: other images, noise and groups."""
        public = self._of.public
        some = random.permutation(len(public))[:_RECORDS_OF_A_PRIOR]
        classes = self._of.facts.num_classes
        data = ImageDataset(
            images=public.images[some],
            labels=self._groups[some] if classes else None,
            num_classes=classes,
            name=public.name,
            public=True,
        ).shown_by(self._seen[some])
        prior = noisy_prior(settings, data, random).to(self.device)
        for denoiser in (self._denoiser, self.average):
            assert isinstance(denoiser.preconditioning, MatchedPreconditioning)
            denoiser.preconditioning.prior = prior

    @cached_property
    def _pooled(self) -> Float32[Tensor, "images pixels"]:
        """The public images in 4 × 4 pixels, made part by part."""
        images = self._seen
        parts = (levels_to_tensor(images[start : start + _PART]) for start in range(0, len(images), _PART))
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


def _latents(network: AnyCodec, codec: PublicStart | None, images: Images) -> Images:
    """Return the latents of public images, in levels."""
    if codec is not None and isinstance(network, ConvCodec):
        load_codec(network, codec)
    make = network.levels if isinstance(network, ConvCodec) else network.rows
    kept = keep_rows(None, images, make, made_by="latents", name="latents")
    levels: Images = from_rows(kept, len(images), network)  # type: ignore[assignment]
    return levels


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
