"""A run as a ledger counts it: reserved before its first noisy sum, completed after its last."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dpdm.ledger.account import Account
from dpdm.ledger.book import Ledger
from dpdm.ledger.identity import RunIdentity
from dpdm.ledger.records import Records
from dpdm.types import InputError

if TYPE_CHECKING:
    from dpdm.privacy import Plan


@contextmanager
def counted(
    ledger: Ledger | None,
    plan: "Plan",
    records: Records,
    *,
    public: Sequence[Records] = (),
    run: Path | None,
    begun: bool,
    finished: bool,
    spent: Callable[[], int | None],
    undo: Callable[[], None],
) -> Iterator[Account | None]:
    """Reserve a plan on entering, and yield its account, if it is counted; on leaving, tell what was made of it.

    After an error a run in a folder keeps its reservation, so that it can go on. One in memory cannot: it is completed.

    Args:
        ledger: Where the run is counted; None counts nothing.
        plan: What the run may release.
        records: The data set.
        public: What the run uses of images that are declared public: no data set with a total may be these.
        run: The run's folder, which has `private/`; None for a run in memory.
        begun: Whether the run has made noisy sums before.
        finished: Whether it has made all of them: then nothing is reserved, and what it made is told on leaving.
        spent: Returns the number of noisy sums that the run has made; None for all of its plan.
        undo: Called when the ledger refuses a run that has left no trace anywhere.

    Raises:
        InputError: The ledger refuses the run; or the run began in a ledger, and there is none.
        OSError: The ledger cannot be reached.
    """
    private = None if run is None else run / "private"
    before = None if private is None else RunIdentity.read(private)
    if ledger is None and before is not None:  # finished, too: its release may say what a benchmark's runs cost
        raise InputError(f"{run} began in a ledger: go on with it, by --ledger or DPDM_LEDGER")
    if ledger is None or (finished and before is None):  # the latter began without a ledger
        yield None
        return
    identity = before or RunIdentity.new()

    def complete() -> None:
        assert ledger is not None
        ledger.complete(identity.run, plan.events(made=spent()), tokens=identity.tokens, head=identity.head)

    if not finished:
        tokens_before, identity = identity.tokens, identity.started(private)
        try:
            head = ledger.reserve(
                identity.run,
                plan,
                records,
                place="a run in memory" if run is None else str(run.absolute()),
                public=public,
                token=identity.tokens[-1],
                tokens_before=tokens_before,
                begun=begun and before is not None,
                head=identity.head,
            )
        except (InputError, OSError) as error:
            # Where a ledger was not reached, it may have reserved all the same, unless there is none.
            if before is None and not begun and (isinstance(error, InputError) or not _is_there(ledger)):
                undo()
            raise
        identity = identity.saw(head, private)
    try:
        yield ledger.account_of(identity.run)
    except BaseException:
        if run is None:
            complete()
        raise
    complete()


def _is_there(ledger: Ledger) -> bool:
    try:
        return ledger.storage.exists
    except OSError:  # not even its folder could be made
        return False
