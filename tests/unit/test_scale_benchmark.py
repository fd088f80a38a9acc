"""The benchmark of scale at toy size: each part measures, and rows become two tables and nothing else of a page."""

import importlib
import json
import mmap
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TOYS = {
    "steps": {"own": 1000, "count": 3, "alone": (100, 1000)},
    "plans": {"steps": (10,), "lines": (10, 100)},
    "ledger": {"runs": (1, 2)},
    "images": {"sizes": (4, 8), "shard": 4},
    "digests": {"keyed": (10, 20), "compared": (10, 20)},
    "communication": {"numbers": 20},
    "audit": {"sizes": (4, 8), "generated": 2},
}


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("scale")


def test_there_is_a_toy_of_each_part(scale):
    assert [*scale.PARTS] == [*TOYS]


@pytest.mark.parametrize("part", TOYS)
def test_a_part_measures_what_it_says(part, scale, monkeypatch):
    monkeypatch.setattr(scale.Plan, "calibrate", lambda plan, *, epsilon: plan)  # which takes seconds at any size
    rows = [*scale.PARTS[part](**TOYS[part])]
    rows = json.loads(json.dumps(rows))
    for row in rows:
        assert len(row["sizes"]) == len(row["seconds"]) == len(row["bytes"])
        assert all(seconds >= 0 for seconds in row["seconds"])
        assert row["at"] >= row["sizes"][-1]
    assert "nan" not in scale.render(rows)


def test_what_was_measured_stands_apart_from_what_is_projected(scale, tmp_path, monkeypatch):
    row = {"what": "w", "by": "b", "of": "images", "sizes": [10, 1000], "seconds": [0.1, 36.0], "bytes": [0, 2e6]}
    (tmp_path / "rows.json").write_text(json.dumps([row | {"at": 1000}, row | {"at": 100_000}]))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{scale.MARKERS[0]}\nold\n{scale.MARKERS[1]}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["scale.py", "--render", str(page), "--rows", str(tmp_path / "rows.json")])
    scale.main()
    text = page.read_text()
    assert text.startswith(f"before\n{scale.MARKERS[0]}\n")
    assert text.endswith(f"{scale.MARKERS[1]}\nafter\n")
    assert "old" not in text
    measured, projected = text.split("**Projected**")
    assert "| w | b | 1,000 images | 36 | 1.28 | 0 to 2 |\n" in measured
    assert "| w | b | 1,000 images | 36 | 1.28 | 0 to 2 | 100,000 | 1 |\n" in projected
    assert "the images are 1.23 TB" in projected


def test_memory_is_what_a_process_of_its_own_grew_by(scale):
    growth = importlib.import_module("growth")

    def work():  # in a place of its own: what tests before have freed may serve whoever asks for memory
        place = mmap.mmap(-1, 50_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        place[::4096] = bytes(len(place[::4096]))

    _, grown = growth.measure(work)
    assert 45_000_000 < grown < 80_000_000
