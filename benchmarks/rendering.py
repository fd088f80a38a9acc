"""Tables of measured rows, and their place on a page."""

from pathlib import Path
from typing import Any


def tables(rows: list[dict[str, Any]]) -> str:
    """Return one table for each network and precision, and which strategies could not run."""
    text = []
    for network, dtype in dict.fromkeys((r["network"], r["dtype"]) for r in rows):
        these = [r for r in rows if (r["network"], r["dtype"]) == (network, dtype)]
        cases = list(dict.fromkeys((r["noise_multiplicity"], r["batch"]) for r in these))
        text += [f"\n{network}, {dtype}: µs a noisy copy, ratio to nonprivate, peak MB\n"]
        text += ["| | " + " | ".join(f"K = {k}, B = {b}" for k, b in cases) + " |", "|---|" + "---|" * len(cases)]
        for strategy in dict.fromkeys(r["strategy"] for r in these):
            cells = []
            for k, b in cases:
                found = [r for r in these if (r["strategy"], r["noise_multiplicity"], r["batch"]) == (strategy, k, b)]
                cells.append(cell(found[0]) if found else "")
            text.append(f"| {strategy} | " + " | ".join(cells) + " |")
        plain = [r for r in these if r["strategy"] == "nonprivate"]
        rates = ", ".join(f"{r['gigaflops']} of {r['convolution_gigaflops']}" for r in plain if "gigaflops" in r)
        text += [f"\nUseful GFLOP/s of the plain step, and of a convolution by itself: {rates}."] if rates else []
    errors = {r["strategy"]: r["error"] for r in rows if "error" in r}
    text += ["", *(f"{strategy} cannot run: {error.split(', got')[0]}.\n" for strategy, error in errors.items())]
    return "\n".join(text) + "\n"


def around(markers: tuple[str, str], page: Path) -> tuple[str, str]:
    """Return what a page has up to the first marker, and from the second one on.

    Raises:
        ValueError: The page lacks one.
    """
    whole = page.read_text(encoding="utf-8")
    if not all(marker in whole for marker in markers):
        raise ValueError(f"{page} lacks the markers {markers[0]} and {markers[1]}")
    return whole.split(markers[0])[0] + markers[0], markers[1] + whole.split(markers[1])[1]


def put_between(markers: tuple[str, str], text: str, page: Path) -> None:
    """Replace what stands between two markers of a page; ValueError unless both are there."""
    before, after = around(markers, page)
    page.write_text(f"{before}\n{text}{after}", encoding="utf-8")


def cell(row: dict[str, Any]) -> str:
    """Return one row as a table's cell."""
    if row["microseconds_per_copy"] is None:
        return "cannot run"
    memory = "" if row["peak_bytes"] is None else f", {row['peak_bytes'] / 1e6:.0f}"
    ratio = "" if row["ratio_to_nonprivate"] is None else f", {row['ratio_to_nonprivate']:.2f}×"
    return f"{row['microseconds_per_copy']:.0f}{ratio}{memory}"
