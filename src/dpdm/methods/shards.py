"""Shards of the private images, and the critic that each of them has.

A critic sees the images of its shard alone. What it tells of generated images is the vector of its shard in a noisy
sum. Its own state is as secret as the images are: it stays in a run's `private/`.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy import ndarray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import avg_pool2d

from dpdm.data import ImageDataset
from dpdm.data.procedural import tell_progress
from dpdm.methods.adversary import Discriminator
from dpdm.methods.small_generator import SmallGenerator
from dpdm.methods.values import ImageFacts
from dpdm.types import RandomBytes, levels_to_tensor

_BETAS, _TINY = (0.5, 0.9), 1e-8  # of Adam: a game needs less memory than a descent
_PENALTY = 10.0  # weight of (‖∇D‖ − 1)², as published


def members(data: ImageDataset, *, shards: int, seed: int) -> list[Int64[ndarray, " images"]]:
    """Return the indices of the images in each shard, none of them blank.

    Args:
        data: The images, with their labels and groups.
        shards: K, their number.
        seed: Public; another one shuffles the images among shards.

    Guarantees:
        * A unit, an image or a whole group of images, lies in one shard. Which one follows from the unit's own images
          and labels: whatever other units there are makes no difference.
        * A unit of blank images lies in none.
    """
    shown = np.arange(len(data)) if data.blank is None else np.flatnonzero(~data.blank)
    labels, units = np.zeros(len(data), dtype=np.int64) if data.labels is None else data.labels, data.units
    own: dict[int, list[bytes]] = {}
    for index in shown.tolist():
        said = hashlib.sha256(np.ascontiguousarray(data.images[index]).tobytes() + labels[index].tobytes())
        own.setdefault(int(units[index]), []).append(said.digest())
    key = seed.to_bytes(16, "little", signed=True)
    of_unit = np.full(data.num_units, -1)
    for unit, digests in own.items():  # sorted: the order of a group's images says nothing of the group
        place = hashlib.blake2b(b"".join(sorted(digests)), key=key, digest_size=16).digest()
        of_unit[unit] = int.from_bytes(place, "little") % shards
    order = shown[np.argsort(of_unit[units[shown]], kind="stable")]
    sizes = np.bincount(of_unit[units[shown]], minlength=shards)
    return np.split(order, np.cumsum(sizes)[:-1])


class Fakes(nn.Module):
    """Generated images as parameters: the noisy gradient that they get is all that a generator learns from."""

    def __init__(self, number: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.images = nn.Parameter(torch.zeros(number, *shape))


class Upstream(NamedTuple):
    """The gradient of each critic's loss with respect to all generated images, stacked: one row for each shard."""

    gradients: Float[Tensor, "shard images channel height width"]


@dataclass(frozen=True)
class UpstreamLoss:
    """ℓ = ⟨g, fakes⟩ of each shard, whose gradient with respect to all fakes together is g: clipped as one vector."""

    def __call__(self, fakes: nn.Module, batch: Upstream) -> Float[Tensor, " shard"]:
        """Return the number of each shard."""
        assert isinstance(fakes, Fakes)
        products: Tensor = (batch.gradients * fakes.images).flatten(1).sum(1)
        return products


