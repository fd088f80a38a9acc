"""One way in to images that are nobody's: drawn by a program, or published and declared so."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

import numpy as np

from dpdm.data.claims import find_claim
from dpdm.data.dataset import ImageDataset
from dpdm.data.fonts import render_fonts
from dpdm.data.framing import Channels, Fit, Framing
from dpdm.data.location import BUILT_IN, found, is_source, split_of
from dpdm.data.open import open_dataset
from dpdm.data.procedural import Shape, require_frame
from dpdm.data.shapes import draw_shapes
from dpdm.types import InputError, require_counts

DRAWN: Final = ("fonts", "shapes")
"""The sources that a program draws."""

COUNT: Final = 30_000
"""Images that are drawn by default."""


def open_public(
    source: str | Path,
    *,
    shape: Shape,
    class_names: Sequence[str] = (),
    count: int | None = None,
    fit: Fit = "crop",
) -> ImageDataset:
    """Return public images of a shape, with labels if the source has any.

    Args:
        source: `fonts` (glyphs of the fonts on this machine), `shapes` (leaves, strokes, blobs and textures), or
            whatever `open_dataset` opens. What `open_dataset` opens is declared public thereby. Or several of these,
            joined by `+`, as in `fonts+shapes`. The names `fonts` and `shapes` go before a path: write `./fonts`, or
            pass a Path, for a folder of that name. Several sources keep labels if all have the same class names.
        shape: Channels, height and width of each image. Where it is no square, images of a source must have it already.
        class_names: Those of the images that these shall help: if each is one character, `fonts` draws them.
        count: How many images are taken of each source: drawn, or chosen at random, by a public seed, where it has
            more. Default: 30,000 are drawn, and all are taken of other sources.
        fit: How images of a source become square (see `Framing`): best as the private ones did.

    Raises:
        InputError: If a source cannot be opened so, or says that it was drawn from a private release.

    Guarantees:
        * The same arguments make the same images, as long as sources and fonts are the same.
    """
    require_frame("public images", 1, shape)
    Framing(fit=fit)  # which says what there is, before the first image is drawn
    if count is not None:
        require_counts(count=count)
    sources = require_public_there(source)  # before the first image is drawn
    opened = [_open(one, shape, class_names, count, fit) for one in sources]
    return opened[0] if len(opened) == 1 else _joined(opened)


def require_public_there(source: str | Path) -> list[str | Path]:
    """Return the sources that are joined; raise InputError if one is not there, or was drawn from a private release."""
    sources = _sources(source)
    for one in sources:
        if one not in DRAWN:
            _require_there(one)
            require_no_claim(one)
    return sources


def require_others_than(private: str, source: str | Path) -> None:
    """Raise InputError if one of the joined public sources lies where the private images do (see `location_of`)."""
    for one in require_public_there(source):
        if one_holds(private, location_of(one)):
            raise InputError(
                f"{Path(one).name} names the images that are to be protected, or some of them: what starts from them "
                "would publish them. Name other images as public ones"
            )


def one_holds(one: str, other: str) -> bool:
    """Whether two locations are one place, or a folder and what lies in it; parts of one source are others."""
    (place, part), (there, another) = split_of(one), split_of(other)
    if place == there:
        return part == another
    return Path(place) in Path(there).parents or Path(there) in Path(place).parents


def location_of(source: str | Path) -> str:
    """Return where a source lies, as `ImageDataset.location` begins; its name, if that is a built-in one."""
    place, split = split_of(source)
    if isinstance(source, str) and place in (*BUILT_IN, *DRAWN):
        return place
    return f"{found(Path(place).expanduser()).resolve()}{'' if split == 'train' else f':{split}'}"


def _sources(source: str | Path) -> list[str | Path]:
    """Return the sources that are joined by `+`; what exists by this name as a whole is one."""
    if isinstance(source, Path) or "+" not in source or is_source(source):
        return [source]
    names = [name.strip() for name in source.split("+")]
    for number, name in enumerate(names):
        if not name:
            raise InputError(f"public images {source!r} name an empty source: give names or paths, joined by +")
        if name in names[:number]:
            raise InputError(f"public images {source!r} name {name} twice: name it once")
    return [*names]


def _open(source: str | Path, shape: Shape, class_names: Sequence[str], count: int | None, fit: Fit) -> ImageDataset:
    """Return the images of one source."""
    if source == "fonts":
        return render_fonts(count or COUNT, shape, class_names)
    if source == "shapes":
        return draw_shapes(count or COUNT, shape)
    channels, height, width = shape
    size = height if height == width else None
    opened = open_dataset(source, size=size, fit=fit, channels=cast(Channels, channels), public=True)
    if opened.shape != shape:
        raise InputError(
            f"{opened.name} has images of shape {opened.shape}, and {shape} is needed: bring them to this size, since "
            "only squares are made of others"
        )
    if count is None or count >= len(opened):
        return opened
    some = np.sort(np.random.default_rng(0).choice(len(opened), count, replace=False))
    return replace(opened.part(some), made_of=(opened,))


def _joined(opened: Sequence[ImageDataset]) -> ImageDataset:
    """Return the images of all sources, one after the other."""
    first, *others = opened
    same = all(other.class_names == first.class_names for other in others)
    labels = [data.labels for data in opened if data.labels is not None and same]
    joined = ImageDataset(
        images=np.concatenate([data.images for data in opened]),
        name="+".join(data.name for data in opened),
        public=True,
        made_of=tuple(each for data in opened for each in (data, *data.made_of)),
    )
    if len(labels) < len(opened):
        return joined
    return replace(joined, labels=np.concatenate(labels), num_classes=first.num_classes, class_names=first.class_names)


def _require_there(source: str | Path) -> None:
    """Raise InputError, with what may be meant, if there is no such source."""
    if is_source(str(source)):
        return
    close = difflib.get_close_matches(str(source), [*DRAWN, *BUILT_IN], n=1)
    raise InputError(
        f"{str(source) or 'an empty name'} is neither a path that exists (here or where DPDM_DATA points) nor one of "
        f"{', '.join([*DRAWN, *BUILT_IN])}: {f'did you mean {close[0]}?' if close else 'check the path'}"
    )


def require_no_claim(source: str | Path) -> None:
    """Raise InputError if images say that they were drawn from a private release: .npz, PNG files, prepared folders."""
    place, _ = split_of(source)
    if isinstance(source, str) and place in BUILT_IN:
        return
    at = found(Path(place).expanduser()).resolve()
    for folder in filter(_is_of_a_run, (at, *at.parents[:2])):
        raise InputError(f"{place} belongs to a private run: name the run itself ({folder}), and nothing beside it")
    if (carried := find_claim(found(Path(place).expanduser()))) is not None:
        path, claim = carried
        raise InputError(f"{path} was drawn from a private release ({claim}): its images are not public data")


def _is_of_a_run(folder: Path) -> bool:
    """Tell whether a folder is that of a run, going on or finished, or its `release/`."""
    finished = (folder / "release" / "privacy.json").is_file() and (folder / "watch").is_dir()
    return finished or any((folder / name).is_file() for name in ("privacy.json", "private/journal.jsonl"))
