"""What a report says, as one JSON object: the page shows nothing else."""

import json
import math
import platform
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dpdm
from dpdm.config import decode_plan, read_toml
from dpdm.evaluation import CLASSIFIERS, by_class
from dpdm.files import read_json
from dpdm.privacy import Plan, PoissonSums
from dpdm.privacy.accounting import round_up
from dpdm.runs import Release, verify_release
from dpdm.runs.run_folder import release_folder
from dpdm.types import InputError

SCHEMA = 1
_POINTS = 10  # of the curve of ε
DISTANCES = ("frechet", "kernel", "precision", "recall", "density", "coverage", "inception")
_LIBRARIES = ("torch", "numpy", "dp-accounting", "cryptography")


def gather(run: Path, *, scores: Path | None = None, private: bool = False) -> tuple[dict[str, Any], Release]:
    """Return what can be said of a finished run, and its release.

    Args:
        run: The run's folder, or its `release/`, whose files must bear out the claim.
        scores: What `dpdm evaluate --json` printed, in a file: whoever passes it answers for its images being public.
        private: Whether losses, norms and the findings of an audit come in: the page is then for the owner alone.

    Raises:
        InputError: There is no finished run, it claims nothing, its files do not agree, or the scores cannot be read.
    """
    verified = verify_release(run)
    folder = release_folder(run)
    release = Release.load(folder)
    settings = read_toml(folder / "config.toml")
    plan = decode_plan(settings["plan"])
    assert isinstance(plan, Plan)
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "name": settings["facts"]["name"],
        "audience": "the data owner alone" if private else "anyone",
        "claim": {
            "statement": verified.statement,
            "protects": verified.protects,
            "bounds": verified.bounds,
            "epsilon": round_up(verified.epsilon),
            "epsilon_rdp": round_up(verified.epsilon_rdp),
            "delta": plan.delta,
            "factor": math.exp(min(verified.epsilon, 700.0)),
            "true_positive_rates": {str(false): true for false, true in verified.true_positive_rates.items()},
        },
        "spent": _curve(plan),
        "budget": _budget(plan),
        "classes": list(release.facts.class_names),
        "shape": list(release.facts.shape),
        "parameters": sum(p.numel() for p in release.generator.parameters()),
        "settings": settings,
        "versions": {"dpdm": dpdm.__version__, **{name: version(name) for name in _LIBRARIES}},
        "machine": {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()},
        "scores": None if scores is None else _scores(scores, num_classes=release.facts.num_classes),
    }
    if private:
        facts["private"] = _private(run)
    return facts, release


def _curve(plan: Plan) -> list[dict[str, float]]:
    """Return ε after parts of the steps; before the first one it is that of the prior."""
    if not plan.steps:
        return []
    points = sorted({plan.steps * point // _POINTS for point in range(1, _POINTS + 1)} - {0})
    start = [0] if plan.made_after(0) else []
    return [{"step": step, "epsilon": plan.epsilon(made=plan.made_after(step))} for step in start + points]


def _budget(plan: Plan) -> list[dict[str, Any]]:
    """Return what each part of the plan would cost if it were all: these do not add up, the whole is less."""
    parts = []
    for release in plan.releases:
        alone = replace(plan, releases=(release,), search=None).epsilon()
        name = f"{release.count:,} {release.name}" if isinstance(release, PoissonSums) else release.name
        parts.append({"part": name, "noise_multiplier": release.noise_multiplier, "epsilon_alone": alone})
    return parts


def _scores(path: Path, *, num_classes: int) -> dict[str, Any]:
    """Return what a page shows of the scores in a file, and nothing else that may stand there."""
    found = read_json(path)
    try:
        scores = {"reference": str(found["reference"]), "quick": bool(found["quick"]), **_judged(found, num_classes)}
        baseline: Any = found.get("baseline")
        if baseline is not None:
            scores["baseline"] = {"source": str(baseline["source"]), **_judged(baseline, num_classes)}
        dp_sgd: Any = found.get("dp_sgd")
        if dp_sgd is not None:
            scores["dp_sgd"] = {key: float(dp_sgd[key]) for key in ("epsilon", "accuracy")}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{path} is not what dpdm evaluate --json prints for such images: write that into it"
        ) from None
    return scores


def _judged(found: dict[str, Any], num_classes: int) -> dict[str, Any]:
    judged: dict[str, Any] = {}
    for name in CLASSIFIERS:
        judged[name] = {key: float(found[name][key]) for key in ("accuracy", "low", "high")}
        confusion = [[int(number) for number in row] for row in found[name].get("confusion", [])]
        if confusion and {len(confusion), *map(len, confusion)} != {num_classes}:
            raise ValueError("another number of classes")
        judged[name]["confusion"] = confusion
        judged[name] |= by_class(confusion)._asdict() if confusion else {}
    if "fidelity" in found:
        fidelity = found["fidelity"]
        judged["fidelity"] = {key: str(fidelity[key]) for key in ("features", "digest")}
        judged["fidelity"]["num_images"] = int(fidelity["num_images"])
        for name in DISTANCES:
            if name in fidelity:
                ends = {end: fidelity[name].get(end) for end in ("low", "high")}
                ends = {end: None if value is None else float(value) for end, value in ends.items()}
                judged["fidelity"][name] = {"value": float(fidelity[name]["value"]), **ends}
    return judged


def _private(run: Path) -> dict[str, Any]:
    """Return what no noise covers: losses and norms of training, and the findings of an audit."""
    folder = run / "private"
    if not folder.is_dir():
        raise InputError(f"{run} has no private/ folder: leave out --private, or name the run's own folder")
    found: dict[str, Any] = {"metrics": [], "audit": None}
    if (folder / "metrics.jsonl").is_file():
        rows = list(_rows((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()))
        every = max(1, len(rows) // 200)
        found["metrics"] = rows[::every]
    if (folder / "audit" / "audit.json").is_file():
        found["audit"] = read_json(folder / "audit" / "audit.json")
    return found


def _rows(lines: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what lines say: not a last one that a crash cut short, and no value that is not finite."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        yield {key: value for key, value in row.items() if value is not None and math.isfinite(value)}
