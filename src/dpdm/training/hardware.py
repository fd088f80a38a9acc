"""Which device and which precision a run uses: performance settings, never part of the claim."""

from typing import Literal

import torch

from dpdm.types import InputError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


def choose_device(device: Device) -> torch.device:
    """Return the device; "auto" is a GPU where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("training.device = cuda, and no CUDA device is to be seen: choose auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context for network calls: bfloat16 where asked for, or where "auto" finds it in the hardware.

    Norms, sums, noise and weights are float32 or better whatever the choice.
    """
    enabled = precision == "bfloat16" or (precision == "auto" and _has_bfloat16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = file.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
