"""What the checks of a step and of a run's start cost, on random images of Fashion-MNIST's shape.

    python benchmarks/checks.py [--pairs 100]

Steps with all checks and steps without them take turns in one run. Prints one JSON row: the median of each, and the
median of the paired ratios; then one row for each network with the seconds of a rehearsal at the start of a run. All
are seconds of processor time, which other work on the machine changes less than it does those of a clock.
"""

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from unittest import mock

import numpy as np

import dpdm
from dpdm.diffusion import EDM, DenoisingLoss
from dpdm.methods import Diffusion
from dpdm.networks import CompactUNet, UNet
from dpdm.privacy import clipping, layerwise, mechanism
from dpdm.runs import Trainer


def main() -> None:
    """Print what the checks cost a step, and a start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100, help="of a step with checks and one without")
    options = parser.parse_args()
    pixels = np.random.default_rng(0).integers(0, 256, (4096, 28, 28, 1), dtype=np.uint8)
    data = dpdm.ImageDataset(images=pixels, labels=np.arange(4096) % 10, num_classes=10, name="random")
    steps = trainer(CompactUNet(), copies=8, steps=2 * options.pairs + 4).steps(data)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * options.pairs + 4):
        checked = number % 2 == 0
        with contextlib.nullcontext() if checked else without_checks():
            began = time.process_time()
            next(steps)
        if number >= 4:
            seconds[checked].append(time.process_time() - began)
    steps.close()
    ratios = [with_ / without for with_, without in zip(seconds[True], seconds[False], strict=True)]
    row = {"step_s": statistics.median(seconds[True]), "step_without_checks_s": statistics.median(seconds[False])}
    print(json.dumps(row | {"ratio": statistics.median(ratios), "pairs": options.pairs}), flush=True)
    for name, network, copies in (("CompactUNet()", CompactUNet(), 8), ("UNet(), the paper's", UNet(), 32)):
        began = time.process_time()
        trainer(network, copies=copies, steps=1).rehearse(data)
        print(json.dumps({"network": name, "copies": copies, "start_s": time.process_time() - began}), flush=True)


def trainer(network: CompactUNet | UNet, *, copies: int, steps: int) -> Trainer:
    """Return a trainer in memory, on batches of 256 images."""
    plan = dpdm.DPSGD(dataset_size=4096, expected_batch_size=256, steps=steps, noise_multiplier=1.0, delta=1e-5)
    return Trainer(
        method=Diffusion(network=network, preconditioning=EDM(), loss=DenoisingLoss(noise_multiplicity=copies)),
        plan=plan,
        ledger=None,
    )


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    """Take the checks out of a step, for the time of the context."""

    def nothing(*arguments: object) -> None: ...

    with contextlib.ExitStack() as stack:
        for module, name in (
            (mechanism, "require_trainable"),
            (mechanism, "_require_vector"),
            (clipping, "require_trainable"),
            (clipping, "require_rows"),
            (layerwise, "require_exact_products"),
        ):
            stack.enter_context(mock.patch.object(module, name, nothing))
        for module, name in ((mechanism, "no_shared_draws"), (clipping, "no_shared_draws"), (mechanism, "unchanged")):
            stack.enter_context(mock.patch.object(module, name, return_value=contextlib.nullcontext()))
        stack.enter_context(mock.patch.object(layerwise, "_CHECKED_AGAIN", frozenset()))
        yield


if __name__ == "__main__":
    main()
