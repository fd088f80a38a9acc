"""`dpdm tune`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpdm.cli.judging import reference_like
from dpdm.cli.ledger import keep_figures
from dpdm.cli.options import (
    AsJson,
    Epsilon,
    LedgerPlace,
    MethodName,
    PublicImages,
    Set,
    Size,
    StartFolder,
    Target,
    bound,
    fail,
    load_settings,
    print_json,
    require_found,
    require_target,
    say,
)
from dpdm.cli.training import require_agreeing, require_public_there_for, train_with_progress
from dpdm.terminal import tell

if TYPE_CHECKING:
    from dpdm.data import ImageDataset
    from dpdm.runs import Release, Trainer
    from dpdm.runs.tuning import Cost, Tuner


def tune(
    target: Target,
    run: Annotated[Path, typer.Option("--run", "-r", help="Folder of the search. The same command again resumes it.")],
    choices: Annotated[
        list[str],
        typer.Option("--try", help="A setting to search, as key=value,value,... (may be given several times)."),
    ],
    method: MethodName = None,
    public: PublicImages = None,
    start: StartFolder = None,
    epsilon: Epsilon = None,
    runs: Annotated[float, typer.Option(help="Mean number of runs. The number itself is drawn at random.")] = 5.0,
    shape: Annotated[float, typer.Option(help="Distribution of that number: 1 = geometric, 0 = logarithmic.")] = 1.0,
    reference: Annotated[
        str | None, typer.Option(help="Public labelled images to compare the runs on. This costs no privacy.")
    ] = None,
    score_noise: Annotated[
        float | None, typer.Option(help="Noise on the count of right answers, to compare runs on the private images.")
    ] = None,
    dataset_size: Size = None,
    ledger: LedgerPlace = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Search among settings, at a stated price. Of a random number of runs, only the best is released."""
    _require_possible(target, reference, score_noise)
    from dpdm.ledger import Ledger
    from dpdm.privacy.search import Search
    from dpdm.runs.tuning import Tuner, combinations

    candidates = [
        load_settings(target, epsilon, dataset_size, [*(set or []), *values], method=method, public=public, start=start)
        for values in combinations(choices)
    ]
    for config in candidates:
        require_public_there_for(config)
    data = candidates[0].data.open()
    require_agreeing(candidates[0], data)
    search = Search(mean=runs, shape=shape, score_noise_multiplier=score_noise)
    compared = None if reference is None else reference_like(data, reference, candidates[0].data)
    where = Ledger.default(ledger, tell=tell)
    tuner = Tuner(candidates=candidates, search=search, reference=compared, run=run, ledger=where)
    plan = tuner.plan(data)
    cost = tuner.cost(plan)
    _tell_before(tuner, cost, data.name, reference)
    release = tuner.fit(data, _train_one)
    keep_figures(tuner.ledger)
    if as_json:
        return print_json(release.claim | {"cost": cost._asdict()})
    say(f"done: {release.statement}")
    say(f"publish {run / 'release'}; keep {run / 'private'} to yourself: the other runs, and how many there were")
    say(f"next: dpdm sample {run} -n {plan.dataset_size} -o synthetic.npz")


def _require_possible(target: str, reference: str | None, score_noise: float | None) -> None:
    """Refuse what no search can be made of."""
    if os.environ.get("WORLD_SIZE", "1").strip() not in ("", "1"):
        fail("dpdm tune is one process: start it without torchrun")
    if (reference is None) == (score_noise is None):
        fail("choose how runs are compared: --reference with public images, or --score-noise 50 for the private ones")
    require_target(target)
    require_found(reference)
    if reference is not None:
        from dpdm.data import require_no_claim

        require_no_claim(reference)


def _tell_before(tuner: "Tuner", cost: "Cost", name: str, reference: str | None) -> None:
    """Say what the search costs, and which images take no part."""
    runs = tuner.search.mean
    tell(
        f"{len(tuner.candidates)} candidates; one run costs ε {bound(cost.of_one)}, the best of {runs:g} on average "
        f"{bound(cost.of_best)}, and releasing {round(runs)} would cost {bound(cost.of_all)}"
    )
    if reference is not None:
        tell(
            f"images of {name} that are among those of {reference} take no part, if there are any: "
            f"{Path(tuner.run) / 'private' / 'blanked.json'} lists them"
        )


def _train_one(number: int, count: int, trainer: "Trainer", images: "ImageDataset") -> "Release":
    """Train one run of a search."""
    from dpdm.privacy.processes import Processes

    tell(f"run {number} of {count}: secret, like which settings it has")
    return train_with_progress(trainer, images, Processes())
