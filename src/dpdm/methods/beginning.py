"""What matched images begin as: public images that are like a class, or draws of a released prior."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int, UInt8
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion import GaussianMixture
from dpdm.methods.interface import Run
from dpdm.methods.moments import Gaussians, Layout, Statistics, gaussian_of, log_density
from dpdm.methods.prior import Prior, release_prior
from dpdm.methods.values import ImageFacts
from dpdm.types import Images, tensor_to_images

_PART = 1000  # images drawn at a time


class Known(NamedTuple):
    """Images that anyone may see before the moments are released, and the class of each, if it is one of theirs."""

    images: Images
    classes: Int[Tensor, " images"] | None
    mixture: GaussianMixture | None = None


def known_before(run: Run, data: ImageDataset, prior: Prior | None, most: int, random: torch.Generator) -> Known:
    """Return what anyone may see before moments are released: images declared public, or draws of a prior's release."""
    facts = ImageFacts(data.shape, data.class_names)
    if prior is not None:
        return drawn_from(release_prior(run, data, prior), facts, most, random)
    assert run.public is not None
    return some_of(run.public, facts, most, random)


def some_of(public: ImageDataset, facts: ImageFacts, most: int, random: torch.Generator) -> Known:
    """Return public images, at random, of which `most` at most; their classes count if all names are the same."""
    chosen = torch.randperm(len(public), generator=random)[:most].sort().values
    named = public.labels is not None and public.class_names == facts.class_names
    classes = torch.from_numpy(public.labels)[chosen] if named and public.labels is not None else None
    return Known(public.images[chosen.numpy()], classes)


def drawn_from(mixture: GaussianMixture, facts: ImageFacts, number: int, random: torch.Generator) -> Known:
    """Return so many draws of a prior."""
    labels = torch.arange(number) % max(1, facts.num_classes)
    return Known(_draws(mixture, facts, labels, random), labels, mixture)


def beginning(
    known: Known,
    seen: Float64[Tensor, "images directions"],
    layout: Layout,
    statistics: Statistics,
    facts: ImageFacts,
    population: int,
    random: torch.Generator,
) -> UInt8[Tensor, "class image channel height width"]:
    """Return images of each class, one class after the other: new draws of the prior, or the likeliest public ones.

    An image is likely of a class as its density there is high beside those of all classes, and of public images. Where
    public images have the classes of private ones, those of other classes come last.
    """
    if known.mixture is not None:
        labels = torch.arange(layout.classes).repeat_interleave(population)
        return _by_class(_draws(known.mixture, facts, labels, random), layout.classes)
    z, pairs, of_class = seen[:, -layout.sizes[-1] :], layout.pairs, [statistics.layers[-1]]
    if layout.own:
        pairs = layout.own_pairs
        of_class = [Gaussians(mean, covariance) for mean, covariance in zip(*statistics.own[-1], strict=True)]
    public = gaussian_of(z, pairs)
    public = public._replace(covariances=public.covariances + 1e-2 * torch.eye(len(public.covariances)))
    densities = torch.stack([log_density(z, gaussian) for gaussian in (*of_class, public)])
    likely = (densities - densities.logsumexp(0))[:-1].expand(layout.classes, -1).clone()
    if known.classes is not None:
        likely[known.classes != torch.arange(layout.classes)[:, None]] -= 1e6
    if len(of_class) < layout.classes and known.classes is None:  # nothing tells classes apart: each has its own
        likely += torch.rand(likely.shape, generator=random, dtype=likely.dtype)
    order = likely.argsort(dim=1, descending=True, stable=True)
    chosen = order[:, torch.arange(population) % len(z)].flatten()
    return _by_class(known.images[chosen.numpy()], layout.classes)


def _by_class(images: Images, classes: int) -> UInt8[Tensor, "class image channel height width"]:
    x = torch.from_numpy(images).movedim(-1, 1)
    return x.reshape(classes, -1, *x.shape[1:])


def _draws(mixture: GaussianMixture, facts: ImageFacts, labels: Tensor, random: torch.Generator) -> Images:
    parts = [mixture.sample(part, generator=random).float() for part in torch.split(labels, _PART)]
    return np.concatenate([tensor_to_images(part.view(-1, *facts.shape)) for part in parts])
