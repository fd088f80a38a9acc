"""The page itself: one HTML file that needs no network, from the facts and the release's own images."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image

from dpdm.evaluation import Score, image_grid, templates
from dpdm.files import read_json, write_atomically, write_json
from dpdm.privacy.accounting import downwards, upwards
from dpdm.report.facts import gather
from dpdm.runs import Release
from dpdm.runs.run_folder import release_folder
from dpdm.runs.verification import percent
from dpdm.types import Images, InputError

_PER_CLASS, _MOST_CLASSES = 20, 20


def write_report(
    run: Path, output: Path, *, scores: Path | None = None, private: bool = False, public: Path | None = None
) -> None:
    """Write the page to `output`, and the facts beside it as JSON; each wholly or not at all.

    Args:
        run: A finished run's folder, or its `release/`.
        output: A file name that ends in .html; its twin gets .json.
        scores: What `dpdm evaluate --json` printed, in a file.
        private: Whether losses, norms, an audit's findings and its pictures come in.
        public: The folder of the diffusers pipeline that a text-to-image release needs for drawing.

    Raises:
        InputError: See `gather`; or `output` is no .html name.
    """
    if output.suffix != ".html":
        raise InputError(f"{output}: a report's name must end in .html")
    twin = output.with_suffix(".json")
    if twin.exists() and "audience" not in read_json(twin):
        raise InputError(f"{twin} exists and is no report's: choose another name for the page, its twin goes there")
    if output.resolve().parent == release_folder(run).resolve():
        raise InputError(f"{output} would lie in the release, which holds nothing but its own files: choose another -o")
    facts, release = gather(run, scores=scores, private=private, public=public)
    nearest = run / "private" / "audit" / "nearest.png"
    picture = nearest.read_bytes() if private and nearest.is_file() else None
    output.parent.mkdir(parents=True, exist_ok=True)
    page = render(facts, release, nearest=picture)
    write_json(twin, facts)
    write_atomically(output, lambda path: path.write_text(page, encoding="utf-8"))


def render(facts: dict[str, Any], release: Release, *, nearest: bytes | None = None) -> str:
    """Return the page.

    Args:
        facts: What `gather` returned.
        release: Whose images are shown.
        nearest: A PNG of generated images beside the nearest training images: private.
    """
    names = release.facts.class_names or ("all",)
    labels = np.repeat(np.arange(min(len(names), _MOST_CLASSES)), _PER_CLASS)
    images, _ = release.sample(len(labels), labels=labels, seed=0)
    rows = np.split(images, range(_PER_CLASS, len(images), _PER_CLASS))
    page = templates("dpdm.report")
    said = {"upwards": upwards, "downwards": downwards, "percent": percent, "percents": _percents, "times": _times}
    page.filters |= said | {"pairs": _pairs, "interval": lambda score: Score(**score)}
    return page.get_template("page.html").render(
        facts=facts,
        settings=tomli_w.dumps(facts["settings"]),
        samples=dict(zip(names, map(_png_of_a_row, rows), strict=False)),
        per_class=_PER_CLASS,
        num_classes=len(names),
        nearest=None if nearest is None else _address(nearest),
        upwards=upwards,
    )


def _pairs(rows: Sequence[Mapping[str, Any]], first: str, second: str) -> list[tuple[Any, Any]]:
    """Return two values of each row that has both."""
    return [(row[first], row[second]) for row in rows if first in row and second in row]


def _percents(share: float | None) -> str:
    """Say a share of 0..1 in per cent; nothing of a share that is not known."""
    return "" if share is None else f"{100 * share:.1f}"


def _times(factor: float) -> str:
    """Say a bound as a factor, rounded up to three digits."""
    step = 10.0 ** (math.floor(math.log10(factor)) - 2)
    above = math.ceil(factor / step) * step
    return f"{above:,.0f} ×" if 1000 <= above < 1e9 else f"{above:.3g} ×"


def _png_of_a_row(images: Images) -> str:
    """Return a data URL of images side by side."""
    grid = image_grid(images, columns=len(images), scale=max(1, 64 // images.shape[1]))
    with io.BytesIO() as stream:
        Image.fromarray(grid[..., 0] if grid.shape[2] == 1 else grid).save(stream, "PNG", optimize=True)
        return _address(stream.getvalue())


def _address(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
