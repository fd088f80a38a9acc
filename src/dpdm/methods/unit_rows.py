"""From the units that a batch selected to one vector for each: rows of private images in, what each unit adds out."""

from collections.abc import Callable

import torch
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from torch import Tensor

from dpdm.data import ImageDataset

Rows = Float64[Tensor, "rows direction"]
Units = Int64[ndarray, " batch"]
Weigh = Callable[[Rows], Float64[Tensor, " rows"]]
"""Returns from 0 to 1 for each row, of which it sees none beside it."""


def nearness(
    public: Float32[Tensor, "images direction"],
    query: Float32[Tensor, " direction"],
    *,
    rank: int,
    locality: float,
) -> Weigh:
    """Return what a row at cosine c to a query weighs: exp(locality · (c − r)), at most 1.

    r is the cosine of the public row that is next to the query in this rank: public, as all else but the row is.
    """
    reach = (public @ query).topk(rank).values[-1].double()
    towards = query.double()
    return lambda rows: (locality * (rows @ towards - reach)).clamp(max=0).exp()


class UnitRows:
    """Rows of private images, and which unit each belongs to: secret.

    Args:
        data: The images, whose labels, units and weights count.
        rows: One for each, no longer than 1.

    Guarantees:
        * What a unit adds is no longer than 1, and depends on this unit alone: a group adds the mean of what its images
          would, a blank image adds zero.
    """

    def __init__(self, data: ImageDataset, rows: Float32[Tensor, "images direction"]) -> None:
        self._rows, self._number = rows, data.num_units
        self._weights, self._units = torch.from_numpy(data.weights), torch.from_numpy(data.units)
        known = data.labels
        self._labels = torch.zeros(len(rows), dtype=torch.long) if known is None else torch.from_numpy(known)

    def of_class(self, units: Units, label: int, weigh: Weigh) -> Rows:
        """Return for each unit the mean of its images' rows times what they weigh; other classes' images add zero."""
        place = torch.full((self._number,), -1)
        place[torch.from_numpy(units)] = torch.arange(len(units))
        place = place[self._units]
        chosen = (place >= 0) & (self._labels == label)
        rows = self._rows[chosen].double()
        added = (self._weights[chosen] * weigh(rows))[:, None] * rows
        return torch.zeros(len(units), rows.shape[1], dtype=torch.float64).index_add_(0, place[chosen], added)
