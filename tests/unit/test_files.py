"""Files and folders are written whole or not at all; what is damaged is refused in one line."""

import pytest

from dpdm.files import damaged, write_folder_atomically
from dpdm.types import InputError


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def fill(folder):
        (folder / "a").mkdir()
        (folder / "a" / "1.txt").write_text("one")

    def fail(folder):
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder_atomically(tmp_path / "made", fail)
    assert [*tmp_path.iterdir()] == []
    for name in ("made", "above/made", "n" * 255):
        write_folder_atomically(tmp_path / name, fill)
        assert (tmp_path / name / "a" / "1.txt").read_text() == "one"
    assert {entry.name for entry in tmp_path.iterdir()} == {"made", "above", "n" * 255}


def test_an_empty_folder_is_filled_and_no_other_is_touched(tmp_path):
    (tmp_path / "empty").mkdir()
    write_folder_atomically(tmp_path / "empty", lambda folder: (folder / "x").touch())
    assert (tmp_path / "empty" / "x").exists()
    with pytest.raises(OSError, match="not empty"):
        write_folder_atomically(tmp_path / "empty", lambda folder: (folder / "y").touch())
    assert [entry.name for entry in tmp_path.rglob("*")] == ["empty", "x"]


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError(), OSError(5, "input output")])
def test_what_a_decoder_says_of_damage_is_one_line(error):
    reason = getattr(error, "strerror", None) or type(error).__name__
    said = rf"^a\.bin cannot be read \({reason}\): fetch it again$"
    with pytest.raises(InputError, match=said), damaged("a.bin", "fetch it again"):
        raise error


@pytest.mark.parametrize("error", [InputError("as it is"), MemoryError("too little")])
def test_refusals_and_lack_of_memory_stay_as_they_are(error):
    with pytest.raises(type(error)) as caught, damaged("a.bin", "fetch it again"):
        raise error
    assert caught.value is error
