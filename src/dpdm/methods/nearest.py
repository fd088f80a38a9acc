"""Which images look alike, by their pixels: distances in whole numbers, which no order of a sum can change."""

import torch
from jaxtyping import Float32, Float64, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from dpdm.types import Images

_SIDE = 16  # numbers at most along the shorter side of images that are compared
_PART = 4096  # images at a time
_QUERIES = 256  # images that are compared with all others at a time


def whole_features(images: Images) -> Float32[Tensor, "images features"]:
    """Return the pixels of images, 0 to 255, summed in squares: whole numbers, at most 16 along the shorter side."""
    height, width = images.shape[1:3]
    square = -(-min(height, width) // _SIDE)
    edges, features = (0, -width % square, 0, -height % square), []
    for start in range(0, len(images), _PART):
        x = pad(torch.from_numpy(images[start : start + _PART]).movedim(-1, 1).float(), edges)
        features.append(avg_pool2d(x, square, divisor_override=1).flatten(1))
    return torch.cat(features)


def squared_distances(
    x: Float64[Tensor, "one features"], y: Float64[Tensor, "other features"]
) -> Float64[Tensor, "one other"]:
    """Return the squared distances without ‖x‖², which no minimum depends on: exact for whole numbers."""
    return y.square().sum(1) - 2 * x @ y.T


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
    for start in range(0, len(parents), _QUERIES):
        part = slice(start, start + _QUERIES)
        if reach > 1:
            distances = squared_distances(features[parents[part]].double(), among)
            nearest = distances.topk(min(reach, len(known)), largest=False).indices
            children[part] = known[nearest.gather(1, ranks[part, None])[:, 0]]
    return children
