"""What an audit opens: a finished run, its images and those held out, and what was public, each from where it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from dpdm.config import Config, Data, Machine, Public, decode, decode_method, decode_plan, read_toml, require_same_unit
from dpdm.data import Fit, ImageDataset, fit_of, open_again, open_dataset, read_location
from dpdm.methods import Method
from dpdm.methods.values import PublicStart
from dpdm.privacy import Plan
from dpdm.runs import Release, verify_release
from dpdm.runs.drawn import open_begun_with
from dpdm.runs.public import taking_part_of
from dpdm.runs.start import open_starts
from dpdm.types import InputError

_FEWEST = 16  # images, or groups, that can be audited


class Opened(NamedTuple):
    """A finished run, and what it was trained on. In `data`, public images are blank.

    `starts` are the public networks of which it began with one. `held_out` is None where there are no such images.
    """

    release: Release
    plan: Plan
    config: Config
    data: ImageDataset
    held_out: ImageDataset | None
    public: ImageDataset | None
    starts: tuple[PublicStart, ...]

    @property
    def private(self) -> ImageDataset:
        """The images without those that are public ones too: whatever a release tells of these is no secret."""
        if self.data.blank is None or not self.data.blank.any():
            return self.data
        return replace(self.data, groups=None).part(np.flatnonzero(~self.data.blank))


def open_run(
    run: Path | str,
    *,
    data: ImageDataset | None,
    public: ImageDataset | None,
    held_out: ImageDataset | str | None,
) -> Opened:
    """Return a finished run with its images, opened as they were then unless given.

    Raises:
        InputError: There is no finished run, its release does not verify or claims nothing, its images cannot be opened
            again, or are too few.
    """
    release, plan, config, location = _finished(run)
    data, held_out = _images_of(run, release, plan, location, data, held_out)
    public = _public_of(run, release, config, public, fit_of(location))
    starts = _starts_of(run, release, config)
    data = taking_part_of(data, public, starts)
    if len(left := units_that_took_part(data)) < _FEWEST:
        raise InputError(
            f"{data.name}: all but {len(left)} {plan.unit}s are public ones of this run, and an audit needs at least "
            f"{_FEWEST} others"
        )
    return Opened(release, plan, config, data, held_out, public, starts)


def units_that_took_part(data: ImageDataset) -> Int64[ndarray, " units"]:
    """Return the units that a run can have learnt anything of: those with an image that is not blank."""
    return np.unique(data.units if data.blank is None else data.units[~data.blank])


def _finished(run: Path | str) -> tuple[Release, Plan, Config, str]:
    """Return a finished run's release, plan and settings, and where its images were opened."""
    verify_release(run)
    file = Path(run) / "private" / "config.toml"
    if not file.is_file():
        raise InputError(f"{run} has no private/ folder: an audit needs all of the run's folder, where its images are")
    try:
        settings = read_toml(file)
        method, release = _as_opened(decode_method(settings), settings), Release.load(run)
        if settings["plan"] != release.settings["plan"]:
            raise InputError(f"{file} is of another run than {run}/release")
        plan = decode_plan(settings["plan"])
        assert isinstance(plan, Plan)
        config = Config(
            data=Data(source="?"),
            public=decode(Public, settings["public"], path="public.") if "public" in settings else None,
            method=method,
            seed=settings["seed"],
            machine=decode(Machine, settings["machine"], path="machine."),
        )
        return release, plan, config, settings["opened"]
    except (LookupError, TypeError, AssertionError) as error:
        raise InputError(f"{file} is damaged ({type(error).__name__})") from None


def _as_opened(method: Method, settings: dict[str, Any]) -> Method:
    """Return a run's method with the places of its starts, which a release does not tell."""
    return method.begun_from(places) if (places := settings.get("start_folders")) else method


def _images_of(
    run: Path | str,
    release: Release,
    plan: Plan,
    location: str,
    data: ImageDataset | None,
    held_out: ImageDataset | str | None,
) -> tuple[ImageDataset, ImageDataset | None]:
    """Return the images of a run, opened where they were opened then unless given, and those held out."""
    if data is None:
        if not location:
            raise InputError(f"{run} was trained on arrays: give them to dpdm.audit.audit_run(run, data=...)")
        channels = release.facts.shape[0]
        data = open_again(location, channels=channels, num_classes=release.facts.num_classes)  # type: ignore[arg-type]
    require_same_unit(plan, data)
    if data.num_units < _FEWEST:
        raise InputError(f"{run} was trained on {data.num_units} {plan.unit}s: an audit needs at least {_FEWEST}")
    if isinstance(held_out, str):
        held_out = _open_like(data, held_out, read_location(location).group if location else None, fit_of(location))
    elif held_out is None:
        held_out = _test_part(data, location)
    if data.shape != release.facts.shape or (held_out is not None and held_out.shape != data.shape):
        raise InputError(f"{run} is about images of shape {release.facts.shape}: give images of that shape")
    return data, held_out


def _starts_of(run: Path | str, release: Release, config: Config) -> tuple[PublicStart, ...]:
    """Return the public starts of a run, from where they were then."""
    starts = open_starts(config.method.start_folders)
    if tuple(start.sha256 for start in starts) != decode_method(release.settings).start_digests:
        raise InputError(f"{', '.join(config.method.start_folders)}: {run} began with another start")
    return starts


def _public_of(
    run: Path | str, release: Release, config: Config, public: ImageDataset | None, fit: Fit
) -> ImageDataset | None:
    """Return the public images that a run started from, opened as they were then unless given; None if it did not."""
    if not config.method.starts_from_images:
        return None
    if public is None:
        if config.public is None:
            raise InputError(f"{run} started from public arrays: give them to dpdm.audit.audit_run(run, public=...)")
        public = open_begun_with(config.public, release.facts.shape, release.facts.class_names, fit).images
    started = release.public[0]
    if public.digest() != started.sha256:
        raise InputError(f"{public.name} is not {started.name}, which {run} started from: its digest is another")
    return public


def _test_part(data: ImageDataset, location: str) -> ImageDataset | None:
    """Return the test part of what was opened at `location`, if it has one."""
    try:
        place, group, _, fit = read_location(location)
        return None if place.endswith(":test") else _open_like(data, f"{place}:test", group, fit)
    except InputError:
        return None


def _open_like(data: ImageDataset, source: str, group: str | None, fit: Fit) -> ImageDataset:
    channels, height, width = data.shape
    size = height if height == width else None
    num_classes = data.num_classes or None
    framing: dict[str, Any] = {"size": size, "fit": fit, "channels": channels}
    return open_dataset(source, num_classes=num_classes, group=group, **framing)
