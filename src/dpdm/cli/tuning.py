"""`dpdm tune`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpdm.cli.judging import named_alike
from dpdm.cli.ledger import keep_figures
from dpdm.cli.options import (
    AsJson,
    Epsilon,
    LedgerPlace,
    MethodName,
    PublicImages,
    Set,
    Size,
    Target,
    bound,
    fail,
    load_settings,
    print_json,
    require_found,
    require_target,
    say,
)
from dpdm.cli.training import train_with_progress
from dpdm.terminal import tell

if TYPE_CHECKING:
    from dpdm.data import ImageDataset
    from dpdm.runs import Release, Trainer


def tune(
    target: Target,
    run: Annotated[Path, typer.Option("--run", "-r", help="Folder of the search. The same command again resumes it.")],
    choices: Annotated[
        list[str],
        typer.Option("--try", help="A setting to search, as key=value,value,... (may be given several times)."),
    ],
    method: MethodName = None,
    public: PublicImages = None,
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
    """Search among settings at a stated price: of a random number of runs, only the best is released."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fail("dpdm tune is one process: start it without torchrun")
    if (reference is None) == (score_noise is None):
        fail("choose how runs are compared: --reference with public images, or --score-noise 50 for the private ones")
    require_target(target)
    require_found(reference)
    from dpdm.config import require_public_source
    from dpdm.data import open_dataset
    from dpdm.ledger import Ledger
    from dpdm.privacy.processes import Processes
    from dpdm.privacy.search import Search
    from dpdm.runs.tuning import Tuner, combinations

    if os.environ.get("WORLD_SIZE", "1").strip() not in ("", "1"):
        fail("dpdm tune is one process: start it without torchrun")
    candidates = [
        load_settings(target, epsilon, dataset_size, [*(set or []), *values], method=method, public=public)
        for values in combinations(choices)
    ]
    first = candidates[0]
    for config in candidates:
        require_public_source(config.method, given=config.public is not None)
    data = first.data.open()
    compared = None
    if reference is not None:
        facts, channels = first.data, data.shape[0]
        compared = open_dataset(
            reference,
            size=facts.size,
            fit=facts.fit,
            channels=channels,  # type: ignore[arg-type]
            num_classes=data.num_classes,
        )
        if compared.shape != data.shape:
            fail(f"{reference} has images of shape {compared.shape}, and {data.name} of {data.shape}: set data.size")
        if data.num_classes and compared.num_classes:
            remarks = list[str]()
            compared = named_alike(compared, data, reference, data.name, remarks)
            for remark in remarks:
                tell(remark)
    tuner = Tuner(
        candidates=candidates,
        search=Search(mean=runs, shape=shape, score_noise_multiplier=score_noise),
        reference=compared,
        run=run,
        ledger=Ledger.default(ledger, tell=tell),
    )
    plan = tuner.plan(data)
    cost = tuner.cost(plan)
    tell(
        f"{len(candidates)} candidates; one run costs ε {bound(cost.of_one)}, the best of {runs:g} on average "
        f"{bound(cost.of_best)}, and releasing {round(runs)} would cost {bound(cost.of_all)}"
    )

    if compared is not None:
        tell(
            f"images of {data.name} that are among those of {reference} take no part, if there are any: "
            f"{run / 'private' / 'blanked.json'} lists them"
        )

    def on_run(number: int, count: int, trainer: "Trainer", images: "ImageDataset") -> "Release":
        tell(f"run {number} of {count}: secret, like which settings it has")
        return train_with_progress(trainer, images, Processes())

    release = tuner.fit(data, on_run)
    keep_figures(tuner.ledger)
    if as_json:
        return print_json(release.claim | {"cost": cost._asdict()})
    say(f"done: {release.statement}")
    say(f"publish {run / 'release'}; keep {run / 'private'} to yourself: the other runs, and how many there were")
    say(f"next: dpdm sample {run} -n {plan.dataset_size} -o synthetic.npz")
