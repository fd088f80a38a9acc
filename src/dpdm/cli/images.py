"""`dpdm sample`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from dpdm.cli.options import AsJson, PublicPipeline, Run, SetSampler, fail, print_json, require_run, say
from dpdm.terminal import show_progress

if TYPE_CHECKING:
    from dpdm.methods import AnySampler
    from dpdm.runs import Release
    from dpdm.runs.labels import Frequencies
    from dpdm.types import Images, Labels

_CLAIMED = ("private", "epsilon", "delta", "relation", "unit", "public")  # of a run's claim, beside its statement
_NOT_PRIVATE = "NOT PRIVATE: never publish what comes of private images"


def sample(
    run: Run,
    count: Annotated[int, typer.Option("-n", "--count", help="Number of images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="An .npz file, or a folder for PNG files.")],
    classes: Annotated[
        str | None, typer.Option(help="Names of classes, or their numbers from 0, joined by commas (default: all).")
    ] = None,
    frequencies: Annotated[
        str, typer.Option(help="equal, released (as the run's prior found), or a number for each class: 3,1,1.")
    ] = "equal",
    seed: Annotated[int | None, typer.Option(help="Seed that makes the images repeatable (default: random).")] = None,
    public: PublicPipeline = None,
    sampler: Annotated[str | None, typer.Option(help="One of the run's named samplers, such as accuracy.")] = None,
    set: SetSampler = None,
    as_json: AsJson = False,
) -> None:
    """Draw images from a finished run. No number of them costs further privacy."""
    require_run(run)
    _require_free(output)
    import numpy as np

    from dpdm.config import choose_sampler
    from dpdm.data import save_folder, save_npz
    from dpdm.runs import Release, verify_release
    from dpdm.runs.labels import choose_labels
    from dpdm.types import require_positive

    require_positive(count=count)
    release = Release.load(run, public=public)
    facts = release.facts
    chosen = choose_sampler(release.settings, name=sampler, overrides=set or []) if sampler or set else None
    wanted = None
    if classes is not None or frequencies != "equal":
        names = [] if classes is None else [name.strip() for name in classes.split(",")]
        wanted = choose_labels(release, count, classes=names, frequencies=_frequencies(frequencies))
    claims = release.claim.get("private") is not False
    if claims:  # none is stated that the files do not bear out
        verify_release(run)
    if not (drawn := _draw(release, count, seed, sampler=chosen, labels=wanted)):
        return None
    images, labels = drawn
    known = labels if facts.num_classes else None
    statement = release.statement if claims else _NOT_PRIVATE
    claim = {key: release.claim[key] for key in _CLAIMED if key in release.claim} | {"statement": statement}
    if output.suffix:
        save_npz(output, images, known, num_classes=facts.num_classes, class_names=facts.class_names, claim=claim)
    else:
        save_folder(output, images, known, class_names=facts.class_names, claim=claim)
    if as_json:
        counts = np.bincount(labels, minlength=facts.num_classes).tolist() if facts.num_classes else []
        return print_json({"output": str(output), "count": count, "counts": counts, "statement": statement})
    carried = f"which carry the run's claim: {statement}" if claims else statement
    say(f"{count:,} images in {output}, {carried}")


def _require_free(output: Path) -> None:
    """Refuse a place for images that is taken, or no .npz file and no folder."""
    as_npz = output.suffix == ".npz"
    if output.suffix and not as_npz:
        fail(f"{output}: give a name ending in .npz, or a folder without a dot in its name")
    if as_npz and output.exists():
        fail(f"{output} exists: choose another name, or remove it")
    if not as_npz and output.exists() and (not output.is_dir() or any(output.iterdir())):
        fail(f"{output} is not empty: choose another folder")


def _draw(
    release: "Release", count: int, seed: int | None, *, sampler: "AnySampler | None", labels: "Labels | None"
) -> "tuple[Images, Labels] | None":
    """Return images and their labels, drawn by all processes together: in the first process alone."""
    import numpy as np

    from dpdm.runs.hardware import joined_processes

    parts = []
    with joined_processes() as processes:
        seed = processes.object_from_first(int.from_bytes(os.urandom(7), "little") if seed is None else seed)
        with show_progress("sampling", count if processes.first else None) as advance:
            drawn = release.sample_in_parts(count, sampler=sampler, labels=labels, seed=seed, processes=processes)
            for part in drawn:
                parts.append(part)
                advance(len(part[0]) * processes.size, "")
        parts = processes.in_turn(parts)
    if not processes.first:
        return None
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _frequencies(text: str) -> "Frequencies":
    """Return what --frequencies says."""
    if text in ("equal", "released"):
        return cast("Frequencies", text)
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        fail(f"--frequencies is equal, released, or numbers with commas between, not {text!r}")
