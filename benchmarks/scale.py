"""A run on 10^8 images of 64 × 64 by 64 processes, with a model that costs nothing: where time and memory go.

    python benchmarks/scale.py > rows.json             measure all parts, each in about two minutes
    python benchmarks/scale.py --part ledger           measure one
    python benchmarks/scale.py --render docs/results/2026-11-30.md --rows rows.json

Selection, mechanism, journal, accountant, ledger, files and digests are those of every run. Seconds are processor time
of one core, and bytes are what a process of its own grew by at its peak. What cannot be measured at its size here is
measured at smaller sizes, and projected from the largest one in proportion; the exponent says how it grew there.
"""

import argparse
import dataclasses
import io
import json
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet
import torch
from PIL import Image
from torch import distributed

from dpdm.audit.memorisation import nearness
from dpdm.data import Framing, open_dataset, pixel_digests, prepare
from dpdm.data.identity import find_equal
from dpdm.ledger import Ledger, Records
from dpdm.ledger.entries import Completed, Registered, ReservationTaken, Reserved, encode_events
from dpdm.ledger.records import fingerprint
from dpdm.networks import UNet
from dpdm.privacy import Plan
from dpdm.privacy.batch_selection import poisson
from dpdm.privacy.entropy import OperatingSystemEntropy
from dpdm.privacy.journal import Journal
from dpdm.privacy.noise import gaussian
from dpdm.privacy.processes import Processes
from dpdm.privacy.releases import PoissonSums
from growth import FORK, Row, row, tables
from rendering import put_between

MARKERS: Final = ("<!-- scale: made by benchmarks/scale.py -->", "<!-- end of scale -->")
IMAGES, SIDE, PROCESSES, BATCH, STEPS = 10**8, 64, 64, 4096, 1000
SHARE: Final = IMAGES // PROCESSES
DELTA: Final = 1e-9
PAPER: Final = UNet(width=32, multipliers=(1, 1, 2, 2), blocks=2, attention=(8, 16))


def plan(steps: int = STEPS, *, batch: int = BATCH, noise: float | None = 2.0) -> Plan:
    """Return a plan of 10^8 images."""
    sums = PoissonSums(count=steps, expected_batch_size=batch, noise_multiplier=noise)
    return Plan(dataset_size=IMAGES, delta=DELTA, releases=(sums,))


def steps(own: int = SHARE, count: int = STEPS, alone: Sequence[int] = (10**6, 10**7, IMAGES)) -> Iterator[Row]:
    """Yield rows of steps: the mechanism with its journal, a model that costs nothing, and selection by itself."""

    def take() -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = plan(count).start(Path(folder) / "journal.jsonl")
            for _ in range(count):
                run.batch_sum("steps", dimensions=1, num_records=own, load=lambda at, draws: torch.zeros(len(at), 1))
            assert run.finished

    of = f"steps, {own:,} images of one's own"
    yield row("selection, sum, noise and journal", of, [count], lambda _: take, by="each process")

    def selected(size: int) -> Callable[[], object]:
        stream = OperatingSystemEntropy().stream("selection", 0)
        return lambda: poisson(size, sample_rate=BATCH / IMAGES, random_bytes=stream)

    yield row("selection, were there one process", "images, one step", alone, selected, by="the only process")


def plans(steps: Sequence[int] = (10**3, 10**4, 10**5), lines: Sequence[int] = (10**4, 10**5)) -> Iterator[Row]:
    """Yield rows of what goes before the first step: noise that is calibrated, and a journal that is read."""

    def calibrated(number: int) -> Callable[[], object]:
        return lambda: plan(number, noise=None).calibrate(epsilon=1.0)

    yield row("calibration of the noise, ε = 1", "steps", steps, calibrated, by="each process")
    with tempfile.TemporaryDirectory() as folder:
        for number in lines:
            said = [{"claim": "scale", "planned": number}, *({"spent": spent + 1} for spent in range(number))]
            (Path(folder) / str(number)).write_text("".join(f"{json.dumps(each)}\n" for each in said))

        def opened(number: int) -> Callable[[], object]:
            return lambda: Journal(Path(folder) / str(number), claim="scale", planned=number).close()

        yield row("a journal opened", "lines", lines, opened)


