"""Where the parts of a run's folder are, for whoever need not open them."""

import tomllib
from pathlib import Path

from dpdm.files import damaged, read_at_most
from dpdm.types import InputError

MANIFEST = "manifest.json"
"""The file with the digests of an exported pipeline, beside the claim."""

OF_RELEASE = "model.safetensors"
"""The file of a release's weights, which no exported pipeline has."""

_MOST_SETTINGS = 2**24  # bytes


def release_folder(run: Path | str) -> Path:
    """Return the folder of what may be published: that of a finished run, or `run` itself.

    Raises:
        InputError: There is no finished run.
    """
    folder = Path(run) if (Path(run) / "privacy.json").exists() else Path(run) / "release"
    if not (folder / "privacy.json").exists():
        if (Path(run) / "private" / "journal.jsonl").exists():
            raise InputError(f"{run} holds an unfinished run: repeat its train command to go on")
        raise InputError(f"{run} holds no run: name a folder that `dpdm train --run FOLDER` made")
    return folder


def is_exported(folder: Path) -> bool:
    """Tell whether a folder with a claim is an exported pipeline, and no release."""
    return (folder / MANIFEST).exists() and not (folder / OF_RELEASE).exists()


def folder_with_weights(run: Path | str) -> Path:
    """Return the folder of a release that is to be opened.

    Raises:
        InputError: There is no finished run; or it is an exported pipeline, which holds no weights of a release.
    """
    folder = release_folder(run)
    if is_exported(folder):
        raise InputError(f"{run} is an exported pipeline, for diffusers to load: name the run, or its release/")
    return folder


def pipeline_of(run: Path | str) -> Path | None:
    """Return the folder of the public pipeline that a run draws with, where its own settings tell.

    None if the release alone is here, if there is no such folder any more, or if the run needs none. Whether it still
    holds that pipeline is for digests to tell.
    """
    from dpdm.networks import TextToImageFolder  # here, since most commands ask for a folder alone

    file = Path(run) / "private" / "config.toml"
    if not file.is_file():
        return None
    with damaged(file, "name the pipeline by --public, or the release/ alone"):  # it may be a stranger's
        settings = tomllib.loads(read_at_most(file, _MOST_SETTINGS).decode())
        if settings.get("network", {}).get("kind") != TextToImageFolder.kind:
            return None
        return next((folder for folder in map(Path, settings.get("start_folders", [])) if folder.is_dir()), None)


def in_words(there: object, here: object) -> str:
    """Say what a setting is in a run that began, and what it is here."""
    return f"{_in_words(there)} there and {_in_words(here)} here"


def _in_words(value: object) -> str:
    """Say a setting as a person would: public data by name and the digest's beginning, a list by its entries."""
    if value is None or value == []:
        return "none"
    if isinstance(value, dict) and "name" in value and "sha256" in value:
        of = f", of {_in_words(sources)}" if (sources := value.get("sources")) else ""
        return f"{value['name']} (SHA-256 {str(value['sha256'])[:8]}{of})"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_in_words, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
