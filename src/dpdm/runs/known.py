"""What the images of a run are known by: each process digests its own, once, and the first has the digests of all."""

from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from dpdm.data import ImageDataset, pixel_digests
from dpdm.ledger import Records
from dpdm.privacy.processes import Processes


class KnownImages:
    """The `pixel_digests` of a run's images, which take far longer to compute than to send.

    Args:
        data: All images of the run.
        own: This process's part of them.
        processes: Those of the run.
    """

    def __init__(self, data: ImageDataset, own: ImageDataset, processes: Processes) -> None:
        self.data, self._own, self._processes = data, own, processes
        self._found: UInt8[np.ndarray, "images 32"] | None = None

    def digests(self) -> UInt8[np.ndarray, "images 32"]:
        """Return those of all images, in their order; on the first process, and to be called on all."""
        if self._found is None:
            parts = self._processes.in_turn([pixel_digests(self._own.images)])
            self._found = parts[0] if len(parts) == 1 else self._in_order(parts)
        return self._found

    def records(self) -> Records:
        """Return what a ledger has to know of the images; on the first process, and to be called on all."""
        return replace(Records.of(self.data), images=None, digests=self.digests()[:, np.newaxis])

    def _in_order(self, parts: list[UInt8[np.ndarray, "part 32"]]) -> UInt8[np.ndarray, "images 32"]:
        if not parts:  # on the others, which have nothing to do with them
            return np.empty((0, 32), np.uint8)
        found = np.empty((len(self.data), parts[0].shape[1]), np.uint8)
        found[np.argsort(self.data.units % self._processes.size, kind="stable")] = np.concatenate(parts)
        return found
