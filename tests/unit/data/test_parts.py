"""Parts are known by their names, in any case and any container; a single folder around it all is looked through."""

import gzip
import struct

import numpy as np
import pytest
from made_sources import classes, picture, save_to_disk, shown, write, write_table, zipped

from dpdm.data import Framing, open_dataset, prepare, save_folder

FORMS = pytest.mark.parametrize("form", [lambda folder: folder, zipped], ids=["folder", "zip"])


@FORMS
@pytest.mark.parametrize(
    ("train", "other", "part"),
    [
        ("train", "val", "val"),
        ("Train", "Test", "test"),
        ("TRAINING", "Validation", "val"),
        ("training", "testing", "test"),
        ("train", "valid", "val"),
        ("seg_train", "seg_test", "test"),
        ("train2017", "val2017", "val"),
    ],
)
@pytest.mark.parametrize("around", ["", "photos/", "data/photos-main/"])
def test_folders_of_loose_images_are_parts_and_no_classes(tmp_path, refused, form, train, other, part, around):
    files = {f"{train}/a.png": 1, f"{train}/b.png": 2, f"{other}/c.png": 3}
    source = form(write(tmp_path / "set", {f"{around}{name}": number for name, number in files.items()}))
    data = open_dataset(source)
    assert (shown(data), data.labels, data.name) == ([1, 2], None, source.name)
    there = open_dataset(f"{source}:{part}")
    assert (shown(there), there.name) == ([3], f"{source.name}:{part}")
    missing = {"val": "test", "test": "val"}[part]
    with refused(f"has no part {missing}, only train and {part}", f"{source}:train"):
        open_dataset(f"{source}:{missing}")


@FORMS
def test_class_folders_inside_of_parts_are_the_classes(tmp_path, form):
    files = {"train/ant/1.png": 1, "train/bee/2.png": 2, "val/ant/3.png": 3, "val/bee/4.png": 4}
    source = form(write(tmp_path / "photos", files))
    assert classes(open_dataset(source)) == {1: "ant", 2: "bee"}
    assert classes(open_dataset(f"{source}:val")) == {3: "ant", 4: "bee"}
    assert shown(open_dataset(source, num_classes=0)) == [1, 2]


@FORMS
def test_a_part_alone_is_never_opened_as_another(tmp_path, refused, form):
    source = form(write(tmp_path / "photos", {"test/ant/1.png": 1, "test/bee/2.png": 2}))
    with refused("has no part train, only test", f"{source}:test"):
        open_dataset(source)
    assert classes(open_dataset(f"{source}:TEST")) == {1: "ant", 2: "bee"}


@FORMS
def test_a_class_that_is_called_like_a_part_has_to_be_declared(tmp_path, refused, form):
    source = form(write(tmp_path / "photos", {"bus/1.png": 1, "car/2.png": 2, "train/3.png": 3}))
    with refused("holds train beside bus", "data.num_classes=3"):
        open_dataset(source)
    assert classes(open_dataset(source, num_classes=3)) == {1: "bus", 2: "car", 3: "train"}
    assert shown(open_dataset(source, num_classes=0)) == [1, 2, 3]
    source = form(write(tmp_path / "toys", {"ball/1.png": 1, "test tube/2.png": 2, "toy train/3.png": 3}))
    with refused("holds test tube beside ball", "data.num_classes=3"):
        open_dataset(source)
    assert classes(open_dataset(source, num_classes=3)) == {1: "ball", 2: "test tube", 3: "toy train"}
    source = form(write(tmp_path / "trains", {"bullet train/1.png": 1, "toy train/3.png": 3}))
    assert classes(open_dataset(source)) == {1: "bullet train", 3: "toy train"}


@FORMS
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train/1.png": 1, "Training/2.png": 2, "test/3.png": 3}, ["two parts train", "Training", "rename it"]),
        ({"train/1.png": 1, "test/2.png": 2, "3.png": 3}, ["3.png lies beside the parts", "move it into one"]),
        ({"train/1.png": 1, "2.png": 2}, ["2.png lies beside the parts train"]),
        ({"ant/train/1.png": 1, "bee/train/2.png": 2}, ["must lie above all classes"]),
    ],
)
def test_what_is_neither_in_a_part_nor_in_a_class_is_refused(tmp_path, refused, form, files, said):
    source = form(write(tmp_path / "photos", files))
    for group in (None, "folder"):
        if group is None or "ant/train/1.png" not in files:
            with refused(*said):
                open_dataset(source, group=group)


