"""`make gpu` goes on where it stopped, ends what takes too long, and says what it lacks; its tables reach the page."""

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FACTS = {"kind": "cuda", "name": "A GPU 80GB", "memory_gib": 79.1, "torch": "2.13.0", "cuda": "12.8"}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("gpu")


@pytest.fixture
def measured(gpu, monkeypatch, tmp_path):
    """Run the command with parts of a word each, `outcomes` aside: returns its exit code, its parts, what is stored."""

    def measured(facts=FACTS, **outcomes):
        asked = []

        def outcome(line, limit):
            assert limit <= 8 * 60
            if (part := line[2]) == "device":
                return facts
            asked.append(part)
            found = outcomes.get(part, {"rows": []})
            if isinstance(found, BaseException):
                raise found
            return found

        monkeypatch.setattr(gpu, "outcome", outcome)
        code = gpu.main(["--folder", str(tmp_path / "gpu")])
        path = tmp_path / "gpu" / "a-gpu-80gb.json"
        return code, asked, json.loads(path.read_text()) if path.exists() else None

    return measured


def test_the_same_command_goes_on_where_a_part_was_interrupted(gpu, measured):
    names = [*gpu.PARTS]
    code, asked, stored = measured(memory=KeyboardInterrupt())
    assert (code, asked) == (130, names[:3])
    assert [*stored["parts"]] == names[:2]
    code, asked, stored = measured()
    assert (code, asked) == (0, names[2:])
    assert [*stored["parts"]] == names
    assert measured() == (0, [], stored)


def test_a_part_that_failed_is_stored_as_that_and_measured_again(gpu, measured, capsys):
    code, asked, stored = measured(run={"failed": "no memory"})
    assert (code, asked) == (1, [*gpu.PARTS])
    assert stored["parts"]["run"]["failed"] == "no memory"
    assert "run FAILED: no memory" in capsys.readouterr().err
    code, asked, stored = measured()
    assert (code, asked) == (0, ["run"])
    assert "failed" not in stored["parts"]["run"]


def test_another_torch_measures_all_parts_again(gpu, measured):
    measured()
    code, asked, stored = measured(FACTS | {"torch": "2.14.0"})
    assert (code, asked) == (0, [*gpu.PARTS])
    assert stored["device"]["torch"] == "2.14.0"


def test_what_is_missing_is_one_line(gpu, measured, monkeypatch, capsys):
    assert measured({"failed": "no CUDA device is to be seen"})[0] == 2
    assert capsys.readouterr().err == "gpu.py: no measuring on cuda: no CUDA device is to be seen\n"

    def version(name):
        if name in ("torch", "tomli-w"):
            raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert measured()[0] == 2
    assert "lacks tomli-w, torch: see docs/guide/gpu-and-cluster.md\n" in capsys.readouterr().err


def test_all_parts_together_take_at_most_25_minutes(gpu):
    assert sum(gpu.PARTS.values()) == pytest.approx(1)
    assert gpu.SECONDS + (1 + len(gpu.PARTS)) * gpu.GRACE <= 25 * 60


def test_a_parts_process_is_ended_in_time_and_its_last_line_counts(gpu):
    def outcome(code, limit=60.0):
        return gpu.outcome([sys.executable, "-S", "-c", code], limit)

    assert outcome("print('said'); print('{\"rows\": []}')") == {"rows": []}
    assert outcome("import os; os._exit(3)") == {"failed": "ended with exit code 3"}
    assert outcome("import time; time.sleep(60)", 0.3) == {"failed": "was not done after 0 s"}


def test_tables_of_all_that_is_stored_reach_the_page(gpu, measured, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gpu.MARKERS[0]}\nold\n{gpu.MARKERS[1]}\nafter\n")
    render = ["--folder", str(tmp_path / "gpu"), "--render", str(page)]
    assert gpu.main(render) == 0
    assert page.read_text() == f"before\n{gpu.MARKERS[0]}\n{gpu.NONE}{gpu.MARKERS[1]}\nafter\n"
    private = {"steps_planned": 4395, "projected_hours": 2.44, "strategy": "layer-wise", "images": "random images"}
    row = {"network": "paper U-Net", "strategy": "layer-wise", "noise_multiplicity": 4, "batch": 64}
    of_clipping = {"dtype": "float32", "microseconds_per_copy": 120.0, "ratio_to_nonprivate": 1.2, "peak_bytes": 10**9}
    of_adapter = {"images_per_second": 51.0, "ratio_to_plain": 1.12, "trained_parameters": 797_184, "batch": 64}
    of_adapter |= {"unet_parameters": 860_318_148, "latent": [4, 32, 32], "peak_bytes": 3 * 10**10}
    code, _, _ = measured(
        tests={"passed": 50, "skipped": 1},
        agreement={"rows": [{**row, "float32": 3e-7, "bfloat16": 2e-3}], "claims_equal": True},
        memory={"rows": [{**row, "examples_at_once": 90, "peak_bytes": 3 * 10**10, "planned_bytes": 4 * 10**10}]},
        adapter=of_adapter,
        run={**private, "steps_per_second": 0.5, "peak_bytes": 2 * 10**9},
        **{"clipping, float32": {"rows": [{**row, **of_clipping}]}, "clipping, bfloat16": {"failed": "no memory"}},
    )
    assert code == 1
    assert gpu.main(render) == 0
    text = page.read_text()
    assert "### A GPU 80GB\n" in text
    assert "| tests | 50 passed, 1 skipped |" in text
    assert "| agreement | claims are equal |" in text
    assert (
        "| run | 0.5 steps a second; all 4,395 steps: 2.4 hours (layer-wise, on random images, at most 2.0 GB) |"
        in text
    )
    assert (
        "| adapter | 51 images a second, 1.12 × a plain step; 797,184 of 860,318,148 parameters train, 64 lat" in text
    )
    assert "| clipping, bfloat16 | failed: no memory |" in text
    assert "| clipping, float32 | below; Opacus is not installed |" in text
    assert "| paper U-Net, layer-wise | 3.0e-07 | 2.0e-03 |" in text
    assert "| layer-wise | 4 | 90 | 30.00 | 40.00 |" in text
    assert "| layer-wise | 120, 1.20×, 1000 |" in text
    page.write_text("no markers")
    assert (gpu.main(render), page.read_text()) == (2, "no markers")


def test_results_say_what_is_stored(gpu, tmp_path):
    page = tmp_path / "results.md"
    page.write_text((ROOT / "docs" / "results.md").read_text(encoding="utf-8"), encoding="utf-8")
    assert gpu.main(["--render", str(page)]) == 0
    assert page.read_text(encoding="utf-8") == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_without_opacus_its_rows_are_left_out_with_a_line(gpu, monkeypatch, capsys):
    clipping = importlib.import_module("clipping")
    monkeypatch.setitem(sys.modules, "opacus.grad_sample", None)
    made_up = clipping.made_up(clipping.CompactUNet(width=16), 1, 1, clipping.CPU)
    assert clipping.opacus(*made_up) == []
    assert "Opacus is not installed" in capsys.readouterr().err
