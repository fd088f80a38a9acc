"""What a run keeps in its own `private/`, so that a ledger knows it again and tells it from copies of itself."""

import uuid
from pathlib import Path
from typing import NamedTuple

from dpdm.files import read_json, write_json

_FILE = "ledger.json"


class InLedger(NamedTuple):
    """What a ledger knows a run by, and the tokens of its starts, the newest last."""

    run: str
    tokens: list[str]

    @staticmethod
    def new() -> "InLedger":
        """Return what no other run has, before its first start."""
        return InLedger(uuid.uuid4().hex, [])

    @staticmethod
    def read(private: Path) -> "InLedger | None":
        """Return what a folder `private/` holds, if it holds a run that a ledger counts."""
        if not (private / _FILE).is_file():
            return None
        content = read_json(private / _FILE)
        tokens = content.get("tokens")
        return InLedger(str(content.get("run")), [*map(str, tokens)] if isinstance(tokens, list) else [])

    def started(self, private: Path | None) -> "InLedger":
        """Return the same run with one more token, written down before the ledger hears of it.

        So, whatever a crash in between leaves, the ledger's token is one of the folder's.
        """
        more = InLedger(self.run, [*self.tokens, uuid.uuid4().hex])
        if private is not None:
            write_json(private / _FILE, more._asdict())
        return more
