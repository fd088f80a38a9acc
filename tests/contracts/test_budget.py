"""How long the code may be: a file, a function, and all that somebody must read who would trust a claim.

A line of code is one that is neither blank nor a comment nor a docstring.
"""

import ast
import io
import re
import statistics
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "dpdm"
FILES = sorted(PACKAGE.rglob("*.py"))

MOST_OF_A_FILE = 400  # lines, whatever is in them
MOST_OF_THE_MEDIAN_FILE = 140  # a method is one file of at most 200
MOST_OF_A_FUNCTION = 50  # lines of code
LONGER_STILL: set[str] = set()  # no function may be added

PRIVACY = "batch_selection entropy clipping layerwise layer_rules sums rehearsal unchanged diagnostics noise mechanism"
RUNS = "run folder trainer public start drawn release benchmark verification weights exported"
ONE_RUN = [
    *(
        f"privacy/{name}.py"
        for name in f"{PRIVACY} processes plan releases accounting gaussians figures journal".split()
    ),
    *(f"runs/{name}.py" for name in RUNS.split()),
    "methods/interface.py",
    "methods/values.py",
    "config/earlier.py",
    "generators.py",
]
ACROSS_RUNS = [
    *(
        f"ledger/{name}.py"
        for name in ["account", "book", "counting", "decisions", "entries", "identity", "records", "storage"]
    ),
    *("privacy/filter.py", "privacy/search.py", "runs/known.py", "runs/settling.py", "runs/tuning.py"),
]
MOST_TO_READ = {"of one run": (ONE_RUN, 4090), "across runs": (ACROSS_RUNS, 1546)}  # lines of code


def lines_of_code(text: str) -> set[int]:
    """Return the numbers of a file's lines of code."""
    layout = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in layout]
    code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code -= {*range(node.lineno, node.end_lineno + 1)}  # the docstring of a class, a function or a field
    return code


def functions(path: Path) -> dict[str, int]:
    """Return the most lines of code that a function of each name in a file has, from its `def` to its end."""
    text = path.read_text()
    code, found = lines_of_code(text), {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{path.relative_to(PACKAGE)}: {node.name}"
            found[name] = max(found.get(name, 0), len(code & {*range(node.lineno, node.end_lineno + 1)}))
    return found


def test_lines_of_code_are_counted_right():
    text = '"""Doc."""\n\nimport a  # why\n\n\ndef f(\n    b,\n):\n    """Doc.\n\n    More.\n    """\n    # why\n'
    text += '    return """\n\n"""\n'
    assert lines_of_code(text) == {3, 6, 7, 8, 14, 15, 16}


def test_no_file_is_too_long():
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MOST_OF_A_FILE} == {}
    assert statistics.median(lengths.values()) <= MOST_OF_THE_MEDIAN_FILE


def test_no_function_is_too_long():
    lengths = {name: length for path in FILES for name, length in functions(path).items()}
    assert {name for name, length in lengths.items() if length > MOST_OF_A_FUNCTION} == LONGER_STILL


@pytest.mark.parametrize("claim", MOST_TO_READ)
def test_what_one_must_read_to_trust_a_claim_stays_readable(claim):
    files, most = MOST_TO_READ[claim]
    assert sum(len(lines_of_code((PACKAGE / name).read_text())) for name in files) <= most


def test_the_page_on_privacy_lists_the_same_files():
    page = (ROOT / "docs" / "privacy.md").read_text()
    section = re.search(r"^## What to read to trust a claim$(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\| (.*?) \| (.*?) \|", section[1], re.MULTILINE)
    for some, files in ((rows[:-3], ONE_RUN), (rows[-3:], ACROSS_RUNS)):
        assert sorted(name for _, cell in some for name in re.findall(r"`([\w/]+\.py)`", cell)) == sorted(files)
    for _, most in MOST_TO_READ.values():
        assert f"{most:,}" in section[1]


def test_every_file_of_privacy_and_ledger_is_listed_or_makes_no_claim():
    """A new file there is part of what one must read, until somebody says that it is not."""
    none = {"privacy/auditing.py", "ledger/shown.py"}  # statistics of attacks; what people are shown
    found = {str(path.relative_to(PACKAGE)) for room in ("privacy", "ledger") for path in (PACKAGE / room).glob("*.py")}
    assert {name for name in found if not name.endswith("__init__.py")} - none <= {*ONE_RUN, *ACROSS_RUNS}
