"""Whatever a stranger writes into a release is refused in one line, soon, and without much memory.

Kinds: numbers and files without end, what is no file, words and digits that no run writes, a prior that cannot be one.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_releases import HOSTILE
from small_run import SMALL

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What verification says of all hostile releases, each made of one finished run, in a process of its own."""
    home = tmp_path_factory.mktemp("hostile")
    code = "import sys; sys.path[:0] = [sys.argv.pop(1)]; from small_photos import save; save('photos')"
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", code, here], cwd=home, check=True)
    train = [sys.executable, "-m", "dpdm", "train", "photos", "--run", "run", *SMALL]
    subprocess.run(train, cwd=home, check=True, capture_output=True)
    script = Path(here) / "hostile_releases.py"
    line = [sys.executable, str(script), str(home / "run" / "release")]
    done = subprocess.run(line, cwd=home, check=True, capture_output=True, text=True, timeout=1200)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_release_is_refused_in_one_line_soon_and_in_little_memory(said, name):
    found = said[name]
    assert (found["code"], found["out"], found["err"].count("\n")) == (2, "", 1), found
    assert len(found["err"]) < 2500
    assert found["err"].rstrip("\n").isprintable()  # nothing in it moves a cursor
    assert found["seconds"] < 5  # of the processor: the machine may be busy with something else
    assert found["bytes"] < 2**30