@FORMS
def test_what_lies_beside_parts_and_is_no_image_is_in_no_part(tmp_path, form):
    source = form(write(tmp_path / "photos", {"train/1.png": 1, "test/2.png": 2, "README.md": "x", "masks/3.png": 3}))
    assert [shown(open_dataset(f"{source}{part}")) for part in ("", ":test")] == [[1], [2]]


@FORMS
def test_a_single_folder_is_looked_through_unless_one_class_is_declared(tmp_path, refused, form):
    source = form(write(tmp_path / "set", {"photos/1.png": 1, "photos/2.png": 2}))
    assert open_dataset(source).labels is None
    assert classes(open_dataset(source, num_classes=1)) == {1: "photos", 2: "photos"}
    write(tmp_path / "set", {"README": "hello"})
    with refused("README is no image"):
        open_dataset(form(tmp_path / "set"))


@FORMS
def test_persons_inside_of_one_class_stay_persons(tmp_path, form):
    source = form(write(tmp_path / "photos", {"ant/ann/1.png": 1, "ant/bob/2.png": 2}))
    data = open_dataset(source, group="folder")
    assert (classes(data), data.groups.tolist()) == ({1: "ant", 2: "ant"}, [0, 1])
    deeper = form(write(tmp_path / "all", {f"x/{name}": n for name, n in {"a/p/1.png": 1, "b/p/2.png": 2}.items()}))
    assert (classes(open_dataset(deeper, group="folder"))) == {1: "a", 2: "b"}


@FORMS
def test_persons_without_classes_are_told_the_setting(tmp_path, refused, form):
    source = form(write(tmp_path / "photos", {"ann/1.png": 1, "bob/2.png": 2}))
    with refused("names its group", "data.num_classes=0"):
        open_dataset(source, group="folder")
    assert open_dataset(source, group="folder", num_classes=0).groups.tolist() == [0, 1]


@FORMS
@pytest.mark.parametrize("stray", ["@eaDir/1.png/THUMB.jpg", "#recycle/x.png", "Thumbs.db", "ant/desktop.ini"])
def test_what_systems_leave_is_no_record(tmp_path, form, stray):
    files = {"ant/1.png": 1, "bee/2.png": 2, ".DS_Store": "x", stray: "x", f"bee/{stray.rpartition('/')[2]}": "x"}
    if stray.endswith(("jpg", "png")):
        files = {"ant/1.png": 1, "bee/2.png": 2, stray: "x", f"ant/{stray}": "x"}
    assert classes(open_dataset(form(write(tmp_path / "photos", files)))) == {1: "ant", 2: "bee"}


NAMES = ("ant", "bee")


@pytest.mark.parametrize("place", ["", "data/", "default/"])
@pytest.mark.parametrize("name", ["{}-00000-of-00001.parquet", "{}/0000.parquet", "mnist-{}.parquet", "{}.PARQUET"])
def test_shards_of_tables_are_parts_by_their_names(tmp_path, refused, place, name):
    pytest.importorskip("pyarrow")
    root = write(tmp_path / "mnist", {"README.md": "# hello", ".gitattributes": "x"})
    write_table(root / place / name.format("train"), [1, 2], [0, 1], NAMES)
    write_table(root / place / name.format("test"), [3], [1], NAMES)
    assert classes(open_dataset(root)) == {1: "ant", 2: "bee"}
    test = open_dataset(f"{root}:test")
    assert (classes(test), test.name) == ({3: "bee"}, "mnist:test")
    with refused("has no part val, only train and test"):
        open_dataset(f"{root}:val")


def test_tables_of_which_only_some_are_called_by_parts_are_refused(tmp_path, refused):
    pytest.importorskip("pyarrow")
    write_table(tmp_path / "train-0.parquet", [1])
    write_table(tmp_path / "extra.parquet", [2])
    with refused("train-0.parquet and extra.parquet", "by their parts"):
        open_dataset(tmp_path)
    (tmp_path / "extra.parquet").rename(tmp_path / "train-1.parquet")
    assert shown(open_dataset(tmp_path)) == [1, 2]
    write(tmp_path, {"more.feather": "x"})
    with refused("more.feather", "no such file"):
        open_dataset(tmp_path)


