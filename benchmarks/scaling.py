"""Weak scaling: as many images for each process, on 1, 2, … processes of one thread each.

    python benchmarks/scaling.py [--processes 1 2] [--images 128] [--steps 6]

Each number of processes is a torchrun of its own, over gloo. Prints one JSON row for each: a step's median seconds,
and the efficiency, one process's seconds ÷ these.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Launch one run for each number of processes, and print what the first process of each measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=128, help="on average, for each process and step")
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    alone = None
    for size in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "seconds.json"
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(
                [*launch, __file__, "worker", str(options.images), str(options.steps), str(result)],
                env=environment,
                check=True,
                stderr=subprocess.DEVNULL,
            )
            seconds = json.loads(result.read_text())
        alone = alone or seconds
        row = {"processes": size, "images_per_step": size * options.images, "seconds": round(seconds, 3)}
        print(json.dumps(row | {"efficiency": round(alone / seconds, 3)}), flush=True)


def worker(images: int, steps: int, result: Path) -> None:
    """Take steps of `fashion-mnist-cpu`'s network on random images, and write the median seconds of one."""
    import numpy as np
    import torch

    import dpdm
    from dpdm.runs.hardware import joined_processes

    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (4096, 28, 28, 1), dtype=np.uint8)
    data = dpdm.ImageDataset(images=pixels, labels=np.arange(4096) % 10, num_classes=10, name="random")
    method = dpdm.Diffusion(
        network=dpdm.CompactUNet(width=32),
        preconditioning=dpdm.EDM(),
        loss=dpdm.DenoisingLoss(noise_multiplicity=1),
    )
    with joined_processes() as processes:
        plan = dpdm.DPSGD(
            dataset_size=4096,
            expected_batch_size=images * processes.size,
            steps=steps + 1,
            noise_multiplier=1.0,
            delta=1e-5,
        )
        trainer = dpdm.Trainer(method=method, plan=plan, ledger=None)
        times, before = [], time.perf_counter()
        for _ in trainer.steps(data):
            times.append(time.perf_counter() - before)
            before = time.perf_counter()
        if processes.first:
            result.write_text(json.dumps(statistics.median(times[1:])))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
