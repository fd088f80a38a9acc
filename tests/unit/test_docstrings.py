"""Each public name has an example in its docstring, which runs as it stands; no docstring has a long sentence."""

import ast
import doctest
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import dpdm
from sentences import words_of_sentences

PACKAGE = Path(dpdm.__file__).parent
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


def long_sentences(code):
    """Return the sentences of more than 25 words in the docstrings of a file; its examples are no prose."""
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    texts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(code)) if isinstance(node, documented)]
    prose = [re.sub(r"^ *>>>.*(?:\n.*\S.*)*", "", text, flags=re.MULTILINE) for text in texts]
    return [" ".join(words) for text in prose for words in words_of_sentences(text) if len(words) > 25]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_sentences_are_short(file):
    assert long_sentences(file.read_text(encoding="utf-8")) == []


def test_long_sentences_are_found():
    short, example = "word " * 24 + "end.", "Example:\n    >>> " + "word " * 30
    code = f'def f():\n    """{short}\n\n    Args:\n        a: {short} A {short}\n\n    {example}\n    """\n'
    assert long_sentences(code) == [f"A {short}"]
    assert long_sentences(f'"""{short}"""\nclass A:\n    """{short} {short}"""\n') == []
