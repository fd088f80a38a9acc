"""Runs that are killed at every point where a ledger or a journal is written: `python killed_ledger.py URL FOLDER`.

Run n is a process that is killed at its n-th such point. Its parent then looks at what is left, and settles the run.
Prints one JSON line a run: the noisy sums that were made, and what the ledger counts, before and after.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from dpdm.data import ImageDataset
from dpdm.diffusion import MomentMatched
from dpdm.ledger import Ledger, Records
from dpdm.ledger.storage import Transaction
from dpdm.methods import Diffusion, Prior
from dpdm.networks import MLP
from dpdm.privacy import DPSGD, MechanismRun
from dpdm.privacy.accounting import Event, PoissonGaussianSteps
from dpdm.privacy.journal import Journal
from dpdm.runs import Trainer
from dpdm.runs.settling import settle_run
from dpdm.types import InputError

SCANS = ImageDataset(images=np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8, 1), name="scans")
PRIOR = Prior(centres=1)
PLAN = DPSGD(
    dataset_size=100,
    expected_batch_size=10,
    steps=2,
    noise_multiplier=8.0,
    delta=1e-5,
    releases=PRIOR.releases(epsilon=0.5, delta=1e-5),
)
MOST_POINTS = 300


def sums(events: list[Event]) -> int:
    """Return how many noisy sums these events are."""
    return sum(event.steps if isinstance(event, PoissonGaussianSteps) else 1 for event in events)


def run_until(ledger: Ledger, run: Path, point: int) -> None:
    """Train, from reservation to release, and die at the `point`-th place where something is written."""
    left = point

    def reached(*arguments: object, **more: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    execute, commit = Transaction.execute, Transaction.commit

    def executed(self: Transaction, statement: str, *values: object) -> object:
        reached()
        cursor = execute(self, statement, *values)
        reached()
        return cursor

    def committed(self: Transaction) -> None:
        reached()
        commit(self)

    Transaction.execute, Transaction.commit = executed, committed
    append = Journal._append

    def appended(self: Journal, entry: dict[str, object]) -> None:
        reached()
        append(self, entry)
        reached()

    Journal._append = appended
    release = MechanismRun._release

    def released(self: MechanismRun, total: torch.Tensor, *, sensitivity: float) -> torch.Tensor:
        noisy = release(self, total, sensitivity=sensitivity)
        with Path(f"{run}.made").open("a") as file:
            file.write("1")
        reached()
        return noisy

    MechanismRun._release = released
    Trainer(
        method=Diffusion(network=MLP(width=4), preconditioning=MomentMatched(), prior=PRIOR),
        plan=PLAN,
        run=run,
        ledger=ledger,
    ).fit(SCANS)
    reached()


def main(url: str, folder: Path) -> None:
    """Kill run after run, each one a little later, until one gets to its end."""
    torch.set_num_threads(1)
    ledger, _ = Ledger(url), PLAN.epsilon()
    ledger.register(Records(SCANS.name, SCANS.images), epsilon=50.0, delta=1e-5, relation="add_or_remove_one")
    for point in range(1, MOST_POINTS):
        run = folder / f"run-{point}"
        child = os.fork()
        if child == 0:
            run_until(Ledger(url), run, point)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        made = len(Path(f"{run}.made").read_text()) if Path(f"{run}.made").exists() else 0
        counted = [r for r in ledger.account("scans").reservations.values() if r.place == str(run)]
        before = sums(counted[0].events) if counted else 0
        try:
            settle_run(run, ledger)
            settled = ""
        except InputError as error:
            settled = str(error)
        after = [r for r in ledger.account("scans").reservations.values() if r.place == str(run)]
        released = (run / "release" / "privacy.json").exists()
        row = {
            "point": point,
            "released": released,
            "made": made,
            "before": before,
            "after": sums(after[0].events) if after else 0,
        }
        print(json.dumps(row | {"settled": settled, "finished": status == 0}), flush=True)
        if status == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
