"""What a report says, as one JSON object: the page shows nothing else."""

import math
import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dpdm
from dpdm.config import decode_plan, read_toml
from dpdm.diffusion import GAIN_LEVELS, MatchedPreconditioning
from dpdm.evaluation import PROTOCOLS, Scorecard
from dpdm.files import json_text, read_json
from dpdm.methods import DenoisingGenerator, ImageGenerator
from dpdm.privacy import Plan, PoissonSums
from dpdm.privacy.accounting import round_up
from dpdm.report.private import read_private
from dpdm.runs import Release, verify_release
from dpdm.runs.classifier_starts import STARTS
from dpdm.runs.public import as_settings
from dpdm.runs.run_folder import release_folder
from dpdm.types import InputError

SCHEMA = 1
_POINTS = 10  # of the curve of ε
_LIBRARIES = ("torch", "numpy", "dp-accounting", "cryptography")


def gather(
    run: Path, *, scores: Path | None = None, private: bool = False, public: Path | None = None
) -> tuple[dict[str, Any], Release]:
    """Return what can be said of a finished run, and its release.

    Args:
        run: The run's folder, or its `release/`, whose files must bear out the claim.
        scores: What `dpdm evaluate --json` printed, in a file: whoever passes it answers for its images being public.
        private: Whether losses, norms and the findings of an audit come in: the page is then for the owner alone.
        public: The folder of the diffusers pipeline that a text-to-image release needs for drawing.

    Raises:
        InputError: There is no finished run, it claims nothing, its files do not agree, or the scores cannot be read.
    """
    verified = verify_release(run)
    folder = release_folder(run)
    release = Release.load(run, public=public)
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
            "public": [part.name for part in verified.public if not part.drawn],
            "bounds": verified.bounds,
            "epsilon": round_up(verified.epsilon),
            "epsilon_rdp": round_up(verified.epsilon_rdp),
            "delta": plan.delta,
            "factor": math.exp(min(verified.epsilon, 700.0)),
            "true_positive_rates": {str(false): true for false, true in verified.true_positive_rates.items()},
        },
        "method": settings["method"],
        "public": as_settings(verified.public),
        "learnt": {"remark": release.generator.remark, "gains": _gains(release.generator)},
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
        facts["private"] = read_private(run)
    return facts, release


def _curve(plan: Plan) -> list[dict[str, float]]:
    """Return ε after parts of the steps; before the first one it is that of the prior."""
    if not plan.steps:
        return []
    points = sorted({plan.steps * point // _POINTS for point in range(1, _POINTS + 1)} - {0})
    start = [0] if plan.made_after(0) else []
    return [{"step": step, "epsilon": plan.epsilon(made=plan.made_after(step))} for step in start + points]


def _gains(generator: ImageGenerator) -> list[dict[str, float]]:
    """Return how far a public network is followed at each noise level, if private images were asked."""
    rule = generator.denoiser.preconditioning if isinstance(generator, DenoisingGenerator) else None
    if not isinstance(rule, MatchedPreconditioning) or rule.gains is None:
        return []
    return [
        {"sigma": float(f"{sigma:.2g}"), "gain": gain}
        for sigma, gain in zip(GAIN_LEVELS, rule.gains.tolist(), strict=True)
    ]


def _budget(plan: Plan) -> list[dict[str, Any]]:
    """Return what each part of the plan would cost if it were all: these do not add up, the whole is less."""
    parts = []
    for release in plan.releases:
        alone = replace(plan, releases=(release,), search=None, earlier=()).epsilon()
        name = f"{release.count:,} {release.name}" if isinstance(release, PoissonSums) else release.name
        parts.append({"part": name, "noise_multiplier": release.noise_multiplier, "epsilon_alone": alone})
    return parts


def _scores(path: Path, *, num_classes: int) -> dict[str, Any]:
    """Return what is known to be a score in a file, and nothing else that may stand there."""
    found: dict[str, Any] = read_json(path)
    try:
        json_text(found)  # refuses what is not finite
        scores: dict[str, Any] = {"reference": str(found["reference"]), "quick": bool(found["quick"])}
        if (protocol := found.get("protocol")) in PROTOCOLS:
            scores["protocol"] = protocol
        card = Scorecard.from_json(found, num_classes=num_classes)
        scores |= card.as_json()
        if baseline := found.get("baseline"):
            judged = Scorecard.from_json(baseline, num_classes=num_classes)
            if judged.utility.keys() != card.utility.keys():
                raise ValueError("other classifiers")
            scores["baseline"] = {"source": str(baseline["source"]), **judged.as_json()}
        if dp_sgd := found.get("dp_sgd"):
            numbers = {key: float(dp_sgd[key]) for key in ("epsilon", "accuracy")}
            scores["dp_sgd"] = numbers | {"classifier": STARTS[dp_sgd.get("start", "none")]}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise InputError(
            f"{path} is not what dpdm evaluate --json prints for such images: write that into it"
        ) from None
    return scores