def test_a_shard_that_is_missing_is_missed(tmp_path, refused):
    pytest.importorskip("pyarrow")
    for number in (0, 1):
        write_table(tmp_path / f"train-0000{number}-of-00002.parquet", [number])
    write_table(tmp_path / "test-00000-of-00001.parquet", [2])
    assert [shown(open_dataset(f"{tmp_path}{part}")) for part in ("", ":test")] == [[0, 1], [2]]
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with refused("train-00000-of-00002.parquet is one of 2 files, and 1 are there"):
        open_dataset(tmp_path)


def idx(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_part(kind, root, part, number):
    """One image of that number as a part of that kind."""
    if kind == "arrow":
        save_to_disk(root / part, [number], [1], NAMES)
    if kind == "parquet":
        write_table(root / part / "0.parquet", [number], [1], NAMES)
    if kind == "prepared":
        photos = write(root.with_name(f"{root.name}-{part}"), {"ant/1.png": 9, "bee/2.png": number})
        prepare(root / part, lambda read: open_dataset(photos, read=read), Framing(size=8, channels=1))
    if kind == "IDX":
        stem = "train" if part == "Train" else "emnist-t10k"
        write(root / part, {f"{stem}-images-idx3-ubyte.gz": gzip.compress(idx(picture(number)[None]))})
        write(root / part, {f"{stem}-labels-idx1-ubyte": idx(np.array([1], np.uint8))})
    if kind == "npz":
        root.mkdir(parents=True, exist_ok=True)
        np.savez(root / f"{part}.npz", images=picture(number)[None], labels=[1], class_names=NAMES)


@pytest.mark.parametrize("around", [False, True], ids=["", "one folder around"])
@pytest.mark.parametrize("kind", ["arrow", "parquet", "prepared", "IDX", "npz"])
def test_each_part_is_opened_as_if_its_path_had_been_given(tmp_path, kind, around):
    pytest.importorskip("pyarrow")
    root = tmp_path / "set" / "inner" if around else tmp_path / "set"
    for part, number in (("Train", 1), ("Test", 2)):
        write_part(kind, root, part, number)
        if kind == "prepared" and around:  # which are folders of images, and no part of the set
            (root.parent / f"inner-{part}").rename(tmp_path / part)
    if kind == "arrow":
        write(root, {"dataset_dict.json": '{"splits": ["Train", "Test"]}'})
    facts = {"num_classes": 2} if kind == "IDX" else {}
    for part, number in (("", 1), (":test", 2)):
        data = open_dataset(f"{tmp_path / 'set'}{part}", **facts)
        assert (shown(data)[-1], data.labels.tolist()[-1]) == (number, 1)
        assert open_dataset(f"{tmp_path / 'set'}{part}", num_classes=0).labels is None


def test_archives_are_parts_by_their_names(tmp_path, refused):
    for part, number in (("train", 1), ("test", 2)):
        zipped(write(tmp_path / part, {"ant/1.png": 9, "bee/2.png": number})).rename(tmp_path / f"{part}.ZIP")
        for name in ("ant/1.png", "bee/2.png"):
            (tmp_path / part / name).unlink()
            (tmp_path / part / name).parent.rmdir()
        (tmp_path / part).rmdir()
    assert [shown(open_dataset(f"{tmp_path}{part}")) for part in ("", ":test")] == [[9, 1], [9, 2]]
    (tmp_path / "test.ZIP").rename(tmp_path / "more.zip")
    with refused("train.ZIP and more.zip"):
        open_dataset(tmp_path)


def test_data_sets_that_have_no_part_val_say_so(tmp_path, refused):
    for source in ("digits:val", "digits:validation"):
        with refused("digits has no part val, only train and test"):
            open_dataset(source)
    with refused("no part val"):
        open_dataset(f"{write(tmp_path / 'photos', {'1.png': 1})}:val")


def test_saved_classes_that_are_called_like_parts_are_read_back_as_classes(tmp_path):
    for names in (
        ["test", "train"],
        ["bus", "train"],
        ["my test", "my train"],
        ["ball", "test tube", "toy train"],
        ["2", "10"],
        ["10", "2"],
    ):
        folder = tmp_path / "-".join(names)
        labels = np.arange(len(names))
        save_folder(folder, np.stack([*map(picture, labels)])[..., None], labels, names)
        assert open_dataset(folder).labels.tolist() == shown(open_dataset(folder)) == labels.tolist()
