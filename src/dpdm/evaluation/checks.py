"""What every score asks of the arrays it is given, told in one line where it is missing."""

import numpy as np

from dpdm.types import Images, InputError, Labels


def check_images(what: str, images: Images) -> None:
    """Raise InputError unless these are images: uint8 (number, height, width, channel)."""
    if images.ndim != 4 or images.dtype != np.uint8:
        found = f"{images.dtype} of shape {images.shape}"
        raise InputError(f"{what} images must be uint8 (number, height, width, channel), not {found}")


def check_labels(what: str, labels: Labels, number: int, num_classes: int) -> None:
    """Raise InputError unless these are the classes of so many images: (number,) integers in [0, num_classes)."""
    if labels.shape != (number,) or not np.issubdtype(labels.dtype, np.integer):
        found = f"{labels.dtype} of shape {labels.shape}"
        raise InputError(f"{number} {what} images need as many integer labels, not {found}")
    low, high = (int(labels.min()), int(labels.max())) if number else (0, -1)
    if low < 0 or high >= num_classes:
        raise InputError(f"{what} labels must lie in 0..{num_classes - 1}, but run from {low} to {high}")
