"""Which public images show a private class: by private votes for public classes, and by the class's prototype."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float32, Float64, Int
from torch import Tensor

from dpdm.methods.embedding import Embedded, of_unit_length, parts_of
from dpdm.methods.interface import Run
from dpdm.privacy.sums import Choices, votes

PUBLIC_CLASSES = "votes for public classes"
_MOST_VOTES = 3  # of each private image, for distinct public classes


def voted_images(
    run: Run,
    own: Embedded,
    records: tuple[Int[Tensor, " images"], Float64[Tensor, " images"]],
    rows: Float32[Tensor, "public directions"],
    *,
    classes: int,
    most: int,
) -> Bool[Tensor, "class public"]:
    """Release the votes; return which public images are of the classes that most images of a private class vote for.

    Args:
        run: Where the public images are, with their classes.
        own: Rows of private images.
        records: The class and the weight of each private image.
        rows: Of the public images.
        classes: Number of private classes.
        most: How many public classes each of them takes.
    """
    assert run.public is not None
    labels, number = torch.from_numpy(run.public.labels), run.public.num_classes
    means = torch.zeros(number, rows.shape[1], dtype=torch.float64)
    for part in parts_of(len(rows)):
        means.index_add_(0, labels[part], rows[part].double())
    means = of_unit_length(means)  # on the grid where a product with a row is exact
    most = min(most, number)
    each = min(most, _MOST_VOTES)
    noisy, _ = run.once(
        PUBLIC_CLASSES, lambda: votes(nearest_classes(own, *records, means, each), bins=classes * number)
    )
    taken = noisy.view(classes, number).topk(most, dim=1).indices
    return torch.zeros(classes, number, dtype=torch.bool).scatter_(1, taken, True)[:, labels]


def nearest_classes(
    own: Embedded,
    labels: Int[Tensor, " images"],
    weights: Float64[Tensor, " images"],
    means: Float32[Tensor, "class directions"],
    each: int,
) -> Iterator[Choices]:
    """Yield for each private image the `each` public classes it is nearest to, among the bins of its own class."""
    for part, rows in own.parts():
        nearest = (rows @ means.T).topk(each, dim=1).indices
        yield labels[part, None] * len(means) + nearest, weights[part]


def clearest(
    rows: Float32[Tensor, "images directions"],
    prototypes: Float64[Tensor, "class directions"],
    number: int,
    within: Bool[Tensor, "class images"] | None = None,
) -> tuple[Int[Tensor, "class number"], Float32[Tensor, "class number"]]:
    """Return the rows that show each class most clearly, and by how much: its score less the best other one.

    Args:
        rows: Of public images.
        prototypes: Of private classes.
        number: How many of each class; where there are fewer, they come again.
        within: Which images come first for a class, however clear others are (default: none).
    """
    directions = prototypes.div(prototypes.norm(dim=1, keepdim=True).clamp(min=1e-9)).float()
    return surest(rows @ directions.T, number, within)


def surest(
    scores: Float32[Tensor, "images class"], number: int, within: Bool[Tensor, "class images"] | None = None
) -> tuple[Int[Tensor, "class number"], Float32[Tensor, "class number"]]:
    """Return the images whose score for a class is most above the best other one, and by how much.

    If there are fewer than `number`, these come again, with the last one's margin.
    """
    best = scores.topk(2, dim=1).values
    others = torch.where(scores == best[:, :1], best[:, 1:], best[:, :1])
    margins = (scores - others).T
    shows = margins > 0  # first those voted for that show a class, then others that do
    first = margins if within is None else margins + 8 * (shows & within) + 4 * shows  # cosines differ by less than 4
    chosen = first.topk(min(number, len(scores)), dim=1).indices
    clear, order = margins.gather(1, chosen).sort(dim=1, descending=True)
    place = torch.arange(number, device=scores.device)
    return chosen.gather(1, order)[:, place % len(scores)], clear[:, place.clamp(max=len(scores) - 1)]
