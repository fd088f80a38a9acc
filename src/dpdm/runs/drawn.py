"""Images drawn from a finished release, for another run to begin with: they bring along what their release cost."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpdm.config import Public, is_release, sums_of
from dpdm.data import Fit, ImageDataset
from dpdm.data.procedural import tell_progress
from dpdm.methods.stored import StoredGenerator
from dpdm.privacy import Earlier
from dpdm.runs.public import MOST_PARTS
from dpdm.runs.release import Release
from dpdm.runs.run_folder import folder_with_weights, pipeline_of
from dpdm.runs.verification import understood, verify_release
from dpdm.types import InputError, require_at_most

COUNT = 10_000
"""Images that are drawn by default: a network's take their time."""

MOST = 50_000
"""Most images that are drawn by default, of a release that holds what it draws."""


class Drawn(NamedTuple):
    """Images of a release, and the noisy sums that it rests on: whoever begins with these images counts them again."""

    images: ImageDataset
    earlier: tuple[Earlier, ...]


def open_begun_with(declared: Public, shape: tuple[int, int, int], class_names: tuple[str, ...], fit: Fit) -> Drawn:
    """Return the images that `[public]` names, framed as private ones: public ones, or those of a release."""
    if not is_release(declared.source):
        return Drawn(declared.open(shape, class_names, fit), ())
    drawn = open_drawn(declared.source, shape=shape)
    named = drawn.images if declared.name is None else replace(drawn.images, name=declared.name)
    return drawn._replace(images=named)


def open_drawn(run: str, *, shape: tuple[int, ...] | None = None, count: int | None = None) -> Drawn:
    """Return images drawn from a release, as many of each class, by a public seed.

    Args:
        run: The folder of a finished run, or its `release/`. Its claim is checked (`verify_release`).
        shape: What is needed: channels, height and width (default: whatever the release has).
        count: How many images (default: 10,000; or so many that all are among them that it holds, up to 50,000).

    Raises:
        InputError: The release claims nothing, does not agree with its claim, has another shape, or is the best of a
            search.
    """
    folder = folder_with_weights(Path(run).expanduser())
    verify_release(folder)  # which says by its name what is wrong
    with tempfile.TemporaryDirectory() as place:  # claim and images are of one copy, whoever changes the folder now
        copy = Path(place) / "release"
        shutil.copytree(folder, copy)
        verified, release = verify_release(copy), Release.load(copy, public=pipeline_of(run))
    earlier = sums_of(understood(release.settings).plan, verified.name, run)
    if shape not in (None, release.facts.shape):
        raise InputError(f"{run} has images of shape {release.facts.shape}, and {shape} is needed: name another run")
    public = [each for part in verified.public for each in part.sources or (() if part.drawn else (part,))]
    unprotected = tuple(dict.fromkeys((each.name, each.sha256, each.images) for each in public))
    require_at_most(MOST_PARTS, **{f"public parts that {run} rests on": len(unprotected)})
    parts = []
    wanted = release.generator.draws_of_all if isinstance(release.generator, StoredGenerator) else 0
    whole = max(COUNT, min(wanted, MOST)) if count is None else count
    for part in release.sample_in_parts(whole, seed=0):
        parts.append(part)
        tell_progress(f"images of {run}", sum(len(labels) for _, labels in parts), whole)
    images, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    of: dict[str, Any] = (
        {} if not release.facts.num_classes else {"labels": labels, "class_names": release.facts.class_names}
    )
    of |= {"num_classes": release.facts.num_classes, "name": f"drawn from {verified.name}"}
    of |= {"unprotected": unprotected}
    return Drawn(ImageDataset(images=images, public=True, drawn=True, **of), earlier)
