"""Which images look alike, by their pixels: distances in whole numbers, which no order of a sum can change."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from dpdm.data import ImageDataset
from dpdm.methods.interface import Kept
from dpdm.methods.values import ImageFacts
from dpdm.privacy.sums import Choices
from dpdm.types import Images

_SIDE = 16  # numbers at most along the shorter side of images that are compared
_PART = 4096  # images at a time
_DISTANCES = 2**25  # at a time: 256 MiB


def whole_features(images: Images) -> Float32[Tensor, "images features"]:
    """Return the pixels of images summed in squares: whole numbers, at most 16 along the shorter side.

    Sums over more than 16 pixels are divided, and rounded down: no number is above 4096, so that squared distances
    stay below 2⁵³, where float64 has all whole numbers, for images of any size.
    """
    height, width = images.shape[1:3]
    square = -(-min(height, width) // _SIDE)
    edges, features = (0, -width % square, 0, -height % square), []
    divisor = -(-(square**2) // 16)
    for start in range(0, len(images), _PART):
        x = pad(torch.from_numpy(np.array(images[start : start + _PART])).movedim(-1, 1).float(), edges)
        features.append((avg_pool2d(x, square, divisor_override=1) / divisor).floor().flatten(1))
    return torch.cat(features)


def columns_of(shape: tuple[int, int, int]) -> int:
    """Return how many numbers `whole_features` makes of an image of this shape (channel, height, width)."""
    channels, height, width = shape
    square = -(-min(height, width) // _SIDE)
    return channels * -(-height // square) * -(-width // square)


def squared_distances(
    x: Float[Tensor, "one features"], y: Float[Tensor, "other features"], squares: Float[Tensor, " other"]
) -> Float[Tensor, "one other"]:
    """Return the squared distances without ‖x‖², which no minimum depends on; `squares` are all ‖y‖².

    They are exact for `whole_features` in float64, and for rows of `Space.unit` in float32: multiples of 2⁻²² below 4.
    """
    return torch.addmm(squares, x, y.T, alpha=-2)


def parts_for(number: int, *, against: int) -> Iterator[slice]:
    """Yield parts of so many images, few enough that the distances of each to so many others fit into memory."""
    step = max(1, min(_PART, _DISTANCES // max(1, against)))
    yield from (slice(start, start + step) for start in range(0, number, step))


def bytes_of_distances(number: int, *, against: int) -> int:
    """Return what one part's distances take, as `parts_for` parts so many images."""
    return 8 * min(number, max(1, min(_PART, _DISTANCES // max(1, against)))) * against


def bytes_of_votes(columns: int, pixels: int, *, classes: int, population: int, known: int, records: int) -> int:
    """Return the bytes that votes of so many records take at most, for candidates made of so many known images."""
    kept = 4 * columns * (known + records)
    populations = 3 * classes * population * pixels  # one in the generator, two on the way
    reading = 4 * columns * known
    voting = 12 * columns * classes * population + 8 * columns * population
    varying = 16 * columns * known
    distances = 2 * bytes_of_distances(max(records, population), against=max(known, population))
    return kept + populations + max(reading, voting + distances, varying + distances)


def nearest_votes(
    data: ImageDataset, rows: Kept, candidates: Float[Tensor, "class candidate features"], number: int = 1
) -> Iterator[Choices]:
    """Yield the bins of the nearest candidates of its own class for each private image, and the image's weight."""
    labels = np.zeros(len(data), dtype=np.int64) if data.labels is None else data.labels
    squares = [each.square().sum(1) for each in candidates]
    for part in parts_for(len(data), against=candidates.shape[1]):
        x, of = torch.from_numpy(rows[part]).to(candidates), torch.from_numpy(labels[part])
        chosen = torch.zeros(len(x), number, dtype=torch.long)
        for label in range(len(candidates)):
            mine = of == label
            distances = squared_distances(x[mine], candidates[label], squares[label])
            chosen[mine] = distances.topk(number, largest=False).indices
        yield of[:, None] * candidates.shape[1] + chosen, torch.from_numpy(data.weights[part])


def neighbours(
    features: Float32[Tensor, "public features"],
    known: Int[Tensor, " known"],
    parents: Int[Tensor, " parents"],
    reach: int,
    random: torch.Generator,
) -> Int[Tensor, " parents"]:
    """Return for each parent one of its `reach` nearest public images, itself included, at random."""
    ranks = torch.randint(min(reach, len(known)), parents.shape, generator=random)
    among, children = features[known].double(), parents.clone()
    squares = among.square().sum(1)
    for part in parts_for(len(parents), against=len(known)):
        if reach > 1:
            distances = squared_distances(features[parents[part]].double(), among, squares)
            nearest = distances.topk(min(reach, len(known)), largest=False).indices
            children[part] = known[nearest.gather(1, ranks[part, None])[:, 0]]
    return children


def public_of(public: ImageDataset, facts: ImageFacts) -> list[Int[Tensor, " images"]]:
    """Return the indices of public images that may stand for each class: those of its name, if public classes have."""
    if public.labels is None or public.class_names != facts.class_names:
        return [torch.arange(len(public))] * max(1, facts.num_classes)
    return [torch.from_numpy(np.flatnonzero(public.labels == label)) for label in range(facts.num_classes)]
