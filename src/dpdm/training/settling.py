"""Telling a ledger what a run that will not go on has spent."""

from pathlib import Path

from dpdm.config import decode_plan, read_toml
from dpdm.files import read_json
from dpdm.ledger import Ledger
from dpdm.privacy import DPSGD
from dpdm.types import InputError


def settle_run(run: Path | str, ledger: Ledger) -> tuple[int, int]:
    """Complete a run in the ledger with what its journal says it has spent; return that number, and the planned one.

    What was reserved in the journal when a process was killed counts as spent.

    Raises:
        InputError: There is no such run, it is in use, or its journal is damaged: its whole reservation stays.
    """
    private = Path(run) / "private"
    if not (private / "ledger.json").is_file() or not (private / "journal.jsonl").is_file():
        raise InputError(f"{run} holds no run that a ledger counts: is the path right?")
    plan = decode_plan(read_toml(private / "config.toml")["privacy"])
    name = str(read_json(private / "ledger.json").get("run"))
    if not isinstance(plan, DPSGD):
        raise InputError(f"{run} claims nothing: there is nothing to settle")
    made = plan.start(private / "journal.jsonl")  # which holds the journal: nobody trains meanwhile
    try:
        ledger.complete(name, plan.events_made(made.spent))
    finally:
        made.close()
    return made.spent, len(plan.earlier) + plan.steps
