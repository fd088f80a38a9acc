"""Images drawn from a finished release, for another run to begin with: they bring along what their release cost."""

from pathlib import Path
from typing import NamedTuple

from dpdm.data import ImageDataset
from dpdm.data.public import COUNT
from dpdm.privacy import Earlier, FullSum, Plan, PoissonSums
from dpdm.privacy.releases import Release as Sums
from dpdm.privacy.releases import noise_of
from dpdm.runs.release import Release, read_claim, read_settings
from dpdm.runs.run_folder import release_folder
from dpdm.runs.verification import understood, verify_release
from dpdm.types import InputError


class Drawn(NamedTuple):
    """Images of a release, and the noisy sums that it rests on: whoever begins with these images counts them again."""

    images: ImageDataset
    earlier: tuple[Earlier, ...]


def is_release(source: str) -> bool:
    """Tell whether a source of images is the folder of a finished run, or its `release/`."""
    folder = Path(source).expanduser()
    return any((place / "privacy.json").is_file() for place in (folder, folder / "release"))


def open_drawn(run: str, *, count: int | None = None) -> Drawn:
    """Return images drawn from a release, as many of each class, by a public seed.

    Args:
        run: The folder of a finished run, or its `release/`. Its claim is checked (`verify_release`).
        count: How many images (default: as many as of other sources that are drawn).

    Raises:
        InputError: The release claims nothing, does not agree with its claim, or is the best of a search.
    """
    folder = release_folder(Path(run).expanduser())
    verified = verify_release(folder)
    plan = understood(read_settings(folder, read_claim(folder))).plan
    assert isinstance(plan, Plan)
    if plan.search is not None:
        raise InputError(f"{run} is the best run of a search, whose cost is no list of noisy sums: name another run")
    own = tuple(_earlier(release, plan, verified.name) for release in plan.releases)
    release = Release.load(folder)
    images, labels = release.sample(count or COUNT, seed=0)
    of = {} if not release.facts.num_classes else {"labels": labels, "class_names": release.facts.class_names}
    data = ImageDataset(
        images=images,
        num_classes=release.facts.num_classes,
        name=f"drawn from {verified.name}",
        public=True,
        **of,  # type: ignore[arg-type]
    )
    return Drawn(data, (*plan.earlier, *own))


def _earlier(release: Sums, plan: Plan, run: str) -> Earlier:
    rate = plan.rate(release) if isinstance(release, PoissonSums) else 1.0
    assert isinstance(release, FullSum | PoissonSums)
    return Earlier(
        run=run,
        noise_multiplier=noise_of(release),
        sample_rate=rate,
        count=release.count,
        relation=plan.relation,
        unit=plan.unit,
    )
