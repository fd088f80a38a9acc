"""A start for a private classifier from images that a program draws: it learns which crops are of one image.

Nothing private takes part, and no real image. Two views of one image are to lie near each other, and views of all
images are to lie all over the unit sphere.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, normalize, pdist

from dpdm.data import ImageDataset
from dpdm.data.procedural import tell_progress
from dpdm.data.shapes import draw_shapes
from dpdm.types import levels_to_tensor

_IMAGES, _UPDATES, _BATCH, _RATE = 4000, 300, 256, 2e-3
_OUTPUTS = 32  # of the head that is trained beside, and left out afterwards
_SMALLEST = 0.5  # part of a side that a view shows
_NOISE = 0.1  # standard deviation of a pixel's, at most


def train_on_shapes(network: nn.Sequential, shape: tuple[int, int, int], *, seed: int) -> ImageDataset:
    """Train all layers of a classifier but the last one; return the images, which anybody can draw again.

    Args:
        network: From images in [-1, 1] to logits; changed in place. Its last layer stays as it is.
        shape: Of images (channel, height, width).
        seed: Of batches and views.

    Source:
        Tang, Panda, Sehwag & Mittal 2023 (DP-RandP), there with images of random networks; Wang & Isola 2020 (the
        loss).
    """
    images = draw_shapes(_IMAGES, shape)
    levels = levels_to_tensor(images.images)
    random = torch.Generator().manual_seed(seed)
    body, last = network[:-1], network[-1]
    assert isinstance(last, nn.Linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(last.in_features, _OUTPUTS)
    parameters = [*body.parameters(), *head.parameters()]
    adam = torch.optim.Adam(parameters, lr=_RATE)
    for update in range(_UPDATES):
        adam.param_groups[0]["lr"] = _RATE * (1 - update / _UPDATES)
        chosen = torch.randint(len(levels), (_BATCH,), generator=random)
        views = views_of(levels, chosen.repeat(2), random)
        one, other = normalize(head(body(views))).chunk(2)
        loss = aligned_and_uniform(one, other)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        adam.step()
        tell_progress("shapes", update + 1, _UPDATES)
    adam.zero_grad()
    return images


def aligned_and_uniform(one: Float[Tensor, "images k"], other: Float[Tensor, "images k"]) -> Float[Tensor, ""]:
    """Return E‖u − v‖² for two views of an image + log E exp(−2 ‖u − u'‖²) for those of two images."""
    apart = [pdist(rows).square().mul(-2).exp().mean().log() for rows in (one, other)]
    loss: Tensor = (one - other).square().sum(1).mean() + (apart[0] + apart[1]) / 2
    return loss


def views_of(
    levels: Float[Tensor, "all channel height width"], chosen: Int[Tensor, " views"], random: torch.Generator
) -> Float[Tensor, "views channel height width"]:
    """Return a view of each chosen image: a part of it, darker or brighter, of another contrast, with noise."""
    number = len(chosen)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(number, *shape, generator=random) * (high - low) + low

    sides = between(_SMALLEST, 1, 2)  # not mirrored: no letter or digit could be
    places = between(-1, 1, 2) * (1 - sides)
    maps = torch.cat([torch.diag_embed(sides), places[..., None]], dim=2)
    grid = affine_grid(maps, [number, *levels.shape[1:]], align_corners=False)
    views = grid_sample(levels[chosen], grid, align_corners=False)
    noise = torch.randn(views.shape, generator=random) * between(0, _NOISE, 1, 1, 1)
    return (views * between(0.5, 1.5, 1, 1, 1) + between(-0.4, 0.4, 1, 1, 1) + noise).clamp(-1, 1)
