"""The parts of `gpu.py`, one a process: `gpu_parts.py PART DEVICE SECONDS` prints its result as one line of JSON.

On a GPU the sizes are those that people train at; on a processor tiny ones, which prove the code and measure nothing.
"""

import contextlib
import copy
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch

import dpdm
from clipping import CLASSES, CPU, DTYPES, NETWORKS, SHAPE, Cases, in_turns, made_up, ours, peak_bytes
from clipping import measure as measure_clipping
from dpdm.config import Machine, load_config
from dpdm.diffusion import DDPM, EDM, DenoisingLoss, DiscreteTimes, NoisyBatch, PreconditionedDenoiser
from dpdm.methods import Diffusion, ImageFacts
from dpdm.methods.made_up import bytes_of_one
from dpdm.networks import ConditionUNet, Network, UNet
from dpdm.privacy import DPSGD, LayerWise, OneBackwardEach, Vectorized, clipped_grad_sum
from dpdm.runs import Trainer
from dpdm.runs.cost import measure_step, physical_batch_size
from dpdm.runs.hardware import autocast, choose_device, keep_freed_memory
from dpdm.runs.memory import memory_for_a_batch
from dpdm.types import InputError

STRATEGIES = {"layer-wise": LayerWise(), "one-backward-each": OneBackwardEach(), "vectorized": Vectorized()}
FACTS = ImageFacts(SHAPE, tuple("0123456789"))


SD_15 = ConditionUNet(times=1000, tokens=77, cross_attention_dim=768)


class Sizes(NamedTuple):
    """How large what is measured is."""

    networks: dict[str, Network]
    cases: Cases  # batch and noise multiplicity of the clipping benchmark
    copies: tuple[int, ...]  # noise multiplicities of the memory part
    at_once: int | Literal["auto"]  # and its examples
    images: int  # of the private run
    settings: tuple[str, ...]  # of that run, other than its preset's
    text_unet: ConditionUNet = SD_15  # of the adapter part
    latent: int = 32  # and the sides of its latents: of images of 256 pixels
    latents: int = 64  # and how many a step has, if they fit


OF_A_GPU = Sizes(NETWORKS, ((128, 1), (64, 4), (64, 32)), (1, 32), "auto", 60_000, ())
TINY = Sizes(
    {"paper U-Net": UNet(width=4, multipliers=(1, 1, 1), blocks=1, attention=())},
    ((2, 2),),
    (2,),
    2,
    16,
    (
        "network.width=4",
        "network.multipliers=[1, 1, 1]",
        "network.blocks=1",
        "network.attention=[]",
        "privacy.steps=4",
        "privacy.dataset_size=16",
        "privacy.expected_batch_size=16",
        "loss.noise_multiplicity=2",
        "sampler.steps=2",
    ),
    ConditionUNet(
        times=1000,
        tokens=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=(2,),
        norm_num_groups=4,
    ),
    8,
    4,
)


def facts(device: torch.device, seconds: float, sizes: Sizes) -> dict[str, Any]:
    """Return what the numbers depend on, the code aside."""
    found = {"kind": device.type, "torch": torch.__version__, "cuda": torch.version.cuda}
    if device.type == "cpu":
        return found | {"name": "processor"}
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
    }


