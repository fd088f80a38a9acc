"""What a private step costs beside a plain one: our strategies, Opacus', and the plain gradient, in one run.

    python benchmarks/clipping.py --json > rows.json           measure, one row for each strategy and case
    python benchmarks/clipping.py --render docs/results.md     measure, and put the tables between the file's markers
    python benchmarks/clipping.py --render FILE --rows rows.json    put in what was measured before
    python benchmarks/clipping.py --trains --render docs/results.md    a step by what trains of a public start

A row's microseconds are for one noisy copy: a step's gradient ÷ (batch × noise multiplicity). "nonprivate" is the
gradient of the mean loss in whichever memory layout and physical batch is the fastest. Opacus takes batch ×
noise multiplicity rows, whose gradients are summed over the copies and clipped as the published method has it; its
ghost clipping clips each row by itself, which is the same thing for one copy only. Where Opacus is not installed, its
rows are left out. On a GPU float32 is float32: TF32 is off (`benchmarks/gpu.py` measures there).
"""

import argparse
import copy
import ctypes
import gc
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dpdm.config import Machine
from dpdm.diffusion import EDM, DenoisingLoss, NoisyBatch, PreconditionedDenoiser
from dpdm.methods import ImageFacts
from dpdm.methods.made_up import bytes_of_one
from dpdm.methods.trained import Trained
from dpdm.networks import CompactUNet, Network, UNet
from dpdm.privacy import LayerWise, OneBackwardEach, Vectorized, clipped_grad_sum
from dpdm.privacy.clipping import clip_factors, map_batch
from dpdm.privacy.noise import grid_step
from dpdm.runs.cost import physical_batch_size
from dpdm.runs.hardware import autocast, keep_freed_memory
from dpdm.types import InputError
from rendering import around, put_between, tables

SHAPE, CLASSES = (1, 28, 28), 10
NETWORKS: dict[str, Network] = {"compact U-Net": CompactUNet(width=48), "paper U-Net": UNet()}
CASES = ((64, 1), (64, 4), (16, 32))  # batch, noise multiplicity
PAPER_CASES = ((64, 1), (16, 4), (16, 32))
DTYPES = ("float32", "bfloat16")
MARKERS = "<!-- clipping: made by make bench -->", "<!-- clipping: end -->"
TRAINS = ("all", "last", "norms", "attention", "low-rank:4")
TRAINED_CASES: "dict[str, Cases]" = {"compact U-Net": ((64, 1), (64, 4)), "paper U-Net": ((16, 4),)}
MARKERS_OF_TRAINS = "<!-- trains: made by benchmarks/clipping.py --trains -->", "<!-- trains: end -->"
CPU = torch.device("cpu")
Step = Callable[[], object]
Cases = tuple[tuple[int, int], ...]


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--render", type=Path, metavar="FILE", help="put the tables into this Markdown file")
    parser.add_argument("--rows", type=Path, nargs="+", help="take the rows from these files instead of measuring")
    parser.add_argument("--network", choices=list(NETWORKS), action="append", help="only this one")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="only this one")
    parser.add_argument("--trains", action="store_true", help="measure by what trains, layer-wise, in float32")
    given = parser.parse_args()
    markers = MARKERS_OF_TRAINS if given.trains else MARKERS
    if given.render:  # before anything is measured
        try:
            around(markers, given.render)
        except (ValueError, OSError) as error:
            parser.error(str(error))
    if given.rows:
        parts = [json.loads(path.read_text(encoding="utf-8")) for path in given.rows]
        result = {"machine": parts[0]["machine"], "rows": [row for part in parts for row in part["rows"]]}
    elif given.trains:
        keep_freed_memory()
        rows = [row for name in given.network or NETWORKS for row in measure_trained(name)]
        result = {"machine": machine(), "rows": rows}
    else:
        keep_freed_memory()
        cells = [(n, d) for n in given.network or NETWORKS for d in given.dtype or DTYPES]
        result = {"machine": machine(), "rows": [row for cell in cells for row in measure(*cell)]}
    if given.json or not given.render:
        print(json.dumps(result, indent=1))
    if given.render:
        command = "python benchmarks/clipping.py --trains" if given.trains else "make bench"
        put_between(markers, render(result, command), given.render)


