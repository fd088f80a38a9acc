"""Images whose layers have given Gaussians: their pixels follow the gradient of a divergence. All of it is public.

Each update takes some of the images through the network, beside what was last seen of all others. So a covariance is
that of all images, however few are in memory at once.
"""

import math
import time
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8
from torch import Tensor, nn

from dpdm.evaluation.layers import LayerMeans
from dpdm.methods.layers import Layers, View
from dpdm.methods.moments import Layout, Statistics, divergence, gaussian_of
from dpdm.privacy.processes import Processes

BATCH = 64
"""Images of an update."""

_RATE, _LAST = 0.01, 0.1  # first learning rate, of pixels from 0 to 1, and the part of it that is left at the end
_BESIDE = 1.15  # how much longer an update takes than its network
_MOMENTUM, _SQUARES, _TINY = 0.9, 0.99, 1e-12  # of Adam


class Moves(NamedTuple):
    """By how many pixels images are moved at random, at most, and whether they are mirrored; and the seed of all."""

    shift: int
    flip: bool
    seed: int


class Matching(nn.Module):
    """Images that are being optimised, with all that an interrupted run goes on with.

    Args:
        images: Of each class as many, (class, image, channel, height, width), to begin with.
        target: The Gaussians that their layers are to have.
        layout: Which layers and directions these are of.
        view: The directions.
        network: The layers.
        moves: How images are moved before they are looked at.
        passes: How often each image is updated.
        processes: Those of the run: each looks at its part of a batch.

    Source:
        The idea: SPS (see docs/method.md). Updates by Adam (Kingma & Ba 2015), for the images of a batch alone.
    """

    pixels: Float32[Tensor, "images channel height width"]
    first: Float32[Tensor, "images channel height width"]
    second: Float32[Tensor, "images channel height width"]
    seen: Float32[Tensor, "images directions"]
    done: Int[Tensor, ""]

    def __init__(
        self,
        images: UInt8[Tensor, "class image channel height width"],
        target: Statistics,
        layout: Layout,
        view: View,
        network: LayerMeans,
        moves: Moves,
        passes: int,
        processes: Processes,
    ) -> None:
        super().__init__()
        pixels = images.flatten(0, 1).float().div(255)
        self.register_buffer("pixels", pixels)
        self.register_buffer("first", torch.zeros_like(pixels))
        self.register_buffer("second", torch.zeros_like(pixels))
        self.register_buffer("seen", pixels.new_zeros(len(pixels), sum(layout.sizes)))
        self.register_buffer("done", torch.zeros((), dtype=torch.long))
        self._target, self._layout, self._view = target.to(images.device), layout, view
        self._network = [network.to(images.device)]  # in a list: its weights are no part of the state
        self._moves, self._processes = moves, processes
        self._of_a_pass = math.ceil(len(pixels) / BATCH)
        self.updates = passes * self._of_a_pass

    @property
    def finished(self) -> bool:
        """Whether all updates are made."""
        return int(self.done) >= self.updates

    def images(self) -> UInt8[Tensor, "class image channel height width"]:
        """Return the images as they are now, in whole levels."""
        levels = self.pixels.mul(255).round().to(torch.uint8)
        return levels.view(self._layout.classes, -1, *self.pixels.shape[1:])

    def update(self) -> float:
        """Move the images of one batch along the gradient, and return the divergence before."""
        number = int(self.done)
        if not number:
            self._look()
        order = torch.randperm(len(self.pixels), generator=_random(self._moves.seed, number // self._of_a_pass))
        chosen = order[number % self._of_a_pass :: self._of_a_pass].to(self.pixels.device)
        random = _random(self._moves.seed, self.updates + number)
        mine = torch.tensor(self._processes.shard(len(chosen)), dtype=torch.long, device=chosen.device)
        moves = [each[mine] for each in self._draw_moves(len(chosen), random)]
        x = self.pixels[chosen[mine]].requires_grad_()
        with torch.enable_grad():
            fresh = self._see(moved(x, *moves))
        all_fresh = self._gathered(fresh.detach(), mine, len(chosen)).requires_grad_()
        with torch.enable_grad():
            loss = self.divergence(self.seen.index_put((chosen,), all_fresh))
        (towards,) = torch.autograd.grad(loss, all_fresh)
        (gradient,) = torch.autograd.grad(fresh, x, towards[mine])
        self._step(chosen, self._gathered(gradient, mine, len(chosen)), number)
        self.seen[chosen] = all_fresh.detach()
        self.done += 1
        return float(loss.detach())

    def divergence(self, seen: Float[Tensor, "images directions"]) -> Float64[Tensor, ""]:
        """Return the divergence of the images' Gaussians from the given ones: all layers', and the classes' mean."""
        layers = torch.split(seen.double(), [*self._layout.sizes], dim=1)
        total = seen.new_zeros((), dtype=torch.float64)
        for layer, gaussian in zip(layers, self._target.layers, strict=True):
            total = total + divergence(gaussian_of(layer, self._layout.pairs), gaussian)
        last = layers[len(layers) - self._layout.own :]
        for layer, gaussians in zip(last, self._target.own, strict=True):
            of_class = layer.reshape(self._layout.classes, -1, layer.shape[1])
            total = total + divergence(gaussian_of(of_class, self._layout.own_pairs), gaussians).mean()
        return total

    @torch.no_grad()
    def _look(self) -> None:
        """See all images as they are."""
        mine = torch.tensor(self._processes.shard(len(self.pixels)), dtype=torch.long, device=self.pixels.device)
        parts = [self._see(self.pixels[part]) for part in torch.split(mine, BATCH)]
        seen = torch.cat([self.seen[:0], *parts])
        self.seen.copy_(self._gathered(seen, mine, len(self.pixels)))

    def _see(self, x: Float[Tensor, "images channel height width"]) -> Float[Tensor, "images directions"]:
        return self._view.of_layers(self._network[0](x * 255))

    def _gathered(self, mine: Tensor, places: Tensor, number: int) -> Tensor:
        """Return the rows of all processes, of which this one has some."""
        rows = mine.new_zeros(number, *mine.shape[1:])
        rows[places] = mine
        return self._processes.sum(rows)

    def _draw_moves(self, number: int, random: torch.Generator) -> list[Tensor]:
        """Return how far each image is moved down and across, and whether it is mirrored."""
        most = self._moves.shift
        shifts = torch.randint(-most, most + 1, (2, number), generator=random)
        flips = torch.rand(number, generator=random) < (0.5 if self._moves.flip else 0.0)
        return [each.to(self.pixels.device) for each in (*shifts, flips)]

    def _step(self, chosen: Tensor, gradient: Tensor, number: int) -> None:
        """Take Adam's step for the images of a batch, each of which has had as many before."""
        step = number // self._of_a_pass + 1
        first = self.first[chosen].lerp_(gradient, 1 - _MOMENTUM)
        second = self.second[chosen].lerp_(gradient.square(), 1 - _SQUARES)
        self.first[chosen], self.second[chosen] = first, second
        size = (second / (1 - _SQUARES**step)).sqrt() + _TINY
        rate = _RATE * (1 - (1 - _LAST) * number / self.updates)
        moved_by = rate * first / (1 - _MOMENTUM**step) / size
        self.pixels[chosen] = (self.pixels[chosen] - moved_by).clamp(0, 1)


def pace_of(layers: Layers, shape: tuple[int, int, int], device: torch.device) -> tuple[float, float]:
    """Return the seconds that one image of this shape takes, to be looked at and to be updated, on made-up ones."""
    compute, network = layers.compute(shape), layers.build(shape, ()).to(device)
    images = torch.randint(256, (BATCH, *shape), generator=_random(0, 0), dtype=torch.uint8)
    x = images.float().to(device).requires_grad_()
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):  # the first makes what later ones find
        begun = time.perf_counter()
        compute(images.movedim(1, -1).numpy())
        looked = time.perf_counter()
        loss = torch.stack([layer.square().mean() for layer in network(x)]).sum()
        torch.autograd.grad(loss, x)[0].sum().item()
        taken[0].append(looked - begun)
        taken[1].append(time.perf_counter() - looked)
    return sorted(taken[0])[1] / BATCH, _BESIDE * sorted(taken[1])[1] / BATCH


def moved(
    x: Float[Tensor, "images channel height width"],
    down: Int[Tensor, " images"],
    across: Int[Tensor, " images"],
    mirrored: Bool[Tensor, " images"],
) -> Float[Tensor, "images channel height width"]:
    """Return images moved by whole pixels, their edges repeated, and mirrored."""
    height, width = x.shape[2:]
    rows = (torch.arange(height, device=x.device) - down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=x.device) - across[:, None]).clamp(0, width - 1)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return x.movedim(1, -1)[image, rows[:, :, None], columns[:, None]].movedim(-1, 1)


def _random(seed: int, number: int) -> torch.Generator:
    """Return the generator of one pass, or of one update: an interrupted run goes on with the same."""
    return torch.Generator().manual_seed((seed * 2**20 + number) % 2**63)
