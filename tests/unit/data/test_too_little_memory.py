"""Too little memory while a source is read is no damage of the source, whoever runs out of it."""

import errno
import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_sources import picture, save_to_disk, write, write_table, zipped
from PIL import Image

from dpdm.data import Framing, csv_rows, inspect, open_dataset, prepare
from dpdm.evaluation import TorchScriptFeatures
from dpdm.types import InputError, is_of_memory

SHORTAGES = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError("out of memory when reading image file"),  # Pillow's
]


def photos(folder):
    return write(folder / "photos", {"1.png": 1, "2.png": 2})


def listed(folder):
    return write(folder / "listed", {"1.png": 1, "labels.csv": "file,label\n1.png,a\n", "classes.txt": "a\n"})


def in_json(folder):
    return write(folder / "json", {"1.png": 1, "dataset.json": json.dumps({"labels": [["1.png", 0]]})})


def archive(folder):
    return zipped(photos(folder))


def arrays(folder):
    np.savez(folder / "a.npz", images=picture(1)[None])
    return folder / "a.npz"


def array(folder):
    np.save(folder / "a.npy", picture(1)[None])
    return folder / "a.npy"


def idx(folder):
    content = b"\0\0\x08\x03" + np.array([1, 8, 8], ">u4").tobytes() + picture(1).tobytes()
    return write(folder / "idx", {"train-images-idx3-ubyte.gz": gzip.compress(content)})


def table(folder):
    write_table(folder / "a.parquet", [1, 2])
    return folder / "a.parquet"


def saved(folder):
    save_to_disk(folder / "saved", [1, 2], [0, 1], ["a", "b"])
    return folder / "saved"


def ready(folder):
    prepare(folder / "ready", lambda read: open_dataset(photos(folder), read=read), Framing(size=8, channels=1))
    return folder / "ready"


READERS = {
    "a picture": (photos, Image, "open"),
    "a picture in a table": (table, Image, "open"),
    "a list": (listed, csv_rows, "read_text"),
    "names of classes": (listed, Path, "read_bytes"),
    "a list in JSON": (in_json, json, "loads"),
    "an archive": (archive, zipfile, "ZipFile"),
    "a picture in an archive": (archive, Image, "open"),
    "arrays": (arrays, np, "load"),
    "an array": (array, np, "load"),
    "an IDX file": (idx, gzip, "decompress"),
    "a saved data set": (saved, json, "loads"),
    "a prepared folder": (ready, np, "memmap"),
    "facts of a prepared folder": (ready, json, "loads"),
}


@pytest.mark.parametrize("shortage", SHORTAGES, ids=["python", "system", "decoder"])
@pytest.mark.parametrize("reader", READERS)
def test_it_stays_what_it_is(reader, shortage, tmp_path, monkeypatch):
    make, where, function = READERS[reader]
    source, reached = make(tmp_path), []
    real = getattr(where, function)

    def too_much(*arguments, **keywords):
        reached.append(arguments)
        if function == "read_bytes" and arguments[0].name != "classes.txt":
            return real(*arguments)
        raise shortage

    monkeypatch.setattr(where, function, too_much)
    with pytest.raises(type(shortage)) as caught:
        open_dataset(source, num_classes=1 if make in (in_json, idx) else None)
    assert reached
    assert caught.value is shortage
    assert is_of_memory(caught.value)


def test_no_record_is_left_out_for_it(tmp_path, monkeypatch):
    def too_much(*arguments, **keywords):
        raise MemoryError

    source = photos(tmp_path)
    monkeypatch.setattr(Image, "open", too_much)
    with pytest.raises(MemoryError):
        inspect(source)
    with pytest.raises(MemoryError):
        prepare(
            tmp_path / "ready",
            lambda read: open_dataset(source, read=read),
            Framing(size=8, channels=1),
            leave_out=True,
        )


def test_features_that_run_out_of_it_are_no_broken_file(tmp_path, monkeypatch):
    import torch

    class Wide(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.empty((images.shape[0], 1 << 50))

    torch.jit.script(Wide()).save(tmp_path / "wide.pt")
    features = TorchScriptFeatures(tmp_path / "wide.pt").build()
    with pytest.raises(RuntimeError) as caught:
        features(picture(1)[None, ..., None])
    assert is_of_memory(caught.value)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "x", "out of memory.png"), OSError("damaged")])
def test_other_errors_are_not_taken_for_it(error):
    assert not is_of_memory(error)