class Critics(nn.Module):
    """One critic for each shard, all with the same first weights, and Adam's moments of each. All of it is secret.

    Args:
        facts: Of the images.
        number: K, how many shards.
        width: Channels of a critic's first layer.
        rate: Adam's learning rate.
        side: Pixels of the shorter side, at most, that a critic sees.

    Source:
        Critics: Gulrajani et al. 2017 (WGAN-GP), which keeps the gradient of a critic's value near length one.
    """

    weights: Float[Tensor, "shard weight"]
    means: Float[Tensor, "shard weight"]
    squares: Float[Tensor, "shard weight"]
    seen: Int[Tensor, " shard"]

    def __init__(self, facts: ImageFacts, *, number: int, width: int, rate: float, side: int) -> None:
        super().__init__()
        channels, *sides = facts.shape
        self._square = max(1, math.ceil(min(sides) / side))
        self.shape = (channels, sides[0] // self._square, sides[1] // self._square)
        one = Discriminator(facts._replace(shape=self.shape), width=width).requires_grad_(requires_grad=False)
        self._form, self._rate = [one], rate  # in a list: no part of the state
        flat = nn.utils.parameters_to_vector(one.parameters())
        self.register_buffer("weights", flat.repeat(number, 1))
        for name in ("means", "squares"):
            self.register_buffer(name, torch.zeros(number, len(flat)))
        self.register_buffer("seen", torch.zeros(number, dtype=torch.long))

    def see(
        self, images: Float[Tensor, "image channel height width"]
    ) -> Float[Tensor, "image channel coarse_height coarse_width"]:
        """Return what critics see of images: means of squares, times a square's side, so that lengths stay.

        Coarse images have few coordinates, each of which gets noise.
        """
        return self._square * avg_pool2d(images, self._square)

    def learn(
        self,
        shard: int,
        images: Float[Tensor, "image channel height width"],
        labels: Int[Tensor, " image"],
        generator: SmallGenerator,
        random: torch.Generator,
    ) -> None:
        """Let one critic take an update on images of its shard, against as many generated ones of the same classes."""
        number = len(images)
        latent = torch.randn(number, generator.latent, generator=random).to(labels.device)
        with torch.no_grad():
            real, made = self.see(images), self.see(generator(latent, labels))
        between = torch.lerp(real, made, torch.rand(number, 1, 1, 1, generator=random).to(real)).requires_grad_()
        weights = self.weights[shard].clone().requires_grad_()
        values = self._values(weights, torch.cat([real, made, between]), labels.repeat(3))
        slopes = torch.autograd.grad(values[2 * number :].sum(), between, create_graph=True)[0].flatten(1)
        lengths = (slopes.square().sum(1) + _TINY).sqrt()
        loss = (values[number : 2 * number] - values[:number]).mean() + _PENALTY * (lengths - 1).square().mean()
        self._step(shard, torch.autograd.grad(loss, weights)[0])

    def ask(
        self, shard: int, made: Float[Tensor, "image channel height width"], labels: Int[Tensor, " image"]
    ) -> Float[Tensor, "image channel height width"]:
        """Return the gradient of −Σ D with respect to generated images as critics see them, scaled to length one.

        Noise hides a short vector more. So a critic that has learnt little speaks as loudly as all others.
        """
        made = made.detach().requires_grad_()
        value = -self._values(self.weights[shard], made, labels).sum()
        gradient = torch.autograd.grad(value, made)[0]
        unit: Tensor = gradient / gradient.norm().clamp_min(1e-20)
        return unit

    def _values(self, weights: Tensor, images: Tensor, labels: Tensor) -> Float[Tensor, " image"]:
        form, start, own = self._form[0], 0, {}
        for name, p in form.named_parameters():
            own[name] = weights[start : start + p.numel()].view_as(p)
            start += p.numel()
        values: Tensor = functional_call(form, own, (images, labels))
        return values

    @torch.no_grad()
    def _step(self, shard: int, gradient: Float[Tensor, " weight"]) -> None:
        """Take Adam's step of one critic."""
        self.seen[shard] += 1
        means, squares, seen = self.means[shard], self.squares[shard], int(self.seen[shard])
        means.lerp_(gradient, 1 - _BETAS[0])
        squares.lerp_(gradient.square(), 1 - _BETAS[1])
        unbiased = means / (1 - _BETAS[0] ** seen), (squares / (1 - _BETAS[1] ** seen)).sqrt() + _TINY
        self.weights[shard] -= self._rate * unbiased[0] / unbiased[1]


def seeded(seed: int) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class ShardLoader:
    """Maps the indices of shards to what their critics say, after each has learnt once more.

    Args:
        data: The images.
        members: The images of each shard; one of none says nothing.
        critics: What learns.
        generator: What is learnt against.
        made: Generated images as critics see them, and their classes.
        length: Of what each critic says.
        updates: Of a critic each time it is asked.
        device: Where all of them are.
    """

    data: ImageDataset
    members: list[Int64[ndarray, " images"]]
    critics: Critics
    generator: SmallGenerator
    made: tuple[Tensor, Tensor]
    length: float
    updates: int
    device: torch.device

    def learn(self, shard: int, random: torch.Generator, *, updates: int | None = None) -> bool:
        """Let the critic of a shard learn; return whether the shard has images."""
        own = self.members[shard]
        if not len(own):
            return False
        for _ in range(self.updates if updates is None else updates):
            # As much memory for a shard of any number of images, which is a secret.
            chosen = own[torch.randint(len(own), (len(self.made[0]),), generator=random).numpy()]
            images = levels_to_tensor(self.data.images[chosen]).to(self.device)
            labels = np.zeros(len(chosen), dtype=np.int64) if self.data.labels is None else self.data.labels[chosen]
            given = images, torch.from_numpy(labels).to(self.device), self.generator, random
            self.critics.learn(shard, *given)
        return True

    def warm(self, updates: int, *, seed: int) -> None:
        """Let every critic learn before it is asked: nothing of that is released."""
        for shard in range(len(self.members)):
            self.learn(shard, seeded(seed + shard), updates=updates)
            tell_progress("critics", shard + 1, len(self.members))

    def __call__(self, shards: Int64[ndarray, " batch"], random_bytes: RandomBytes) -> Upstream:
        """Return the row of each shard; sixteen random bytes are read for each."""
        rows = [torch.zeros(0, *self.made[0].shape, device=self.device)]
        for shard in shards.tolist():
            own = seeded(int.from_bytes(random_bytes(16)[:7], "little"))  # not of which others a step has
            shown = self.learn(shard, own)
            row = self.length * self.critics.ask(shard, *self.made) if shown else torch.zeros_like(self.made[0])
            rows.append(row[None])
        return Upstream(torch.cat(rows))
