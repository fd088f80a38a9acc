"""Time and memory of clipped gradients, beside the plain gradient of the same network and batch, in one run.

    python benchmarks/clipping.py [preset]

Prints JSON: microseconds for each noisy copy, and the ratio private ÷ plain, for each strategy and noise multiplicity.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch

from dpdm.config import load_config
from dpdm.diffusion import DenoisingLoss, PreconditionedDenoiser
from dpdm.privacy import LayerWise, OneBackwardEach, Vectorized, clipped_grad_sum
from dpdm.privacy.clipping import trainable_parameters

CASES = ((64, 1), (64, 4), (16, 32))  # examples, noisy copies of each
REPEATS = 5


def main(preset: str) -> None:
    """Measure, and print JSON."""
    config = load_config(preset)
    shape = (config.data.channels, config.data.size, config.data.size)
    network = config.network.build(shape, num_classes=config.data.num_classes)
    denoiser = PreconditionedDenoiser(network, config.preconditioning)
    parameters = trainable_parameters(denoiser)
    rows = []
    for examples, copies in CASES:
        loss = DenoisingLoss(noise_multiplicity=copies)
        batch = loss.draw(
            torch.rand(examples, *shape) * 2 - 1,
            torch.zeros(examples, dtype=torch.long),
            null_label=config.data.num_classes,
            noise_levels=config.preconditioning.noise_levels,
            random_bytes=os.urandom,
        )
        ways = {
            "plain": lambda loss=loss, batch=batch: torch.autograd.grad(loss(denoiser, batch).sum(), parameters),
            **{
                type(strategy).__name__: lambda loss=loss, batch=batch, strategy=strategy: clipped_grad_sum(
                    loss, denoiser, batch, max_grad_norm=1.0, strategy=strategy
                )
                for strategy in (Vectorized(), OneBackwardEach(), LayerWise())
            },
        }
        seconds = medians(ways)
        rows.append(
            {
                "examples": examples,
                "noise_multiplicity": copies,
                "microseconds_per_copy": {k: round(1e6 * s / examples / copies) for k, s in seconds.items()},
                "ratio_to_plain": {k: round(s / seconds["plain"], 2) for k, s in seconds.items()},
            }
        )
    print(
        json.dumps(
            {
                "preset": preset,
                "parameters": sum(p.numel() for p in parameters),
                "processor": platform.processor() or platform.machine(),
                "instructions": torch.backends.cpu.get_cpu_capability(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "precision": "float32",
                "cases": rows,
            },
            indent=2,
        )
    )


def medians(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each way; the ways take turns, so that drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "fashion-mnist-cpu")
