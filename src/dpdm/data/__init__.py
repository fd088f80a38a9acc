"""Opens any source of images as one fixed table: `uint8` images, labels, and the facts declared about them.

Opening is preparation: it may refuse with one clear line, and never prints or warns about a record. No public fact is
derived from the records: classes are declared, and so is an image's shape, or all images must agree on it.
"""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.data.archive import load_archive
    from dpdm.data.arrays import load_npz, read_claim, save_npz
    from dpdm.data.cifar import load_cifar_directory
    from dpdm.data.dataset import ImageDataset, group_indices
    from dpdm.data.digits import load_digits
    from dpdm.data.duplicates import blank_equal, find_duplicates
    from dpdm.data.folder import load_folder, save_folder
    from dpdm.data.framing import Channels, Fit, Framing
    from dpdm.data.identity import pixel_digests
    from dpdm.data.idx import load_idx_directory, read_idx
    from dpdm.data.image_files import ReadImages
    from dpdm.data.inspection import PartFound, inspect
    from dpdm.data.layout import Split
    from dpdm.data.location import is_built_in, is_source, require_outside
    from dpdm.data.open import open_again, open_dataset, read_location
    from dpdm.data.prepared import Prepared, prepare

__all__ = [
    "Channels",
    "Fit",
    "Framing",
    "ImageDataset",
    "PartFound",
    "Prepared",
    "ReadImages",
    "Split",
    "blank_equal",
    "find_duplicates",
    "group_indices",
    "inspect",
    "is_built_in",
    "is_source",
    "load_archive",
    "load_cifar_directory",
    "load_digits",
    "load_folder",
    "load_idx_directory",
    "load_npz",
    "open_again",
    "open_dataset",
    "pixel_digests",
    "prepare",
    "read_claim",
    "read_idx",
    "read_location",
    "require_outside",
    "save_folder",
    "save_npz",
]

__getattr__ = lazily(
    __name__,
    {
        "archive": "load_archive",
        "arrays": "load_npz read_claim save_npz",
        "cifar": "load_cifar_directory",
        "dataset": "ImageDataset group_indices",
        "digits": "load_digits",
        "duplicates": "blank_equal find_duplicates",
        "folder": "load_folder save_folder",
        "framing": "Channels Fit Framing",
        "identity": "pixel_digests",
        "idx": "load_idx_directory read_idx",
        "image_files": "ReadImages",
        "inspection": "PartFound inspect",
        "layout": "Split",
        "location": "is_built_in is_source require_outside",
        "open": "open_again open_dataset read_location",
        "prepared": "Prepared prepare",
    },
)