def measure(
    name: str,
    dtype: str,
    *,
    device: torch.device = CPU,
    networks: Mapping[str, Network] = NETWORKS,
    cases: Cases | None = None,
    seconds: float = 20.0,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one network in one precision; each case is measured for so many seconds, or a little longer."""
    torch.backends.cudnn.allow_tf32 = False
    for batch, copies in cases or (PAPER_CASES if name == "paper U-Net" else CASES):
        denoiser, loss, drawn = made_up(networks[name], batch, copies, device)
        with autocast(dtype, device):  # type: ignore[arg-type]
            rows = measure_case(denoiser, loss, drawn, dtype, seconds)
        plain = next(row["microseconds_per_copy"] for row in rows if row["strategy"] == "nonprivate")
        for row in rows:
            ratio = plain and row["microseconds_per_copy"] and round(row["microseconds_per_copy"] / plain, 3)
            print(f"{name}, {dtype}, K = {copies}, B = {batch}: {row} {ratio}", file=sys.stderr, flush=True)
            yield {
                "strategy": row.pop("strategy"),
                "network": name,
                "dtype": dtype,
                "noise_multiplicity": copies,
                "batch": batch,
                **row,
                "ratio_to_nonprivate": ratio,
            }


def measure_trained(name: str, *, seconds: float = 30.0) -> Iterator[dict[str, Any]]:
    """Yield the rows of one network: the plain gradient of all, and clipped sums layer by layer of what trains."""
    for batch, copies in TRAINED_CASES[name]:
        denoiser, loss, drawn = made_up(NETWORKS[name], batch, copies, CPU)
        ways = [("nonprivate", step) for step in nonprivate(denoiser, loss, drawn)]
        plain = len(ways)
        for said in TRAINS:
            network = copy.deepcopy(denoiser.network)
            trained = Trained(said)
            try:
                trained.freeze(network, None)
            except InputError:  # it has no attention
                continue
            stepped = PreconditionedDenoiser(trained.stepped(network, None, seed=0), EDM())
            numbers = sum(p.numel() for p in stepped.parameters() if p.requires_grad)
            ways.append((f"{said} ({numbers:,})", ours(LayerWise(), stepped, loss, drawn, batch)))
        middle, _ = in_turns(ways, drawn.x.device, seconds)
        fastest = min(middle[i] for i in range(plain))
        for i, (strategy, step) in enumerate(ways):
            if i < plain and middle[i] > fastest:
                continue
            row = {
                "strategy": strategy,
                "network": name,
                "dtype": "float32",
                "noise_multiplicity": copies,
                "batch": batch,
                "microseconds_per_copy": round(1e6 * middle[i] / batch / copies, 1),
                "peak_bytes": peak_bytes(step, drawn.x.device),
                "ratio_to_nonprivate": round(middle[i] / fastest, 3),
            }
            print(row, file=sys.stderr, flush=True)
            yield row


def made_up(
    network: Network, batch: int, copies: int, device: torch.device
) -> tuple[PreconditionedDenoiser, DenoisingLoss, NoisyBatch]:
    """Return a denoiser, a loss, and noisy copies of random images; the same weights on every device."""
    torch.manual_seed(0)
    denoiser = PreconditionedDenoiser(network.build(SHAPE, num_classes=CLASSES), EDM())
    for p in denoiser.parameters():
        p.data += 0.02 * torch.randn_like(p)  # zero-initialised layers would hide work
    loss = DenoisingLoss(noise_multiplicity=copies)
    drawn = loss.draw(
        (torch.rand(batch, *SHAPE) * 2 - 1).to(device),
        torch.zeros(batch, dtype=torch.long, device=device),
        null_label=CLASSES,
        noise_levels=EDM().noise_levels,
        random_bytes=os.urandom,
    )
    return denoiser.to(device), loss, drawn


def measure_case(
    denoiser: PreconditionedDenoiser, loss: DenoisingLoss, drawn: NoisyBatch, dtype: str, budget: float
) -> list[dict[str, Any]]:
    """Time all ways in turns, so that drift of the machine hits all alike; then take each one's memory."""
    batch, copies = drawn.sigma.shape
    plain = list(nonprivate(denoiser, loss, drawn))
    ways = [("nonprivate", step) for step in plain]
    machine, facts = Machine(precision=dtype), ImageFacts(SHAPE, ("",) * CLASSES)  # type: ignore[arg-type]
    at_once = physical_batch_size(machine, drawn.x.device, copies, lambda: bytes_of_one(loss, denoiser, facts))
    ways += [("layer-wise", ours(LayerWise(), denoiser, loss, drawn, at_once))]
    on_grid = ours(LayerWise(), denoiser, loss, drawn, at_once, grid=grid_step(1.0))
    ways += [("layer-wise, grid", on_grid)]
    ways += [("one-backward-each", ours(OneBackwardEach(), denoiser, loss, drawn, batch))]
    ways += [("vectorized", ours(Vectorized(), denoiser, loss, drawn, at_once))]
    ways += opacus(denoiser, loss, drawn)
    middle, failed = in_turns(ways, drawn.x.device, budget)
    fastest = min(range(len(plain)), key=lambda i: middle.get(i, math.inf))  # a GPU may lack the memory for one
    rows = []
    for i, (strategy, step) in enumerate(ways):
        if i < len(plain) and i != fastest:
            continue
        row: dict[str, Any] = {
            "strategy": strategy,
            "microseconds_per_copy": round(1e6 * middle[i] / batch / copies, 1) if i in middle else None,
            "peak_bytes": peak_bytes(step, drawn.x.device) if i in middle else None,
        }
        if strategy == "nonprivate" and i in middle:
            row["gigaflops"] = round(useful_flops(denoiser, loss, drawn) / middle[i] / 1e9)
            row["convolution_gigaflops"] = convolution_rate(denoiser, dtype, drawn.x.device)
        if i in failed:
            row["error"] = failed[i]
        rows.append(row)
    return rows


def in_turns(
    ways: list[tuple[str, Step]], device: torch.device, budget: float
) -> tuple[dict[int, float], dict[int, str]]:
    """Return the median seconds of each way, and why others failed; all are timed in turns, for so many seconds."""
    seconds: dict[int, list[float]] = {i: [] for i in range(len(ways))}
    failed: dict[int, str] = {}
    started = time.perf_counter()
    while min(len(s) for i, s in seconds.items() if i not in failed) < 3 or time.perf_counter() - started < budget:
        for i, (_, step) in enumerate(ways):
            if i in failed or (len(seconds[i]) >= 3 and seconds[i][-1] > budget):
                continue
            try:
                seconds[i].append(seconds_of(step, device))
            except Exception as error:
                failed[i] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    return {i: statistics.median(s[1:]) for i, s in seconds.items() if i not in failed}, failed


def nonprivate(denoiser: PreconditionedDenoiser, loss: DenoisingLoss, drawn: NoisyBatch) -> Iterator[Step]:
    """Yield the plain gradient in both memory layouts, on all examples at once and on a quarter of them."""
    for layout in (torch.contiguous_format, torch.channels_last):
        network = copy.deepcopy(denoiser).to(memory_format=layout)
        for at_once in {len(drawn.x), max(1, len(drawn.x) // 4)}:

            def step(network: nn.Module = network, at_once: int = at_once) -> None:
                network.zero_grad()
                for part in split(drawn, at_once):
                    loss(network, part).sum().backward()

            yield step


def ours(
    strategy: Any,
    denoiser: nn.Module,
    loss: DenoisingLoss,
    drawn: NoisyBatch,
    at_once: int,
    *,
    grid: float | None = None,
) -> Step:
    """Return the clipped sum by one of our strategies."""

    def step() -> Tensor:
        parts = [
            clipped_grad_sum(loss, denoiser, part, max_grad_norm=1.0, strategy=strategy, grid=grid).vector
            for part in split(drawn, at_once)
        ]
        return torch.stack(parts).sum(0)

    return step


def opacus(denoiser: PreconditionedDenoiser, loss: DenoisingLoss, drawn: NoisyBatch) -> list[tuple[str, Step]]:
    """Return the clipped sum by each strategy of Opacus that applies; none where it is not installed."""
    try:
        from opacus.grad_sample import GradSampleModule, GradSampleModuleExpandedWeights
        from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
    except ImportError:
        print("Opacus is not installed: its rows are left out", file=sys.stderr, flush=True)
        return []
    batch, copies = drawn.sigma.shape

    def rows(wrap: Callable[[nn.Module], nn.Module]) -> Step:
        wrapped: list[nn.Module] = []

        def step() -> Tensor:
            if not wrapped:
                wrapped.append(wrap(Rows(copy.deepcopy(denoiser))))
            module = wrapped[0]
            module.zero_grad()
            noisy = drawn.x[:, None] + drawn.sigma[:, :, None, None, None] * drawn.noise
            out = module(noisy.flatten(0, 1), drawn.sigma.flatten(), drawn.labels.flatten())
            errors = (out.view_as(noisy) - drawn.x[:, None]).square().flatten(2).mean(2)
            (denoiser.preconditioning.loss_weight(drawn.sigma) * errors / copies).sum().backward()
            gradients = [p.grad_sample.view(batch, copies, -1).sum(1) for p in module.parameters()]
            for p in module.parameters():
                p.grad_sample = None
            norms = torch.stack([g.double().square().sum(1) for g in gradients]).sum(0).sqrt()
            numel = sum(g.shape[1] for g in gradients)
            factors = clip_factors(norms, 1.0, numel).float()
            return torch.cat([factors @ g for g in gradients])

        return step

    def ghost() -> Step:
        wrapped: list[nn.Module] = []

        def step() -> None:
            if not wrapped:
                wrapped.append(
                    GradSampleModuleFastGradientClipping(
                        Rows(copy.deepcopy(denoiser)), loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
                    )
                )
            module: Any = wrapped[0]
            module.zero_grad()
            module.enable_hooks()
            noisy = drawn.x + drawn.sigma[:, :, None, None] * drawn.noise[:, 0]
            out = module(noisy, drawn.sigma.flatten(), drawn.labels.flatten())
            errors = (out - drawn.x).square().flatten(1).mean(1)
            losses = denoiser.preconditioning.loss_weight(drawn.sigma.flatten()) * errors
            losses.sum().backward(retain_graph=True)
            for p in module.parameters():
                p.grad = None
            coefficients = module.get_clipping_coef()
            module.disable_hooks()
            (coefficients * losses).sum().backward()

        return step

    ways = [
        ("opacus-hooks", rows(lambda m: GradSampleModule(m, loss_reduction="sum"))),
        ("opacus-functorch", rows(lambda m: GradSampleModule(m, loss_reduction="sum", force_functorch=True))),
        ("opacus-ew", rows(lambda m: GradSampleModuleExpandedWeights(m, loss_reduction="sum"))),
    ]
    return [*ways, ("opacus-ghost", ghost())] if copies == 1 else ways


class Rows(nn.Module):
    """The denoiser for Opacus, which takes its batch from the first argument."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, noisy: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """Return the denoised images."""
        return self.denoiser(noisy, sigma, labels)  # type: ignore[no-any-return]


def split(drawn: NoisyBatch, at_once: int) -> list[NoisyBatch]:
    """Return physical batches."""
    starts = range(0, len(drawn.x), at_once)
    return [map_batch(lambda t, s=s: t[s : s + at_once], drawn) for s in starts]  # type: ignore[misc]


def useful_flops(denoiser: nn.Module, loss: DenoisingLoss, drawn: NoisyBatch) -> float:
    """Return the operations of products and convolutions in a plain gradient."""
    with FlopCounterMode(display=False) as counter:
        loss(denoiser, drawn).sum().backward()
    denoiser.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def convolution_rate(denoiser: nn.Module, dtype: str, device: torch.device) -> int:
    """Return the GFLOP/s of the network's most common 3 × 3 convolution by itself, forward, at its finest size."""
    widths = [m.in_channels for m in denoiser.modules() if isinstance(m, nn.Conv2d) and m.in_channels == m.out_channels]
    width = min(widths)
    side = 28 if denoiser.network.__class__.__name__ == "_UNet" else 14
    kind = getattr(torch, dtype)
    x, w = (torch.randn(shape, device=device, dtype=kind) for shape in ((512, width, side, side), (width, width, 3, 3)))
    best = 0.0
    for layout in (torch.contiguous_format, torch.channels_last):
        a, b = x.to(memory_format=layout), w.to(memory_format=layout)
        with torch.no_grad():
            taken = [seconds_of(lambda: nn.functional.conv2d(a, b, padding=1), device) for _ in range(8)]  # noqa: B023
        best = max(best, 2 * 9 * width**2 * side**2 * 512 / statistics.median(taken) / 1e9)
    return round(best)


def seconds_of(step: Step, device: torch.device) -> float:
    """Return how long `step` takes; a GPU is waited for, before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - began


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """Return what memory grows by at most during `step`: a GPU's, or what is resident; of a processor, Linux only."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    status = Path("/proc/self/status")
    if not status.exists():
        return None

    def read(field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+) kB", status.read_text())
        assert found
        return 1024 * int(found[1])

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    step()
    return read("VmHWM") - before


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return {
        "commit": commit.stdout.strip(),
        "processor": model[1] if model else platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
    }


def render(result: dict[str, Any], command: str = "make bench") -> str:
    """Return the tables, one for each network and precision."""
    m = result["machine"]
    text = [
        f"\nCommit {m['commit']}, {m['threads']} thread{'s' * (m['threads'] > 1)} of {m['processor']} "
        f"({m['instructions']}), torch {m['torch']}; `{command}`.\n"
    ]
    return "\n".join(text) + tables(result["rows"])


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
