"""The prior: a mixture of Gaussians from a few noisy sums over all records. Networks and other methods begin with it.

In this order: the sum of all, sums and counts of classes, the second moment within classes, and that of each class.
Last, for several centres a class, a few rounds of k-means. All else is post-processing of what the mechanism returns.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.diffusion import GaussianMixture
from dpdm.diffusion.spectrum import (
    LEAST_VARIANCE,
    Cells,
    Spectrum,
    cell_means,
    denoised_spectrum,
    eigen,
    low_frequencies,
    shrunk_towards,
    symmetric_matrices,
    with_texture,
)
from dpdm.methods.interface import Run
from dpdm.methods.possible import MOST_COORDINATES, MOST_DIRECTIONS, require_possible
from dpdm.methods.values import Budget, ImageFacts, Read, Sizes
from dpdm.privacy import AnyPlan, FullSum, gaussian_mu
from dpdm.privacy.sums import BoundedSum, CellRows, cell_sums, second_moments
from dpdm.types import InputError, levels_to_tensor, require_at_most, require_counts, require_within

PRIOR_SUMS = ("mean of all", "class means", "covariance", "covariance of each class")
"""What the releases of every prior are called, in order; those of several centres come after."""


def centres_in_round(number: int) -> str:
    """Return what the sums of one round of k-means, from 1, are called."""
    return f"centres, round {number}"


_MEAN, _CLASS_MEANS, _COVARIANCE, _OF_EACH_CLASS = PRIOR_SUMS
_MOST_CENTRES, _MOST_ROUNDS = 1000, 100
_LEAST_COUNT = 20.0  # records by which a mean is divided at least
_PART = 4096  # records read at a time
_REACH = 1.5  # root mean squares, at which places in the leading directions are clipped
_COUNT_NOISE = 7.0  # max_norm ÷ count_scale: counts get the noise of a sum, divided by count_scale


@dataclass(frozen=True, kw_only=True)
class Prior:
    """`[prior]`: the mixture of Gaussians that a run releases before its first step, and its part of the budget.

    Args:
        share: Part of the budget, as a share of μ² (`gaussian_mu`); the steps get the rest. Without steps the prior
            gets all of it.
        centres: Number of Gaussians for each class.
        rounds: Rounds of k-means that find the centres; of no use to one centre.
        split: Proportions of the mean, the class means, the covariance, each class's own, and all rounds together.
        max_deviation: Clipping bound of a record's deviation from a mean: a root mean square per pixel.

    Example:
        >>> plan = PriorAlone(prior=Prior(centres=1)).plan(epsilon=1.0, dataset_size=60000)
        >>> [release.name for release in plan.releases]
        ['mean of all', 'class means', 'covariance', 'covariance of each class']
    """

    share: float = 0.2
    centres: int = 10
    rounds: int = 3
    split: tuple[float, float, float, float, float] = (0.01, 0.25, 0.3, 0.1, 0.34)
    max_deviation: float = 0.5

    def __post_init__(self) -> None:
        require_counts(centres=self.centres, rounds=self.rounds)
        require_within(1e-6, 2, max_deviation=self.max_deviation)  # pixels are from -1 to 1
        require_at_most(_MOST_CENTRES, centres=self.centres)
        require_at_most(_MOST_ROUNDS, rounds=self.rounds)
        if not 0 < self.share < 1:
            raise InputError(f"share must be above 0 and below 1, not {self.share}")
        for part in self.split:
            require_within(1e-6, 1e6, split=part)

    def releases(self, *, epsilon: float, delta: float, alone: bool = False) -> dict[str, float]:
        """Return the noise multiplier of each sum by its name, in order, from the prior's share of (ε, δ).

        Args:
            epsilon: ε of the whole claim.
            delta: δ of the whole claim.
            alone: Whether these sums get all of the budget.
        """
        *parts, rounds = self.split
        names = list(PRIOR_SUMS)
        if self.centres > 1:
            parts += [rounds / self.rounds] * self.rounds
            names += [centres_in_round(number) for number in range(1, self.rounds + 1)]
        share = 1.0 if alone else self.share
        whole = gaussian_mu(epsilon=epsilon, delta=delta)
        multipliers = [1 / (whole * math.sqrt(share * part / sum(parts))) for part in parts]
        return dict(zip(names, multipliers, strict=True))

    def planned(self, budget: Budget, *, alone: bool) -> tuple[FullSum, ...]:
        """Return the sums as a plan has them."""
        noise = self.releases(epsilon=budget.epsilon, delta=budget.delta, alone=alone)
        return tuple(FullSum(name=name, noise_multiplier=multiplier) for name, multiplier in noise.items())

    def require_possible(self, read: Read, plan: AnyPlan, facts: ImageFacts, *, below: str, where: str) -> None:
        """Raise InputError unless a fit with these settings can produce a file's tensors."""
        limits = {"centres": self.centres, "max_deviation": self.max_deviation}
        require_possible(read, plan, facts, **limits, below=below, where=where)  # type: ignore[arg-type]

    def placeholder(self, facts: ImageFacts, sizes: Sizes | None, *, below: str) -> GaussianMixture:
        """Return an empty mixture with the sizes of a file's tensors whose names begin with `below`.

        Raises:
            KeyError: A size is missing.
            ValueError: The sizes are those of no prior.
        """
        dimensions = math.prod(facts.shape)
        kept, lead = min(dimensions, MOST_COORDINATES), MOST_DIRECTIONS
        if sizes is not None:
            kept, lead = sizes[f"{below}vectors"][1], sizes[f"{below}axes"][2]
            if not lead <= kept <= dimensions:
                raise ValueError("more directions than pixels")
        return GaussianMixture.placeholder(
            dimensions, num_classes=facts.num_classes, centres=self.centres, kept=kept, lead=lead
        )


