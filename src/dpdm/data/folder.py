"""Image files in a folder: flat, or in one folder for each class."""

import os
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dpdm.data.dataset import ImageDataset, require_same_num_classes
from dpdm.data.framing import Framing, to_pillow
from dpdm.types import Images, InputError, Labels

_EXTENSIONS: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# Names decide nothing, and some formats that Pillow knows start other programs: only these are tried.
_FORMATS: Final = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")


def load_folder(path: Path, framing: Framing | None = None, *, num_classes: int | None = None) -> ImageDataset:
    """Return the images of a folder, in the order of their names.

    The sorted names of class folders are the declaration of the classes, so nothing is read off the records.
    Hidden files are ignored; any other file that is no image is refused: no record vanishes unnoticed.

    Args:
        path: A folder of images (no labels), or of class folders that hold images.
        framing: Size and channels; where it leaves them open, all files must agree.
        num_classes: If given, the number of class folders must be this.

    Raises:
        InputError: If a file is no image, a class is empty or beside images, or sizes or channels differ.
    """
    framing = framing or Framing()
    folders, files = _contents(path)
    if folders and files:
        raise InputError(
            f"{path} holds images ({files[0].name}) beside class folders ({folders[0].name}): "
            "move every image into a class folder, or all of them out"
        )
    require_same_num_classes(len(folders), num_classes, str(path))
    if not folders:
        return ImageDataset(images=_read_all(files, framing), name=str(path))
    classes = [_contents(folder) for folder in folders]
    nested = [inner for folders_inside, _ in classes for inner in folders_inside]
    if nested:
        raise InputError(f"{nested[0]} is a folder inside a class folder: move its images up")
    return ImageDataset(
        images=_read_all([file for _, files in classes for file in files], framing),
        labels=np.repeat(np.arange(len(classes)), [len(files) for _, files in classes]),
        num_classes=len(classes),
        class_names=tuple(folder.name for folder in folders),
        name=str(path),
    )


def save_folder(path: Path, images: Images, labels: Labels | None = None, class_names: Sequence[str] = ()) -> None:
    """Write images as PNG files, in class folders if there are labels, wholly or not at all.

    `load_folder` gives the same labels back: names that would not sort in the order of their classes, or that
    no file system takes, get the number of the class in front. A class without images is an empty folder.

    Args:
        path: The folder to make, and folders above it; it may exist if it is empty.
        images: `uint8` (number, height, width, channel).
        labels: Integers (number,), 0 <= label < len(class_names), or None for a flat folder.
        class_names: One name for each class.

    Raises:
        InputError: If the folder holds something already, or the arrays make no `ImageDataset`.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists and is no empty folder: name another one, or remove it first")
    dataset = ImageDataset(images=images, labels=labels, num_classes=len(class_names), name=str(path))
    folders = [""] if dataset.labels is None else _folder_names(class_names)
    digits = len(str(len(images) - 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        for folder in folders:
            (partial / folder).mkdir(parents=True)
        for index, image in enumerate(images):
            folder = folders[0 if dataset.labels is None else dataset.labels[index]]
            to_pillow(image).save(partial / folder / f"{index:0{digits}d}.png")
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _folder_names(class_names: Sequence[str]) -> list[str]:
    """Return names for class folders that sort in the order of the classes."""
    safe = [re.sub(r'[\x00-\x1f/\\:*?"<>|]|^[. ]|[. ]$', "-", name) for name in class_names]
    if safe == sorted(set(class_names)) and all(safe):
        return safe
    digits = len(str(len(safe) - 1))
    return [f"{label:0{digits}d}_{name}" for label, name in enumerate(safe)]


def _contents(path: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders and the image files in a folder, each sorted by name, without hidden ones."""
    if not path.is_dir():
        raise InputError(f"{path} is no folder: check the path")
    entries = sorted((e for e in path.iterdir() if not e.name.startswith(".")), key=lambda e: e.name)
    if not entries:
        raise InputError(f"{path} is empty: put images in it, or remove it")
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if not entry.is_dir()]
    for file in files:
        if file.suffix.lower() not in _EXTENSIONS:
            raise InputError(f"{file} is no image ({', '.join(_EXTENSIONS)}): move it elsewhere")
    return folders, files


def _read_all(files: Sequence[Path], framing: Framing) -> Images:
    """Return the framed images of all files, which must agree on size and channels."""
    first = framing.frame(_decode(files[0]))
    images = np.empty((len(files), *first.shape), np.uint8)
    for index, file in enumerate(files):
        image = framing.frame(_decode(file))
        if image.shape[2] != first.shape[2]:
            raise InputError(
                f"{file} has {image.shape[2]} channels, but {files[0]} has {first.shape[2]}: "
                "choose one number for all with --set data.channels=3"
            )
        if image.shape != first.shape:
            raise InputError(
                f"{file} is {image.shape[1]} x {image.shape[0]} pixels, but {files[0]} is "
                f"{first.shape[1]} x {first.shape[0]}: choose one size for all with --set data.size=28"
            )
        images[index] = image
    return images


def _decode(file: Path) -> Image.Image:
    """Return the upright image of one file as L, RGB or RGBA."""
    try:
        # Pillow's warnings about odd metadata would be output about a record.
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=_FORMATS) as image:
            # The further pictures in a camera's MPO file are previews and depth, not records.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            upright = ImageOps.exif_transpose(image)
            has_alpha = upright.getbands()[-1] == "A" or "transparency" in upright.info
            decoded = upright.convert("RGBA" if has_alpha else "L" if upright.mode in ("1", "L") else "RGB")
    except Exception as error:  # Pillow's decoders answer damaged bytes with nearly any exception.
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"{file} is no image that can be decoded ({reason}): repair or remove it") from error
    if upright.mode.startswith(("I", "F")):
        # Which of 16 bits matter (12 in many scanners) the owner knows; to guess it from records would leak.
        raise InputError(f"{file} has more than 8 bits of grey: convert all images to 8 bits by one fixed scale")
    if frames > 1:
        raise InputError(f"{file} holds {frames} pictures: save each one as a file of its own")
    return decoded
