"""Images drawn from a finished release, for another run to begin with: they bring along what their release cost."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpdm.data import ImageDataset
from dpdm.data.procedural import tell_progress
from dpdm.privacy import Earlier, FullSum, Plan, PoissonSums
from dpdm.privacy.releases import noise_of
from dpdm.runs.release import Release, read_claim, read_settings
from dpdm.runs.run_folder import release_folder
from dpdm.runs.verification import understood, verify_release
from dpdm.types import InputError

COUNT = 10_000
"""Images that are drawn by default: a network's take their time."""


class Drawn(NamedTuple):
    """Images of a release, and the noisy sums that it rests on: whoever begins with these images counts them again."""

    images: ImageDataset
    earlier: tuple[Earlier, ...]


def is_release(source: str) -> bool:
    """Tell whether a source of images is the folder of a finished run, or its `release/`."""
    folder = Path(source).expanduser()
    return any((place / "privacy.json").is_file() for place in (folder, folder / "release"))


def open_drawn(run: str, *, shape: tuple[int, ...] | None = None, count: int | None = None) -> Drawn:
    """Return images drawn from a release, as many of each class, by a public seed.

    Args:
        run: The folder of a finished run, or its `release/`. Its claim is checked (`verify_release`).
        shape: What is needed: channels, height and width (default: whatever the release has).
        count: How many images (default: 10,000).

    Raises:
        InputError: The release claims nothing, does not agree with its claim, has another shape, or is the best of a
            search.
    """
    folder = release_folder(Path(run).expanduser())
    verified = verify_release(folder)
    plan = understood(read_settings(folder, read_claim(folder))).plan
    assert isinstance(plan, Plan)
    if plan.search is not None:
        raise InputError(f"{run} is the best run of a search, whose cost is no list of noisy sums: name another run")
    own = tuple(_earlier(sums, plan, verified.name) for sums in plan.releases)
    release = Release.load(folder)
    if shape not in (None, release.facts.shape):
        raise InputError(f"{run} has images of shape {release.facts.shape}, and {shape} is needed: name another run")
    parts = []
    whole = COUNT if count is None else count
    for part in release.sample_in_parts(whole, seed=0):
        parts.append(part)
        tell_progress(f"images of {run}", sum(len(labels) for _, labels in parts), whole)
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    of: dict[str, Any] = (
        {} if not release.facts.num_classes else {"labels": labels, "class_names": release.facts.class_names}
    )
    of |= {"num_classes": release.facts.num_classes, "name": f"drawn from {verified.name}"}
    return Drawn(ImageDataset(images=images, public=True, drawn=True, **of), (*plan.earlier, *own))


def _earlier(sums: FullSum | PoissonSums, plan: Plan, run: str) -> Earlier:
    noise, rate = noise_of(sums), plan.rate(sums) if isinstance(sums, PoissonSums) else 1.0
    said = {"count": sums.count, "dataset_size": plan.dataset_size, "relation": plan.relation, "unit": plan.unit}
    return Earlier(run=run, noise_multiplier=noise, sample_rate=rate, **said)  # type: ignore[arg-type]