def release_prior(run: Run, data: ImageDataset, settings: Prior) -> GaussianMixture:
    """Make the releases of a prior, and return the mixture that follows from them.

    Args:
        run: Whose plan has the sums of `settings` next. Its seed is that of the first centres of k-means, which are
            drawn from the released Gaussian.
        data: The records: secret.
        settings: How many centres and rounds.

    Source:
        Debiased spectrum: see `denoised_spectrum`. k-means by noisy sums: Blum, Dwork, McSherry & Nissim 2005.
    """
    return _PriorFit(run, data, settings).mixture(torch.Generator().manual_seed(run.seed))


class _PriorFit:
    """A prior being fitted: the records, and the run that releases sums over them."""

    def __init__(self, run: Run, data: ImageDataset, settings: Prior) -> None:
        self._run, self._data, self._settings = run, data, settings
        self._classes = max(1, data.num_classes)
        self.dimensions = math.prod(data.shape)

    def mixture(self, generator: torch.Generator) -> GaussianMixture:
        means, counts = self._class_means()
        spectrum, directions = self._within_classes(means, float(counts.sum()))
        leading, others = spectrum.vectors[:, :directions], spectrum.variances[directions:]
        least = float(others.mean()) if len(others) else spectrum.floor  # no less than in any direction
        covariances = self._of_each_class(means, counts, leading, spectrum.variances[:directions].diag())
        offsets = means.new_zeros(self._classes, 1, directions)
        weights = torch.ones_like(counts)[:, None]
        if self._settings.centres > 1:
            start = _root(covariances, least)
            offsets, weights = self._centres(means, counts, leading, start, generator)
            # Covariance within a class = within a centre + between its centres.
            covariances = covariances - torch.einsum("cj,cjk,cjl->ckl", weights, offsets, offsets)
        variances, axes = eigen(covariances)
        return GaussianMixture(
            centres=(means[:, None] + offsets @ leading.T).flatten(0, 1),
            classes=torch.arange(self._classes).repeat_interleave(offsets.shape[1]),
            weights=(counts[:, None] * weights).flatten(),
            vectors=spectrum.vectors,
            axes=axes,
            class_variances=variances.clamp(min=least),
            variances=others,
            floor=spectrum.floor,
            num_classes=self._data.num_classes,
        )

    def _class_means(self) -> tuple[Float64[Tensor, "class dimension"], Float64[Tensor, " class"]]:
        """Return the mean and the count of each class.

        First the mean of all, for little of the budget, since it is only a point to start from: what a class's mean
        deviates from it by is short, needs less noise, and makes good whatever noise the mean of all has.
        """
        together = ((x, torch.zeros_like(label), weight) for x, label, weight in self._records())
        of_all, _ = self._means(_MEAN, together, cells=1, root=1.0)
        deviations = ((x - of_all, label, weight) for x, label, weight in self._records())
        means, counts = self._means(_CLASS_MEANS, deviations, cells=self._classes, root=self._settings.max_deviation)
        return (of_all + means).clamp(-1, 1), counts

    def _means(self, name: str, parts: Iterator[CellRows], *, cells: int, root: float) -> Cells:
        """Return means and counts of cells of rows, whose root mean square is clipped to `root`."""
        bound = root * math.sqrt(self.dimensions)
        scale = bound / _COUNT_NOISE
        shape = {"cells": cells, "dimensions": self.dimensions}
        released, _ = self._run.once(name, lambda: cell_sums(parts, max_norm=bound, count_scale=scale, **shape))
        return cell_means(released, cells=cells, count_scale=scale, least_count=_LEAST_COUNT)

    def _within_classes(self, means: Tensor, count: float) -> tuple[Spectrum, int]:
        """Return the covariance within classes, of low frequencies only where images are large.

        And in how many of its directions, at most, classes are looked at apart: those that stand out of the noise.
        """
        basis = low_frequencies(self._data.shape, most=MOST_COORDINATES)

        def deviations() -> Iterator[CellRows]:
            for x, label, weight in self._records():
                deviation = x - means[label]
                inside = deviation @ basis
                # One coordinate more, the length of what lies outside: the row is as long as the deviation itself.
                outside = (deviation.square().sum(1) - inside.square().sum(1)).clamp(min=0).sqrt()
                yield torch.cat([inside, outside[:, None]], dim=1), torch.zeros_like(label), weight

        bound = self._settings.max_deviation * math.sqrt(self.dimensions)
        released, noise_std = self._run.once(
            _COVARIANCE, lambda: second_moments(deviations(), cells=1, dimensions=basis.shape[1] + 1, max_norm=bound)
        )
        matrix = symmetric_matrices(released, cells=1)[0] / count
        spectrum = denoised_spectrum(matrix[:-1, :-1], noise_std=noise_std / count, least_variance=LEAST_VARIANCE)
        kept = len(spectrum.variances)
        apart = min(MOST_DIRECTIONS, kept)
        if basis.shape[1] == self.dimensions:
            return with_texture(spectrum, matrix[:-1, :-1], self._data.shape), apart
        rest = (basis.shape[1] - kept) * spectrum.floor + max(0.0, float(matrix[-1, -1]))
        floor = max(LEAST_VARIANCE, rest / (self.dimensions - kept))
        return Spectrum(basis @ spectrum.vectors, spectrum.variances, floor), apart

    def _of_each_class(
        self, means: Tensor, counts: Tensor, leading: Tensor, shared: Tensor
    ) -> Float64[Tensor, "class direction direction"]:
        """Return the covariance of each class in the leading directions: few numbers, which little noise hides."""

        def places() -> Iterator[CellRows]:
            for x, label, weight in self._records():
                yield (x - means[label]) @ leading, label, weight

        bound = _REACH * math.sqrt(float(shared.trace()))
        shape = {"cells": self._classes, "dimensions": len(shared)}
        released, noise_std = self._run.once(_OF_EACH_CLASS, lambda: second_moments(places(), max_norm=bound, **shape))
        matrices = symmetric_matrices(released, cells=self._classes) / counts[:, None, None]
        return shrunk_towards(matrices, shared, noise_std=noise_std / counts)

    def _centres(
        self, means: Tensor, counts: Tensor, leading: Tensor, root: Tensor, generator: torch.Generator
    ) -> tuple[Float64[Tensor, "class centre direction"], Float64[Tensor, "class centre"]]:
        """Return centres as offsets from their class's mean in the leading directions, and their weights.

        k-means on each class, all at once, from centres drawn by the root of its covariance. Centres too thin to be
        told from noise stay where they were.
        """
        centres, directions = self._settings.centres, leading.shape[1]
        bound = _REACH * math.sqrt(float(root.square().sum((1, 2)).mean()))
        shape = {"cells": self._classes * centres, "count_scale": bound / 3}
        normal = torch.randn(self._classes, centres, directions, generator=generator, dtype=torch.float64)
        offsets = 0.7 * torch.einsum("cjk,clk->cjl", normal, root)
        sizes = (counts[:, None] / centres).expand(-1, centres)
        noise = torch.zeros_like(sizes)
        for number in range(1, self._settings.rounds + 1):

            def nearest(offsets: Tensor = offsets) -> Iterator[CellRows]:
                for x, label, weight in self._records():
                    place = (x - means[label]) @ leading
                    centre = (place[:, None] - offsets[label]).square().sum(2).argmin(1)
                    yield place, label * centres + centre, weight

            def sums(nearest: Callable[[], Iterator[CellRows]] = nearest) -> BoundedSum:
                return cell_sums(nearest(), dimensions=directions, max_norm=bound, **shape)  # type: ignore[arg-type]

            released, noise_std = self._run.once(centres_in_round(number), sums)
            found, size = cell_means(released, least_count=_LEAST_COUNT, **shape)  # type: ignore[arg-type]
            found, size = found.view_as(offsets), size.view_as(sizes)
            thick = size > _LEAST_COUNT + 3 * noise_std / shape["count_scale"]
            offsets = torch.where(thick[:, :, None], found, offsets)
            sizes = torch.where(thick, size, sizes.minimum(size))
            noise = torch.where(thick, (noise_std / size) ** 2, noise)
        weights = sizes / sizes.sum(1, keepdim=True)
        of_all = (counts / counts.sum())[:, None] * weights
        # Offsets shrink by the part of their variance that is noise: empirical Bayes, direction by direction.
        seen = torch.einsum("cj,cjk->k", of_all, offsets.square())
        return offsets * ((seen - (of_all * noise).sum()) / seen).clamp(min=0), weights

    def _records(self) -> Iterator[CellRows]:
        """Yield all records, part by part: flattened images in [-1, 1], labels, and weights, one for each unit."""
        weights = torch.from_numpy(self._data.weights)
        for start in range(0, len(self._data), _PART):
            part = slice(start, start + _PART)
            x = levels_to_tensor(self._data.images[part]).flatten(1).double()
            labels = self._data.labels
            known = torch.zeros(len(x), dtype=torch.long) if labels is None else torch.from_numpy(labels[part]).long()
            yield x, known, weights[part]


def _root(covariances: Tensor, least: float) -> Float64[Tensor, "class direction direction"]:
    """Return a square root R of each covariance R Rᵀ, whose variances are at least `least`."""
    variances, axes = eigen(covariances)
    root: Tensor = axes * variances.clamp(min=least).sqrt()[:, None]
    return root
