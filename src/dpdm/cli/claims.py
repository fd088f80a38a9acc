"""`dpdm verify | audit | report`."""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpdm.cli.options import AsJson, PublicPipeline, Run, bound, print_json, require_found, require_run, say
from dpdm.terminal import show_stages, tell

if TYPE_CHECKING:
    from dpdm.audit import Audit
    from dpdm.audit.membership import Rate
    from dpdm.audit.properties import Properties
    from dpdm.methods import PublicPart

CONTRADICTED = 3
"""Exit code of an audit that contradicts its claim: no other end of a verb has it."""


def verify(run: Run, as_json: AsJson = False) -> None:
    """Check a release's files, and put its claim into plain words."""
    require_run(run)
    from dpdm.runs import verify_release
    from dpdm.runs.public import as_settings

    found = verify_release(run)
    if as_json:
        public = as_settings(found.public)
        return print_json(asdict(found) | {"protects": found.protects, "bounds": found.bounds, "public": public})
    say(f"claim    {found.statement}")
    say(_wrapped("unit", found.protects))
    say(_wrapped("bound", found.bounds))
    by_pld = "" if found.epsilon == found.epsilon_rdp else f"{bound(found.epsilon)} by PLD, "
    say(f"checked  ε from the listed noisy sums: {by_pld}{bound(found.epsilon_rdp)} by Rényi accounting")
    fit = "" if found.own_network else "the weights fit the settings; "
    fit += "its texts say this claim; " if found.exported else ""
    of = "settings, and of all files of the pipeline" if found.exported else "settings and weights"
    say(f"         digests of {of}; {fit}no other file is there")
    if found.exported:
        say("         not checked: that the weights of the pipeline follow from those of the release")
    for part in found.public:
        say(
            f"drawn    {_part(part)}: of a release, which the claim counts"
            if part.drawn
            else f"public   {_part(part)}: declared so, and the claim does not protect it"
        )
        for source in part.sources:
            say(f"         {'not protected: ' if part.drawn else 'made of '}{_part(source)}")
    for name, sha256 in found.starts:
        say(f"start    {_quoted([name])}, network SHA-256 {sha256}: declared so; start.toml of the public start has it")
    if found.prompt:
        say(f"prompt   {_quoted([found.prompt])}: declared, and for {{class}} the name of each class")
    others = f"; samplers beside the usual one: {_quoted(found.samplers)}" if found.samplers else ""
    say(f"named    the images {_quoted([found.name])}; {_classes(found.class_names)}{others}")
    say(f"seed     {found.seed}. Names, seed and settings are declared: nothing can check them")
    if found.own_network:
        say(
            f"network  {found.own_network} is not one of dpdm's: neither its code is checked, nor that the weights are "
            "its own. Release.load(run, network=...) opens it in Python"
        )
        say(f"weights  {_some(found.own_weights)}: these names are declared, too")
    attacks = "" if found.own_network else ": `dpdm audit` attacks the claim"
    say(f"The files agree. No file can show that training ran as they say{attacks}.")


_WIDTH = 100  # columns of what is a paragraph
_WEIGHTS_SHOWN = 200  # names, in a line
_SHARES_SHOWN = 10  # of classes, the most frequent ones


def _wrapped(what: str, text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=f"{what:9}", subsequent_indent=9 * " ")


def _some(weights: Sequence[str]) -> str:
    rest = len(weights) - _WEIGHTS_SHOWN
    return ", ".join(weights[:_WEIGHTS_SHOWN]) + (f", and {rest:,} more (--json has all)" if rest > 0 else "")


def _part(part: "PublicPart") -> str:
    images = f", {part.images:,} images" if part.images else ""
    return f"{_quoted([part.name])}{images}, SHA-256 {part.sha256}"


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(json.dumps(name, ensure_ascii=False) for name in names)


def _classes(names: Sequence[str]) -> str:
    """Say all names of classes: as numbers, where they are no more."""
    if not names:
        return "no classes"
    if [*names] == [str(number) for number in range(len(names))]:
        return f"{len(names):,} classes, by their numbers"
    return f"{len(names):,} classes {_quoted(names)}"


def audit(
    run: Run,
    held_out: Annotated[
        str | None, typer.Option(help="Real images that the run was not trained on, such as digits:test.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time for a second training run, with fewer steps if need be.")] = 8.0,
    as_json: AsJson = False,
) -> None:
    """Attack a run's claim: its mechanism, sums, generator and images."""
    require_run(run)
    require_found(held_out)
    from dpdm.audit import STAMP, audit_run

    with show_stages() as on_progress:
        found = audit_run(run, held_out=held_out, minutes=minutes, on_progress=on_progress)
    if as_json:
        print_json(found.to_json())
    else:
        _print_audit(found)
        say(f"{STAMP}: {run / 'private' / 'audit'}")
    for finding in found.findings:
        tell(f"dpdm: CONTRADICTED: {finding}")
    if not as_json:
        for line in found.conclusion:  # last of all, whatever was found: what is published is the run's claim
            say(line)
    if found.findings:
        raise typer.Exit(CONTRADICTED)


