"""Opens any source of images as one fixed table: `uint8` images, labels, and the facts declared about them.

Opening is preparation: it may refuse with one clear line, and never prints or warns about a record. No public fact is
derived from the records: classes are declared, and so is an image's shape, or all images must agree on it.
"""

from typing import TYPE_CHECKING

from dpdm.lazy import lazily

if TYPE_CHECKING:
    from dpdm.data.claims import find_claim as find_claim
    from dpdm.data.claims import read_claim as read_claim
    from dpdm.data.dataset import ImageDataset as ImageDataset
    from dpdm.data.dataset import group_indices as group_indices
    from dpdm.data.dataset import in_parts as in_parts
    from dpdm.data.framing import Channels as Channels
    from dpdm.data.framing import Fit as Fit
    from dpdm.data.framing import Framing as Framing
    from dpdm.data.identity import blank_equal as blank_equal
    from dpdm.data.identity import blank_known as blank_known
    from dpdm.data.identity import find_duplicates as find_duplicates
    from dpdm.data.identity import find_equal as find_equal
    from dpdm.data.identity import known_by as known_by
    from dpdm.data.identity import level_digests as level_digests
    from dpdm.data.identity import pixel_digests as pixel_digests
    from dpdm.data.identity import require_same_shape as require_same_shape
    from dpdm.data.image_files import ReadImages as ReadImages
    from dpdm.data.inspection import PartFound as PartFound
    from dpdm.data.inspection import inspect as inspect
    from dpdm.data.layout import Split as Split
    from dpdm.data.location import is_built_in as is_built_in
    from dpdm.data.location import is_source as is_source
    from dpdm.data.location import require_outside as require_outside
    from dpdm.data.open import open_again as open_again
    from dpdm.data.open import open_dataset as open_dataset
    from dpdm.data.opened import fit_of as fit_of
    from dpdm.data.opened import read_location as read_location
    from dpdm.data.prepared import Prepared as Prepared
    from dpdm.data.prepared import prepare as prepare
    from dpdm.data.public import open_public as open_public
    from dpdm.data.public import require_no_claim as require_no_claim
    from dpdm.data.saving import save_folder as save_folder
    from dpdm.data.saving import save_npz as save_npz

__getattr__ = lazily(
    __name__,
    {
        "claims": "find_claim read_claim",
        "dataset": "ImageDataset group_indices in_parts",
        "framing": "Channels Fit Framing",
        "public": "open_public require_no_claim",
        "identity": "blank_equal blank_known find_duplicates find_equal known_by level_digests pixel_digests "
        "require_same_shape",
        "image_files": "ReadImages",
        "inspection": "PartFound inspect",
        "layout": "Split",
        "location": "is_built_in is_source require_outside",
        "open": "open_again open_dataset",
        "opened": "fit_of read_location",
        "prepared": "Prepared prepare",
        "saving": "save_folder save_npz",
    },
)
