"""What a run keeps in its own `private/`, so that a ledger knows it again and tells it from copies of itself."""

import uuid
from pathlib import Path
from typing import NamedTuple

from dpdm.files import read_json, write_json
from dpdm.ledger.storage import Head
from dpdm.types import InputError

_FILE = "ledger.json"


class RunIdentity(NamedTuple):
    """What a ledger knows a run by, the tokens of its starts, the newest last, and the ledger's head as it saw it."""

    run: str
    tokens: list[str]
    head: Head | None = None

    @staticmethod
    def new() -> "RunIdentity":
        """Return what no other run has, before its first start."""
        return RunIdentity(uuid.uuid4().hex, [])

    @staticmethod
    def read(private: Path) -> "RunIdentity | None":
        """Return what a folder `private/` holds, if it holds a run that a ledger counts.

        Raises:
            InputError: Its file is damaged.
        """
        if not (private / _FILE).is_file():
            return None
        match read_json(private / _FILE):
            case {"run": str(run), "tokens": [*tokens], "head": None}:
                return RunIdentity(run, [*map(str, tokens)])
            case {"run": str(run), "tokens": [*tokens], "head": [int(number), str(digest)]} if number > 0:
                return RunIdentity(run, [*map(str, tokens)], Head(number, digest))
        raise InputError(f"{private / _FILE} is damaged: start a new run, and count this one in full")

    def started(self, private: Path | None) -> "RunIdentity":
        """Return the same run with one more token, written down before the ledger hears of it.

        So, whatever a crash in between leaves, the ledger's token is one of the folder's.
        """
        return self._replace(tokens=[*self.tokens, uuid.uuid4().hex])._written(private)

    def saw(self, head: Head, private: Path | None) -> "RunIdentity":
        """Return the same run with the ledger's head of now, written down: a ledger that lacks it is an old copy."""
        return self._replace(head=head)._written(private)

    def _written(self, private: Path | None) -> "RunIdentity":
        if private is not None:
            write_json(private / _FILE, self._asdict())
        return self
