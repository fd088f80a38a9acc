"""What releases cost from which the images of a start were drawn: its own settings say so."""

from collections.abc import Sequence
from pathlib import Path

from dpdm.config.target import read_toml
from dpdm.files import damaged
from dpdm.privacy import Earlier
from dpdm.types import InputError

START = "start.toml"
"""The file that says what a start is."""


def earlier_of(folders: Sequence[str]) -> tuple[Earlier, ...]:
    """Return the noisy sums that a run counts again if it begins with one of these starts.

    Raises:
        InputError: A folder holds no start, or a damaged one.
    """
    found: list[Earlier] = []
    for folder in folders:
        path = Path(folder).expanduser() / START
        if not path.is_file():
            raise InputError(f"{folder} holds no start: dpdm pretrain makes one there (or did not come to its end)")
        with damaged(path, "make the start again, by dpdm pretrain"):
            found += [Earlier(**entry) for entry in read_toml(path).get("earlier", [])]
    return tuple(found)
