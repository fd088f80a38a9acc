"""Whether the numbers of a release are those that a run can come to: else they could be anything, images too."""

import math
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float64
from torch import Tensor

from dpdm.diffusion.spectrum import LEAST_VARIANCE
from dpdm.methods.values import ImageFacts, Read
from dpdm.privacy import AnyPlan
from dpdm.privacy.releases import noise_of
from dpdm.types import InputError

MOST_COORDINATES = 1024
"""Of a prior's covariance: more would drown in noise, and take minutes."""

MOST_DIRECTIONS = 60
"""In which a class has a covariance of its own, and its centres differ."""

_CLOSE = 1e-9  # how near to what it must be a number is that was computed
_PART_OF_DIRECTIONS = 2**20  # numbers of them read at a time


def require_shares(read: Read, where: str) -> None:
    """Raise InputError unless shares of classes are positive and add up to one."""
    shares = read("shares")
    if not (shares > 0).all() or abs(float(shares.sum()) - 1) > 1e-9:
        raise InputError(f"{where} holds shares of classes that do not add up to one")


def require_finite(read: Read, names: Iterable[str], where: str) -> None:
    """Raise InputError unless all of these tensors are finite."""
    for name in names:
        if not read(name).isfinite().all():
            raise InputError(f"{where} holds weights that are not finite")


def require_possible(
    read: Read, plan: AnyPlan, facts: ImageFacts, *, centres: int, max_deviation: float, below: str, where: str
) -> None:
    """Raise InputError unless a fit can come to these numbers: directions, variances, weights and places.

    Args:
        read: Returns a tensor of a release by its name, or those of its rows that are asked for.
        plan: What paid for it: from its noise follows how large a number can be.
        facts: Of the images.
        centres: Gaussians for each class.
        max_deviation: What deviations from a mean were clipped to.
        below: What the names of the tensors of the prior's `GaussianMixture` begin with.
        where: The file, for the message.
    """

    def of_prior(name: str, rows: slice = slice(None)) -> Tensor:
        return read(f"{below}{name}", rows)

    shape, classes = facts.shape, max(1, facts.num_classes)
    dimensions = math.prod(shape)
    kept, lead = of_prior("vectors", slice(1)).shape[1], of_prior("axes", slice(1)).shape[2]
    noise = 1 + max(noise_of(release) for release in plan.full)
    most = 10 * noise**2 * dimensions * max(1.0, max_deviation) ** 2  # variance, by far
    weight = math.log(1e3 * centres**2 * (plan.dataset_size + noise))

    def parts() -> Iterator[Tensor]:
        """Yield the directions by rows, so that few are in memory."""
        rows = max(1, _PART_OF_DIRECTIONS // kept)
        yield from (of_prior("vectors", slice(start, start + rows)) for start in range(0, dimensions, rows))

    def possible() -> Iterator[tuple[Tensor | bool, str]]:
        yield 1 <= lead <= min(MOST_DIRECTIONS, kept) <= kept <= MOST_COORDINATES, "so many directions"
        variances = torch.cat([of_prior("class_variances").flatten(), of_prior("variances"), of_prior("floor")])
        least = LEAST_VARIANCE * (1 - _CLOSE)
        yield least <= variances.min() and variances.max() <= most, "variances of images"
        yield of_prior("log_weights").abs().max() <= weight, "weights of classes of records"
        yield _near_one(sum(part.mT @ part for part in parts())), "directions at right angles"  # type: ignore[arg-type]
        leading = torch.cat([part[:, :lead].clone() for part in parts()])
        for label in range(classes):
            own = slice(label * centres, (label + 1) * centres)
            axes = of_prior("axes", slice(label, label + 1))
            yield _near_one(axes.mT @ axes), "directions at right angles"
            places = of_prior("centres", own)
            apart = places - places[0]
            outside = apart - apart @ leading @ leading.T
            yield (of_prior("classes", own) == label).all(), "centres of its classes"
            yield places.square().sum(1).max() <= 10 * most, "centres near images"
            yield outside.abs().max() <= _CLOSE * math.sqrt(most), "centres that differ where classes do"

    for holds, what in possible():
        if not holds:
            raise InputError(f"{where} holds a prior that no run comes to: it lacks {what}")


def _near_one(product: Float64[Tensor, "*batch column column"]) -> bool:
    product.diagonal(dim1=-2, dim2=-1).sub_(1)
    return bool(product.abs().max() <= _CLOSE)
