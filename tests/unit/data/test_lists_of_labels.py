"""Lists of labels as people write them: one reading for a whole list, of parts too, and a line that names the cause."""

import codecs

import numpy as np
import pytest
from made_sources import classes, picture, shown, write, write_table, zipped

from dpdm.data import open_dataset

FORMS = pytest.mark.parametrize("form", [lambda folder: folder, zipped], ids=["folder", "zip"])
IMAGES = {"a.png": 1, "b.png": 2, "x/c.png": 3}


def listed(root, rows, files=IMAGES, name="labels.csv", heading="file,label", **more):
    text = "\n".join([heading, *rows]) + "\n"
    return write(root / "photos", {**files, name: text, **more})


def by_number(data):
    return dict(zip(shown(data), data.labels.tolist(), strict=True))


@FORMS
@pytest.mark.parametrize(
    ("names", "stated", "meant"),
    [
        ("1 2 3", "0 1 2", [0, 1, 2]),  # places, since no class is called 0
        ("1 2 3", "1 2 3", [0, 1, 2]),  # names, since there is no place 3
        ("0 1 2", "2 1 0", [2, 1, 0]),  # both, which are the same
        ("ant bee cat", "cat ant bee", [2, 0, 1]),
        ("ant bee cat", "2 0 1", [2, 0, 1]),
        ("1 2 3", "1 2 2", ["names of classes", "numbers from 0 to 2", "name the classes otherwise"]),
        ("1 2 3", "0 1 3", ["'3' is the name of a class", "'0' a number", "names only, or numbers only"]),
        ("ant bee cat", "ant 1 cat", ["'ant' is the name of a class", "'1' a number"]),
        ("ant bee cat", "ant dog cat", ["the label of 'b.png', 'dog', is no integer from 0 to 2", "classes.txt"]),
    ],
)
def test_labels_are_all_names_or_all_numbers(tmp_path, refused, form, names, stated, meant):
    rows = [f"{image},{label}" for image, label in zip(IMAGES, stated.split(), strict=True)]
    more = {"classes.txt": names.replace(" ", "\n")}
    source = form(listed(tmp_path, rows, **more))
    if isinstance(meant[0], str):
        with refused("labels.csv", *meant):
            open_dataset(source)
    else:
        assert by_number(open_dataset(source)) == {1: meant[0], 2: meant[1], 3: meant[2]}
    (tmp_path / "photos" / "labels.csv").unlink()
    numbers = [label if not label.isdecimal() else f'"{label}"' for label in stated.split()]
    pairs = ", ".join(f'["{image}", {label if label[0] == chr(34) else chr(34) + label + chr(34)}]'
                      for image, label in zip(IMAGES, numbers, strict=True))  # fmt: skip
    source = form(write(tmp_path / "photos", {"dataset.json": f'{{"labels": [{pairs}]}}'}))
    if isinstance(meant[0], str):
        with refused("dataset.json", *meant):
            open_dataset(source)
    else:
        assert by_number(open_dataset(source)) == {1: meant[0], 2: meant[1], 3: meant[2]}


PARTED = {"train/a.png": 1, "train/b.png": 2, "Test/c.png": 3}


@FORMS
@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv", "LABELS.CSV", "dataset.json"])
def test_a_list_above_the_parts_is_used_for_each_of_them(tmp_path, refused, form, name):
    rows = ["train/a.png,1", "train/b.png,0", "Test/c.png,1"]
    root = listed(tmp_path, rows, PARTED, name)
    if name == "dataset.json":
        pairs = ", ".join(f'["{row[:-2]}", {row[-1]}]' for row in rows)
        write(root, {name: f'{{"labels": [{pairs}]}}'})
    write(root, {"classes.txt": "ant\nbee\n"})
    source = form(root)
    assert classes(open_dataset(source)) == {1: "bee", 2: "ant"}
    assert classes(open_dataset(f"{source}:test")) == {3: "bee"}
    write(root, {"Test/labels.csv": "file,label\nc.png,0\n"})
    source = form(root)
    with refused("lists labels, and so does", "Test/labels.csv"):
        open_dataset(f"{source}:test")


@FORMS
def test_a_list_above_the_parts_that_leaves_their_names_out_says_so(tmp_path, refused, form):
    source = form(listed(tmp_path, ["a.png,1", "b.png,0"], PARTED))
    with refused("names no image", "'a.png' for 'train/a.png'", "list's own folder"):
        open_dataset(source, num_classes=2)
    source = form(listed(tmp_path, ["train/a.png,1"], PARTED))
    with refused("no label for 'train/b.png'"):
        open_dataset(source, num_classes=2)


