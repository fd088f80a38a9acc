"""Each public name has an example in its docstring, which runs as it stands."""

import doctest
import tempfile

import numpy as np
import pytest
import torch

import dpdm

FLAGS = doctest.ELLIPSIS
NAMES = {name: getattr(dpdm, name) for name in dpdm.__all__}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs(name, tmp_path, monkeypatch, one_thread, capsys):
    """With the public names, numpy, torch and tempfile at hand, and a ledger of its own."""
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    at_hand = NAMES | {"dpdm": dpdm, "np": np, "torch": torch, "tempfile": tempfile}
    (example,) = [
        found for found in doctest.DocTestFinder(recurse=False).find(NAMES[name], name, globs=at_hand) if found.examples
    ]
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(example)
    assert not failed, capsys.readouterr().out
