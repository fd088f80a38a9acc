"""Small sources for tests: one picture a number, and the same pictures in every kind of container."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number):
    """A grey picture that shows its number, and both dark and bright levels."""
    levels = np.full((8, 8), 90, np.uint8)
    levels[0, 0] = number
    return levels


def encoded(number, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(picture(number)).save(buffer, kind)
    return buffer.getvalue()


def write(folder, files):
    """Write pictures (numbers), texts and bytes by their names; a name that ends in / is an empty folder."""
    for name, content in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            content = encoded(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def zipped(folder):
    """An archive beside a folder of all that is in it, with entries for folders, as `zip -r` makes them."""
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for entry in sorted(folder.rglob("*")):
            archive.write(entry, entry.relative_to(folder).as_posix())
    return path


def write_table(path, numbers, labels=None, names=None):
    """A parquet file as Hugging Face's `datasets` writes it."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [{"bytes": encoded(number), "path": None} for number in numbers]}
    made = pyarrow.table(columns if labels is None else columns | {"label": [*labels]})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": [*names], "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(made, path)
    return path


def save_to_disk(folder, numbers, labels, names):
    """What `Dataset.save_to_disk` writes."""
    import pyarrow
    import pyarrow.parquet

    made = pyarrow.parquet.read_table(write_table(folder / "made.parquet", numbers, labels, names))
    (folder / "made.parquet").unlink()
    with pyarrow.OSFile(str(folder / "data.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, made.schema) as writer:
        writer.write_table(made)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")
    return Path(folder)


def shown(data):
    """The number of each image, in their order."""
    return data.images[:, 0, 0, 0].tolist()


def classes(data):
    """The class of each image by the number it shows."""
    return {number: data.class_names[label] for number, label in zip(shown(data), data.labels, strict=True)}
