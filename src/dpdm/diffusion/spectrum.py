"""What noisy sums tell of images: means of cells, covariances, and which of their directions stand out of the noise.

All of it is post-processing of vectors that `privacy.sums` has summed and the mechanism has released.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from scipy.fft import idct
from torch import Tensor
from torch.nn.functional import avg_pool2d

LEAST_VARIANCE = 1e-4
"""Of a pixel: about one of its 256 levels."""

_WHITE = 0.3  # part of the texture that no neighbour shares


class Eigen(NamedTuple):
    """Eigenvalues of symmetric matrices, which ascend, and their eigenvectors as columns."""

    values: Float64[Tensor, "*batch dimension"]
    vectors: Float64[Tensor, "*batch dimension dimension"]


def eigen(symmetric: Float64[Tensor, "*batch dimension dimension"]) -> Eigen:
    """Return the eigenvalues and eigenvectors of symmetric matrices.

    Some processors' library gives up on a matrix many of whose eigenvalues are equal, as those of features that are
    zero in all images are. NumPy's own does not.

    Raises:
        LinAlgError: A matrix has numbers that are not finite.
    """
    try:
        return Eigen(*torch.linalg.eigh(symmetric))
    except RuntimeError:  # torch has its LinAlgError under a private name alone
        found = np.linalg.eigh(symmetric.cpu().numpy())
        return Eigen(*(torch.from_numpy(each).to(symmetric) for each in found))


class Cells(NamedTuple):
    """Means and counts of the cells that rows lie in; a cell with too small a count has the mean of all."""

    means: Float64[Tensor, "cell dimension"]
    counts: Float64[Tensor, " cell"]


def cell_means(
    released: Float64[Tensor, " coordinates"], *, cells: int, count_scale: float, least_count: float
) -> Cells:
    """Return means and counts from a released `cell_sums`.

    Args:
        released: The noisy vector.
        cells: As it was summed.
        count_scale: As it was summed.
        least_count: A public number; a smaller count is raised to it, and its cell gets the mean of all.
    """
    dimensions = len(released) // cells - 1
    sums = released[: cells * dimensions].view(cells, dimensions)
    counts = released[cells * dimensions :] / count_scale
    of_all = sums.sum(0) / counts.sum().clamp(min=least_count)
    thin = counts < least_count
    counts = counts.clamp(min=least_count)
    return Cells(torch.where(thin[:, None], of_all, sums / counts[:, None]), counts)


def symmetric_matrices(
    released: Float64[Tensor, " coordinates"], *, cells: int
) -> Float64[Tensor, "cell dimension dimension"]:
    """Return the matrices of a released `second_moments`.

    Noise of standard deviation s on the vector has this much on the diagonals, and s / √2 on each off-diagonal entry.
    """
    dimensions = (math.isqrt(8 * (len(released) // cells) + 1) - 1) // 2
    row, column = torch.triu_indices(dimensions, dimensions)
    matrices = released.new_zeros(cells, dimensions, dimensions)
    entries = released.view(cells, -1) / (1 + (row != column).double()).sqrt()
    matrices[:, row, column] = matrices[:, column, row] = entries
    return matrices


def shrunk_towards(
    matrix: Float64[Tensor, "cell dimension dimension"],
    target: Float64[Tensor, "dimension dimension"],
    *,
    noise_std: Float64[Tensor, " cell"],
) -> Float64[Tensor, "cell dimension dimension"]:
    """Return noisy symmetric matrices, each moved to `target` by the part of their difference that is noise.

    Args:
        matrix: From `symmetric_matrices`.
        target: What all of them are compared with.
        noise_std: s of each, in units of `matrix`.

    Source:
        The positive-part rule of James & Stein 1961, in the form of empirical Bayes: 1 − noise / all of the energy.
    """
    dimensions = len(target)
    noise = noise_std**2 * dimensions * (dimensions + 1) / 2
    difference = matrix - target
    energy = difference.square().sum((1, 2))
    signal = (1 - noise / energy.clamp(min=1e-300)).clamp(min=0)  # no difference is no signal
    return target + signal[:, None, None] * difference


class Spectrum(NamedTuple):
    """A covariance as a few directions and a floor: V diag(variances) Vᵀ + floor (I − V Vᵀ)."""

    vectors: Float64[Tensor, "dimension kept"]
    variances: Float64[Tensor, " kept"]
    floor: float


def denoised_spectrum(
    matrix: Float64[Tensor, "dimension dimension"], *, noise_std: float, least_variance: float
) -> Spectrum:
    """Return the part of a noisy covariance that stands out of the noise, and the mean variance of the rest.

    The leading direction is always kept. The noise matrix has its eigenvalues within ±2τ, τ = noise_std √(d/2). An
    observed λ above 2τ belongs to a direction that is partly noise; the variance along the direction that is seen is
    √(λ² − 4τ²).

    Args:
        matrix: Symmetric, from `symmetric_matrices`.
        noise_std: s, the standard deviation of the noise on the released vector, in units of `matrix`.
        least_variance: A public number, below which no variance is believed.

    Source:
        Spiked Wigner matrices: Benaych-Georges & Nadakuditi 2011, section 3.1, for the spike θ = (λ + √(λ² − 4τ²)) / 2
        and the overlap 1 − τ²/θ² of its direction with the observed one: their product is θ − τ²/θ = √(λ² − 4τ²).
    """
    dimensions = len(matrix)
    edge = noise_std * math.sqrt(2 * dimensions)
    values, vectors = eigen(matrix)
    standing_out = values > edge
    standing_out[-1] = True
    variances = (values[standing_out] ** 2 - edge**2).clamp(min=least_variance**2).sqrt()
    rest = dimensions - len(variances)
    floor = (float(matrix.trace()) - float(variances.sum())) / rest if rest else least_variance
    return Spectrum(vectors[:, standing_out].flip(1), variances.flip(0), max(floor, least_variance))


def with_texture(
    spectrum: Spectrum, matrix: Float64[Tensor, "dimension dimension"], shape: tuple[int, int, int]
) -> Spectrum:
    """Return the covariance with its rest no longer white: each pixel's own variance, and neighbours alike.

    What the kept directions leave of `matrix` is mostly noise entry by entry, but not on average. This rest is fitted
    by √(f_p f_q) ρ(p − q). Here f is a variance for each pixel, averaged with its neighbours'. And ρ is a correlation
    for each displacement (and pair of channels), averaged over all pairs of pixels. A part of the rest stays white.
    """
    kept = spectrum.vectors @ spectrum.variances.diag() @ spectrum.vectors.T
    rest = matrix - kept
    channels, height, width = shape
    per_pixel = rest.diagonal().reshape(shape)[None]
    near = avg_pool2d(per_pixel, 3, stride=1, padding=1, count_include_pad=False).flatten()
    variances = near.clamp(min=LEAST_VARIANCE)
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

    values, vectors = eigen(scale * correlation)
    texture = vectors @ values.clamp(min=0).diag() @ vectors.T
    texture = (1 - _WHITE) * texture + _WHITE * variances.diag()
    outside = torch.eye(len(matrix), dtype=torch.float64) - spectrum.vectors @ spectrum.vectors.T
    values, vectors = eigen(kept + outside @ texture @ outside)
    return Spectrum(vectors.flip(1), values.flip(0).clamp(min=LEAST_VARIANCE), LEAST_VARIANCE)


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
