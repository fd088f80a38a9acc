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
import sqlalchemy as sql
import torch

from dpdm.config import encode
from dpdm.ledger import Ledger, Records
from dpdm.privacy import DPSGD, GaussianRelease
from dpdm.privacy.journal import Journal
from dpdm.training.private_folder import PrivateFolder
from dpdm.training.settling import settle_run
from dpdm.types import InputError

SCANS = Records("scans", np.zeros((4, 8, 8, 1), np.uint8))
PLAN = DPSGD(
    dataset_size=100,
    expected_batch_size=10,
    steps=0,
    delta=1e-5,
    earlier=(GaussianRelease(noise_multiplier=30.0), GaussianRelease(noise_multiplier=40.0)),
)
MOST_POINTS = 200


def run_until(ledger: Ledger, run: Path, point: int) -> None:
    """Reserve, release and complete, and die at the `point`-th place where something is written."""
    left = point

    def reached(*arguments: object, **more: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    engine = ledger.storage._engine
    for event in ("before_cursor_execute", "after_cursor_execute", "commit"):
        sql.event.listen(engine, event, reached)
    append = Journal._append

    def appended(self: Journal, entry: dict[str, object]) -> None:
        reached()
        append(self, entry)
        reached()

    Journal._append = appended
    folder = PrivateFolder(run / "private", {"privacy": encode(PLAN), "training": {"tensorboard": False}})
    name = f"run {point}"
    folder.save_name_in_ledger(name)
    ledger.reserve(name, PLAN, SCANS, place=str(run))
    mechanism = PLAN.start(folder.journal)
    while not mechanism.finished:
        mechanism.release(torch.zeros(3, dtype=torch.float64), sensitivity=1.0, num_records=4)
        with (run / "made").open("a") as file:
            file.write("1")
        reached()
    ledger.complete(name, PLAN.events_made(mechanism.spent))
    reached()


def main(url: str, folder: Path) -> None:
    """Kill run after run, each one a little later, until one gets to its end."""
    ledger = Ledger(url)
    ledger.register(SCANS, epsilon=50.0, delta=1e-5, relation="add_or_remove_one")
    for point in range(1, MOST_POINTS):
        run = folder / f"run-{point}"
        child = os.fork()
        if child == 0:
            run_until(Ledger(url), run, point)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        made = len((run / "made").read_text()) if (run / "made").exists() else 0
        counted = [r for r in ledger.account("scans").reservations.values() if r.run == f"run {point}"]
        before = len(counted[0].events) if counted else 0
        try:
            settle_run(run, ledger)
            settled = ""
        except InputError as error:
            settled = str(error)
        after = [r for r in ledger.account("scans").reservations.values() if r.run == f"run {point}"]
        row = {"point": point, "made": made, "before": before, "after": len(after[0].events) if after else 0}
        print(json.dumps(row | {"settled": settled, "finished": status == 0}), flush=True)
        if status == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
