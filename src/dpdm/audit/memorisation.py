"""Whether generated images are copies: how near they are to the images of the training set, and to others.

All of it is about private images: for the data owner, covered by no ε.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from scipy.stats import binom, norm
from torch import Tensor

from dpdm.data import in_parts
from dpdm.evaluation import nearest as neighbours
from dpdm.types import Images, images_to_tensor

_NEIGHBOURS = 50  # over which Carlini's score averages
_ALPHA = 0.5
_AT_ONCE = 2**27  # values of images that others are compared with at a time: half a GB of them
_NEAR = 0.01  # of held-out images are near a training image, whoever generates


class Extracted(NamedTuple):
    """Which images come out again, by generating many and keeping those that come out more than once.

    Near is nearer than `below`, as only the nearest hundredth of held-out images come to a training image.

    Args:
        below: That distance.
        training: Of as many training images as held-out ones, how many have a generated image near.
        held_out: Of the held-out images, how many have: what a generator that copies nobody does to both.
        p_value: How likely chance deals so many of all these to the training images.
        again: Generated images that have another one near: what an attacker keeps who knows no image.
        copies: How many of these are near a training image.

    Source:
        Carlini et al. 2023 (arXiv 2301.13188): generate, keep what is generated again, and compare.
    """

    below: float
    training: int
    held_out: int
    p_value: float
    again: int
    copies: int


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """How near generated images are to training images, and held-out ones to these.

    Distances are root mean squares over pixels, in levels from 0 to 1. `carlini` is the distance to the nearest
    training image ÷ (α · mean distance to the nearest 50): far below others' where an image was memorised.

    Args:
        nearest: Distance of each generated image to its nearest training image.
        neighbour: Which one that is.
        carlini: The score of each generated image.
        of_held_out: Distance of each held-out image to its nearest training image; None without such images.
        nearer_to_training: Of the generated images, the part that is nearer to the training set than to held-out
            images. As many images of each set are compared. Then come the 95 % interval around this part, and its
            p-value against one half. Interval and p-value suppose that chance deals images to the two sets. None
            without held-out images.
        extracted: Which training images come out again; None without held-out images.

    Source:
        Carlini et al. 2023 (arXiv 2301.13188) for the score, with α = 0.5 and n = 50.
    """

    nearest: Float[ndarray, " generated"]
    neighbour: Int64[ndarray, " generated"]
    carlini: Float[ndarray, " generated"]
    of_held_out: Float[ndarray, " held"] | None
    nearer_to_training: tuple[float, float, float, float] | None
    extracted: Extracted | None

    def as_json(self) -> dict[str, Any]:
        """Return numbers of all images together."""
        nearer = self.nearer_to_training
        return {
            "generated": len(self.nearest),
            "distance_to_training": _quantiles(self.nearest),
            "held_out_distance_to_training": None if self.of_held_out is None else _quantiles(self.of_held_out),
            "carlini": _quantiles(self.carlini),
            "nearer_to_training": nearer and dict(zip(("part", "low", "high", "p_value"), nearer, strict=True)),
            "extracted": self.extracted and self.extracted._asdict(),
        }


def nearness(generated: Images, training: Images, held_out: Images | None, *, seed: int = 0) -> Nearness:
    """Return how near `generated` images are to `training` ones, and to `held_out` ones of the same population.

    Args:
        generated: uint8 (number, height, width, channel).
        training: The images the generator was trained on.
        held_out: Images it has not seen, or None.
        seed: Of the choice of as many training images as held-out ones, for a fair comparison.
    """
    distances, indices = _nearest(generated, training, count=min(_NEIGHBOURS, len(training)))
    of_held_out, compared, extracted = None, None, None
    if held_out is not None:
        of_held_out = _nearest(held_out, training, count=1)[0][:, 0]
        compared = _nearer(generated, training, held_out, np.random.default_rng(seed))
        below = float(np.quantile(of_held_out, _NEAR))
        extracted = _extracted(generated, training, held_out, distances[:, 0], below, np.random.default_rng(seed))
    return Nearness(
        nearest=distances[:, 0],
        neighbour=indices[:, 0],
        carlini=distances[:, 0] / np.maximum(_ALPHA * distances.mean(1), 1e-9),
        of_held_out=of_held_out,
        nearer_to_training=compared,
        extracted=extracted,
    )


def _extracted(
    generated: Images,
    training: Images,
    held_out: Images,
    nearest: Float[ndarray, " generated"],
    below: float,
    rng: np.random.Generator,
) -> Extracted:
    """Return which images come out again, if two are near below a distance."""
    size = min(len(training), len(held_out))
    sides = (images[rng.permutation(len(images))[:size]] for images in (training, held_out))
    came, others = (int((_nearest(images, generated, count=1)[0][:, 0] < below).sum()) for images in sides)
    again = _nearest(generated, generated, count=2)[0][:, 1] < below  # the nearest is the image itself
    by_chance = float(binom.sf(came - 1, came + others, 0.5))
    return Extracted(below, came, others, by_chance, int(again.sum()), int((again & (nearest < below)).sum()))


def near_samples(samples: Images, images: Images) -> Float64[ndarray, " images"]:
    """Return a score of each image for having been trained on, from a generator's samples alone: how near they come.

    Source:
        Chen et al. 2020 (arXiv 1909.03935): GAN-Leaks without access to the generator.
    """
    return -_nearest(images, samples, count=1)[0][:, 0].astype(np.float64)


def _nearer(
    generated: Images, training: Images, held_out: Images, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return the part of generated images whose nearest of both sets is a training image, its interval and p-value.

    Many generated images can have the same nearest one, so it is these that chance deals to either set: the variance of
    the part is Σ_j n_j² / (2n)², n_j being how many of the n have image j as their nearest.
    """
    size = min(len(training), len(held_out))
    pool = np.concatenate([images[rng.permutation(len(images))[:size]] for images in (training, held_out)])
    nearest = _nearest(generated, pool, count=1)[1][:, 0]
    part = float((nearest < size).mean())
    deviation = float(np.sqrt((np.bincount(nearest).astype(float) ** 2).sum())) / (2 * len(generated))
    p_value = float(2 * norm.sf(abs(part - 0.5) / deviation))
    return part, max(0.0, part - 1.96 * deviation), min(1.0, part + 1.96 * deviation), p_value


