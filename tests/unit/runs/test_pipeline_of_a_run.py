"""The pipeline that a run's own folder names: whoever made that folder, nothing but a line comes of what is wrong."""

import pytest

from dpdm.runs.run_folder import pipeline_of
from dpdm.types import InputError

TEXTS = '[network]\nkind = "text-to-image"\n'


def named(tmp_path, text):
    (tmp_path / "private").mkdir(exist_ok=True)
    (tmp_path / "private" / "config.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return pipeline_of(tmp_path)


def test_it_is_the_folder_that_the_run_began_with_if_that_is_there(tmp_path):
    place = tmp_path / "pipeline"
    said = f"start_folders = ['{place}']\n{TEXTS}"
    assert pipeline_of(tmp_path) is None
    assert named(tmp_path, said) is None
    place.mkdir()
    assert named(tmp_path, said) == place
    assert named(tmp_path, said.replace("text-to-image", "diffusers")) is None
    assert named(tmp_path, TEXTS) is None


@pytest.mark.parametrize(
    "text", [b"\xff", "kind", "network = 3", f"start_folders = 3\n{TEXTS}", f"start_folders = [3]\n{TEXTS}"]
)
def test_what_is_damaged_is_told_in_one_line(tmp_path, text):
    with pytest.raises(InputError, match=r"config\.toml cannot be read .*: name the pipeline by --public"):
        named(tmp_path, text)


def test_no_more_is_read_than_settings_have(tmp_path, monkeypatch):
    monkeypatch.setattr("dpdm.runs.run_folder._MOST_SETTINGS", 10)
    with pytest.raises(InputError):
        named(tmp_path, TEXTS)
