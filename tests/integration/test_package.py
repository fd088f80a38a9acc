"""The wheel by itself, in an environment of its own: it has all its files, and the demo's steps run."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package, built."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, cwd=folder)
    (built,) = folder.glob("dpdm-*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel):
    """An environment that holds the wheel and what it requires, and nothing else."""
    environment, constraints = wheel.parent / "clean", ROOT / "constraints.txt"
    run(sys.executable, "-m", "venv", environment, cwd=wheel.parent)
    torch = next(line for line in constraints.read_text().splitlines() if line.startswith("torch=="))
    for what in (torch, wheel):  # bytecode is made of what is imported, and of no more
        run(environment / "bin" / "pip", "install", "-q", "--no-compile", "-c", constraints, what, cwd=wheel.parent)
    return environment


def run(*line, cwd):
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, line)], cwd=cwd, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_has_all_its_files(wheel):
    inside = zipfile.ZipFile(wheel).namelist()
    for name in ("py.typed", "evaluation/charts.svg", "presets/digits.toml"):
        assert f"dpdm/{name}" in inside
    for name in ("page.html", "page.css", "page.js"):
        assert f"dpdm/report/{name}" in inside
    assert not [name for name in inside if name.startswith("tests")]


def test_a_wheel_in_a_bare_environment_makes_a_release(clean, tmp_path):
    assert run(clean / "bin" / "dpdm", "--version", cwd=tmp_path).startswith("dpdm ")
    run(clean / "bin" / "dpdm", "train", "digits", "--method", "prior", "-r", "run", cwd=tmp_path)
    assert "The files agree." in run(clean / "bin" / "dpdm", "verify", "run", cwd=tmp_path)


def test_a_wheel_in_a_clean_environment_trains_samples_and_reports(clean, tmp_path):
    for line in (
        ["plan", "digits"],
        ["train", "digits", "--epsilon=5", "-r", "run", "--set=privacy.steps=20", "--set=loss.noise_multiplicity=1"],
        ["sample", "run", "-n", "500", "-o", "made.npz"],
        ["evaluate", "made.npz", "--reference", "digits:test", "--quick"],
        ["verify", "run"],
        ["report", "run"],
    ):
        run(clean / "bin" / "dpdm", *line, cwd=tmp_path)