def _nearest(
    images: Images, others: Images, *, count: int
) -> tuple[Float[ndarray, "images count"], Int64[ndarray, "images count"]]:
    """Return distances and indices of the `count` nearest of `others`, the nearest first."""
    flat = _flat(images)
    distances, indices = flat.new_empty(len(flat), 0), torch.empty(len(flat), 0, dtype=torch.long)
    for part in in_parts(len(others), max(1, _AT_ONCE // flat.shape[1])):
        points = _flat(others[part])
        exact, places = list[Tensor](), list[Tensor]()
        for rows, _, chosen in neighbours(flat, points, count=min(count, len(points))):
            # Anew, since a difference of squares is no distance; and tensors go from −1 to 1.
            found = (flat[rows, None] - points[chosen]).square().mean(2).sqrt() / 2
            exact.append(torch.cat([distances[rows], found], dim=1))
            places.append(torch.cat([indices[rows], chosen + part.start], dim=1))
        distances, order = torch.cat(exact).sort(dim=1)
        distances, indices = distances[:, :count], torch.cat(places).gather(1, order[:, :count])
    return distances.numpy(), indices.numpy()


def _quantiles(values: Float[ndarray, " images"]) -> dict[str, float]:
    return {
        name: float(np.quantile(values, part)) for name, part in (("least", 0), ("percentile_1", 0.01), ("median", 0.5))
    }


def _flat(images: Images) -> Float[Tensor, "images pixels"]:
    return images_to_tensor(images).flatten(1)
