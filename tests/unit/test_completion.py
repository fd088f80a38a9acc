"""A shell completes verbs and options, and waits for no heavy library."""

import os
import subprocess
import sys

import pytest

_RUN = "import sys; from dpdm.cli import main; sys.argv[0] = 'dpdm'\ntry:\n    main()\nfinally:\n    {}"


@pytest.mark.parametrize(("words", "expected"), [("dpdm ver", "verify"), ("dpdm train x --meth", "--method")])
def test_a_shell_completes_verbs_and_options(words, expected):
    given = {"_DPDM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = _RUN.format("print('torch' in sys.modules, file=sys.stderr)")
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | given, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == [expected]
    assert done.stderr.strip() == "False"
