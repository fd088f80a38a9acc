"""What a record is known by, whatever size and channels it is given, and which records are the same to the last pixel.

In several units of protection equal images may be one person's after all; in public data, they are not private.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from numpy.typing import NDArray
from PIL import Image

from dpdm.data.dataset import ImageDataset
from dpdm.types import Images, InputError, as_images

DIGEST = 32
"""Bytes of a SHA-256."""


def pixel_digests(images: Images) -> UInt8[np.ndarray, "images 32"]:
    """Return the SHA-256 of the shape and pixels of each image, (number, 32)."""
    return level_digests(as_images("all", images))


def level_digests(levels: Images) -> UInt8[np.ndarray, "images 32"]:
    """Return the same of images or their latents, which have any number of channels."""
    found = bytearray()  # which grows by the digests alone: to join them would hold a Python object for each, too
    for image in levels:
        found += _of_pixels(image)
    return np.frombuffer(found, np.uint8).reshape(-1, DIGEST)


def file_digests(encoded: bytes, decoded: Image.Image) -> UInt8[np.ndarray, "2 32"]:
    """Return the SHA-256 of an image's file, and that of shape and pixels before framing, (2, 32)."""
    pixels = np.asarray(decoded).reshape(decoded.height, decoded.width, -1)
    found = hashlib.sha256(encoded).digest() + _of_pixels(pixels)
    return np.frombuffer(found, np.uint8).reshape(2, DIGEST)


def array_digests(images: Images) -> UInt8[np.ndarray, "images 2 32"]:
    """Return the same of images that lie in no files of their own, (number, 2, 32): pixels are all there is."""
    return pixel_digests(images)[:, None].repeat(2, axis=1)


def known_by(data: ImageDataset) -> UInt8[np.ndarray, "images ways 32"]:
    """Return all that each image is known by, (number, ways, 32): its pixels, its file, its pixels before framing."""
    return np.stack(_ways_of(data), axis=1)


def blank_equal(data: ImageDataset, public: ImageDataset) -> ImageDataset:
    """Return the private `data` in which images that are in the `public` data too, to the last pixel, are blank.

    To refuse them, or to leave the public image out, would tell who is in the data. So each image that equals a public
    one adds zero to every sum that follows. The code is the same whether there are such images or not. The claim does
    not protect an image that equals a public one. Two images are equal by their pixels, by these before framing, or by
    their files. A near copy is not found.

    Guarantees:
        * Whether an image is blank depends on this image and on public ones alone.

    Raises:
        InputError: The images are of different shapes.
    """
    require_same_shape(data, public)
    return blank_known(data, [known_by(each) for each in (public, *public.made_of)])


def blank_known(data: ImageDataset, sets: Sequence[UInt8[np.ndarray, "images ways 32"]]) -> ImageDataset:
    """Return the private `data` in which images that are `known_by` one of these are blank, as `blank_equal` does."""
    digests = np.concatenate([_keys(each.reshape(-1, DIGEST)) for each in sets])
    equal = np.logical_or.reduce([np.isin(_keys(way), digests) for way in _ways_of(data)])
    return replace(data, blank=equal if data.blank is None else data.blank | equal)


def require_same_shape(data: ImageDataset, public: ImageDataset) -> None:
    """Raise InputError unless private and public images are of one shape."""
    if public.shape != data.shape:
        raise InputError(
            f"{public.name} has images of shape {public.shape}, and {data.name} of {data.shape}: give both the same "
            "size and channels"
        )


def find_duplicates(
    images: Images,
    units: Int64[np.ndarray, " images"] | None = None,
    blank: Bool[np.ndarray, " images"] | None = None,
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
    return find_equal(pixel_digests(images), units, blank)


def find_equal(
    digests: UInt8[np.ndarray, "images 32"],
    units: Int64[np.ndarray, " images"] | None = None,
    blank: Bool[np.ndarray, " images"] | None = None,
) -> list[list[int]]:
    """Return the same of images that are known by their `pixel_digests`."""
    kept = np.arange(len(digests)) if blank is None else np.flatnonzero(~blank)
    _, which, counts = np.unique(_keys(digests)[kept], return_inverse=True, return_counts=True)
    equal: dict[int, list[int]] = {}
    for at in np.flatnonzero(counts[which] > 1):
        equal.setdefault(int(which[at]), []).append(int(kept[at]))
    return [same for same in equal.values() if units is None or len({*units[same].tolist()}) > 1]


def _ways_of(data: ImageDataset) -> list[UInt8[np.ndarray, "images 32"]]:
    """Return what each image is `known_by`, one way after the other."""
    return [pixel_digests(data.images), *([] if data.sources is None else data.sources.transpose(1, 0, 2))]


def _keys(digests: UInt8[np.ndarray, "images 32"]) -> NDArray[np.bytes_]:
    """Return one value for each digest, which can be compared."""
    return np.ascontiguousarray(digests).view(f"S{DIGEST}")[:, 0]


def _of_pixels(image: Images) -> bytes:
    """Return the SHA-256 of an image in the fewest channels that hold it: grey can be stored as colour."""
    if image.shape[2] == 4 and (image[..., 3] == 255).all():
        image = image[..., :3]
    if image.shape[2] == 3 and all((image[..., other] == image[..., 0]).all() for other in (1, 2)):
        image = image[..., :1]
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
