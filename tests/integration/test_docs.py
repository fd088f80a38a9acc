"""The guide's code blocks run as they stand on the page, on small data and with small settings.

`console` blocks go through the command line, `python` blocks through `exec`, all of a page in its order, in one folder.
What the page says is kept; only sizes are made smaller, by the tables below. `text` blocks are for what cannot run here
(a cluster, a browser): of these, and of `RUN_ELSEWHERE`, the command lines must at least parse.
"""

import itertools
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from PIL import Image

import dpdm as package
from diffusers_pipelines import save_text_pipeline
from dpdm import cli
from dpdm.audit import parametric, report
from dpdm.runs import tuning
from sentences import words_of_sentences

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.name for path in (DOCS / "guide").glob("*.md"))
VERBS = typer.main.get_command(cli.app).commands

SMALL = {  # added to every line of plan and train on the photos; presets are planned as they are
    "data.size": "8",
    "network.kind": "mlp",
    "network.width": "16",
    "network.blocks": "1",
    "privacy.steps": "4",
    "privacy.expected_batch_size": "60000",  # of as many declared ones: all take part, which is accounted quickly
    "loss.noise_multiplicity": "1",
    "machine.physical_batch_size": "64",
    "sampler.steps": "2",
}
OF_STEPS = ("network.", "privacy.", "loss.", "sampler.")  # settings of a method that takes steps
SMALLER = {  # options whose value is replaced, in these lines too
    "--minutes": "1",
    "-n": "30",
}
MORE = {  # options of a verb that are added
    "prepare": ["--set", "data.size=8"],
    "evaluate": ["--quick"],
    "compare": ["--quick", "-n", "30"],
    "audit": ["--minutes", "0.05"],
}
IN_PYTHON = {  # replaced in Python blocks
    "dpdm.Synthesizer(": "dpdm.Synthesizer(steps=4, expected_batch_size=60000, noise_multiplicity=1, ",
    '"privacy.steps=300"': '"privacy.steps=4"',
    "    steps=500,\n": "    steps=4,\n",
    "expected_batch_size=1024": "expected_batch_size=60000",
    "size=28": "size=8",
    "sample_size=32": "sample_size=8",
    "sample(10_000": "sample(20",
    "sample(1_000": "sample(60",
    "sample(100": "sample(10",
    "[0] * 100": "[0] * 10",
    "range(2_000)": "range(2)",
    "epochs=2": "epochs=1",
}
OTHER_COMMANDS = ("mkdir", "cp")  # of a shell, that console blocks may hold


class Block(NamedTuple):
    """A fenced block of a page: its language and its lines."""

    language: str
    text: str


