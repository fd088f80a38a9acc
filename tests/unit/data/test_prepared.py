"""A prepared folder holds what its source does, goes on where it stopped, and never opens when it is not whole."""

import csv
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from dpdm.data import Framing, find_duplicates, fit_of, open_again, open_dataset, prepare, save_folder
from dpdm.data import prepared as module
from dpdm.types import InputError

FRAMING = Framing(size=12, channels=3)


@pytest.fixture
def photos(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 14, 13, 3)).astype(np.uint8)
    save_folder(tmp_path / "photos", images, np.arange(9) % 3, class_names=("a", "b", "c"))
    return tmp_path / "photos"


def opener(path, **facts):
    return lambda read: open_dataset(path, read=read, **facts)


def zipped(photos):
    path = photos.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for entry in sorted(photos.rglob("*")):
            archive.write(entry, entry.relative_to(photos))
    return path


def parquet_of(photos):
    """Write what a class folder holds into a parquet file of two rows a group."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(photos.rglob("*.png"))
    columns = {
        "image": [file.read_bytes() or None for file in files],
        "label": ["abc".index(file.parent.name) for file in files],
    }
    parquet.write_table(pyarrow.table(columns), photos.with_suffix(".parquet"), row_group_size=2)
    return photos.with_suffix(".parquet")


@pytest.mark.parametrize("form", ["folder", "zip", "parquet", "npz", "npy"])
def test_it_holds_what_its_source_does(form, photos, tmp_path):
    source, declared = photos, {}
    if form == "zip":
        source = zipped(photos)
    elif form == "parquet":
        source, declared = parquet_of(photos), {"num_classes": 3}
    elif form in ("npz", "npy"):
        opened = open_dataset(photos)
        source = tmp_path / f"photos.{form}"
        if form == "npz":
            np.savez(source, images=opened.images, labels=opened.labels, num_classes=np.array(3))
        else:
            np.save(source, opened.images)
    seen = []
    facts = prepare(tmp_path / "ready", opener(source, **declared), FRAMING, on_progress=lambda *now: seen.append(now))
    assert facts == (9, [])
    assert seen[-1] == (9, 9)
    here, there = open_dataset(tmp_path / "ready"), open_dataset(source, size=12, channels=3, **declared)
    assert isinstance(here.images, np.memmap)
    assert np.array_equal(here.images, there.images)
    assert np.array_equal(here.labels, there.labels) if form != "npy" else here.labels is None
    assert here.num_classes == there.num_classes
    assert form in ("parquet", "npz", "npy") or here.class_names == ("a", "b", "c")
    assert open_dataset(tmp_path / "ready", num_classes=0).labels is None


def prepare_until_killed(source, folder, monkeypatch):
    """Prepare five images, each of them saved, and return the names of their files."""
    read, files = module.read_image, []

    def read_until_killed(file, *args, **kwargs):
        if len(files) == 5:
            raise KeyboardInterrupt
        files.append(str(file))
        return read(file, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(module, "_SECONDS_BETWEEN_SAVES", -1.0)
        patched.setattr(module, "read_image", read_until_killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, source, FRAMING)
    return files


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_it_goes_on_where_it_was_stopped(form, photos, tmp_path, monkeypatch):
    source = opener(photos) if form == "folder" else opener(parquet_of(photos), num_classes=3)
    first = prepare_until_killed(source, tmp_path / "ready", monkeypatch)
    with pytest.raises(InputError, match="not prepared to the end"):
        open_dataset(tmp_path / "ready")
    read, files = module.read_image, []
    monkeypatch.setattr(module, "read_image", lambda file, *a, **k: files.append(str(file)) or read(file, *a, **k))
    prepare(tmp_path / "ready", source, FRAMING)
    assert len(first) == 5
    assert len(files) == 4
    assert not set(first) & set(files)
    assert np.array_equal(open_dataset(tmp_path / "ready").images, open_dataset(photos, size=12, channels=3).images)


def test_arrays_go_on_too_unless_they_are_others_by_then(photos, tmp_path, monkeypatch):
    images = open_dataset(photos).images.copy()
    np.save(tmp_path / "a.npy", images)
    seen = []

    def stop_at_the_fifth(done, total):
        seen.append(done)
        if len(seen) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_SECONDS_BETWEEN_SAVES", -1.0)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "ready", opener(tmp_path / "a.npy"), FRAMING, on_progress=stop_at_the_fifth)
    shutil.copytree(tmp_path / "ready", tmp_path / "others")
    prepare(tmp_path / "ready", opener(tmp_path / "a.npy"), FRAMING, on_progress=stop_at_the_fifth)
    assert seen == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]  # what was done, but not saved, is done again
    images[0] = 255 - images[0]
    np.save(tmp_path / "a.npy", images)
    prepare(tmp_path / "others", opener(tmp_path / "a.npy"), FRAMING)
    for ready, changed in (("ready", False), ("others", True)):
        there = open_dataset(tmp_path / ready).images[0]
        assert np.array_equal(there, open_dataset(tmp_path / "a.npy", size=12, channels=3).images[0]) == changed


def test_images_that_were_lost_meanwhile_are_read_again(photos, tmp_path, monkeypatch):
    prepare_until_killed(opener(photos), tmp_path / "ready", monkeypatch)
    pixels = tmp_path / "ready" / "images.bin"
    pixels.write_bytes(pixels.read_bytes()[:-1000])  # as a copy leaves it that was cut short
    (tmp_path / "ready" / ".progress.json.partial").write_text("{")  # as a kill leaves it
    prepare(tmp_path / "ready", opener(photos), FRAMING)
    assert np.array_equal(open_dataset(tmp_path / "ready").images, open_dataset(photos, size=12, channels=3).images)


def test_two_processes_do_not_prepare_the_same_folder(photos, tmp_path):
    def opened(read):
        with pytest.raises(InputError, match="being prepared by another process"):
            prepare(tmp_path / "ready", opener(photos), FRAMING)
        return open_dataset(photos, read=read)

    prepare(tmp_path / "ready", opened, FRAMING)
    assert len(open_dataset(tmp_path / "ready")) == 9


def test_it_says_how_its_images_were_framed_and_so_does_one_that_is_prepared_from_it(photos, tmp_path):
    """So whatever is framed as these are, public images or held-out ones, is framed alike."""
    whole = opener(photos)
    prepare(tmp_path / "padded", whole, Framing(size=12, fit="pad", channels=3))
    prepare(tmp_path / "again", opener(tmp_path / "padded"), Framing())
    prepare(tmp_path / "kept", whole, Framing())
    for folder, said in (("padded", ", pad to 12"), ("again", ", pad to 12"), ("kept", "")):
        opened = open_dataset(tmp_path / folder)
        assert opened.location == f"{(tmp_path / folder).resolve()}{said}"
        assert fit_of(opened.location) == ("pad" if said else "crop")
        assert open_again(opened.location, channels=3, num_classes=3).digest() == opened.digest()
    damaged = (tmp_path / "padded" / "prepared.json").read_text().replace('"pad"', '"bend"')
    (tmp_path / "padded" / "prepared.json").write_text(damaged)
    with pytest.raises(InputError, match="is damaged"):
        open_dataset(tmp_path / "padded")


def test_it_has_no_test_part(photos, tmp_path):
    """Training images must never pass as held-out ones."""
    prepare(tmp_path / "ready", opener(photos), FRAMING)
    with pytest.raises(InputError, match="has no folders train/, val/ and test/"):
        open_dataset(f"{tmp_path / 'ready'}:test")


def test_it_starts_anew_when_the_source_has_changed(photos, tmp_path, monkeypatch):
    broken = photos / "c" / "8.png"
    content = broken.read_bytes()
    broken.write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of the records cannot be used"):
        prepare(tmp_path / "ready", opener(photos), FRAMING)
    broken.write_bytes(content)
    Image.new("RGB", (20, 20), "red").save(photos / "a" / "0.png")
    prepare(tmp_path / "ready", opener(photos), FRAMING)
    assert np.array_equal(open_dataset(tmp_path / "ready").images, open_dataset(photos, size=12, channels=3).images)


def test_records_that_cannot_be_used_are_all_named_and_may_be_left_out(photos, tmp_path):
    whole = open_dataset(photos, size=12, channels=3)
    (photos / "a" / "3.png").write_bytes(b"no image")
    (photos / "b" / "7.png").unlink()
    (photos / "b" / "7.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"2 of the records cannot be used.*refused\.txt lists all"):
        prepare(tmp_path / "ready", opener(photos), FRAMING)
    assert all(name in (tmp_path / "ready" / "refused.txt").read_text() for name in ("3.png", "7.png"))
    prepared = prepare(tmp_path / "ready", opener(photos), FRAMING, leave_out=True)
    assert prepared.num_images == 7
    assert len(prepared.left_out) == 2
    ready = open_dataset(tmp_path / "ready")
    kept = [0, 2, 3, 4, 6, 7, 8]  # class by class: a is 0, 3, 6; b is 1, 4, 7
    assert np.array_equal(ready.images, whole.images[kept])
    assert np.array_equal(ready.labels, whole.labels[kept])


def test_rows_that_cannot_be_used_are_refused_one_by_one(photos, tmp_path):
    whole = open_dataset(photos, size=12, channels=3)
    (photos / "a" / "3.png").write_bytes(b"no image")
    (photos / "b" / "7.png").write_bytes(b"")  # no bytes at all, in the table
    source = opener(parquet_of(photos), num_classes=3)
    with pytest.raises(InputError, match=r"2 of the records cannot be used.*row 1,.*refused\.txt lists all"):
        prepare(tmp_path / "ready", source, FRAMING)
    prepared = prepare(tmp_path / "ready", source, FRAMING, leave_out=True)
    assert prepared.num_images == 7
    assert ["row 1, is no image" in prepared.left_out[0], "row 5, has no" in prepared.left_out[1]] == [True, True]
    ready, kept = open_dataset(tmp_path / "ready"), [0, 2, 3, 4, 6, 7, 8]
    assert np.array_equal(ready.images, whole.images[kept])
    assert np.array_equal(ready.labels, whole.labels[kept])


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("kind", ["class folders", "listing", "no classes", "flat"])
def test_files_that_are_no_images_by_name_are_left_out(form, kind, photos, tmp_path):
    facts = {"num_classes": 0} if kind == "no classes" else {}
    if kind == "flat":
        photos = photos / "a"
    if kind == "listing":
        names = [file.relative_to(photos).as_posix() for file in sorted(photos.rglob("*.png"))]
        with (photos / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file", "label"), *((name, number % 2) for number, name in enumerate(names))])
        facts = {"num_classes": 2}
    whole = open_dataset(photos, size=12, channels=3, **facts)
    others = [photos / "README", *([] if kind == "flat" else [photos / "b" / "notes.txt"])]
    for other in others:
        other.write_bytes(b"no image")
    source = opener(zipped(photos) if form == "zip" else photos, **facts)
    with pytest.raises(InputError, match=rf"{len(others)} of the records.*README is no image.*move it elsewhere"):
        prepare(tmp_path / "ready", source, FRAMING)
    prepared = prepare(tmp_path / "ready", source, FRAMING, leave_out=True)
    assert [line.split(" is no image")[0][-6:] for line in prepared.left_out] == ["README", "es.txt"][: len(others)]
    assert (tmp_path / "ready" / "refused.txt").read_text() == "\n".join(prepared.left_out) + "\n"
    ready = open_dataset(tmp_path / "ready")
    assert np.array_equal(ready.images, whole.images)
    assert (ready.class_names, len(ready)) == (whole.class_names, len(whole))
    assert np.array_equal(ready.labels, whole.labels)


def test_records_are_left_out_only_where_the_frame_is_declared(photos, tmp_path):
    with pytest.raises(InputError, match="declare both size and channels"):
        prepare(tmp_path / "ready", opener(photos), Framing(size=12), leave_out=True)
    assert not (tmp_path / "ready").exists()


def test_a_crash_while_gaps_are_closed_is_made_good(photos, tmp_path, monkeypatch):
    (photos / "a" / "0.png").write_bytes(b"no image")
    monkeypatch.setattr(module.os, "truncate", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        prepare(tmp_path / "ready", opener(photos), FRAMING, leave_out=True)
    monkeypatch.undo()
    prepare(tmp_path / "ready", opener(photos), FRAMING, leave_out=True)
    whole = tmp_path / "whole"
    shutil.copytree(photos, whole)
    (whole / "a" / "0.png").unlink()
    assert np.array_equal(open_dataset(tmp_path / "ready").images, open_dataset(whole, size=12, channels=3).images)


@pytest.mark.parametrize("name", ["images.bin", "labels.npy", "prepared.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_is_seen(name, harm, photos, tmp_path):
    prepare(tmp_path / "ready", opener(photos), FRAMING)
    path = tmp_path / "ready" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes(content if harm == "flip" else content[:-1])
    with pytest.raises(InputError, match=r"damaged|cannot be read|holds|neither|is no image|not prepared"):
        open_dataset(tmp_path / "ready")


def test_it_has_one_frame(photos, tmp_path):
    """To frame it anew would take all images into memory; it may be prepared from, though, part by part."""
    prepare(tmp_path / "ready", opener(photos), FRAMING)
    assert open_dataset(tmp_path / "ready", size=12, fit="pad", channels=3).shape == (3, 12, 12)
    for framing in ({"size": 16}, {"channels": 1}):
        with pytest.raises(InputError, match=r"at 12 x 12 with 3 channels: leave data\.size and data\.channels"):
            open_dataset(tmp_path / "ready", **framing)
    prepare(tmp_path / "smaller", opener(tmp_path / "ready"), Framing(size=8, channels=1))
    assert open_dataset(tmp_path / "smaller").shape == (1, 8, 8)


def test_what_is_there_is_never_overwritten(photos, tmp_path):
    prepare(tmp_path / "ready", opener(photos), FRAMING)
    with pytest.raises(InputError, match="prepared already"):
        prepare(tmp_path / "ready", opener(photos), FRAMING)
    with pytest.raises(InputError, match="holds something else"):
        prepare(photos, opener(photos), FRAMING)


def test_equal_images_are_found():
    images = np.random.default_rng(1).integers(0, 256, (50, 8, 8, 1)).astype(np.uint8)
    images[[7, 30]] = images[3]
    images[49] = images[10]
    assert find_duplicates(images) == [[3, 7, 30], [10, 49]]
    assert find_duplicates(images[:3]) == []
