"""Telling a ledger what a run that will not go on has spent."""

from pathlib import Path

from dpdm.config import decode_plan, read_toml
from dpdm.ledger import Ledger, RunIdentity
from dpdm.privacy import Plan
from dpdm.types import InputError


def settle_run(run: Path | str, ledger: Ledger, *, only_copy: bool = False) -> tuple[int, int]:
    """Complete a run in the ledger with what its journal says it has spent; return that number, and the planned one.

    What was reserved in the journal when a process was killed counts as spent. The journal then counts the whole plan,
    so that nothing more can be made.

    Args:
        run: The run's folder.
        ledger: Where it was reserved.
        only_copy: That no other copy of the folder has gone on, which only its owner knows. It has to be said of a
            folder that lies elsewhere than where the run began: a backup may lack what was made since.

    Raises:
        InputError: There is no such run, it is a search, in use, a copy or perhaps one, or its journal is damaged; its
            reservation stays.
    """
    private = Path(run) / "private"
    if (private / "search.json").is_file():
        raise InputError(f"{run} is a search, which costs its whole price once it has begun: nothing is to be had back")
    name = RunIdentity.read(private)
    if name is None or not (private / "journal.jsonl").is_file():
        raise InputError(f"{run} holds no run that a ledger counts: is the path right?")
    plan = decode_plan(read_toml(private / "config.toml")["plan"])
    if not isinstance(plan, Plan):
        raise InputError(f"{run} claims nothing: there is nothing to settle")
    place = Path(ledger.reservation(name.run).place)
    moved = not (place.exists() and place.samefile(run))
    there = RunIdentity.read(place / "private") if moved else None
    if there is not None and there.run == name.run:
        raise InputError(f"{run} is a copy of {place}: settle that one")
    if moved and not only_copy:
        raise InputError(
            f"{run} is not where the run began, {place}: a backup lacks what was released since; if this is the run "
            "itself, moved, and there is no other copy, add --i-have-the-only-copy"
        )
    made = plan.start(private / "journal.jsonl")  # which holds the journal: nobody trains meanwhile
    try:
        spent = made.spent
        # From here on it cannot go on.
        ledger.complete(name.run, plan.events(made=spent), tokens=name.tokens, head=name.head)
        made.spend_rest()
    finally:
        made.close()
    return spent, plan.planned