@FORMS
def test_class_names_above_the_parts_are_of_the_lists_in_them(tmp_path, form):
    lists = {"train/labels.csv": "file,label\na.png,bee\nb.png,ant\n", "Test/labels.csv": "file,label\nc.png,bee\n"}
    source = form(write(tmp_path / "photos", {**PARTED, **lists, "classes.txt": "ant\nbee\n"}))
    assert classes(open_dataset(source)) == {1: "bee", 2: "ant"}
    assert classes(open_dataset(f"{source}:test")) == {3: "bee"}


@FORMS
def test_a_column_of_parts_chooses_images(tmp_path, refused, form):
    source = form(listed(tmp_path, ["a.png,1,train", "b.png,0,TEST", "x/c.png,0,train"], heading="file,label,split"))
    assert by_number(open_dataset(source, num_classes=2)) == {1: 1, 3: 0}
    assert by_number(open_dataset(f"{source}:test", num_classes=2)) == {2: 0}
    assert shown(open_dataset(source, num_classes=0)) == [1, 3]
    with refused("has no part val, only train and test"):
        open_dataset(f"{source}:val", num_classes=2)
    source = form(listed(tmp_path, ["a.png,1,A", "b.png,0,B", "x/c.png,0,A"], heading="file,label,split"))
    with refused("'A' is no part of 'a.png'"):
        open_dataset(source, num_classes=2)


ROWS = ["a.png,2", "b.png,0", "x/c.png,1"]


@FORMS
@pytest.mark.parametrize(
    ("heading", "rows"),
    [
        ("label,file", [",".join(reversed(row.split(","))) for row in ROWS]),
        ("label,id", [",".join(reversed(row.split(","))) for row in ROWS]),
        ("file;label", [row.replace(",", ";") for row in ROWS]),
        ("file\tlabel", [row.replace(",", "\t") for row in ROWS]),
        ("file,label", [f"./{row}" for row in ROWS]),
        ("file,label", [row.replace("/", "\\") for row in ROWS]),
        (",file,label,split", [f"{number},{row},train" for number, row in enumerate(ROWS)]),
        ("file,label", [*ROWS, "", ""]),
        ("whatever,else", ROWS),
    ],
)
def test_a_list_is_read_as_its_headings_say(tmp_path, form, heading, rows):
    data = open_dataset(form(listed(tmp_path, rows, heading=heading)), num_classes=3)
    assert by_number(data) == {1: 2, 2: 0, 3: 1}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_names_may_have_a_mark_of_their_encoding(tmp_path, encoding):
    def text(lines):
        return "\r\n".join(lines).encode(encoding)

    rows = ["a.png,größer", "b.png,ant", "x/c.png,größer"]
    lists = {"labels.csv": text(["file,label", *rows]), "classes.txt": text(["ant", "größer"])}
    assert classes(open_dataset(write(tmp_path / "photos", IMAGES | lists))) == {1: "größer", 2: "ant", 3: "größer"}


@FORMS
@pytest.mark.parametrize(
    ("heading", "rows", "said"),
    [
        ("file,label", [r"D:\study\a.png,1"], ["'a.png'", "paths from the list's own folder"]),
        ("file,label", ["a,1", "b,2", "x/c,1"], ["'a' for 'a.png'", "names with their endings"]),
        ("one,two", ["1,a.png", "2,b.png"], ["'a.png'", "head the columns label and file"]),
        ("file,label", ["z.png,1"], ["begins with 'z.png'", "images are called 'a.png'"]),
        ("file,ant,bee", ["a.png,1,0"], ["columns file, ant, bee", "two columns"]),
        ("file,label,patient", [f"{row},p1" for row in ROWS], ["patient names groups", "data.group", "remove them"]),
        ("file,label", ["a.png,0.0", *ROWS[1:]], ["the label of 'a.png', '0.0', is no integer"]),
    ],
)
def test_what_does_not_fit_says_what_differs(tmp_path, refused, form, heading, rows, said):
    source = form(listed(tmp_path, rows, heading=heading))
    with refused("labels.csv", *said):
        open_dataset(source, num_classes=3)


def test_more_columns_are_no_matter_once_groups_are_named(tmp_path):
    rows = ["7,a.png,1,p1", "8,b.png,0,p2", "9,x/c.png,0,p1"]
    source = listed(tmp_path, rows, heading="age,file,label,patient")
    data = open_dataset(source, num_classes=2, group="patient")
    assert (by_number(data), data.groups.tolist()) == ({1: 1, 2: 0, 3: 0}, [0, 1, 0])


