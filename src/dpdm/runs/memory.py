"""How much memory a run may use here."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from dpdm.runs.hardware import number_in


def memory_for_a_batch(device: torch.device) -> int:
    """Return the bytes that one physical batch may take: half of what is free; on a CPU at most 4 GiB, or a quarter.

    The processes of one machine share what its processors have.
    """
    half = memory_free(device) // 2
    return half if device.type == "cuda" else min(half, min(2**34 // _beside(), memory_there(device)) // 4)


def memory_free(device: torch.device) -> int:
    """Return the bytes that nothing uses now: a process's share of those of the machine or container, or the GPU's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [memory_there(device) * _beside()]
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    with contextlib.suppress(OSError, ValueError, KeyError):  # in a container; what files left there can be dropped
        group = Path("/sys/fs/cgroup")
        rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(rows["inactive_file"])
        free.append(max(0, int((group / "memory.max").read_text()) - used))
    return min(free) // _beside()


def memory_there(device: torch.device) -> int:
    """Return the bytes that a process may have: its share of the machine or container; on a GPU, what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [2**63]
    if hasattr(os, "sysconf") and (pages := os.sysconf("SC_PHYS_PAGES")) > 0:
        limits.append(pages * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits) // _beside()


def _beside() -> int:
    """Return how many processes of this run are on this machine."""
    return number_in("LOCAL_WORLD_SIZE")


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yield what returns the most bytes that this process has held since: of the GPU's, or of the machine's.

    None where the system does not tell (it is Linux that does).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of before

    def most() -> int | None:
        if device.type == "cuda":
            return torch.cuda.max_memory_reserved(device)
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            return 1024 * int(lines["VmHWM"].split()[0])
        return None

    yield most