def blocks(page):
    text = (DOCS / "guide" / page).read_text(encoding="utf-8")
    return [Block(*found) for found in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def lines(block):
    """The commands of a block."""
    return [line.removeprefix("$ ") for line in block.text.splitlines()]


def small(verb, arguments):
    """The arguments of a page's line, and those that make it small."""
    given = [*arguments]
    if verb == "plan" and "--dataset-size" not in given:
        return given
    for option, value in SMALLER.items():
        if option in given:
            given[given.index(option) + 1] = value
    given += MORE.get(verb, [])
    if verb == "pretrain":
        given[given.index("--minutes") + 1] = "0.02"
    if verb not in ("plan", "pretrain", "train", "tune"):
        return given
    own = [text.partition("=")[0] for flag, text in itertools.pairwise(given) if flag == "--set"]
    for key, value in SMALL.items():
        if {"prior", "evolution"} & {*given} and key.startswith(OF_STEPS):
            continue  # they take no steps, and are quick as they are
        if key.startswith("privacy.") and (key in own or verb == "pretrain"):
            continue  # of the page's own plan, or of none
        if verb == "pretrain" and key.startswith(("loss.", "sampler.", *(["network."] if "codec" in given else []))):
            continue
        if key.startswith("network.") and any(name.startswith("network.") for name in own):
            continue  # a network of the page's own
        if key == "loss.noise_multiplicity" and "--minutes" in given:
            continue  # chosen by --minutes
        given += ["--set", f"{key}={value}"]
    if any(name.startswith("pipeline.") for name in own):
        given += ["--set=population=4", "--set=votes=2", "--set=pipeline.steps=2"]
    return given


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A temporary folder with photos/, of two parts and three classes, in colour, and such images in agreed/."""
    rng = np.random.default_rng(0)
    for part, count in (("photos/train", 12), ("photos/test", 8), ("agreed", 24)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                picture = rng.integers(60 * label, 60 * label + 100, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(picture).save(tmp_path / part / name / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    monkeypatch.setattr(tuning, "NUM_IMAGES", 200)
    return tmp_path


@pytest.fixture(autouse=True)
def known_speed(monkeypatch):
    """A machine that need not be measured: 0.1 ms a noisy copy."""
    speed = lambda self, stepped, _, **within: (1e-4 * stepped.copies, 0.0)  # noqa: E731
    monkeypatch.setattr("dpdm.runs.cost._Stopwatch.seconds", speed)


@pytest.fixture(autouse=True)
def small_audit(monkeypatch):
    """An audit of fewer draws and batches; the sizes are tested elsewhere."""
    whole = report.check_mechanism
    monkeypatch.setattr(report, "check_mechanism", lambda plan: whole(plan, draws=400_000))
    monkeypatch.setattr(parametric, "_SELECTIONS", 400)


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*")
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.proof
def test_every_block_of_a_page_runs(page, folder, dpdm, one_thread):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 8, 8), dtype=np.uint8)
    names = {"images": images, "labels": np.arange(100) % 10, "dpdm": package}
    if "pipelines/sd" in (DOCS / "guide" / page).read_text(encoding="utf-8"):
        save_text_pipeline("pipelines/sd")  # a pipeline that readers have, and that no page makes
    for block in blocks(page):
        if block.language == "python":
            text = block.text
            for large, little in IN_PYTHON.items():
                text = text.replace(large, little)
            exec(compile(text, page, "exec"), names)
        elif block.language == "console":
            for line in lines(block):
                command, *arguments = shlex.split(line)
                if command in OTHER_COMMANDS:
                    subprocess.run([command, *arguments], check=True, cwd=folder)
                    continue
                assert command == "dpdm", line
                code, _, err = dpdm(arguments[0], *small(arguments[0], arguments[1:]))
                assert code == 0, f"{line}\n{err}"


@pytest.mark.parametrize("page", PAGES)
def test_lines_for_other_machines_parse(page):
    for block in blocks(page):
        if block.language == "text":
            for line in lines(block):
                before, found, line = line.partition("-m dpdm ")
                if found:
                    verb, *arguments = shlex.split(line)
                    assert before.startswith("torchrun ")
                    VERBS[verb].make_context(verb, arguments)


def test_blocks_are_of_known_kinds():
    found = {block.language for page in PAGES for block in blocks(page)}
    included = ("own_model.py", "own_network.py", "slurm.sh")
    assert found <= {"console", "python", "text", "markdown"} | {
        f"{{literalinclude}} ../../examples/{name}" for name in included
    }


def test_every_page_is_in_the_index_and_every_public_name_in_the_reference():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for path in (*DOCS.glob("*.md"), *(DOCS / "guide").glob("*.md")):
        name = str(path.relative_to(DOCS).with_suffix(""))
        assert name == "index" or f"\n{name}\n" in index
    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r":: dpdm\.(\w+)$", reference, re.MULTILINE)) == sorted(package.__all__)


ROOT = DOCS.parent
TEXTS = sorted({*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("*/*.md")} - {*DOCS.glob("_*/*.md")})


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.name)
def test_prose_is_wrapped_at_100_columns(page):
    """But for tables, code, and what has no blank to wrap at."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = [line for line in text.splitlines() if not line.startswith(("|", "    ", "#"))]
    assert [line for line in prose if len(line) > 100 and " " in line.strip()[:100]] == []


TABLES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*DOCS.glob("*.md"), *DOCS.glob("guide/*.md")})]


def words_of_cells(text):
    """The words of each cell of a page's tables; of a link its text, not its address."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    rows = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    return [re.sub(r"\]\([^)]*\)", "]", cell).split() for row in rows for cell in re.split(r"(?<!\\)\|", row)]


@pytest.mark.parametrize("page", TABLES, ids=lambda path: path.name)
def test_cells_of_tables_are_short(page):
    """At most twelve words, so that a table is read at a glance; what needs more is prose or a list."""
    cells = words_of_cells(page.read_text(encoding="utf-8"))
    assert [" ".join(words) for words in cells if len(words) > 12] == []


def test_words_of_cells_are_counted_right():
    text = "| a b | [c d](e f.md) |\n|---|---|\n| | g |\n\nno | cell\n```text\n| nor this |\n```\n"
    assert words_of_cells(text) == [["a", "b"], ["[c", "d]"], ["---"], ["---"], [], ["g"]]


RECORDS = {ROOT / "CHANGELOG.md", DOCS / "results.md", *DOCS.glob("results/*.md")}  # of what was done and measured


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.name)
def test_sentences_are_short(page):
    """At most 25 words; a semicolon ends a sentence in records alone."""
    sentences = words_of_sentences(page.read_text(encoding="utf-8"), ends=".!?:;" if page in RECORDS else ".!?:")
    assert [" ".join(words) for words in sentences if len(words) > 25] == []


def test_words_of_sentences_are_counted_right():
    text = "# No\n\nIt is `a b`; I see\n[this link](to a.md) at 0 < ε. A\n\n    no\n\n- One (two).\n- Three\n\n| no |\n"
    sentences = ["It is code; I see [this link] at", "A", "One (two).", "Three"]
    assert [" ".join(words) for words in words_of_sentences(text) if words] == sentences
    assert [len(words) for words in words_of_sentences(text, ends=".!?:;") if words][:2] == [3, 5]
    assert [len(words) for words in words_of_sentences("word " * 25 + "end. Short.")] == [26, 1]


def test_the_readme_is_short_and_its_commands_parse():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 110
    commands = re.findall(r"^\$ dpdm (.*?)(?: +#.*)?$", text, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        verb, *arguments = shlex.split(command)
        VERBS[verb].make_context(verb, arguments)
