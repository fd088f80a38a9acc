"""Where the parts of a run's folder are, for whoever need not open them."""

from pathlib import Path

from dpdm.types import InputError


def release_folder(run: Path | str) -> Path:
    """Return the folder of what may be published: that of a finished run, or `run` itself.

    Raises:
        InputError: There is no finished run.
    """
    folder = Path(run) if (Path(run) / "privacy.json").exists() else Path(run) / "release"
    if not (folder / "privacy.json").exists():
        unfinished = (Path(run) / "private" / "journal.jsonl").exists()
        raise InputError(
            f"{run} holds {'an unfinished run: repeat its train command to go on' if unfinished else 'no run'}"
        )
    return folder
