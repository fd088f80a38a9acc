"""`dpdm check` says what is there before anything is spent, stores nothing, and sees what training would refuse."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two parts of two classes; sizes and channels differ, two images are equal, and one file is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("ant", "bee"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (10, 12 + number, 3) if name == "ant" else (9, 9)
                Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.png")
    bee = tmp_path / "photos" / "train" / "bee"
    (bee / "copy.png").write_bytes((bee / "0.png").read_bytes())
    return tmp_path / "photos"


def test_the_page_says_what_is_there_and_nothing_is_stored(photos, dpdm, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*"))
    code, out, err = dpdm("check", "photos")
    assert code == 0, err
    assert "train: 9 images" in out
    assert "val: 4 images" in out
    assert "classes   2: ant 4, bee 5" in out
    assert "9 x 9 (5)" in out
    assert "declare one size" in out
    assert "grey (5), colour (4); declare one number" in out
    assert "equal     1" in out
    assert "unit      one image" in out
    declared = "--set data.size=32 --set data.channels=3 --set data.num_classes=2"  # 32 where sizes differ
    assert f"next      dpdm advise photos --epsilon 3 --dataset-size N {declared}" in out
    assert sorted(path for path in tmp_path.rglob("*")) == before, "no ledger, no folder"


def test_the_next_command_declares_what_was_found(dpdm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DPDM_LEDGER", "none")
    rng = np.random.default_rng(0)
    np.savez("two words.npz", images=rng.integers(0, 256, (6, 12, 12), dtype=np.uint8), labels=np.arange(6) % 3)
    code, out, err = dpdm("check", "two words.npz", "--set", "data.num_classes=3")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("next")]
    command = shlex.split(line.removeprefix("next").replace("--dataset-size N", "--dataset-size 6000"))
    code, out, err = dpdm(*command[1:])
    assert code == 0, err
    assert out.startswith("for         6,000 images, 12 × 12, grey, 3 classes; ε = 3")


def test_as_json_and_one_part_alone(photos, dpdm):
    code, out, _ = dpdm("check", "photos:val", "--set", "data.size=8", "--json")
    assert code == 0
    (part,) = json.loads(out)["parts"].values()
    assert part["classes"] == {"ant": 2, "bee": 2}
    assert sum(size["images"] for size in part["sizes"]) == part["images"] == 4


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("notes.txt", b"hello", "notes.txt is no image"), ("0.jpg", b"hello", "0.jpg is no image that can be decoded")],
)
def test_what_is_refused_is_listed_and_ends_in_one_line(photos, dpdm, name, content, said):
    (photos / "train" / "bee" / name).write_bytes(content)
    code, out, err = dpdm("check", "photos")
    assert code == 2
    assert "train: 9 images" in out, "what can be used is said all the same"
    assert said in out
    assert [line for line in err.splitlines() if line.startswith("dpdm: ")] == [err.splitlines()[-1]]
    assert "1 of the files cannot be used" in err
    assert said in err


def test_the_unit_is_said_and_groups_are_counted(photos, dpdm):
    for number in range(2):
        for name in ("ant", "bee"):
            folder = photos / "train" / name / f"person {number}"
            folder.mkdir()
            for image in [*(photos / "train" / name).glob("*.png")][: number + 1 if number == 0 else None]:
                image.rename(folder / image.name)
    code, out, err = dpdm("check", "photos:train", "--set", "data.group=folder")
    assert code == 0, err
    assert "groups    2, of 2 to 7 images each" in out
    assert "unit      one group of images, by data.group=folder" in out


def test_what_is_no_source_of_images_is_refused(photos, dpdm):
    code, _, err = dpdm("check", "photos", "--set", "seed=1")
    assert (code, err.count("\n")) == (2, 1)
    assert "check takes data.… only" in err
    code, _, err = dpdm("check", "nowhere")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("source", ["digits", "photos.npz"])
def test_arrays_and_built_in_data_sets_are_told_too(source, dpdm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "photos.npz", images=images, labels=np.arange(6) % 3)
    code, out, err = dpdm("check", source, *(() if source == "digits" else ("--set", "data.num_classes=3")))
    assert code == 0, err
    assert "8 x 8" in out
    assert "grey" in out
    assert ("built-in" in out) == (source == "digits")
