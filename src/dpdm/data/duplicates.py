"""Images that are the same to the last pixel.

In several units of protection they may be one person's after all; in public data, they are not private.
"""

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dpdm.data.dataset import ImageDataset
from dpdm.data.identity import pixel_digests
from dpdm.types import Images, InputError


def blank_equal(data: ImageDataset, public: ImageDataset) -> ImageDataset:
    """Return the private `data` in which images that are in the `public` data too, to the last pixel, are blank.

    To refuse them, or to leave the public image out, would tell who is in the data. So each image that equals a public
    one adds zero to every sum that follows, by the same code whether there are such images or not. The claim does not
    protect that image. A near copy is not found, nor the same image if it was framed in another way.

    Guarantees:
        * Whether an image is blank depends on this image and on public ones alone.

    Raises:
        InputError: The images are of different shapes.
    """
    if public.shape != data.shape:
        raise InputError(
            f"{public.name} has images of shape {public.shape}, and {data.name} of {data.shape}: give both the same "
            "size and channels"
        )
    known = {digest.tobytes() for digest in pixel_digests(public.images)}
    equal = np.fromiter((digest.tobytes() in known for digest in pixel_digests(data.images)), bool, len(data))
    return replace(data, blank=equal if data.blank is None else data.blank | equal)


def find_duplicates(
    images: Images, units: NDArray[np.int64] | None = None, blank: NDArray[np.bool_] | None = None
) -> list[list[int]]:
    """Return the indices of images that are equal in every pixel, one list for each such image.

    Args:
        images: `uint8` (number, height, width[, channel]).
        units: Which unit of protection each image belongs to; those that are equal within one unit only are left out.
            None makes each image a unit.
        blank: Images that take no part, and so are left out.

    Privacy:
        The result is secret: what two records have in common is not covered by ε.
    """
    digests = np.empty((len(images), 2), np.uint64)
    for index, image in enumerate(images):
        digests[index] = np.frombuffer(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), np.uint64)
    order = np.lexsort(digests.T)
    if blank is not None:
        order = order[~blank[order]]
    starts = np.r_[0, np.flatnonzero((np.diff(digests[order], axis=0) != 0).any(axis=1)) + 1, len(order)]
    several = np.flatnonzero(np.diff(starts) > 1)
    equal = sorted(sorted(order[starts[run] : starts[run + 1]].tolist()) for run in several)
    return equal if units is None else [same for same in equal if len(np.unique(units[same])) > 1]
