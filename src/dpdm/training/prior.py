"""The prior: a mixture of Gaussians from a few noisy sums over all records, released before the first step.

In this order: the sum of all, sums and counts of classes, the second moment within classes, and for several centres a
class a few rounds of k-means. Every sum passes `MechanismRun.release`; all else is post-processing of what it returns.
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float64
from scipy.fft import idct
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dpdm.config import PRIOR_SUMS, Prior, centres_in_round
from dpdm.data import ImageDataset
from dpdm.diffusion import GaussianMixture
from dpdm.diffusion.spectrum import (
    Cells,
    Spectrum,
    cell_means,
    denoised_spectrum,
    shrunk_towards,
    symmetric_matrices,
)
from dpdm.privacy import MechanismRun, Noisy, Plan
from dpdm.privacy.releases import noise_of
from dpdm.privacy.sums import BoundedSum, CellRows, cell_sums, second_moments
from dpdm.types import InputError, images_to_tensor

_MEAN, _CLASS_MEANS, _COVARIANCE, _OF_EACH_CLASS = PRIOR_SUMS
_MOST_COORDINATES = 1024  # of the covariance: more would drown in noise, and take minutes
_MOST_DIRECTIONS = 60  # in which a class has a covariance of its own, and its centres differ
_LEAST_COUNT = 20.0  # records by which a mean is divided at least
_CLOSE = 1e-9  # how near to what it must be a number is that was computed
_LEAST_VARIANCE = 1e-4  # of a pixel: about one of its 256 levels
_WHITE = 0.3  # part of the texture that no neighbour shares
_PART = 4096  # records read at a time
_PART_OF_DIRECTIONS = 2**20  # numbers of them read at a time
_REACH = 1.5  # root mean squares, at which places in the leading directions are clipped
_COUNT_NOISE = 7.0  # max_norm ÷ count_scale: counts get the noise of a sum, divided by count_scale


def release_prior(run: MechanismRun, data: ImageDataset, settings: Prior, *, seed: int) -> GaussianMixture:
    """Make the releases of a prior, and return the mixture that follows from them.

    Args:
        run: A run whose plan has `settings.releases()` before its first step, none of them made.
        data: The records: secret.
        settings: How many centres and rounds.
        seed: Of the k-means' first centres, which are drawn from the released Gaussian.

    Source:
        Debiased spectrum: see `denoised_spectrum`. k-means by noisy sums: Blum, Dwork, McSherry & Nissim 2005.
    """
    return _Fit(run, data, settings).mixture(torch.Generator().manual_seed(seed))


def require_possible(
    read: Callable[..., Tensor], settings: Prior, plan: Plan, *, shape: tuple[int, int, int], classes: int, where: str
) -> None:
    """Raise InputError unless `release_prior` can come to these numbers: directions, variances, weights and places.

    Args:
        read: Returns a tensor of a `GaussianMixture` by its name, or those of its rows that are asked for.
        settings: Those of the prior.
        plan: What paid for it: from its noise follows how large a number can be.
        shape: Of an image.
        classes: How many there are; one, without labels.
        where: The file, for the message.
    """
    dimensions, centres = math.prod(shape), settings.centres
    kept, lead = read("vectors", slice(1)).shape[1], read("axes", slice(1)).shape[2]
    noise = 1 + max(noise_of(release) for release in plan.full)
    most = 10 * noise**2 * dimensions * max(1.0, settings.max_deviation) ** 2  # variance, by far
    weight = math.log(1e3 * centres**2 * (plan.dataset_size + noise))

    def parts() -> Iterator[Tensor]:
        """Yield the directions by rows, so that few are in memory."""
        rows = max(1, _PART_OF_DIRECTIONS // kept)
        yield from (read("vectors", slice(start, start + rows)) for start in range(0, dimensions, rows))

    def possible() -> Iterator[tuple[Tensor | bool, str]]:
        yield 1 <= lead <= min(_MOST_DIRECTIONS, kept) <= kept <= _MOST_COORDINATES, "so many directions"
        variances = torch.cat([read("class_variances").flatten(), read("variances"), read("floor")])
        least = _LEAST_VARIANCE * (1 - _CLOSE)
        yield least <= variances.min() and variances.max() <= most, "variances of images"
        yield read("log_weights").abs().max() <= weight, "weights of classes of records"
        yield _near_one(sum(part.mT @ part for part in parts())), "directions at right angles"  # type: ignore[arg-type]
        leading = torch.cat([part[:, :lead].clone() for part in parts()])
        for label in range(classes):
            own = slice(label * centres, (label + 1) * centres)
            axes = read("axes", slice(label, label + 1))
            yield _near_one(axes.mT @ axes), "directions at right angles"
            places = read("centres", own)
            apart = places - places[0]
            outside = apart - apart @ leading @ leading.T
            yield (read("classes", own) == label).all(), "centres of its classes"
            yield places.square().sum(1).max() <= 10 * most, "centres near images"
            yield outside.abs().max() <= _CLOSE * math.sqrt(most), "centres that differ where classes do"

    for holds, what in possible():
        if not holds:
            raise InputError(f"{where} holds a prior that no run comes to: it lacks {what}")


def _near_one(product: Float64[Tensor, "*batch column column"]) -> bool:
    product.diagonal(dim1=-2, dim2=-1).sub_(1)
    return bool(product.abs().max() <= _CLOSE)


class _Fit:
    """One release of a prior: the records, and what was released of them so far."""

    def __init__(self, run: MechanismRun, data: ImageDataset, settings: Prior) -> None:
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
        variances, axes = torch.linalg.eigh(covariances)
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
        sums = cell_sums(parts, cells=cells, dimensions=self.dimensions, max_norm=bound, count_scale=scale)
        released, _ = self._release(name, sums)
        return cell_means(released, cells=cells, count_scale=scale, least_count=_LEAST_COUNT)

    def _within_classes(self, means: Tensor, count: float) -> tuple[Spectrum, int]:
        """Return the covariance within classes, of low frequencies only where images are large.

        And in how many of its directions, at most, classes are looked at apart: those that stand out of the noise.
        """
        basis = low_frequencies(self._data.shape, most=_MOST_COORDINATES)

        def deviations() -> Iterator[CellRows]:
            for x, label, weight in self._records():
                deviation = x - means[label]
                inside = deviation @ basis
                # One coordinate more, the length of what lies outside: the row is as long as the deviation itself.
                outside = (deviation.square().sum(1) - inside.square().sum(1)).clamp(min=0).sqrt()
                yield torch.cat([inside, outside[:, None]], dim=1), torch.zeros_like(label), weight

        bound = self._settings.max_deviation * math.sqrt(self.dimensions)
        moment = second_moments(deviations(), cells=1, dimensions=basis.shape[1] + 1, max_norm=bound)
        released, noise_std = self._release(_COVARIANCE, moment)
        matrix = symmetric_matrices(released, cells=1)[0] / count
        spectrum = denoised_spectrum(matrix[:-1, :-1], noise_std=noise_std / count, least_variance=_LEAST_VARIANCE)
        kept = len(spectrum.variances)
        apart = min(_MOST_DIRECTIONS, kept)
        if basis.shape[1] == self.dimensions:
            return with_texture(spectrum, matrix[:-1, :-1], self._data.shape), apart
        rest = (basis.shape[1] - kept) * spectrum.floor + max(0.0, float(matrix[-1, -1]))
        floor = max(_LEAST_VARIANCE, rest / (self.dimensions - kept))
        return Spectrum(basis @ spectrum.vectors, spectrum.variances, floor), apart

    def _of_each_class(
        self, means: Tensor, counts: Tensor, leading: Tensor, shared: Tensor
    ) -> Float64[Tensor, "class direction direction"]:
        """Return the covariance of each class in the leading directions: few numbers, which little noise hides."""

        def places() -> Iterator[CellRows]:
            for x, label, weight in self._records():
                yield (x - means[label]) @ leading, label, weight

        bound = _REACH * math.sqrt(float(shared.trace()))
        moments = second_moments(places(), cells=self._classes, dimensions=len(shared), max_norm=bound)
        released, noise_std = self._release(_OF_EACH_CLASS, moments)
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

            sums = cell_sums(nearest(), dimensions=directions, max_norm=bound, **shape)  # type: ignore[arg-type]
            released, noise_std = self._release(centres_in_round(number), sums)
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

    def _release(self, name: str, bounded: BoundedSum) -> Noisy:
        return self._run.release(name, bounded, num_records=self._data.num_units)

    def _records(self) -> Iterator[CellRows]:
        """Yield all records, part by part: flattened images in [-1, 1], labels, and weights, one for each unit."""
        weights = torch.from_numpy(self._data.weights)
        for start in range(0, len(self._data), _PART):
            part = slice(start, start + _PART)
            x = images_to_tensor(self._data.images[part]).flatten(1).double()
            labels = self._data.labels
            known = torch.zeros(len(x), dtype=torch.long) if labels is None else torch.from_numpy(labels[part]).long()
            yield x, known, weights[part]


def _root(covariances: Tensor, least: float) -> Float64[Tensor, "class direction direction"]:
    """Return a square root R of each covariance R Rᵀ, whose variances are at least `least`."""
    variances, axes = torch.linalg.eigh(covariances)
    root: Tensor = axes * variances.clamp(min=least).sqrt()[:, None]
    return root


def with_texture(
    spectrum: Spectrum, matrix: Float64[Tensor, "dimension dimension"], shape: tuple[int, int, int]
) -> Spectrum:
    """Return the covariance with its rest no longer white: each pixel's own variance, and neighbours alike.

    What the kept directions leave of `matrix` is mostly noise entry by entry, but not on average: it is fitted by
    √(f_p f_q) ρ(p − q), with f a variance for each pixel, averaged with its neighbours', and ρ a correlation for each
    displacement (and pair of channels), averaged over all pairs of pixels. A part of it stays white.
    """
    kept = spectrum.vectors @ spectrum.variances.diag() @ spectrum.vectors.T
    rest = matrix - kept
    channels, height, width = shape
    per_pixel = rest.diagonal().reshape(shape)[None]
    near = avg_pool2d(per_pixel, 3, stride=1, padding=1, count_include_pad=False).flatten()
    variances = near.clamp(min=_LEAST_VARIANCE)
    scale = torch.outer(variances, variances).sqrt()

    channel, row, column = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    pair = channel.flatten()[:, None] * channels + channel.flatten()
    down = row.flatten()[:, None] - row.flatten() + height - 1
    across = column.flatten()[:, None] - column.flatten() + width - 1
    place = ((pair * (2 * height - 1) + down) * (2 * width - 1) + across).flatten()
    zeros = scale.new_zeros(channels**2 * (2 * height - 1) * (2 * width - 1))
    together = zeros.index_add(0, place, (rest * scale).flatten())
    alone = zeros.index_add(0, place, scale.square().flatten())
    correlation = (together / alone.clamp(min=1e-30)).clamp(-1, 1)[place].view_as(scale)

    values, vectors = torch.linalg.eigh(scale * correlation)
    texture = vectors @ values.clamp(min=0).diag() @ vectors.T
    texture = (1 - _WHITE) * texture + _WHITE * variances.diag()
    outside = torch.eye(len(matrix), dtype=torch.float64) - spectrum.vectors @ spectrum.vectors.T
    values, vectors = torch.linalg.eigh(kept + outside @ texture @ outside)
    return Spectrum(vectors.flip(1), values.flip(0).clamp(min=_LEAST_VARIANCE), _LEAST_VARIANCE)


def low_frequencies(shape: tuple[int, int, int], *, most: int) -> Float64[Tensor, "dimension coordinate"]:
    """Return orthonormal columns that span the lowest frequencies of images (channel, height, width), at most `most`.

    All frequencies, and so all images, if there are no more. They are products of cosines (the DCT-II), for each
    channel.
    """
    channels, height, width = shape
    if math.prod(shape) <= most:
        return torch.eye(math.prod(shape), dtype=torch.float64)
    side = math.isqrt(most // channels)
    cosines = [torch.from_numpy(idct(torch.eye(n).double().numpy(), axis=0, norm="ortho")) for n in (height, width)]
    down, across = (c[:, : min(side, len(c))] for c in cosines)
    one = torch.einsum("yi,xj->yxij", down, across).flatten(2).flatten(0, 1)
    return torch.kron(torch.eye(channels, dtype=torch.float64), one)
