"""The first tables of docs/results.md, from the packaged table that `dpdm advise` reads.

`python benchmarks/standing.py --render docs/results.md` makes them anew.
"""

import argparse
from pathlib import Path

from dpdm.runs.advice import Row, measured
from rendering import put_between

MARKERS = ("<!-- standing: begin -->", "<!-- standing: end -->")
_PUBLISHED = {  # CNN of the paper (Dockhorn et al. 2023); CIFAR-10: DPDM in DPImageBench, its WRN
    ("MNIST", 1): "95.3",
    ("MNIST", 10): "98.1",
    ("Fashion-MNIST", 0.2): "72.3",
    ("Fashion-MNIST", 1): "79.4",
    ("Fashion-MNIST", 10): "86.2",
    ("CIFAR-10", 1): "28.9",
    ("CIFAR-10", 10): "36.8",
}


def tables() -> str:
    """Return one table for each data set: at each ε the best way by the CNN first."""
    _, rows = measured()
    text = []
    for images in dict.fromkeys(row.images for row in rows):
        these = sorted((row for row in rows if row.images == images), key=lambda row: (row.epsilon, -row.cnn))
        text += [f"\n**{images}**\n", "| ε | images | way | public | LogReg | MLP | CNN | protocol | min | measured |"]
        text += ["|---|---|---|---|---|---|---|---|---|---|", *map(_line, these)]
        said = [f"{cnn} at ε = {epsilon:g}" for (name, epsilon), cnn in _PUBLISHED.items() if name == images]
        text += [f"\nDPDM, published, without public images: {', '.join(said)}."] if said else []
    return "\n".join(text) + "\n"


def _line(row: Row) -> str:
    logreg, mlp = ("" if value is None else f"{value:.1f}" for value in (row.logreg, row.mlp))
    cells = [f"{row.epsilon:g}", f"{row.number:,}", row.way, row.public or "", logreg, mlp, f"{row.cnn:.1f}"]
    return f"| {' | '.join([*cells, row.protocol, '' if row.minutes is None else f'{row.minutes:g}', row.measured])} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--render", type=Path, required=True, metavar="PAGE", help="the page with the markers")
    put_between(MARKERS, tables(), parser.parse_args().render)
