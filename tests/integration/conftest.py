import sys

import pytest
from small_photos import save
from small_run import SMALL

from dpdm import cli


@pytest.fixture
def photos(tmp_path):
    """A folder of 30 small colour pictures in three class folders."""
    return save(tmp_path / "photos")


@pytest.fixture
def dpdm(monkeypatch, capsys, tmp_path):
    """Run one command line in this process: returns exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["dpdm", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def trained(dpdm, photos, tmp_path):
    """A finished small run on the photos."""
    code, _, err = dpdm("train", photos, "--epsilon", 1, "--run", tmp_path / "run", *SMALL)
    assert code == 0, err
    return tmp_path / "run"