def ledger(runs: Sequence[int] = (100, 1000)) -> Iterator[Row]:
    """Yield rows of a ledger on one data set, each of whose runs had a plan of its own."""
    with tempfile.TemporaryDirectory() as folder:
        books = {number: _with_runs(Path(folder) / f"{number}.sqlite", number) for number in runs}
        records, last = Records("photos", np.zeros((2, 8, 8, 1), np.uint8)), plan(batch=BATCH - 1)

        def added(number: int) -> Callable[[], object]:
            return lambda: (
                books[number].reserve("last", last, records, place="runs/last"),
                books[number].complete("last", last.events()),
            )

        yield row("a ledger opened", "runs", runs, lambda number: books[number].accounts)
        yield row("its first report", "runs", runs, lambda number: books[number].shown)
        yield row("its next report", "runs", runs, lambda number: books[number].shown)
        yield row("one run more, reserved and completed", "runs", runs, added)


def _with_runs(path: Path, runs: int) -> Ledger:
    """Return a new ledger of so many completed runs."""
    book = Ledger(str(path), tell=lambda line: None)
    said: list[Any] = [Registered.total("photos", 100.0, DELTA, "add_or_remove_one", "one image")]
    for number in range(runs):
        name, events = f"reservation {number}", encode_events(plan(STEPS + number, batch=BATCH + number).events())
        said += [
            Reserved(dataset="photos", reservation=name, planned="", events=events),
            ReservationTaken(reservation=name, run=f"run {number}", token="", place=f"runs/{number}"),
            Completed(reservation=name, events=events),
        ]
    book.storage.append(lambda entries: [dataclasses.asdict(each) for each in said])
    return book


