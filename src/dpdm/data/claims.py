"""Claims that images drawn from a release carry, so that nobody takes them for public ones."""

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from PIL.PngImagePlugin import PngImageFile, PngInfo

from dpdm.files import damaged
from dpdm.types import InputError

if TYPE_CHECKING:
    from dpdm.data.image_files import EncodedImage, ImageFile

PREPARED: Final = "prepared.json"
_KEYWORD: Final = "dpdm-claim"
_HEAD: Final = 128  # bytes of a PNG file: the text is the first chunk after the header
_LONGEST: Final = 2000  # characters of a statement that are shown


def png_with(claim: str) -> PngInfo:
    """Return what a PNG file says beside its pixels when it carries a claim, given as JSON."""
    info = PngInfo()
    info.add_itxt(_KEYWORD, claim)
    return info


def read_claim(path: Path) -> str | None:
    """Return the statement of the claim that a file makes for its images, or None: nothing has verified it.

    Args:
        path: An .npz file, a PNG file, or the `prepared.json` of a prepared folder.
    """
    with contextlib.suppress(InputError), damaged(path, ""):
        return _statement_of(_claim_of(path))
    return None


def claim_in(encoded: bytes) -> str | None:
    """Return the statement of the claim that the bytes of an image file make, or None."""
    with contextlib.suppress(InputError), damaged("an image", ""):
        return _statement_of(_claim_in_png(io.BytesIO(encoded)))
    return None


def claim_among(files: "Iterable[ImageFile | EncodedImage]") -> tuple[str, str] | None:
    """Return the first image file that makes a claim, and the statement: in archives, tables, and by any name."""
    for file in files:
        with contextlib.suppress(InputError), damaged(file, ""), file.open("rb") as stream:
            if (claim := _statement_of(_claim_in_png(stream))) is not None:
                return str(file), claim
    return None


def find_claim(place: Path) -> tuple[Path, str] | None:
    """Return the first file at or below a place that makes a claim for its images, and the statement."""
    for path in _files(place):
        if (claim := read_claim(path)) is not None:
            return path, claim
    return None


def _claim_of(path: Path) -> str:
    """Return the JSON of a claim; an empty object where there is none."""
    if path.suffix.lower() == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return str(archive["claim"])
    if path.name == PREPARED:
        return json.dumps({"statement": json.loads(path.read_text(encoding="utf-8"))["claim"]})
    with path.open("rb") as file:
        return _claim_in_png(file)


def _claim_in_png(stream: IO[Any]) -> str:
    """Return the JSON of the claim in a PNG file, or raise InputError if there is none."""
    if _KEYWORD.encode() not in (head := stream.read(_HEAD)):
        raise InputError("there is no claim")
    return str(PngImageFile(io.BytesIO(head + stream.read())).info[_KEYWORD])


def _statement_of(claim: str) -> str | None:
    """Return the statement of a claim, given as JSON."""
    statement = json.loads(claim)["statement"]
    return "".join(c if c.isprintable() else "?" for c in statement[:_LONGEST]) if isinstance(statement, str) else None


def _files(place: Path) -> Iterator[Path]:
    """Yield all files at or below a place that may carry a claim."""
    if place.is_dir():
        seen = set[str]()
        for above, folders, names in os.walk(place, followlinks=True):
            if (real := os.path.realpath(above)) in seen:  # a link that leads back
                folders.clear()
                continue
            seen.add(real)
            yield from sorted(Path(above) / name for name in names if _may_carry(Path(name)))
    elif _may_carry(place):
        yield place


def _may_carry(path: Path) -> bool:
    return path.suffix.lower() in (".npz", ".png") or path.name == PREPARED
