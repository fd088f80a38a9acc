"""The manifest of an exported pipeline: the digest of each of its files. Who checks it needs no `diffusers`."""

import os
import stat
from pathlib import Path

from dpdm.files import digest, json_text, read_at_most, read_json, write_json
from dpdm.runs.run_folder import MANIFEST
from dpdm.types import InputError

_MOST_TEXT, _MOST_FILES = 2**16, 100


def write_manifest(folder: Path) -> None:
    """Write the digests of all files that are in a folder."""
    write_json(folder / MANIFEST, {"sha256": {name: digest(folder / name) for name in files_of(folder)}})


def require_manifest(folder: Path) -> list[Path]:
    """Return the files of a pipeline and their folders; raise InputError unless they are those of its manifest.

    They must be as they were written, and the manifest must say nothing else, in one order.
    """
    found = read_json(folder / MANIFEST, most=_MOST_TEXT).get("sha256")
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InputError(f"{folder / MANIFEST} is damaged: it holds no digests")
    if read_at_most(folder / MANIFEST, _MOST_TEXT) != json_text({"sha256": dict(sorted(found.items()))}).encode():
        raise InputError(f"{folder / MANIFEST} holds more than digests, or is not as an export writes it")
    there = [name for name in files_of(folder) if name != MANIFEST]
    for name in there:
        if name not in found:
            raise InputError(f"{folder / name} does not belong to the export: take it away, it is covered by no claim")
    for name in sorted(found):
        if name not in there:
            raise InputError(f"{folder / ascii(name)[1:-1][:80]} is missing")
        if digest(folder / name) != found[name]:
            raise InputError(f"{folder / name} is not the file that was exported: its digest differs")
    return [folder, *(folder / name for name in {str(Path(name).parent) for name in there} | {*there, MANIFEST})]


def files_of(folder: Path) -> list[str]:
    """Return all files in a folder and its folders, or raise InputError for what is neither, or is empty."""
    names = []
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            mode = path.lstat().st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise InputError(f"{path} is a link, or no file: verify a copy, made by cp -rL")
            if stat.S_ISDIR(mode) and not any(path.iterdir()):
                raise InputError(f"{path} does not belong to the export: take it away, it is covered by no claim")
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in files]
        if len(names) > _MOST_FILES:
            raise InputError(f"{folder} holds more files than an export does")
    return sorted(names)
