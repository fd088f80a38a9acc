"""The benchmark's rows become tables between the markers of a page, and nothing else of it changes."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "clipping.py"
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


def test_rows_are_rendered_between_the_markers(tmp_path):
    machine = {"commit": "abc", "processor": "P", "instructions": "I", "threads": 2, "torch": "2"}
    rows = [
        row("nonprivate", 1.0, gigaflops=100, convolution_gigaflops=150),
        row("layer-wise", 1.2),
        row("opacus-ew", None, error="RuntimeError: no, got this"),
    ]
    (tmp_path / "rows.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    page = tmp_path / "page.md"
    command = [sys.executable, BENCHMARK, "--render", page, "--rows", tmp_path / "rows.json"]
    page.write_text("no markers")
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (refused.returncode, page.read_text()) == (2, "no markers")
    assert "lacks the markers" in refused.stderr
    page.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    subprocess.run(command, check=True, timeout=120)
    text = page.read_text()
    assert text.startswith(f"before\n{MARKERS[0]}\n")
    assert text.endswith(f"{MARKERS[1]}\nafter\n")
    assert "old" not in text
    assert "| | K = 4, B = 64 |" in text
    assert "| layer-wise | 1200, 1.20×, 300 |" in text
    assert "| opacus-ew | cannot run |" in text
    assert "opacus-ew cannot run: RuntimeError: no.\n" in text
    assert "100 of 150" in text
