"""Which device, precision and memory a run uses: performance settings, never part of the claim."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed.nn.functional  # before there is a group: it would keep that alive, threads and all, to the end
from torch import distributed

from dpdm.privacy.processes import Processes
from dpdm.processor import has_bfloat16
from dpdm.types import InputError, one_line

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


def choose_device(device: Device) -> torch.device:
    """Return the device; "auto" is a GPU where there is one.

    A GPU comes with its number: which one is current is known to one thread alone, and batches are made in another.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("machine.device = cuda, and no CUDA device is to be seen: choose auto or cpu")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that torchrun started together with this one, for as long as the context lasts.

    Guarantees:
        * No thread of the group is left afterwards: one that is left can abort the process as it ends.

    Raises:
        InputError: The environment speaks of several processes (WORLD_SIZE), and does not say how they meet.
    """
    if (size := number_in("WORLD_SIZE")) == 1:
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(number_in("LOCAL_RANK", 0))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        # One process may wait long for what another does alone: a picture, a classifier. torchrun ends all if one dies.
        distributed.init_process_group(backend, timeout=timedelta(days=7))
    except ValueError as error:  # a variable that is missing, or is no number
        raise InputError(
            f"WORLD_SIZE says that this is one of {size} processes, and how they meet is not known "
            f"({one_line(error)}): start them by torchrun, or unset WORLD_SIZE to train with one"
        ) from None
    try:
        yield Processes.joined()
    finally:
        distributed.destroy_process_group()


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context for network calls: bfloat16 where asked for, or where "auto" finds it in the hardware.

    Norms, sums, noise and weights are float32 or better whatever the choice.
    """
    enabled = precision == "bfloat16" or (precision == "auto" and has_bfloat16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def keep_freed_memory() -> None:
    """Have the C library keep the large blocks that a step frees: else the kernel clears their pages at every step.

    A fifth of a step's time on two cores. Other C libraries than glibc are left as they are.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, 2**31 - 1)


def number_in(variable: str, otherwise: int = 1) -> int:
    """Return the number in a variable of the environment, which a scheduler may have set to anything."""
    value = os.environ.get(variable, "").strip() or str(otherwise)
    if not value.isdecimal() or int(value) < otherwise:
        raise InputError(f"the environment says {variable} = {value!r}, which is no number of processes: unset it")
    return int(value)