class _Outcomes:
    """A plugin of pytest that counts."""

    def __init__(self) -> None:
        self.passed, self.skipped, self.failed = 0, 0, list[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.passed and report.when == "call"
        self.skipped += report.skipped
        self.failed += [report.nodeid.rpartition("/")[2]] if report.failed else []


def tests(device: torch.device, seconds: float, sizes: Sizes) -> dict[str, Any]:
    """Run the tests that are marked `gpu`; no warning of another version of a library fails them."""
    os.environ["DPDM_TEST_DEVICE"] = device.type
    outcomes = _Outcomes()
    code = pytest.main(["tests/gpu", "-q", "--tb=short", "-W", "default", "-p", "no:cacheprovider"], [outcomes])
    if code or not outcomes.passed:
        said = "; ".join(outcomes.failed[:3])
        return {"failed": f"{len(outcomes.failed)} tests failed, {outcomes.passed} passed: {said}"}
    return {"passed": outcomes.passed, "skipped": outcomes.skipped}


def agreement(device: torch.device, seconds: float, sizes: Sizes) -> dict[str, Any]:
    """Compare clipped sums with the processor's in float32, and the claims of two short runs."""
    torch.backends.cudnn.allow_tf32 = False
    rows = []
    for name, network in sizes.networks.items():
        denoiser, loss, drawn = made_up(network, 8, 4, CPU)
        expected = clipped_grad_sum(loss, denoiser, drawn, max_grad_norm=1.0).vector
        there, batch = copy.deepcopy(denoiser).to(device), NoisyBatch(*(t.to(device) for t in drawn))
        for called, strategy in STRATEGIES.items():
            row: dict[str, Any] = {"network": name, "strategy": called}
            for dtype in DTYPES:
                with autocast(dtype, device):  # type: ignore[arg-type]
                    found = clipped_grad_sum(loss, there, batch, max_grad_norm=1.0, strategy=strategy).vector.cpu()
                row[dtype] = float((found - expected).abs().max() / expected.abs().max())
            rows.append(row)
    data, _ = fashion_mnist(16)
    plan = DPSGD(dataset_size=16, expected_batch_size=16, steps=2, noise_multiplier=2.0, delta=1e-5)
    method = Diffusion(network=sizes.networks["paper U-Net"], preconditioning=EDM())
    claims = [
        Trainer(method=method, plan=plan, machine=Machine(device=where), ledger=None).fit(data).claim  # type: ignore[arg-type]
        for where in (device.type, "cpu")
    ]
    return {"rows": rows, "claims_equal": claims[0] == claims[1], "claim": claims[0]["statement"]}


def memory(device: torch.device, seconds: float, sizes: Sizes) -> dict[str, Any]:
    """Take the peak of a clipped sum over as many examples as the package takes at once by itself."""
    rows = []
    for called, strategy in STRATEGIES.items():
        for copies in sizes.copies:
            denoiser, loss, _ = made_up(sizes.networks["paper U-Net"], 1, copies, device)
            torch.cuda.empty_cache()  # what it keeps would count as used; does nothing where no GPU is
            planned = memory_for_a_batch(device)
            machine = Machine(strategy=called, physical_batch_size=sizes.at_once)  # type: ignore[arg-type]
            at_once = physical_batch_size(machine, device, copies, partial(bytes_of_one, loss, denoiser, FACTS))
            denoiser, loss, drawn = made_up(sizes.networks["paper U-Net"], at_once, copies, device)

            def step(loss: Any = loss, module: Any = denoiser, batch: Any = drawn, strategy: Any = strategy) -> object:
                return clipped_grad_sum(loss, module, batch, max_grad_norm=1.0, strategy=strategy)

            with autocast("auto", device):
                peak = peak_bytes(step, device)
            row = {"strategy": called, "noise_multiplicity": copies, "examples_at_once": at_once}
            rows.append(row | {"peak_bytes": peak, "planned_bytes": planned})
    return {"rows": rows}


def run(device: torch.device, seconds: float, sizes: Sizes) -> dict[str, Any]:
    """Train the paper's Fashion-MNIST network for some steps, and project the whole run.

    Steps are taken by the strategy that `dpdm plan` expects to be the quickest.
    """
    data, images = fashion_mnist(sizes.images)
    settings = (*sizes.settings, f"machine.device={device.type}")
    names = ("layer-wise", "one-backward-each")
    configs = {s: load_config("fashion-mnist", overrides=[*settings, f"machine.strategy={s}"]) for s in names}
    plan = configs[names[0]].plan(lambda: data.num_units)
    expected = {s: measure_step(config, FACTS, plan).seconds_per_step for s, config in configs.items()}
    quickest = min(expected, key=expected.__getitem__)
    method = configs[quickest].method
    assert isinstance(method, Diffusion)
    taken: list[float] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer.from_config(configs[quickest], data, run=Path(folder) / "run", plan=plan)
        trainer = replace(trainer, ledger=None)  # nobody's budget
        began = last = time.perf_counter()
        with contextlib.closing(trainer.steps(data)) as steps:
            for _ in steps:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                now = time.perf_counter()
                taken, last = [*taken, now - last], now
                if len(taken) >= 3 and now - began > seconds / 2:
                    break
    step = statistics.median(taken[1:])  # the first one has the run's start in it
    return {
        "images": images,
        "strategy": quickest,
        "expected_batch_size": plan.expected_batch_size,
        "noise_multiplicity": method.loss.noise_multiplicity,
        "steps_taken": len(taken),
        "seconds_to_first_step": round(taken[0], 2),
        "seconds_per_step": step,
        "seconds_per_step_planned": expected,
        "steps_per_second": 1 / step,
        "steps_planned": plan.steps,
        "projected_hours": step * plan.steps / 3600,
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "claim_of_the_whole_run": plan.statement,
    }


def adapter(device: torch.device, seconds: float, sizes: Sizes) -> dict[str, Any]:
    """Time a private step beside a plain one: low rank 4 on a unet of random weights, in latents."""
    denoiser = text_denoiser(sizes, device)
    loss = DenoisingLoss(noise_multiplicity=1, label_dropout=0.1)
    seen = ImageFacts((sizes.text_unet.in_channels, sizes.latent, sizes.latent), FACTS.class_names)
    with autocast("auto", device):
        machine = Machine()
        fit = physical_batch_size(machine, device, 1, partial(bytes_of_one, loss, denoiser, seen))
        batch = min(fit, sizes.latents)
        x = torch.randn(batch, *seen.shape, generator=torch.Generator().manual_seed(0)).to(device)
        labels = torch.arange(batch, device=device) % seen.num_classes
        levels, null = denoiser.preconditioning.noise_levels, seen.num_classes
        drawn = loss.draw(x, labels, null_label=null, noise_levels=levels, random_bytes=os.urandom)
        private = ours(LayerWise(), denoiser, loss, drawn, batch)

        def plain() -> None:
            denoiser.zero_grad()
            loss(denoiser, drawn).sum().backward()

        middle, failed = in_turns([("plain", plain), ("private", private)], device, 0.7 * seconds)
        if failed:
            return {"failed": "; ".join(failed.values())}
        peak = peak_bytes(private, device)
    of = [*denoiser.parameters()]
    return {
        "unet_parameters": sum(p.numel() for p in of),
        "trained_parameters": sum(p.numel() for p in of if p.requires_grad),
        "latent": [*seen.shape],
        "batch": batch,
        "images_per_second": batch / middle[1],
        "peak_bytes": peak,
        "ratio_to_plain": middle[1] / middle[0],
    }


def text_denoiser(sizes: Sizes, device: torch.device) -> PreconditionedDenoiser:
    """Return a denoiser by a unet of Stable Diffusion's shape, whose weights and prompts are random."""
    network = sizes.text_unet.build(prompts=len(FACTS.class_names) + 1, trains="lora:4").begun().to_empty(device=device)
    random = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for t in (*network.parameters(), network.prompts):
            t.normal_(std=0.02, generator=random)
    levels = DiscreteTimes(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return PreconditionedDenoiser(network, DDPM(noise_levels=levels))


def fashion_mnist(number: int) -> tuple[dpdm.ImageDataset, str]:
    """Return the first images of Fashion-MNIST, or random ones of its shape, and which of both."""
    try:
        data, said = dpdm.open_dataset("fashion-mnist"), "Fashion-MNIST"
    except InputError:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (60_000, 28, 28, 1), dtype=np.uint8)
        data = dpdm.ImageDataset(images=pixels, labels=np.arange(60_000) % CLASSES, num_classes=CLASSES, name="random")
        said = "random images of its shape, for want of Fashion-MNIST"
    return data.part(np.arange(number)), said


def clipping(dtype: str) -> Callable[[torch.device, float, Sizes], dict[str, Any]]:
    """Return the part that measures private steps beside plain ones and Opacus in one precision."""

    def part(device: torch.device, seconds: float, sizes: Sizes) -> dict[str, Any]:
        each = 0.7 * seconds / len(sizes.networks) / len(sizes.cases)  # beside it, memory and rates are measured
        options: dict[str, Any] = {"device": device, "networks": sizes.networks, "cases": sizes.cases, "seconds": each}
        return {"rows": [row for name in sizes.networks for row in measure_clipping(name, dtype, **options)]}

    return part


PARTS = {
    "device": facts,
    "tests": tests,
    "agreement": agreement,
    "memory": memory,
    "run": run,
    "adapter": adapter,
    **{f"clipping, {dtype}": clipping(dtype) for dtype in DTYPES},
}


def main(part: str, device: str, seconds: float) -> None:
    """Print the part's result, or in what it failed; all that it prints itself goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keep_freed_memory()
        try:
            found = PARTS[part](choose_device(device), seconds, OF_A_GPU if device == "cuda" else TINY)  # type: ignore[arg-type]
        except InputError as error:
            found = {"failed": str(error)}
        except Exception as error:
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
    print(json.dumps(found, allow_nan=False))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