@FORMS
def test_a_list_inside_of_the_only_folder_is_found(tmp_path, form):
    rows = {"labels.csv": "file,label,patient\na.png,0,p1\nx/c.png,0,p2\n"}
    source = form(
        write(tmp_path / "set", {f"photos/{name}": what for name, what in ({"a.png": 1, "x/c.png": 3} | rows).items()})
    )
    data = open_dataset(source, num_classes=1, group="patient")
    assert (by_number(data), data.groups.tolist()) == ({1: 0, 3: 0}, [0, 1])


def test_text_that_is_not_utf8_says_so(tmp_path, refused):
    source = write(tmp_path / "photos", IMAGES | {"labels.csv": "file,label\na.png,größe\n".encode("latin-1")})
    with refused("labels.csv is not encoded as UTF-8"):
        open_dataset(source, num_classes=3)


@pytest.mark.parametrize("name", ["annotations.csv", "labels.xlsx", "metadata.jsonl"])
def test_a_list_by_another_name_is_told_which_one_is_read(tmp_path, refused, name):
    source = write(tmp_path / "photos", {"a.png": 1, "b.png": 2, name: "x"})
    with refused(name, "must be called labels.csv"):
        open_dataset(source, num_classes=3)


def test_words_in_a_table_need_a_list_of_all_classes(tmp_path, refused):
    pytest.importorskip("pyarrow")
    path = write_table(tmp_path / "words.parquet", [1, 2, 3], ["bee", "ant", "bee"])
    with refused("must not be read off private labels", "classes.txt"):
        open_dataset(path)
    with refused("row 0, 'bee', is no integer from 0 to 1", "classes.txt"):
        open_dataset(path, num_classes=2)
    (tmp_path / "classes.txt").write_bytes(codecs.BOM_UTF8 + b"ant\r\nbee\r\ncat\r\n")
    assert classes(open_dataset(path)) == {1: "bee", 2: "ant", 3: "bee"}
    assert open_dataset(path).class_names == ("ant", "bee", "cat")
    assert classes(open_dataset(tmp_path)) == {1: "bee", 2: "ant", 3: "bee"}


def test_a_table_whose_labels_may_be_called_otherwise_is_refused(tmp_path, refused):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = parquet.read_table(write_table(tmp_path / "a.parquet", [1, 2], [0, 1]))
    parquet.write_table(made.rename_columns(["image", "target"]), tmp_path / "a.parquet")
    with refused("columns image, target", "rename it to label", "data.num_classes=0"):
        open_dataset(tmp_path / "a.parquet")
    assert shown(open_dataset(tmp_path / "a.parquet", num_classes=0)) == [1, 2]
    parquet.write_table(pyarrow.table({"image": made["image"]}), tmp_path / "a.parquet")
    with refused("has 0 classes, but 2 are declared"):
        open_dataset(tmp_path / "a.parquet", num_classes=2)


@pytest.mark.parametrize("kind", ["npz", "csv", "parquet"])
def test_labels_of_public_images_tell_how_many_classes_there_are(tmp_path, refused, kind):
    if kind == "npz":
        np.savez(tmp_path / "a.npz", images=np.stack([*map(picture, range(3))]), labels=[2, 0, 1])
        source = tmp_path / "a.npz"
    elif kind == "csv":
        source = listed(tmp_path, ["a.png,2", "b.png,0", "x/c.png,1"])
    else:
        pytest.importorskip("pyarrow")
        source = write_table(tmp_path / "a.parquet", [1, 2, 3], [2, 0, 1])
    with refused("must not be read off private labels"):
        open_dataset(source)
    data = open_dataset(source, public=True)
    assert (data.num_classes, data.class_names, data.public) == (3, ("0", "1", "2"), True)
    assert data.labels.tolist() == [2, 0, 1]
    assert open_dataset(source, public=True, num_classes=5).num_classes == 5
    assert open_dataset(source, public=True, num_classes=0).labels is None


def test_public_labels_that_are_no_numbers_are_refused_as_private_ones_are(tmp_path, refused):
    images = np.stack([picture(1), picture(2)])
    for labels, said in (
        ([0.5, np.nan], "labels are float64"),
        ([-1, 0], "label -1 occurs"),
        (["a", "b"], "class_names"),
    ):
        np.savez(tmp_path / "a.npz", images=images, labels=labels)
        with refused(said):
            open_dataset(tmp_path / "a.npz", public=True)
