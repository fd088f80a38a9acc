"""Which records enter a step: each one independently with the same probability (Poisson).

Privacy amplification by subsampling holds for exactly this selection, not for shuffled or fixed-size batches
(Chua et al. 2024, arXiv 2411.04205). The size of a batch is therefore random, and an empty one is an ordinary batch.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from dpdm.types import RandomBytes

A = TypeVar("A")
B = TypeVar("B")


def poisson(num_records: int, *, sample_rate: float, random_bytes: RandomBytes) -> Int64[np.ndarray, " batch"]:
    """Select each of `num_records` records independently with probability `sample_rate`.

    Args:
        num_records: The real number of records; secret under add-or-remove, and used for nothing else.
        sample_rate: Inclusion probability q in (0, 1].
        random_bytes: Eight bytes are read for each record.

    Returns:
        The selected indices in ascending order; possibly none.

    Guarantees:
        * Inclusions are independent over records and steps, of probability q up to 2^-64 from below.
        * Whether record i is selected depends on i's own eight bytes only.
    """
    threshold = int(sample_rate * 2**64)  # exact: scaling a float by a power of two does not round
    if threshold >= 2**64:
        return np.arange(num_records)
    words = np.frombuffer(random_bytes(8 * num_records), dtype=np.uint64)
    return np.flatnonzero(words < np.uint64(threshold))


def physical_batches(indices: Int64[np.ndarray, " batch"], size: int) -> Iterator[Int64[np.ndarray, " part"]]:
    """Split one selected batch into the parts that are on the device at once; the sum does not depend on `size`."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def one_ahead(load: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """Yield `load` of each item in order; a thread is at the next one while the caller works on this one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: Future[B] | None = None
        for item in items:
            before, ahead = ahead, pool.submit(load, item)
            if before is not None:
                yield before.result()
        if ahead is not None:
            yield ahead.result()
