"""`dpdm sample | export`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from dpdm.cli.options import AsJson, Run, Set, fail, print_json, require_run, say
from dpdm.terminal import show_progress

_NOT_PRIVATE = "NOT PRIVATE: never publish what comes of private images"


def sample(
    run: Run,
    count: Annotated[int, typer.Option("-n", "--count", help="How many images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="An .npz file, or a folder for PNG files.")],
    seed: Annotated[int | None, typer.Option(help="Makes the images repeatable.")] = None,
    sampler: Annotated[str | None, typer.Option(help="One of the run's named samplers, such as accuracy.")] = None,
    set: Set = None,
    as_json: AsJson = False,
) -> None:
    """Make images from a finished run: as many as you like, at no further cost in privacy."""
    import numpy as np

    from dpdm.config import choose_sampler
    from dpdm.data import save_folder, save_npz
    from dpdm.training import Release, verify_release
    from dpdm.training.hardware import joined_processes
    from dpdm.types import require_positive

    require_positive(count=count)
    release = Release.load(run)
    chosen = choose_sampler(release.settings, name=sampler, overrides=set or [])
    as_npz = output.suffix == ".npz"
    if output.suffix and not as_npz:
        fail(f"{output}: give a name ending in .npz, or a folder without a dot in its name")
    if as_npz and output.exists():
        fail(f"{output} exists: choose another name, or remove it")
    if not as_npz and output.exists() and (not output.is_dir() or any(output.iterdir())):
        fail(f"{output} is not empty: choose another folder")
    claims = release.privacy.get("private") is not False
    if claims:  # none is stated that the files do not bear out
        verify_release(run)
    parts = []
    with joined_processes() as processes:
        seed = processes.object_from_first(int.from_bytes(os.urandom(7), "little") if seed is None else seed)
        with show_progress("sampling", count if processes.first else None) as advance:
            for images, labels in release.sample_in_parts(count, sampler=chosen, seed=seed, processes=processes):
                parts.append((images, labels))
                advance(len(images) * processes.size, "")
        parts = processes.in_turn(parts)
    if not processes.first:
        return None
    images = np.concatenate([part for part, _ in parts])
    classes = np.concatenate([part for _, part in parts])
    known = classes if release.facts.num_classes else None
    if as_npz:
        save_npz(output, images, known, num_classes=release.facts.num_classes)
    else:
        save_folder(output, images, known, class_names=release.facts.class_names)
    if as_json:
        statement = release.statement if claims else _NOT_PRIVATE
        return print_json({"output": str(output), "count": count, "statement": statement})
    carried = f"which carry the run's claim: {release.statement}" if claims else _NOT_PRIVATE
    say(f"{count:,} images in {output}, {carried}")


def export(
    run: Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    as_json: AsJson = False,
) -> None:
    """Write a finished run as a pipeline of Hugging Face's diffusers, with its claim."""
    require_run(run)
    try:
        from dpdm.training.pipeline import export_pipeline
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "dpdm":
            raise
        fail(f"export needs {error.name}: pip install 'dpdm[diffusers]'")
    export_pipeline(run, output)
    if as_json:
        return print_json({"output": str(output)})
    say(f"{output} holds the pipeline; its README.md says how to load it")
