"""The ablations of Dockhorn et al. 2023 in small, and those of the prior, on Fashion-MNIST.

    python benchmarks/ablations.py [pattern]        # all cells, or those whose name contains the pattern

Each cell trains the compact U-Net privately (within a table, all with the same plan and settings but for the one thing
that the table varies), makes 10,000 images, and trains quick classifiers on them. Runs are kept in runs/ablations: the
same command goes on where it was stopped, and skips what is done. Prints the table as Markdown when all cells have run.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import dpdm
from dpdm.diffusion import Sampler
from dpdm.evaluation import QUICK
from dpdm.files import read_json, write_json

FIRST, LAST = slice(50_000), slice(50_000, 60_000)
FOLDER = Path("runs/ablations")
NUM_IMAGES = 10_000
SMALL = "network.width=16"
TEN_MINUTES = (
    SMALL,
    "privacy.steps=320",
    "privacy.expected_batch_size=480",
    "loss.noise_multiplicity=4",
)  # on one core
MANY_COPIES = (SMALL, "privacy.steps=240", "privacy.expected_batch_size=192", "privacy.epsilon=1")  # K = 32: the same
DDIM = ("sampler.kind=ddim", "sampler.steps=25")
PRIOR_ALONE = "privacy.dataset_size=50000"
WITH_NETWORK = (SMALL, "privacy.steps=250", "privacy.dataset_size=50000", "privacy.epsilon=1")  # minutes on two cores
FASTEST_TO_LEARN = "preconditioning.kind=v"  # EDM learns next to nothing from so few steps, whatever K


class Cell(NamedTuple):
    """One row: a run by its name, the settings that make it, and sampler and method if they are not the preset's.

    What settings were chosen by (`search`) trains on 50,000 of the training images and tests on the other 10,000.
    """

    name: str
    run: str
    overrides: tuple[str, ...]
    sampler: Sampler | None = None
    search: bool = False
    method: str | None = None


def cells() -> list[Cell]:
    """Return all rows, in the order of the tables."""
    rows = []
    for copies in (1, 4, 16, 32):
        strategy = "vectorized" if copies < 16 else "one-backward-each"
        settings = (*MANY_COPIES, *DDIM, FASTEST_TO_LEARN, f"machine.strategy={strategy}")
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
    return rows + _prior_cells()


def _prior_cells() -> list[Cell]:
    """Return the rows that say what a prior is made of, and what a network adds to it."""
    rows = []
    for epsilon in ("0.2", "1", "10"):
        for centres in (1, 3, 10, 30):
            settings = (PRIOR_ALONE, f"privacy.epsilon={epsilon}", f"prior.centres={centres}")
            name = f"prior alone, ε = {epsilon}, centres = {centres}"
            rows.append(Cell(name, f"prior-{epsilon}-{centres}", settings, search=True, method="prior"))
    for key, values in {"max_deviation": ("0.35", "0.7", "1.0"), "rounds": ("1", "6")}.items():
        for value in values:
            settings = (PRIOR_ALONE, "privacy.epsilon=1", "prior.centres=10", f"prior.{key}={value}")
            name = f"prior alone, ε = 1, centres = 10, {key} = {value}"
            rows.append(Cell(name, f"prior-{key}-{value}", settings, search=True, method="prior"))
    prior = ("prior.centres=10", "prior.share=0.2", "preconditioning.noise_levels.mean=-0.4")
    networks = {
        "network without a prior, V": ("preconditioning.kind=v", "sampler.sigma_max=80"),
        "prior and network": prior,
        "prior and network, share = 0.5": (*prior, "prior.share=0.5"),
        "prior and network, K = 2 (twice the time)": (*prior, "loss.noise_multiplicity=2"),
        "prior and network, 500 steps of 1024": (*prior, "privacy.steps=500", "privacy.expected_batch_size=1024"),
        "prior and network, learning rate = 1e-3": (*prior, "optimizer.learning_rate=1e-3"),
        "prior and network, EMA of 0.98": (*prior, "optimizer.ema_decay=0.98"),
        "prior and network, noise levels about 1.2": (*prior, "preconditioning.noise_levels.mean=0.2"),
    }
    for name, settings in networks.items():
        whole = (*WITH_NETWORK, *settings)
        rows.append(Cell(f"ε = 1, {name}", f"network-{name.replace(' ', '')}", whole, search=True))
    return rows


def measure(cell: Cell, data: dpdm.ImageDataset, test: dpdm.ImageDataset) -> dict[str, object]:
    """Train, unless that is done, sample and evaluate."""
    if cell.search:
        data, test = (replace(data, images=data.images[p], labels=data.labels[p]) for p in (FIRST, LAST))
    config = dpdm.load_config("fashion-mnist-cpu", method=cell.method, overrides=cell.overrides)
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
