"""The random generators that a whole process shares, and how to refuse that anything draws from them.

The privacy core draws from none of them. What it is handed, a network, a loss or a loader, might.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dpdm.types import InputError


@contextmanager
def no_shared_draws() -> Iterator[None]:
    """Refuse draws from the generators that all examples share: torch's, NumPy's and Python's.

    Such a draw depends on the place in a batch. One record more would change those of all others, and so their
    gradients: under a known seed the sum would move by far more than C.

    Raises:
        InputError: A generator's state has changed.
    """
    before = _generator_states()
    yield
    if _generator_states() != before:
        raise InputError(
            "the network, its loss or what loads its batches draws from torch's, NumPy's or Python's generator, which "
            "all examples share (or another thread does): leave dropout out, and draw from the random bytes that each "
            "example has"
        )


def _generator_states() -> tuple[object, ...]:
    numpys = np.random.get_state(legacy=False)  # noqa: NPY002 (nobody should draw from it)
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += torch.cuda.get_rng_state_all()
    torchs = tuple(state.numpy().tobytes() for state in states)
    return torchs, numpys["state"]["key"].tobytes(), numpys["state"]["pos"], numpys["gauss"], random.getstate()
