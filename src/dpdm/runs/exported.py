"""The manifest of an exported pipeline: the digest of each of its files. Who checks it needs no `diffusers`."""

import os
import stat
from pathlib import Path

from dpdm.files import digest, read_json, write_json
from dpdm.types import InputError

MANIFEST = "manifest.json"
"""The file with the digests, beside the claim."""

_MOST_TEXT, _MOST_FILES = 2**16, 100


def write_manifest(folder: Path) -> None:
    """Write the digests of all files that are in a folder."""
    write_json(folder / MANIFEST, {"sha256": {name: digest(folder / name) for name in _files(folder)}})


def require_manifest(folder: Path) -> None:
    """Raise InputError unless a folder holds the files of its manifest, as they were written, and no others."""
    found = read_json(folder / MANIFEST, most=_MOST_TEXT).get("sha256")
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InputError(f"{folder / MANIFEST} is damaged: it holds no digests")
    there = [name for name in _files(folder) if name != MANIFEST]
    for name in there:
        if name not in found:
            raise InputError(f"{folder / name} does not belong to the export: take it away, it is covered by no claim")
    for name in sorted(found):
        if name not in there:
            raise InputError(f"{folder / ascii(name)[1:-1][:80]} is missing")
        if digest(folder / name) != found[name]:
            raise InputError(f"{folder / name} is not the file that was exported: its digest differs")


def _files(folder: Path) -> list[str]:
    """Return all files in a folder and its folders, or raise InputError for what is neither."""
    names = []
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            mode = path.lstat().st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise InputError(f"{path} is a link, or no file: verify a copy, made by cp -rL")
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in files]
        if len(names) > _MOST_FILES:
            raise InputError(f"{folder} holds more files than an export does")
    return sorted(names)
