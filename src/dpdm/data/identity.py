"""What a record is known by, whatever size and channels it is given: digests of what was stored."""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dpdm.types import Images, as_images

DIGEST = 32
"""Bytes of a SHA-256."""


def pixel_digests(images: Images) -> NDArray[np.uint8]:
    """Return the SHA-256 of the shape and pixels of each image, (number, 32)."""
    found = b"".join(_of_pixels(image) for image in as_images("all", images))
    return np.frombuffer(found, np.uint8).reshape(-1, DIGEST)


def file_digests(encoded: bytes, decoded: Image.Image) -> NDArray[np.uint8]:
    """Return the SHA-256 of an image's file, and that of shape and pixels before framing, (2, 32)."""
    pixels = np.asarray(decoded).reshape(decoded.height, decoded.width, -1)
    found = hashlib.sha256(encoded).digest() + _of_pixels(pixels)
    return np.frombuffer(found, np.uint8).reshape(2, DIGEST)


def array_digests(images: Images) -> NDArray[np.uint8]:
    """Return the same of images that lie in no files of their own, (number, 2, 32): pixels are all there is."""
    return pixel_digests(images)[:, None].repeat(2, axis=1)


def _of_pixels(image: Images) -> bytes:
    """Return the SHA-256 of an image in the fewest channels that hold it: grey can be stored as colour."""
    if image.shape[2] == 4 and (image[..., 3] == 255).all():
        image = image[..., :3]
    if image.shape[2] == 3 and (image == image[..., :1]).all():
        image = image[..., :1]
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
