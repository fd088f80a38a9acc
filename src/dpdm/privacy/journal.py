"""The append-only record of how many noisy sums one run may have produced.

Releases are reserved on disk before they are made, so that a crash can only over-count: what was reserved and not
settled is spent, and is never made again. The file holds counts and a fingerprint of the claim, nothing of the data.
"""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpdm.types import InputError

_NO_SUCH_CALL = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}


class Journal:
    """Counts releases against a plan; on disk if `path` is given, else for the life of the object.

    Args:
        path: File to append to, made if it is not there. One process at a time may hold it.
        claim: Fingerprint of the plan; an existing file must carry the same.
        planned: How many releases the plan allows.
        figures: Kept beside the claim of a new file, for whoever computes them anew and comes to other last digits.
        claim_of: Maps the figures of an existing file to the fingerprint of this plan with them, or to None. The
            figures are then found in `figures`, which is None otherwise.

    Guarantees:
        * Releases ever made <= `spent` <= `planned`, through any crash.
        * `reserve` returns only after the reservation is on disk (fsync).

    Raises:
        InputError: The file belongs to another plan, is damaged, or is in use by another process.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        claim: str,
        planned: int,
        figures: dict[str, Any] | None = None,
        claim_of: Callable[[dict[str, Any]], str | None] = lambda figures: None,
    ) -> None:
        self.planned = planned
        self.spent = 0
        self.figures: dict[str, Any] | None = None
        self._claim_of = claim_of
        self._header = {"claim": claim, "planned": planned, **({} if figures is None else {"figures": figures})}
        self._file: Any = None
        if path is not None:
            self._file = path.open("a+", encoding="utf-8", errors="surrogateescape", newline="\n")
            try:
                self._hold(path)
                self._read(path, claim)
            except InputError:
                self.close()
                raise

    def reserve(self, count: int) -> int:
        """Spend up to `count` releases before they are made; return how many the plan had left to give."""
        granted = min(count, self.planned - self.spent)
        if granted > 0:
            self._append({"spent": self.spent + granted})
            self.spent += granted
        return granted

    def settle(self, made: int) -> None:
        """Give back what was reserved and certainly not made: after a clean stop, `made` releases stand.

        Args:
            made: Releases made in all; at most what is spent.
        """
        if made > self.spent:
            raise ValueError(f"{made} releases were made and only {self.spent} reserved: the journal was bypassed")
        if made < self.spent:
            self._append({"spent": made, "settled": True})
            self.spent = made

    def close(self) -> None:
        """Let another process have the file."""
        if self._file is not None:
            self._file.close()

    def _hold(self, path: Path) -> None:
        from filelock import lock_descriptor  # which warns where there are no locks, of no concern to who only reads

        # On the file itself: a crash frees the lock, and systems whose locks keep others from writing let its holder.
        try:
            held = lock_descriptor(self._file.fileno(), blocking=False)
        except OSError as error:
            raise InputError(f"{path} cannot be locked ({error.strerror}): choose a --run folder elsewhere") from None
        if not held:
            raise InputError(f"{path} is in use: another process is training this run; wait for it")

    def _read(self, path: Path, claim: str) -> None:
        self._file.seek(0)
        text = self._file.read()
        whole, newline, torn = text.rpartition("\n")
        if torn:  # a crash while reserving: `reserve` had not returned, so nothing was made under this entry
            os.ftruncate(self._file.fileno(), len((whole + newline).encode("utf-8", "surrogateescape")))
        if not whole:
            self._append(self._header)
            _sync_folder(path.parent)
            return
        try:
            header, *entries = [json.loads(line) for line in whole.split("\n")]
            found, spent = (header["claim"], header["planned"]), [int(entry["spent"]) for entry in entries]
            if header["claim"] != claim and "figures" in header:
                kept = self._claim_of(header["figures"])
                if kept is not None:
                    claim, self.figures = kept, header["figures"]
            if not all(0 <= count <= header["planned"] for count in spent):
                raise ValueError("a count that no plan allows")
        except (ValueError, KeyError, TypeError, OverflowError):
            raise InputError(
                f"{path} is damaged, so what this run has spent is unknown: start a new run and count this one in full"
            ) from None
        if found != (claim, self.planned):
            raise InputError(f"{path} counts for another plan: choose another folder")
        self.spent = spent[-1] if spent else 0

    def _append(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the name of a new file in `folder` as durable as its contents."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # there are systems on which no folder can be opened
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:  # which say that this file system has no such thing
            raise
    finally:
        os.close(descriptor)
