"""The examples run as they are."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_ones_own_model_in_forty_lines(capsys):
    path = EXAMPLES / "own_model.py"
    assert len(path.read_text().splitlines()) <= 40
    spec = importlib.util.spec_from_file_location("own_model", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main(steps=60) < 0.8  # guessing nothing has 1
    assert capsys.readouterr().out.startswith("(2.0, 0.0001)-DP, add or remove one image, 60 Poisson steps")
