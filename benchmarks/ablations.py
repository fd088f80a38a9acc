"""The ablations of Dockhorn et al. 2023 in small: noise multiplicity, preconditionings and samplers on Fashion-MNIST.

    python benchmarks/ablations.py [pattern]        # all cells, or those whose name contains the pattern

Each cell trains the compact U-Net privately (within a table, all with the same plan and settings but for the one thing
that the table varies), makes 10,000 images, and trains quick classifiers on them. Runs are kept in runs/ablations: the
same command goes on where it was stopped, and skips what is done. Prints the table as Markdown when all cells have run.
"""

import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import dpdm
from dpdm.diffusion import Sampler
from dpdm.evaluation import QUICK
from dpdm.training.files import read_json, write_json

FOLDER = Path("runs/ablations")
NUM_IMAGES = 10_000
TEN_MINUTES = ("privacy.steps=320", "privacy.expected_batch_size=480", "loss.noise_multiplicity=4")  # on one core
MANY_COPIES = ("privacy.steps=240", "privacy.expected_batch_size=192", "privacy.epsilon=1")  # K = 32: ten minutes
DDIM = ("sampler.kind=ddim", "sampler.steps=25")
FASTEST_TO_LEARN = "preconditioning.kind=v"  # EDM learns next to nothing from so few steps, whatever K


class Cell(NamedTuple):
    """One row: a run by its name, the settings that make it, and the sampler if it is not the run's own."""

    name: str
    run: str
    overrides: tuple[str, ...]
    sampler: Sampler | None = None


def cells() -> list[Cell]:
    """Return all rows, in the order of the tables."""
    rows = []
    for copies in (1, 4, 16, 32):
        strategy = "vectorized" if copies < 16 else "one-backward-each"
        settings = (*MANY_COPIES, *DDIM, FASTEST_TO_LEARN, f"training.strategy={strategy}")
        settings += (f"loss.noise_multiplicity={copies}",)
        rows.append(Cell(f"K = {copies}, V, ε = 1", f"copies-{copies}-v", settings))
    for epsilon in ("10", "0.2"):
        for kind in ("edm", "v", "vp", "ve"):
            settings = (*TEN_MINUTES, *DDIM, f"preconditioning.kind={kind}", f"privacy.epsilon={epsilon}")
            settings += ("sampler.sigma_min=0.02",) if kind == "ve" else ()
            rows.append(Cell(f"{kind.upper()}, ε = {epsilon}", f"{kind}-epsilon-{epsilon}", settings))
    edm = next(row for row in rows if row.run == "edm-epsilon-10")
    samplers = (
        dpdm.DDIM(steps=50),
        dpdm.StochasticDDIM(steps=50),
        dpdm.Churn(steps=25, s_churn=10.0),
        dpdm.Churn(steps=25, s_churn=0.0),
        dpdm.DPMSolver(steps=15),
    )
    for sampler in samplers:
        churn = f", churn {sampler.s_churn:g}" if isinstance(sampler, dpdm.Churn) else ""
        name = f"{type(sampler).__name__}, {sampler.steps} steps{churn}, EDM, ε = 10"
        rows.append(Cell(name, edm.run, edm.overrides, sampler))
    return rows


def measure(cell: Cell, data: dpdm.ImageDataset, test: dpdm.ImageDataset) -> dict[str, object]:
    """Train, unless that is done, sample and evaluate."""
    config = dpdm.load_config("fashion-mnist-cpu", overrides=cell.overrides)
    trainer = dpdm.Trainer.from_config(config, data, run=FOLDER / cell.run)
    steps, started, told = trainer.steps(data), time.monotonic(), 0.0
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            release: dpdm.Release = end.value
            break
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{cell.name}: step {progress.steps_spent} of {progress.steps}", file=sys.stderr, flush=True)
    trained = time.monotonic() - started
    images, labels = release.sample(NUM_IMAGES, sampler=cell.sampler, seed=0)
    scores = dpdm.evaluate_utility(images, labels, test.images, test.labels, num_classes=10, protocol=QUICK)
    return {
        "cell": cell.name,
        "claim": release.statement,
        "seconds_training": round(trained),  # of this process: a resumed run took longer
        **{name: round(100 * score.accuracy, 1) for name, score in scores.items()},
    }


def main(pattern: str) -> None:
    """Run the cells that are not done, and print the table."""
    data, test = dpdm.open_dataset("fashion-mnist"), dpdm.open_dataset("fashion-mnist:test")
    rows = [cell for cell in cells() if pattern in cell.name]
    for number, cell in enumerate(rows, start=1):
        path = FOLDER / f"{cell.name.replace(' ', '')}.json"
        if not path.exists():
            print(f"{cell.name} ({number} of {len(rows)})", file=sys.stderr, flush=True)
            FOLDER.mkdir(parents=True, exist_ok=True)
            write_json(path, result := measure(cell, data, test))
            print(json.dumps(result, ensure_ascii=False), file=sys.stderr, flush=True)
    print("| | LogReg | MLP | CNN |\n|---|---|---|---|")
    for cell in rows:
        result = read_json(FOLDER / f"{cell.name.replace(' ', '')}.json")
        print(f"| {cell.name} | {result['logreg']} | {result['mlp']} | {result['cnn']} |")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
