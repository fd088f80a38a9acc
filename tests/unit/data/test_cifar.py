import numpy as np
import pytest

from dpdm.data import open_dataset

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 0, 2]
NAMES = "airplane\nautomobile\nbird\n\n"  # the published file ends with an empty line as well


def records(images, *labels):
    """Images as the format has them: for each the labels, then all of red, all of green, all of blue."""
    rows = [bytes(row[:-1]) + row[-1].transpose(2, 0, 1).tobytes() for row in zip(*labels, images, strict=True)]
    return b"".join(rows)


def write_cifar10(folder, names=NAMES):
    """The first five images as the train part, one in each batch, and the last as the test part."""
    folder.mkdir(parents=True)
    files = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    for index, file in enumerate(files):
        (folder / file).write_bytes(records(IMAGES[index : index + 1], LABELS[index : index + 1]))
    (folder / "batches.meta.txt").write_text(names)
    (folder / "readme.html").write_text("comes with it")
    return folder


def write_cifar100(folder, names=NAMES):
    """Four images as the train part and two as the test part, each with a coarse label of 19 before its own."""
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(records(IMAGES[:4], [19] * 4, LABELS[:4]))
    (folder / "test.bin").write_bytes(records(IMAGES[4:], [19] * 2, LABELS[4:]))
    (folder / "fine_label_names.txt").write_text(names)
    (folder / "coarse_label_names.txt").write_text("many\n")
    return folder


@pytest.mark.parametrize(("write", "last"), [(write_cifar10, 5), (write_cifar100, 4)])
def test_images_and_labels_are_read_as_they_were_written(tmp_path, write, last):
    folder = write(tmp_path / "cifar")
    train, test = open_dataset(folder), open_dataset(f"{folder}:test")
    assert np.array_equal(train.images, IMAGES[:last])
    assert np.array_equal(test.images, IMAGES[last:])
    assert train.labels.tolist() == LABELS[:last]
    assert test.labels.tolist() == LABELS[last:]
    assert train.class_names == test.class_names == ("airplane", "automobile", "bird")
    assert train.images.flags.writeable


def test_a_file_may_hold_many_records(tmp_path):
    folder = write_cifar10(tmp_path / "cifar")
    (folder / "data_batch_1.bin").write_bytes(records(IMAGES, LABELS))
    assert open_dataset(folder).labels.tolist() == LABELS + LABELS[1:5]


@pytest.mark.parametrize("write", [write_cifar10, write_cifar100])
def test_a_folder_opens_by_its_path(tmp_path, refused, write):
    folder = write(tmp_path / "small")
    assert open_dataset(folder, num_classes=3).name == "small"
    test = open_dataset(f"{folder}:test", size=16, channels=1)
    assert (test.shape, test.name) == ((1, 16, 16), "small:test")
    with refused(folder, "3 classes", "10 are declared"):
        open_dataset(folder, num_classes=10)
    assert open_dataset(folder, num_classes=0).labels is None


@pytest.mark.parametrize("folder", ["cifar10", "cifar-10-batches-bin"])
def test_cifar10_opens_by_name(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("DPDM_DATA", str(tmp_path))
    write_cifar10(tmp_path / folder, "\n".join("abcdefghij"))
    opened = open_dataset("cifar10:test")
    assert np.array_equal(opened.images, IMAGES[5:])
    assert (opened.num_classes, opened.name) == (10, "cifar10:test")


@pytest.mark.parametrize("folder", ["cifar100", "cifar-100-binary"])
def test_cifar100_opens_by_name(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("DPDM_DATA", str(tmp_path))
    write_cifar100(tmp_path / folder, "\n".join(str(number) for number in range(100)))
    opened = open_dataset("cifar100")
    assert np.array_equal(opened.images, IMAGES[:4])
    assert (opened.num_classes, opened.name) == (100, "cifar100")


def test_what_is_not_the_named_data_set_is_refused(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("DPDM_DATA", str(tmp_path))
    for name, archive in (("cifar10", "cifar-10-batches-bin"), ("cifar100", "cifar-100-binary")):
        with refused(name, "not on this machine", archive, "DPDM_DATA"):
            open_dataset(name)
    write_cifar10(tmp_path / "cifar10")
    with refused(tmp_path / "cifar10", "3 classes", "10 are declared"):
        open_dataset("cifar10")
    (tmp_path / "cifar100").mkdir()
    with refused(tmp_path / "cifar100", "lacks the files of CIFAR's binary version"):
        open_dataset("cifar100")


@pytest.mark.parametrize(
    ("write", "part", "missing"),
    [
        (write_cifar10, "", "data_batch_4.bin"),
        (write_cifar10, ":test", "test_batch.bin"),
        (write_cifar10, ":test", "batches.meta.txt"),
        (write_cifar100, "", "train.bin"),
        (write_cifar100, "", "fine_label_names.txt"),
    ],
)
def test_a_missing_file_is_refused_by_name(tmp_path, refused, write, part, missing):
    folder = write(tmp_path / "cifar")
    (folder / missing).unlink()
    with refused(folder, f"lacks the file {missing}"):
        open_dataset(f"{folder}{part}")


@pytest.mark.parametrize("content", [b"", records(IMAGES[:2], LABELS[:2])[:-1], records(IMAGES[:1], LABELS[:1]) + b"x"])
def test_a_truncated_file_is_refused_by_name(tmp_path, refused, content):
    file = write_cifar10(tmp_path / "cifar") / "data_batch_2.bin"
    file.write_bytes(content)
    with refused(file, f"{len(content)} bytes", "3073"):
        open_dataset(file.parent)


def test_a_label_without_a_name_is_refused_by_its_file(tmp_path, refused):
    file = write_cifar10(tmp_path / "ten") / "data_batch_5.bin"
    file.write_bytes(records(IMAGES[:3], [2, 3, 255]))
    with refused(file, "label 3", "batches.meta.txt names 3 classes"):
        open_dataset(file.parent)
    file = write_cifar100(tmp_path / "hundred") / "test.bin"
    file.write_bytes(records(IMAGES[:3], [0, 0, 0], [2, 3, 255]))
    assert len(open_dataset(file.parent)) == 4
    with refused(file, "label 3", "fine_label_names.txt names 3 classes"):
        open_dataset(f"{file.parent}:test")
