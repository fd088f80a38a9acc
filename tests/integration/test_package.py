"""The wheel by itself, in an environment of its own: it has all its files, and the demo's steps run."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_wheel_in_a_clean_environment_trains_samples_and_reports(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", tmp_path, ROOT], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("dpdm-*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    for name in ("dpdm/py.typed", "dpdm/report/page.css", "dpdm/report/page.js", "dpdm/presets/digits.toml"):
        assert name in inside
    assert not [name for name in inside if name.startswith("tests")]
    environment = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    constraints = ROOT / "constraints.txt"
    torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    for what in ([torch], [str(wheel)]):
        line = [environment / "bin" / "pip", "install", "-q", "-c", constraints, *what]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for line in (
        ["train", "digits", "--epsilon=5", "-r", "run", "--set=privacy.steps=20", "--set=loss.noise_multiplicity=1"],
        ["sample", "run", "-n", "500", "-o", "made.npz"],
        ["evaluate", "made.npz", "--reference", "digits:test", "--quick"],
        ["verify", "run"],
        ["report", "run"],
    ):
        done = subprocess.run(
            [environment / "bin" / "dpdm", *line], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
