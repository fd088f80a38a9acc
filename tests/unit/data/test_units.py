"""Which images form a group: read from every kind of source that can say so, and refused where none does."""

import dataclasses
import io
import math
import zipfile

import numpy as np
import pytest
from PIL import Image

from dpdm.data import (
    Framing,
    ImageDataset,
    find_duplicates,
    group_indices,
    in_parts,
    open_again,
    open_dataset,
    pixel_digests,
    prepare,
    read_location,
)


def write(folder, files):
    """Write grey images of one level each, and texts."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            Image.fromarray(np.full((8, 8), content, dtype=np.uint8)).save(path)
    return folder


def zipped(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for entry in sorted(folder.rglob("*")):
            archive.write(entry, entry.relative_to(folder).as_posix())
    return path


FORMS = pytest.mark.parametrize("form", [lambda folder: folder, zipped], ids=["folder", "zip"])
PERSONS = {"a/ann/1.png": 1, "a/bob/2.png": 2, "a/bob/3.png": 3, "b/ann/4.png": 4, "b/eve/5.png": 5}
LISTED = {"x/1.png": 1, "2.png": 2, "x/3.png": 3}
CSV = "file,label, patient\nx/1.png,0,p7\n2.png,1,p2\nx/3.png,0,p7\n"


def whose(data):
    """Return the level of each image with the index of its group."""
    return dict(zip(data.images[:, 0, 0, 0].tolist(), data.groups.tolist(), strict=True))


@FORMS
def test_folders_inside_class_folders_name_groups_across_classes(tmp_path, form):
    data = open_dataset(form(write(tmp_path / "photos", PERSONS)), group="folder")
    assert whose(data) == {1: 0, 2: 1, 3: 1, 4: 0, 5: 2}
    assert (data.labels.tolist(), data.class_names) == ([0, 0, 0, 1, 1], ("a", "b"))
    assert (len(data), data.num_units) == (5, 3)
    unlabelled = open_dataset(form(tmp_path / "photos"), num_classes=0, group="folder")
    assert unlabelled.labels is None
    assert whose(unlabelled) == whose(data)


@FORMS
def test_without_classes_the_folders_at_the_top_are_the_groups(tmp_path, form):
    files = {"ann/1.png": 1, "ann/2.png": 2, "bob/3.png": 3}
    data = open_dataset(form(write(tmp_path / "photos", files)), num_classes=0, group="folder")
    assert whose(data) == {1: 0, 2: 0, 3: 1}


@FORMS
@pytest.mark.parametrize("stray", [{"a/6.png": 6}, {"6.png": 6}])
def test_an_image_outside_of_all_groups_is_refused(tmp_path, refused, form, stray):
    source = form(write(tmp_path / "photos", PERSONS | stray))
    with refused("6.png", "lies in no folder that names its group"):
        open_dataset(source, group="folder")


@FORMS
def test_a_folder_inside_a_class_folder_needs_the_setting(tmp_path, refused, form):
    with refused("folder inside a class folder", "move its images up", "data.group=folder"):
        open_dataset(form(write(tmp_path / "photos", PERSONS)))


@FORMS
def test_a_third_column_names_groups(tmp_path, form):
    data = open_dataset(form(write(tmp_path / "photos", LISTED | {"labels.csv": CSV})), num_classes=2, group="patient")
    assert whose(data) == {1: 1, 2: 0, 3: 1}
    assert dict(zip(data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), strict=True)) == {1: 0, 2: 1, 3: 0}
    unlabelled = open_dataset(form(tmp_path / "photos"), num_classes=0, group="patient")
    assert unlabelled.labels is None
    assert whose(unlabelled) == whose(data)


@FORMS
@pytest.mark.parametrize(
    ("csv", "group", "words"),
    [
        (CSV, None, ["two columns", "set data.group to its heading"]),
        (CSV, "person", ["columns file, label, patient", "no person"]),
        (
            CSV.replace(", patient", "").replace(",p7", "").replace(",p2", ""),
            "patient",
            ["columns file, label", "no patient"],
        ),
        (CSV.replace("p2", " "), "patient", ["no patient for '2.png'"]),
        (CSV + "2.png,1,p7\n", "patient", ["two labels for '2.png'"]),
        (CSV.replace("2.png,1,p2\n", ""), "patient", ["no label for '2.png'"]),
    ],
)
def test_a_listing_that_gives_not_every_image_one_group_is_refused(tmp_path, refused, form, csv, group, words):
    source = form(write(tmp_path / "photos", LISTED | {"labels.csv": csv}))
    for num_classes in (2, 0) if group is not None else (2,):
        with refused("labels.csv", *words):
            open_dataset(source, num_classes=num_classes, group=group)


@pytest.mark.parametrize("names", [[7, -3, 7, 7], ["x", "a", "x", "x"]])
def test_an_array_of_integers_or_words_names_groups(tmp_path, refused, names):
    images = np.arange(4, dtype=np.uint8)[:, None, None] + np.zeros((8, 8), np.uint8)
    np.savez(tmp_path / "photos.npz", images=images, groups=np.array(names))
    data = open_dataset(tmp_path / "photos.npz", group="groups")
    assert whose(data) == {0: 1, 1: 0, 2: 1, 3: 1}
    with refused("groups, images", "data.group=groups"):
        open_dataset(tmp_path / "photos.npz")
    with refused("no array patients"):
        open_dataset(tmp_path / "photos.npz", group="patients")
    np.savez(tmp_path / "photos.npz", images=images, groups=np.array([0.5, 1, 2, 3]))
    with refused("photos.npz: groups must name a group for each image"):
        open_dataset(tmp_path / "photos.npz", group="groups")
    np.savez(tmp_path / "photos.npz", images=images, groups=np.array([0, 1]))
    with refused("shape (2,)", "shape (4,)"):
        open_dataset(tmp_path / "photos.npz", group="groups")


def test_a_column_of_a_table_names_groups(tmp_path, refused):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    encoded = []
    for level in range(3):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8), level, dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    columns = {"image": encoded, "patient": ["b", "a", "b"], "visit": [1, None, 1]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet")
    assert whose(open_dataset(tmp_path / "p.parquet", group="patient")) == {0: 1, 1: 0, 2: 1}
    assert open_dataset(tmp_path / "p.parquet").groups is None
    with refused("and no person", "image, patient"):
        open_dataset(tmp_path / "p.parquet", group="person")
    with refused("visit must name a group for each image"):
        open_dataset(tmp_path / "p.parquet", group="visit")


def test_a_source_that_knows_no_groups_is_refused_in_one_line(tmp_path, refused):
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), np.uint8))
    flat = write(tmp_path / "flat", {"1.png": 1})
    listed = write(tmp_path / "listed", {"1.png": 1, "dataset.json": '{"labels": [["1.png", 0]]}'})
    for source in ("digits", tmp_path / "a.npy", listed):
        with refused("does not say which images form a group", "leave data.group out"):
            open_dataset(source, group="patient", num_classes=1 if source == listed else None)
    with refused("no labels.csv with a column 'patient'", "data.group=folder"):
        open_dataset(flat, group="patient")
    with refused("1.png lies in no folder"):
        open_dataset(flat, group="folder")
    with refused("data.group is empty"):
        open_dataset(flat, group="")


def test_groups_are_opened_again_where_they_were(tmp_path):
    photos = write(tmp_path / "photos", PERSONS)
    for facts in ({"size": 12, "fit": "pad"}, {}):
        data = open_dataset(photos, group="folder", **facts)
        again = open_again(data.location, channels=1, num_classes=2)
        assert np.array_equal(again.groups, data.groups)
        assert np.array_equal(again.images, data.images)
        assert read_location(data.location)[:2] == (str(photos), "folder")


@pytest.mark.parametrize("group", ["folder", None])
def test_a_prepared_folder_keeps_groups_and_says_so(tmp_path, refused, group):
    files = PERSONS if group else {name.replace("/", "-", 2).replace("-", "/", 1): at for name, at in PERSONS.items()}
    photos = write(tmp_path / "photos", files)
    there = open_dataset(photos, group=group)
    prepare(tmp_path / "ready", lambda read: open_dataset(photos, group=group, read=read), Framing(size=8, channels=1))
    if group is None:
        with refused("ready does not say which images form a group"):
            open_dataset(tmp_path / "ready", group="groups")
        return
    here = open_dataset(tmp_path / "ready", group="groups")
    assert np.array_equal(here.groups, there.groups)
    assert np.array_equal(here.labels, there.labels)
    assert np.array_equal(open_dataset(tmp_path / "ready", num_classes=0, group="groups").groups, there.groups)
    for asked in (None, "folder"):
        with refused("was prepared with groups", "data.group=groups"):
            open_dataset(tmp_path / "ready", group=asked)
    (tmp_path / "ready" / "groups.npy").write_bytes(b"")
    with refused("groups.npy is damaged"):
        open_dataset(tmp_path / "ready", group="groups")


def test_records_that_are_left_out_leave_their_groups_and_the_last_one_takes_its_group_along(tmp_path):
    photos = write(tmp_path / "photos", PERSONS)
    for name in ("a/bob/2.png", "a/ann/1.png", "b/ann/4.png"):
        (photos / name).write_text("no image")
    prepared = prepare(
        tmp_path / "ready",
        lambda read: open_dataset(photos, group="folder", read=read),
        Framing(size=8, channels=1),
        leave_out=True,
    )
    assert prepared.num_images == 2
    assert whose(open_dataset(tmp_path / "ready", group="groups")) == {3: 0, 5: 1}


@FORMS
@pytest.mark.parametrize("kind", ["classes", "no classes", "listed"])
def test_files_that_are_no_images_are_refused_one_by_one_and_leave_groups_as_they_are(tmp_path, refused, form, kind):
    files, others = PERSONS, ("a/notes.md", "a/bob/notes.txt", "README")
    facts = {"num_classes": 0} if kind == "no classes" else {}
    if kind == "listed":
        rows = [f"{name},{number % 2},{name.split('/')[1]}" for number, name in enumerate(PERSONS)]
        files, facts = PERSONS | {"labels.csv": "\n".join(["file,label,patient", *rows])}, {"num_classes": 2}
    photos = form(write(tmp_path / "photos", files | dict.fromkeys(others, "no image")))
    facts["group"] = "patient" if kind == "listed" else "folder"
    with refused("is no image", "move it elsewhere"):
        open_dataset(photos, **facts)
    prepared = prepare(
        tmp_path / "ready",
        lambda read: open_dataset(photos, **facts, read=read),
        Framing(size=8, channels=1),
        leave_out=True,
    )
    assert prepared.num_images == 5
    assert {name for name in others for line in prepared.left_out if f"{name} is no image" in line} == {*others}
    assert whose(open_dataset(tmp_path / "ready", group="groups")) == {1: 0, 2: 1, 3: 1, 4: 0, 5: 2}


def test_rows_without_an_image_leave_their_groups_too(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    encoded = []
    for level in range(6):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8), level, dtype=np.uint8)).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    encoded[1], encoded[4] = None, b"no image"
    columns = {"image": encoded, "patient": ["c", "a", "b", "c", "b", "d"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "p.parquet", row_group_size=2)
    prepared = prepare(
        tmp_path / "ready",
        lambda read: open_dataset(tmp_path / "p.parquet", group="patient", read=read),
        Framing(size=8, channels=1),
        leave_out=True,
    )
    assert len(prepared.left_out) == 2
    assert whose(open_dataset(tmp_path / "ready", group="groups")) == {0: 1, 2: 0, 3: 1, 5: 2}


def test_an_archive_with_an_empty_folder_of_a_group_is_refused_in_one_line(tmp_path, refused):
    with zipfile.ZipFile(zipped(write(tmp_path / "photos", PERSONS)), "a") as archive:
        archive.writestr("c/ann/", "")
    with refused("c/ann is empty"):
        open_dataset(tmp_path / "photos.zip", group="folder", num_classes=3)


IMAGES = np.arange(6, dtype=np.uint8)[:, None, None, None] + np.zeros((8, 8, 1), np.uint8)


def grouped(groups):
    return ImageDataset(images=IMAGES, labels=np.arange(6) % 2, num_classes=2, groups=np.array(groups), name="six")


@pytest.mark.parametrize(
    ("groups", "word"),
    [
        ([0, 0, 1, 1, 3, 3], "without a gap"),
        ([-1, 0, 1, 2, 3, 4], "without a gap"),
        ([0, 1, 2, 3, 4, 10**15], "without a gap"),
        ([0, 1, 2], "shape (3,)"),
        ([0.0, 1, 2, 3, 4, 5], "float64"),
    ],
)
def test_groups_that_are_not_numbered_from_zero_are_refused(refused, groups, word):
    with refused("six: groups", word):
        grouped(groups)


def test_units_are_groups_or_images_and_their_weights_add_up_to_one():
    data = grouped([2, 0, 2, 1, 2, 0])
    assert data.num_units == 3
    assert data.units.tolist() == [2, 0, 2, 1, 2, 0]
    assert data.weights.tolist() == [1 / 3, 1 / 2, 1 / 3, 1, 1 / 3, 1 / 2]
    alone = dataclasses.replace(data, groups=None)
    assert (alone.num_units, alone.units.tolist(), alone.weights.tolist()) == (6, list(range(6)), [1.0] * 6)


def test_a_part_has_whole_units_numbered_anew():
    data = grouped([2, 0, 2, 1, 2, 0])
    part = data.part(range(1, 3))
    assert whose(part) == {0: 1, 2: 1, 3: 0, 4: 1}
    assert part.labels.tolist() == [0, 0, 1, 0]
    assert whose(data.part(np.array([0, 2]))) == {0: 1, 1: 0, 2: 1, 4: 1, 5: 0}
    assert data.part(range(3)) is data
    none = data.part(range(5, 3, 9))
    assert (len(none), none.num_units, len(none.weights)) == (0, 0, 0)
    alone = dataclasses.replace(data, groups=None)
    assert alone.part(range(1, 6, 3)).images[:, 0, 0, 0].tolist() == [1, 4]
    assert alone.part(np.array([0, 5])).labels.tolist() == [0, 1]


def test_a_digest_is_of_all_that_a_step_sees_and_of_its_order(monkeypatch):
    data = grouped([0, 0, 1, 1, 2, 2])
    others = [
        dataclasses.replace(data, images=IMAGES[::-1]),
        dataclasses.replace(data, images=np.tile(IMAGES, (1, 2, 1, 1))),
        dataclasses.replace(data, images=np.tile(IMAGES, (1, 1, 2, 1))),
        dataclasses.replace(data, labels=1 - data.labels),
        dataclasses.replace(data, labels=None, num_classes=0, class_names=()),
        dataclasses.replace(data, groups=data.groups[::-1]),
        dataclasses.replace(data, groups=None),
        dataclasses.replace(data, labels=data.groups, groups=data.labels, num_classes=3, class_names=()),
        data.part(range(2)),
    ]
    assert len({data.digest(), *(other.digest() for other in others)}) == 1 + len(others)
    whole = data.digest()
    monkeypatch.setattr("dpdm.data.dataset.in_parts", lambda number: in_parts(number, 4))
    assert dataclasses.replace(data, name="another", images=IMAGES[::-1][::-1]).digest() == whole


def test_the_repr_shows_nothing_of_groups():
    assert repr(grouped([0, 0, 1, 1, 2, 2])) == repr(dataclasses.replace(grouped([0] * 6), groups=None))


def test_equal_images_of_one_group_are_no_finding_and_of_two_groups_are():
    images = np.zeros((4, 8, 8, 1), np.uint8)
    images[2:] = 1
    assert find_duplicates(images) == [[0, 1], [2, 3]]
    assert find_duplicates(images, np.array([0, 0, 1, 0])) == [[2, 3]]


def test_grey_that_is_stored_as_colour_is_the_same_image_and_two_equal_channels_are_not_grey():
    grey = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    colour, opaque = grey.repeat(3, axis=3), np.full((1, 8, 8, 1), 255, np.uint8)
    same = [grey, colour, np.concatenate([colour, opaque], axis=3)]
    assert len({pixel_digests(images).tobytes() for images in same}) == 1
    others = {pixel_digests(grey).tobytes()}
    for channel in range(3):
        other = colour.copy()
        other[0, 7, 7, channel] += 1
        others.add(pixel_digests(other).tobytes())
    assert len(others) == 4


def test_names_of_groups_are_numbered_in_sorted_order(refused):
    assert group_indices(["b", "a", "b"], "x").tolist() == [1, 0, 1]
    assert group_indices(["M\u00fcller", " Mu\u0308ller", "Meier"], "x").tolist() == [1, 1, 0], "one person, one group"
    for wrong in (["a", ""], [1.5, 2.0], [[1], [2]], [True, False], [None, "a"], ["a", math.nan], ["1", 1]):
        with refused("x must name a group for each image"):
            group_indices(wrong, "x")
