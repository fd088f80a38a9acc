"""The same images are the same data set in a folder, an archive, arrays and tables: order, labels, names of classes."""

import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_sources import picture, write, write_table, zipped

from dpdm.data import open_dataset

PARTS = {"train": ("train", "Train", "training", "TRAIN"), "val": ("val", "Valid"), "test": ("test", "Testing")}
LEFT = (".DS_Store", "Thumbs.db", "@eaDir/1.png", "__MACOSX/1.png")
WORDS = st.text("aZ1é _.-", min_size=1, max_size=4).map(str.strip).filter(lambda name: name.strip(".") == name != "")
NUMBERS = st.integers(0, 30).map(str)


def in_order(names):
    return sorted(names, key=int) if all(map(str.isdecimal, names)) else sorted(names)


def same(names):
    """Keys that no two classes or files of one folder may have in common."""
    return unicodedata.normalize("NFC", names)


@st.composite
def trees(draw):
    """Return the images of each part by class and name; one class, called "", for loose images."""
    some = st.lists(st.one_of(WORDS, NUMBERS), min_size=2, max_size=4, unique_by=same)
    classes = draw(st.one_of(st.lists(NUMBERS, min_size=2, max_size=12, unique=True), some, st.just([""])))
    parts = draw(st.sampled_from([[""], ["train", "test"], ["train", "val"], ["train", "val", "test"]]))
    names = st.lists(WORDS.map(lambda name: f"{name}.png"), min_size=1, max_size=3, unique_by=same)
    number = iter(range(200))
    return {part: {kind: {name: next(number) for name in draw(names)} for kind in classes} for part in parts}


@settings(max_examples=20, deadline=None)
@given(trees(), st.data())
def test_the_same_images_are_the_same_data_set_in_every_container(tree, data):
    pytest.importorskip("pyarrow")
    normal = data.draw(st.sampled_from(["NFC", "NFD"]))
    around = data.draw(st.sampled_from(["", "photos/", "a/b/"]))
    files, arrays, tables = {}, {}, {}
    for part, classes in tree.items():
        folder = around + (f"{data.draw(st.sampled_from(PARTS[part]))}/" if part else "")
        order = in_order(classes)
        numbers, labels = [], []
        for kind in order:
            for name, number in sorted(classes[kind].items()):
                files[unicodedata.normalize(normal, f"{folder}{kind}/{name}" if kind else folder + name)] = number
                numbers.append(number)
                labels.append(order.index(kind))
            if kind:
                files[f"{folder}{unicodedata.normalize(normal, kind)}/{data.draw(st.sampled_from(LEFT))}"] = 199
        said = f"{part}_" if part else ""
        named = bool(order[0])
        arrays[f"{said}images"] = np.stack([*map(picture, numbers)])
        arrays |= {f"{said}labels": labels, "class_names": order} if named else {}
        tables[f"{said or 'x-'}0.parquet"] = (numbers, labels if named else None, order if named else None)
    with tempfile.TemporaryDirectory() as place:
        root = write(Path(place) / "set", files)
        np.savez(Path(place) / "set.npz", **arrays)
        for name, content in tables.items():
            write_table(Path(place) / "tables" / name, *content)
        for part in tree:
            there = [
                open_dataset(f"{source}:{part}" if part else source)
                for source in (root, zipped(root), Path(place) / "set.npz", Path(place) / "tables")
            ]
            one = there[0]
            for other in there[1:]:
                assert np.array_equal(one.images, other.images)
                assert one.class_names == other.class_names
                assert one.num_classes == other.num_classes
                assert np.array_equal(one.labels, other.labels)
