"""What a source is called: a built-in name or a path, and a part. Nothing is opened, and nothing heavy imported."""

import difflib
import os
from pathlib import Path
from typing import Final

from dpdm.data.layout import PARTS, Split
from dpdm.types import InputError

BUILT_IN: Final = ("digits", "fashion-mnist", "mnist", "cifar10", "cifar100")
"""The data sets that go by a name: all are published."""


def is_source(source: str) -> bool:
    """Whether `open_dataset` would find something of this name to open."""
    place, _ = split_of(source)
    return bool(place) and (place in BUILT_IN or found(Path(place).expanduser()).exists())


def is_built_in(name: str) -> bool:
    """Whether a data set of this name is public, and no one else's."""
    return name.removesuffix(":test").removesuffix(":val").casefold() in BUILT_IN


def split_of(source: str | Path) -> tuple[str, Split]:
    """Part `photos:test` into place and split; a path that exists as it is written stays whole."""
    place, _, part = str(source).rpartition(":")
    if place and part.lower() in PARTS and not Path(source).exists():
        return place, PARTS[part.lower()]
    return str(source), "train"


def found(path: Path) -> Path:
    """Return the path, or what goes by this name in the folder that DPDM_DATA names."""
    own = os.environ.get("DPDM_DATA")
    if own and not path.exists():
        for candidate in (Path(own) / path, Path(own) / f"{path}.zip"):
            if candidate.exists():
                return candidate
    return path


def require_source(source: str) -> None:
    """Raise InputError, with what may be meant, if `is_source` says no."""
    if not is_source(source):
        require_there(Path(split_of(source)[0] or "an empty name"))


def require_there(path: Path) -> None:
    """Raise InputError, with what may be meant, if nothing is at a path."""
    if not path.exists():
        names = [name + part for name in BUILT_IN for part in ("", ":train", ":test")]
        close = difflib.get_close_matches(str(path), names, n=1)
        hint = f"did you mean {close[0]}?" if close else "check the path"
        raise InputError(
            f"{path} is neither a path that exists (here or where DPDM_DATA points) nor one of "
            f"{', '.join(BUILT_IN)}: {hint}"
        )


def require_outside(output: Path, source: str | Path) -> None:
    """Raise InputError if what is to be written would lie among the images of a source, and be taken for some of them.

    Args:
        output: The file or folder to make.
        source: What `open_dataset` opens.
    """
    place, _ = split_of(source)
    if isinstance(source, str) and place in BUILT_IN:
        return
    folder, made = found(Path(place).expanduser()).resolve(), output.resolve()
    if folder.is_dir() and folder in (made, *made.parents):
        raise InputError(f"{output} lies in {folder}, the folder of images: choose a place outside of it")