def report(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An .html file (default: report.html in the run's folder).")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="A file with the output of dpdm evaluate --json. Scores on private images are private."),
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="Add losses, norms and the audit. Such a page is for the data owner alone."),
    ] = False,
    public: PublicPipeline = None,
    as_json: AsJson = False,
) -> None:
    """Write a page on what a run claims, spent and draws. Puts JSON with the same facts beside it."""
    require_run(run)
    from dpdm.report import write_report
    from dpdm.runs.run_folder import release_folder

    home = run.parent if release_folder(run) == run else run
    output = output or (run / "private" if private else home) / "report.html"
    write_report(run, output, scores=scores, private=private, public=public)
    if as_json:
        return print_json({"output": str(output), "json": str(output.with_suffix(".json")), "private": private})
    whose = f"may be published unless the scores of {scores} come of private images" if scores else "may be published"
    say(f"{output}: {'PRIVATE, for the data owner alone' if private else whose}; open it in a browser")


def _print_audit(found: "Audit") -> None:
    import numpy as np

    from dpdm.privacy.accounting import downwards
    from dpdm.runs.verification import percent

    say(f"claim        {found.claim}")
    for check in found.checks:
        say(
            f"{'ok' if check.passed else 'FAILED':12} {check.name}: {check.value:.6g}, "
            f"expected {check.expected:g} [{check.low:.6g}, {check.high:.6g}]"
        )
    say(f"audited      {found.scope}")
    say("             what the attacks on that proved (95 %):")
    bounds = found.white_box
    say(
        f"white box    {found.canaries:,} canaries in every noisy sum: ε ≥ {downwards(bounds.one_run)} of one run, "
        f"{downwards(bounds.clopper_pearson)} by Clopper-Pearson"
    )
    say(
        f"             estimates, if the trade-off is Gaussian: {downwards(bounds.one_run_gaussian)} of one run "
        f"(f-DP), {downwards(bounds.gaussian)} by Clopper-Pearson"
    )
    allowed = dict(zip(*found.ceiling, strict=True))
    others = found.members // 2  # about as many took no part
    for name, attacked in found.black_box.items():
        one, tenth = attacked.rates
        say(
            f"black box    {name}: AUC {attacked.auc:.3f}; ε ≥ {downwards(attacked.bounds.one_run)}; true positives "
            f"{_rate(one, others)} at 1 %, {_rate(tenth, others)} at 0.1 %"
        )
    most = percent(allowed[min(allowed)])  # upwards, as all bounds
    say(f"             {found.members:,} members; the audited sums allow {most} at 0.1 %")
    near = found.nearness

    def distances(values: Any) -> str:  # noqa: ANN401
        return f"at {values.min():.3f}, in the median {np.median(values):.3f}"

    say(f"copies       nearest training image of generated ones: {distances(near.nearest)}")
    if near.nearer_to_training is not None and near.of_held_out is not None:
        part, low, high, _ = near.nearer_to_training
        say(f"             of held-out ones: {distances(near.of_held_out)}")
        say(
            f"             {100 * part:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of generated ones are nearer to "
            "training than to held-out images"
        )
    if (out := near.extracted) is not None:
        say(
            f"             nearer than {out.below:.3f} to a generated one: {out.training} training and {out.held_out} "
            f"held-out images; {out.copies} of {out.again} generated ones that come again are copies"
        )
    _print_properties(found.properties)


def _print_properties(found: "Properties | None") -> None:
    from dpdm.audit.properties import NO_CLAIM

    if found is None:
        return say("properties   nothing here tells how frequent classes are, and no ε would hide it")
    say(f"properties   {NO_CLAIM}: shares as an attacker estimates them, by {found.by}")
    most = sorted(range(len(found.names)), key=lambda place: -found.true[place])[:_SHARES_SHOWN]
    shown = [f"{found.names[place]} {found.estimated[place]:.1%} (is {found.true[place]:.1%})" for place in most]
    say(f"             {'; '.join(shown)}; {found.error:.1%} off in all")


def _rate(rate: "Rate", others: int) -> str:
    if others * rate.false_positive_rate < 1:
        return "(too few images to tell)"
    return f"{100 * rate.true_positive_rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
