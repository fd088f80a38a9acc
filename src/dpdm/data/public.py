"""Images that are declared public, framed as private ones are."""

from dpdm.data.dataset import ImageDataset
from dpdm.data.open import open_dataset
from dpdm.types import InputError


def open_public(
    source: str, *, shape: tuple[int, int, int], class_names: tuple[str, ...], count: int | None = None
) -> ImageDataset:
    """Return images that are declared public, at the shape (channel, height, width) of private ones."""
    channels, height, width = shape
    size = height if height == width else None
    opened = open_dataset(source, size=size, channels=channels, public=True)  # type: ignore[arg-type]
    if opened.shape != shape:
        raise InputError(f"{opened.name} has images of shape {opened.shape}, not {shape}")
    return opened
