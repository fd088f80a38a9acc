"""The benchmark's rows become tables between the markers of a page, and nothing else of it changes."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MARKERS = "<!-- clipping: made by make bench -->", "<!-- clipping: end -->"


def row(strategy, ratio, **other):
    return {
        "strategy": strategy,
        "network": "compact U-Net",
        "dtype": "float32",
        "noise_multiplicity": 4,
        "batch": 64,
        "microseconds_per_copy": ratio and 1000 * ratio,
        "ratio_to_nonprivate": ratio,
        "peak_bytes": ratio and 3 * 10**8,
        **other,
    }


def test_rows_are_rendered_between_the_markers(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    clipping = importlib.import_module("clipping")
    machine = {"commit": "abc", "processor": "P", "instructions": "I", "threads": 2, "torch": "2"}
    rows = [
        row("nonprivate", 1.0, gigaflops=100, convolution_gigaflops=150),
        row("layer-wise", 1.2),
        row("opacus-ew", None, error="RuntimeError: no, got this"),
    ]
    (tmp_path / "rows.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    page = tmp_path / "page.md"
    command = ["clipping.py", "--render", str(page)]
    monkeypatch.setattr(clipping, "measure", None)  # refused before anything is measured
    page.write_text("no markers")
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="2"):
        clipping.main()
    assert page.read_text() == "no markers"
    assert "lacks the markers" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--rows", str(tmp_path / "rows.json")])
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    clipping.main()
    text = page.read_text()
    assert text.startswith(f"before\n{MARKERS[0]}\n")
    assert text.endswith(f"{MARKERS[1]}\nafter\n")
    assert "old" not in text
    assert "| | K = 4, B = 64 |" in text
    assert "| layer-wise | 1200, 1.20×, 300 |" in text
    assert "| opacus-ew | cannot run |" in text
    assert "opacus-ew cannot run: RuntimeError: no.\n" in text
    assert "100 of 150" in text


def test_the_first_tables_of_the_results_are_those_of_the_packaged_rows(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    standing = importlib.import_module("standing")
    page = (BENCHMARKS.parent / "docs" / "results.md").read_text(encoding="utf-8")
    between = page.split(standing.MARKERS[0] + "\n")[1].split(standing.MARKERS[1])[0]
    assert between == standing.tables(), "python benchmarks/standing.py --render docs/results.md"
