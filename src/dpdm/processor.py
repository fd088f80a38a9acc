"""What this machine's processors can do."""

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself: where it is emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = file.read()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
