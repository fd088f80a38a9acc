"""What the package does on a GPU: whether it is right, how fast, and in how much memory.

    python benchmarks/gpu.py                                measure what benchmarks/gpu/<device>.json does not hold yet
    python benchmarks/gpu.py --render docs/results.md       put the tables of these files between the page's markers
    python benchmarks/gpu.py --device cpu --seconds 20      the same code on tiny networks, where there is no GPU

`make gpu` does the first two. Needs no network. Each part is a process of its own (`gpu_parts.py`), ended after at most
eight minutes, and stored as soon as it is done: the same command goes on where it stopped. All parts together take at
most 25 minutes. A part that failed is stored as that, and measured again. Remove a file to measure all of it again.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from rendering import put_between, tables

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "gpu"
PARTS = {  # each with its share of the seconds
    "tests": 0.2,
    "agreement": 0.1,
    "memory": 0.1,
    "run": 0.2,
    "adapter": 0.1,
    "clipping, bfloat16": 0.15,
    "clipping, float32": 0.15,
}
SECONDS = 1000.0
GRACE = 60.0  # seconds that a part may take beyond its share: to start, and to finish what it is at
LONGEST = 480.0  # seconds of a part, whatever its share
MARKERS = "<!-- gpu: made by make gpu -->", "<!-- gpu: end -->"
NONE = "\nNo GPU has been measured yet. `make gpu`, on a machine that has one, fills this section.\n\n"


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what is measured (default: cuda)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for measuring, in all (default: {SECONDS:g})")
    parser.add_argument(
        "--folder", type=Path, help="of the JSON files (default: benchmarks/gpu; with cpu, none is kept)"
    )
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="put the tables into this page, and measure nothing"
    )
    given = parser.parse_args(arguments)
    try:
        if given.render:
            put_between(MARKERS, render(given.folder or FOLDER), given.render)
            return 0
        if missing := not_installed():
            raise ValueError(f"{sys.executable} lacks {', '.join(missing)}: see docs/guide/gpu-and-cluster.md")
        with kept_folder(given.folder, given.device) as folder:
            return measure(folder, given.device, given.seconds)
    except (ValueError, OSError) as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def not_installed() -> list[str]:
    """Return what the package requires, or its tests do, and this interpreter lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    missing = []
    for requirement in (*project["dependencies"], "pytest"):
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    return missing


@contextlib.contextmanager
def kept_folder(folder: Path | None, device: str) -> Iterator[Path]:
    """Yield where the JSON file goes: of a processor, which only proves the code, nothing is kept unless asked for."""
    if folder is None and device == "cpu":
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
    else:
        folder = folder or FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def measure(folder: Path, device: str, seconds: float) -> int:
    """Measure the parts that are not stored, store each at once, and return an exit code.

    Raises:
        ValueError: There is no such device, or the file of its parts is damaged.
    """
    facts = outcome(command("device", device, 0.0), GRACE)
    if "failed" in facts:
        raise ValueError(f"no measuring on {device}: {facts['failed']}")
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', facts['name'].lower()).strip('-')}.json"
    stored = read(path)
    if stored.get("device") != facts:  # another driver, or another torch
        stored = {"device": facts, "parts": {}}
    parts = stored["parts"]
    for name, share in PARTS.items():
        if "failed" not in parts.get(name, {"failed": ""}):
            print(f"{name}: is in {path} already", file=sys.stderr, flush=True)
            continue
        print(f"{name}: about {share * seconds:.0f} s", file=sys.stderr, flush=True)
        began = time.perf_counter()
        limit = min(share * seconds + GRACE, LONGEST) if device == "cuda" else LONGEST
        found = outcome(command(name, device, share * seconds), limit)
        took = round(time.perf_counter() - began, 1)
        parts[name] = {"commit": commit(), "date": date.today().isoformat(), "seconds": took, **found}
        write(path, stored)
    failed = {name: parts[name]["failed"] for name in PARTS if "failed" in parts[name]}
    for name, why in failed.items():
        print(f"{name} FAILED: {why}", file=sys.stderr)
    if not failed:
        print(f"all {len(PARTS)} parts are in {path}", file=sys.stderr)
    return 1 if failed else 0


def command(part: str, device: str, seconds: float) -> list[str]:
    """Return the command line of a part's process."""
    return [sys.executable, str(ROOT / "benchmarks" / "gpu_parts.py"), part, device, f"{seconds:g}"]


