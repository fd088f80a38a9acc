"""`dpdm export`."""

from pathlib import Path
from typing import Annotated

import typer

from dpdm.cli.options import AsJson, PublicPipeline, Run, fail, print_json, require_run, say


def export(
    run: Run,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")],
    public: PublicPipeline = None,
    as_json: AsJson = False,
) -> None:
    """Write a finished run as a diffusers pipeline, with its claim.

    A network that came from a diffusers folder then needs no dpdm.
    """
    require_run(run)
    try:
        from dpdm.runs.pipeline import export_pipeline
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "dpdm":
            raise
        fail(f"export needs {error.name}: pip install 'dpdm[diffusers]'")
    export_pipeline(run, output, public=public)
    if as_json:
        return print_json({"output": str(output)})
    say(f"{output} holds the pipeline; its README.md says how to load it")
