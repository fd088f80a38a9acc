"""The public data sets that are opened by name."""

import os
from pathlib import Path
from typing import Final

import numpy as np

from dpdm.data.binary import load_cifar, load_idx
from dpdm.data.declared import Asked, Records, require_same_num_classes
from dpdm.data.layout import choose_part
from dpdm.data.location import split_of
from dpdm.types import InputError

_SYSTEM_FOLDER: Final = Path("/usr/share/datasets")  # where Debian's data set packages put their files
_FASHION: Final = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR10: Final = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
_APT: Final = "run apt-get install dataset-fashion-mnist, or "


def load_built_in(name: str, asked: Asked) -> Records:
    """Return a part of a built-in data set, which has to be on this machine."""
    count = 100 if name == "cifar100" else 10
    require_same_num_classes(count, asked.num_classes, name)
    match name:
        case "digits":
            found = _digits(asked)
        case "fashion-mnist":
            found = load_idx(_installed(name, remedy=_APT), asked)._replace(class_names=tuple(_FASHION.split(",")))
        case "mnist":
            found = load_idx(_installed(name), asked)
        case "cifar10":
            found = load_cifar(_installed(name, archive="cifar-10-batches-bin"), asked)
        case _:
            found = load_cifar(_installed(name, archive="cifar-100-binary"), asked)
    return found._replace(num_classes=count, public=True)


def classes_of(source: str, count: int) -> tuple[str, ...]:
    """Return the names of so many classes of a source, without a look at it: numbers, where they are not known."""
    known = {"fashion-mnist": _FASHION, "cifar10": _CIFAR10}.get(split_of(source)[0], "").split(",")
    return tuple(known) if len(known) == count else tuple(map(str, range(count)))


def _digits(asked: Asked) -> Records:
    """Return a part of scikit-learn's 1797 digits, 8 x 8 pixels: every fifth (index % 5 == 4) is `test`.

    Source: "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository; 17 levels of grey.
    """
    choose_part(("train", "test"), asked.split, "digits")
    # Imported here because it takes a second, which no other source should pay.
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = (np.arange(len(digits.images)) % 5 == 4) == (asked.split == "test")
    levels = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return Records("digits", levels[..., np.newaxis], digits.target[chosen])


def _installed(name: str, *, archive: str = "", remedy: str = "") -> Path:
    """Return the folder of a data set that was put on this machine, by its name or by that in its archive."""
    own = os.environ.get("DPDM_DATA")
    for parent in [Path(own), _SYSTEM_FOLDER] if own else [_SYSTEM_FOLDER]:
        for folder in (parent / name, parent / (archive or name)):
            if folder.is_dir():
                return folder
    files = f"the files of {archive}" if archive else "its four IDX files"
    raise InputError(
        f"{name} is not on this machine: {remedy}put {files} in a folder {name}/ "
        "and set DPDM_DATA to the folder above it"
    )