def images(sizes: Sequence[int] = (4000, 8000, 16000), shard: int = 1000) -> Iterator[Row]:
    """Yield rows of images as files: parquet shards that are prepared, opened, compared and digested."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sizes:
            _write_shards(folder / f"parquet {size}", size, shard)

        def prepared(size: int) -> Callable[[], object]:
            source, framing = folder / f"parquet {size}", Framing(size=SIDE, channels=3)
            opened = partial(open_dataset, source, size=SIDE, channels=3, num_classes=10)
            return lambda: prepare(folder / str(size), lambda read: opened(read=read), framing)

        yield row("dpdm prepare of parquet shards", "images", sizes, prepared, at=IMAGES, by="one process, once")
        ready = {size: partial(open_dataset, folder / str(size), num_classes=10) for size in sizes}
        yield row("a prepared folder opened", "images", sizes, ready.get, at=IMAGES, by="each process")
        there = {size: ready[size]() for size in sizes}
        yield row(
            "images compared with others'",
            "images",
            sizes,
            lambda n: there[n].digest,
            at=IMAGES,
            by="each process",
        )
        own = {size: partial(pixel_digests, there[size].images) for size in sizes}
        yield row("digests of one's own images", "images", sizes, own.get, at=SHARE, by="each process")


def _write_shards(folder: Path, size: int, shard: int) -> None:
    """Write made-up images as PNG, in parquet files of `shard` images each."""
    rng = np.random.default_rng(size)
    folder.mkdir()
    for start in range(0, size, shard):
        files = [io.BytesIO() for _ in range(shard)]
        for file, levels in zip(files, rng.integers(0, 256, (shard, 16, 16, 3), dtype=np.uint8), strict=True):
            Image.fromarray(levels).resize((SIDE, SIDE)).save(file, "PNG")
        table = {"image": [{"bytes": file.getvalue()} for file in files], "label": rng.integers(0, 10, shard)}
        pyarrow.parquet.write_table(pyarrow.table(table), folder / f"{start:09}.parquet")


def digests(
    keyed: Sequence[int] = (10**4, 10**5, 10**6), compared: Sequence[int] = (10**5, 10**6, 10**7)
) -> Iterator[Row]:
    """Yield rows of what the first process does with the digests of all images."""
    rng = np.random.default_rng(0)
    made = {size: rng.integers(0, 256, (size, 32), dtype=np.uint8) for size in {*keyed, *compared}}

    def recognised(size: int) -> Callable[[], object]:
        records = Records("photos", digests=made[size][:, None], sources=made[size][:, None].repeat(2, axis=1))
        return lambda: fingerprint(records, bytes(32))

    yield row("digests under the ledger's key", "images", keyed, recognised, at=IMAGES)
    yield row("equal images", "images", compared, lambda size: partial(find_equal, made[size]), at=IMAGES)


def communication(numbers: int | None = None) -> Iterator[Row]:
    """Yield rows of the first process's noise, and of sums over two processes, which meet by gloo."""
    numbers = numbers or parameters()
    sizes = [max(1, numbers // 10), numbers]

    def noise(count: int) -> Callable[[], object]:
        return partial(gaussian, count, std=1.0, random_bytes=OperatingSystemEntropy().stream("noise", 0))

    of = "coordinates, one step"
    yield row("noise of the paper's network", of, sizes, noise)
    yield row("its sum and its broadcast, of two", of, sizes, lambda count: partial(_of_two, count), by="each process")


def _of_two(count: int) -> None:
    """Sum up, and broadcast, what two processes have."""
    with tempfile.TemporaryDirectory() as folder:
        other = FORK.Process(target=_sum_up, args=(1, folder, count))
        other.start()
        _sum_up(0, folder, count)
        other.join()


def _sum_up(rank: int, folder: str, count: int) -> None:
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    processes, total = Processes.joined(), torch.zeros(count, dtype=torch.float64)
    processes.from_first(processes.sum(total))
    distributed.destroy_process_group()


def parameters() -> int:
    """Return the number of parameters of the paper's network for images of this size."""
    with torch.device("meta"):
        network = PAPER.build((3, SIDE, SIDE), num_classes=0)
    return sum(p.numel() for p in network.parameters())


def audit(sizes: Sequence[int] = (15_000, 30_000, 60_000), generated: int = 20) -> Iterator[Row]:
    """Yield a row of what of an audit grows with the data: which training images are nearest to generated ones."""
    images = np.random.default_rng(0).integers(0, 256, (max(sizes), SIDE, SIDE, 3), dtype=np.uint8)

    def near(size: int) -> Callable[[], object]:
        return partial(nearness, images[:generated], images[:size], None)

    yield row(f"audit: copies among {generated} images", "images", sizes, near, at=IMAGES, by="one process")


PARTS: Final = {part.__name__: part for part in (steps, plans, ledger, images, digests, communication, audit)}


def render(rows: Sequence[Row]) -> str:
    """Return the tables, and what is known by arithmetic."""
    values, sent = IMAGES * SIDE * SIDE * 3, 8 * parameters()
    said = (
        f"By arithmetic: the images are {values / 1e12:.2f} TB, a process's own {values / PROCESSES / 1e9:.1f} GB. The "
        f"first process gathers {32 * IMAGES / 1e9:.1f} GB of digests. A gradient of the paper's network "
        f"({sent // 8:,} numbers) is {sent / 1e6:.0f} MB in float64. In a step a process sends "
        f"{2 * sent * (PROCESSES - 1) / PROCESSES / 1e6:.0f} MB for the sum (a ring), and gets {sent / 1e6:.0f} MB of "
        f"the noisy one. {STEPS:,} steps write 100 lines of a journal."
    )
    return f"{tables(rows)}\n{textwrap.fill(said, 100)}\n"


def main() -> None:
    """Measure, print rows as JSON, and put the tables of rows onto a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one")
    parser.add_argument("--render", type=Path, metavar="PAGE", help="put the tables between the page's markers")
    parser.add_argument("--rows", type=Path, nargs="+", help="take the rows from these files instead of measuring")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.rows:
        rows = [each for path in given.rows for each in json.loads(path.read_text(encoding="utf-8"))]
    else:
        rows = [each for part in given.part or PARTS for each in PARTS[part]()]
        print(json.dumps(rows, indent=1))
    if given.render:
        put_between(MARKERS, render(rows), given.render)


if __name__ == "__main__":
    main()
