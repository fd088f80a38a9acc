"""The manifest of an exported pipeline: the digest of each of its files. Who checks it needs no `diffusers`."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from dpdm.files import digest, json_text, read_at_most, read_json, write_json
from dpdm.methods import PublicPart
from dpdm.networks.pipeline import NAMED, WEIGHTS
from dpdm.networks.text_folder import AS_THEY_ARE, digest_of_part
from dpdm.runs.readme import CODES, LOW_RANK, readme_of
from dpdm.types import InputError

MANIFEST = "manifest.json"
"""The file with the digests, beside the claim."""

_README = "README.md"
_KNOWN = {
    *("config.toml", "privacy.json", "model_index.json", _README, LOW_RANK, "scheduler/scheduler_config.json"),
    *(f"{part}/{name}" for part in ("unet", "generator") for name in ("config.json", WEIGHTS)),
    *(f"{part}/{name}" for part in AS_THEY_ARE for name in NAMED),
}
_MOST_TEXT, _MOST_FILES = 2**16, 100


def write_manifest(folder: Path) -> None:
    """Write the digests of all files that are in a folder."""
    write_json(folder / MANIFEST, {"sha256": {name: digest(folder / name) for name in _files(folder)}})


def require_manifest(folder: Path) -> list[Path]:
    """Return the files of a pipeline and their folders; raise InputError unless they are those of its manifest.

    They must be files that an export has, as they were written, and the manifest must say nothing else.
    """
    found = read_json(folder / MANIFEST, most=_MOST_TEXT).get("sha256")
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise InputError(f"{folder / MANIFEST} is damaged: it holds no digests")
    if read_at_most(folder / MANIFEST, _MOST_TEXT) != json_text({"sha256": found}).encode():
        raise InputError(f"{folder / MANIFEST} holds more than digests, or is not as an export writes it")
    there = [name for name in _files(folder) if name != MANIFEST]
    for name in there:
        if name not in found or name not in _KNOWN:
            raise InputError(f"{folder / name} does not belong to the export: take it away, it is covered by no claim")
    for name in sorted(found):
        if name not in there:
            raise InputError(f"{folder / ascii(name)[1:-1][:80]} is missing")
        if digest(folder / name) != found[name]:
            raise InputError(f"{folder / name} is not the file that was exported: its digest differs")
    return [folder, *(folder / name for name in {str(Path(name).parent) for name in there} | {*there, MANIFEST})]


def require_readme(folder: Path, statement: str, class_names: Sequence[str]) -> None:
    """Raise InputError unless the README says what an export of this claim says, and no more."""
    content = read_at_most(folder / _README, _MOST_TEXT)
    known = (
        readme_of(statement, class_names, code, low_rank=low, bordered=bordered)
        for code in CODES
        for low in (False, True)
        for bordered in (False, True)
    )
    if content not in [each.encode() for each in known]:
        raise InputError(f"{folder / _README} does not say what an export of this claim says")


def require_public_parts(folder: Path, public: Sequence[PublicPart]) -> None:
    """Raise InputError if a part that no private step changes is another than the claim names."""
    named = {part.name.rpartition("/")[2]: part.sha256 for part in public}
    for place in (folder / part for part in AS_THEY_ARE):
        if place.is_dir() and digest_of_part(place) != (sha256 := named.get(place.name, "that of none")):
            raise InputError(f"{place} is another part than the claim names: its SHA-256 is {sha256}")


def _files(folder: Path) -> list[str]:
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
