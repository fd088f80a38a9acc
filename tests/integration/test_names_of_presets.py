"""A folder that is called like a preset: which of the two is meant is told."""

import numpy as np
import pytest
from typer.testing import CliRunner

from dpdm.cli import app

PLAN = ["--epsilon=1", "--dataset-size=1000", "--method=prior", "--set=data.size=8", "--set=data.channels=1"]


@pytest.mark.parametrize(
    ("lies_there", "target", "told"), [(True, "digits", True), (True, "./digits", False), (False, "digits", False)]
)
def test_a_folder_called_like_a_preset_is_told(tmp_path, monkeypatch, lies_there, target, told):
    monkeypatch.chdir(tmp_path)
    if lies_there:
        (tmp_path / "digits").mkdir()
        np.save(tmp_path / "digits" / "images.npy", np.zeros((20, 8, 8), np.uint8))
    result = CliRunner().invoke(app, ["plan", target, *PLAN, "--set=data.num_classes=2"])
    line = "digits is taken for the preset of this name. Say ./digits for what lies here"
    assert (line in result.output) is told


def test_a_plan_says_the_range_of_the_noise_of_its_sums(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["plan", "digits", *PLAN, "--set=data.num_classes=10"])
    assert result.exit_code == 0, result.output
    assert "noise from " in result.output
    assert "times what one image can change" in result.output
