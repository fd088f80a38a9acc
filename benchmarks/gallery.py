"""docs/gallery.md: the first images of each class by several ways at several ε, each under the command that made it.

    python benchmarks/gallery.py --runs runs/gallery --page docs/gallery.md
    python benchmarks/gallery.py --table TABLE --page docs/gallery.md

The second line makes one picture of all methods that `dpdm compare --run TABLE` compared.

Pictures and runs that are there are taken as they are: to make one anew, delete it. Starts and `fonts.npz` must be
there: how they were made is on the page, too. Data sets come from DPDM_DATA, and from Debian's `dataset-fashion-mnist`.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import fill
from typing import Final, NamedTuple

import numpy as np
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from dpdm.data import open_dataset
from dpdm.evaluation import image_grid

BUDGETS: Final = ("0.2", "1", "10")
SIDE: Final = 64  # pixels of an image on the page, about
NAMES, GAP = 260, 6  # pixels for the names of methods, and between their rows
FONTS: Final = "dpdm pretrain fonts --like mnist-cpu --minutes 36 -o starts/fonts"
TINY: Final = "dpdm pretrain tiny-imagenet-32.npz --like cifar10-cpu --minutes 55 -o starts/tiny"
SHAPES: Final = "dpdm pretrain shapes --like mnist-cpu --minutes 40 -o starts/shapes"


class Way(NamedTuple):
    """A way to images: what it is, and its command without ε and run."""

    name: str
    command: str


class Shown(NamedTuple):
    """A data set, and the ways that are shown of it."""

    name: str
    source: str
    ways: tuple[Way, ...]
    note: str = ""


GALLERY: Final = {
    "digits": Shown(
        "Digits",
        "digits",
        (
            Way("prior alone", "dpdm train digits --method prior"),
            Way("prior and network, a minute", "dpdm train digits"),
        ),
        "1,438 images of 8 × 8 pixels: very few, so little can be learnt at ε = 0.2.",
    ),
    "mnist": Shown(
        "MNIST",
        "mnist",
        (
            Way("prior alone", "dpdm train mnist-cpu --method prior"),
            Way("public start", "dpdm train mnist-cpu --start starts/fonts --set privacy.steps=0"),
            Way("private evolution", "dpdm train mnist-cpu --method evolution --public fonts"),
            Way("prior of images without their pose", "dpdm train mnist-cpu --method prior --set codec.kind=pose"),
            Way("start of drawn shapes", "dpdm train mnist-cpu --start starts/shapes --set privacy.steps=0"),
        ),
        f"60,000 images. The public start was made by `{FONTS}`, that of drawn shapes by `{SHAPES}`. Both leave poses "
        "out, as the preset does without `--method`.",
    ),
    "fashion-mnist": Shown(
        "Fashion-MNIST",
        "fashion-mnist",
        (
            Way("prior alone", "dpdm train fashion-mnist-cpu --method prior"),
            Way("private evolution", "dpdm train fashion-mnist-cpu --method evolution --public shapes"),
        ),
        "60,000 images. What a network beside the prior draws after an hour is the first picture of README.md. Drawn "
        "shapes are far from garments: private evolution has nothing nearer to choose from.",
    ),
    "fonts": Shown(
        "Glyphs of fonts",
        "fonts.npz",
        (
            Way("prior alone", "dpdm train fonts.npz --set data.public=true --method prior"),
            Way(
                "prior of images without their pose",
                "dpdm train fonts.npz --set data.public=true --method prior --set codec.kind=pose",
            ),
            Way("private evolution", "dpdm train fonts.npz --set data.public=true --method evolution --public mnist"),
        ),
        "30,000 digits of one machine's fonts, as `dpdm.data.open_public` draws them. Here they stand for private "
        "images: `data.public` spares a ledger's total. Each class is drawn in hundreds of ways: a mixture blurs them.",
    ),
    "cifar10": Shown(
        "CIFAR-10",
        "cifar10",
        (
            Way("prior alone", "dpdm train cifar10-cpu --method prior"),
            Way("public start", "dpdm train cifar10-cpu --start starts/tiny --set privacy.steps=0"),
        ),
        "50,000 images, of a copy in JPEG. What a prior of Gaussians sees of photographs is fog. The public start was "
        f"made by `{TINY}`: it adds edges and textures, and no objects.",
    ),
}


def strip(images: "ndarray", labels: "ndarray") -> Image.Image:
    """Return the first image of each class, side by side."""
    first = [int(np.flatnonzero(labels == label)[0]) for label in range(10)]
    picture = image_grid(images[first], columns=10, scale=max(1, SIDE // images.shape[1]))
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def drawn(run: Path, command: str | None = None) -> Image.Image:
    """Return the strip of a run, which its command makes if it is not there."""
    made, lines = run.with_name(f"{run.name}.npz"), [] if command is None else [f"{command} --run {run}"]
    if not made.exists():
        for line in (*lines, f"dpdm sample {run} -n 10 --seed 0 -o {made}"):
            print(line, flush=True)
            subprocess.run([sys.executable, "-m", *shlex.split(line)], check=True)
    with np.load(made) as found:
        return strip(found["images"], found["labels"])


def section(key: str, runs: Path, folder: Path) -> str:
    """Return the part of the page of one data set, and write its pictures."""
    shown = GALLERY[key]
    if not (real := folder / f"{key}-real.png").exists():
        data = open_dataset(shown.source, num_classes=10)
        assert data.labels is not None
        strip(data.images, data.labels).save(real, optimize=True)
    note = fill(shown.note, 100, break_on_hyphens=False)
    lines = [f"## {shown.name}", "", note, "", "Real images:", "", f"![real]({folder.name}/{key}-real.png)"]
    for place, way in enumerate(shown.ways):
        lines += ["", f"### {shown.name}: {way.name}"]
        for epsilon in BUDGETS:
            command, name = f"{way.command} --epsilon {epsilon}", f"{key}-{place}-{epsilon}.png"
            if not (folder / name).exists():
                drawn(runs / f"{key}-{place}-{epsilon}", command).save(folder / name, optimize=True)
            lines += [
                "",
                f"At ε = {epsilon}:",
                "",
                f"![{way.name} at ε = {epsilon}]({folder.name}/{name})",
                "",
                "```text",
                command,
                "```",
            ]
    return "\n".join(lines)


def of_methods(table: Path) -> Image.Image:
    """Return the strips of all runs of a comparison, one below the other, each beside the name of its method."""
    runs = sorted(path.parents[1] for path in table.glob("*/release/privacy.json"))
    strips = [drawn(run) for run in runs]
    width, height = (max(each.size[axis] for each in strips) + GAP for axis in (0, 1))
    picture = Image.new("L", (NAMES + width, height * len(runs)), 255)
    writer, font = ImageDraw.Draw(picture), ImageFont.load_default(size=20)
    for row, (run, each) in enumerate(zip(runs, strips, strict=True)):
        writer.text((0, row * height + height // 2), run.name, fill=0, font=font, anchor="lm")
        picture.paste(each, (NAMES, row * height))
    return picture


HEAD: Final = """# Gallery

The first image of each class, none picked (`dpdm sample RUN -n 10 --seed 0`). δ is 10⁻⁵, of the
digits 10⁻⁴. Commands lack their `--run`. How good such images are for classifiers stands in
[Results](results.md).
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made_of = parser.add_mutually_exclusive_group(required=True)
    made_of.add_argument("--runs", type=Path, help="where runs are kept")
    made_of.add_argument("--table", type=Path, help="the folder of a comparison, whose runs are shown in one picture")
    parser.add_argument("--page", type=Path, required=True, help="the page; its pictures lie in a folder of its name")
    given = parser.parse_args()
    pictures = given.page.with_suffix("")
    pictures.mkdir(exist_ok=True)
    if given.table is not None:
        of_methods(given.table).save(pictures / "methods.png", optimize=True)
    else:
        given.runs.mkdir(parents=True, exist_ok=True)
        sections = [section(key, given.runs, pictures) for key in GALLERY]
        given.page.write_text("\n\n".join([HEAD.rstrip(), *sections]) + "\n", encoding="utf-8")
