"""The examples run as they are."""

import importlib.util
import json
import shlex
import sys
import types
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_ones_own_model_in_forty_lines(capsys):
    path = EXAMPLES / "own_model.py"
    assert len(path.read_text().splitlines()) <= 40
    spec = importlib.util.spec_from_file_location("own_model", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.main(steps=60) < 0.8  # guessing nothing has 1
    assert capsys.readouterr().out.startswith("(2.0, 0.0001)-DP, add or remove one image, 60 Poisson steps")


@pytest.mark.proof
def test_a_network_of_ones_own_is_trained_saved_and_opened_again(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("own_network", EXAMPLES / "own_network.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    images, _ = example.main(tmp_path / "run", steps=4).sample(3, seed=0)
    assert images.shape == (3, 8, 8, 1)
    assert capsys.readouterr().out.startswith("(2.0, 0.0001)-DP, blank out one image")
    assert 'type = "own_network.Convolutions"' in (tmp_path / "run" / "release" / "config.toml").read_text()


def cells(name):
    """The code of a notebook, cell by cell."""
    notebook = json.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        assert not cell.get("outputs"), "clear the outputs: they are what ran on somebody's machine"
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])


@pytest.mark.proof
def test_a_folder_becomes_a_release_from_top_to_bottom(dpdm, tmp_path, monkeypatch):
    """Lines of a shell go through the command line; what only a browser can show is called, and shows nothing."""
    shown = []
    display = types.ModuleType("IPython.display")
    display.display, display.IFrame = shown.append, lambda source, *_: Path(source).read_text(encoding="utf-8")
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    names, said = {}, ""
    for code in cells("own_folder.ipynb"):
        if not code.startswith("!"):
            exec(compile(code, "own_folder.ipynb", "exec"), names)
            continue
        shell = [line for line in code.splitlines() if line.startswith("!")]
        for line in shell:
            program, *arguments = shlex.split(line[1:])
            assert program == "dpdm"
            answer, out, err = dpdm(*arguments)
            assert answer == 0, f"{line}\n{err}"
            said += out
        exec(compile("\n".join(line for line in code.splitlines() if line not in shell), "shown", "exec"), names)
    assert names["images"].shape == (100, 8, 8, 1)
    assert "declared so, and the claim does not protect it" in said
    assert [type(each) for each in shown[1:]] == [str]


@pytest.mark.proof
def test_the_notebook_runs_from_top_to_bottom(capsys):
    names: dict[str, object] = {}
    for code in cells("step_by_step.ipynb"):
        exec(compile(code, "step_by_step.ipynb", "exec"), names)
    assert names["images"].shape == (1000, 8, 8, 1)
    assert names["scores"]["cnn"].accuracy > 0.5
    assert capsys.readouterr().out.count(names["plan"].statement) == 2