def outcome(line: list[str], limit: float) -> dict[str, Any]:
    """Return what a process printed last, as JSON; or in what it failed, being ended after `limit` seconds."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"was not done after {limit:.0f} s"}
    printed = done.stdout.splitlines()
    if done.returncode or not printed:
        return {"failed": f"ended with exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(printed[-1])
    return found


def commit() -> str:
    """Return the commit that is measured; nothing without git."""
    try:
        asked = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def read(path: Path) -> dict[str, Any]:
    """Return what was stored before; nothing if there is no file."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise ValueError(f"{path} is damaged: remove it") from None
    return stored


def write(path: Path, stored: dict[str, Any]) -> None:
    """Write a file whole, or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def render(folder: Path) -> str:
    """Return the section: one heading and its tables for each GPU; of processors, nothing."""
    found = [read(path) for path in sorted(folder.glob("*.json"))]
    return "".join(of_device(each) for each in found if each["device"]["kind"] == "cuda") or NONE


def of_device(stored: dict[str, Any]) -> str:
    """Return what is known of one GPU."""
    facts, parts = stored["device"], stored["parts"]
    measured = sorted({f"{part['date']}, commit {part['commit'] or 'unknown'}" for part in parts.values()})
    text = [f"\n### {facts['name']}\n", f"{'; '.join(measured)}; `make gpu`."]
    text += [f"{facts['memory_gib']:g} GiB, torch {facts['torch']}, CUDA {facts['cuda']}.\n", "| part | result |"]
    text += ["|---|---|", *(f"| {name} | {in_words(name, parts.get(name))} |" for name in PARTS)]
    done = {name: part for name, part in parts.items() if "failed" not in part}
    if agreement := done.get("agreement"):
        text += ["\nGPU and processor: greatest difference of a clipped sum's numbers ÷ the greatest number.\n"]
        text += ["| network, strategy | float32 | bfloat16 |", "|---|---|---|"]
        for row in agreement["rows"]:
            text += [f"| {row['network']}, {row['strategy']} | {row['float32']:.1e} | {row['bfloat16']:.1e} |"]
    if memory := done.get("memory"):
        text += ["\nPeak memory of a clipped sum of the paper U-Net, in GB, and what was planned for it.\n"]
        text += ["| strategy | K | examples at once | peak | planned |", "|---|---|---|---|---|"]
        for row in memory["rows"]:
            sizes = " | ".join(f"{row[key] / 1e9:.2f}" for key in ("peak_bytes", "planned_bytes"))
            text += [f"| {row['strategy']} | {row['noise_multiplicity']} | {row['examples_at_once']} | {sizes} |"]
    rows = [row for name, part in done.items() if name.startswith("clipping") for row in part["rows"]]
    return "\n".join(text) + "\n" + (tables(rows) if rows else "\n")


def in_words(name: str, part: dict[str, Any] | None) -> str:
    """Return what a part found, in a table's cell."""
    if part is None or "failed" in part:
        return "not measured" if part is None else f"failed: {part['failed']}"
    if name == "tests":
        return f"{part['passed']} passed, {part['skipped']} skipped"
    if name == "agreement":
        return "claims are equal" if part["claims_equal"] else "CLAIMS DIFFER"
    if name == "run":
        whole = f"all {part['steps_planned']:,} steps: {part['projected_hours']:.1f} hours"
        how = f"{part['strategy']}, on {part['images']}, at most {part['peak_bytes'] / 1e9:.1f} GB"
        return f"{part['steps_per_second']:.3g} steps a second; {whole} ({how})"
    if name == "adapter":
        rate, ratio = f"{part['images_per_second']:.3g} images a second", f"{part['ratio_to_plain']:.2f} × a plain step"
        size = f"{part['trained_parameters']:,} of {part['unet_parameters']:,} parameters train"
        peak = f", at most {part['peak_bytes'] / 1e9:.1f} GB beside the weights" if part["peak_bytes"] else ""
        return f"{rate}, {ratio}; {size}, {part['batch']} latents of {' × '.join(map(str, part['latent']))}{peak}"
    without = name.startswith("clipping") and not any("opacus" in row["strategy"] for row in part["rows"])
    return "below; Opacus is not installed" if without else "below"


if __name__ == "__main__":
    sys.exit(main())
