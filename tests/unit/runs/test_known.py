"""Each process digests its own images; the first one has what it would have digested alone."""

import dataclasses

import numpy as np
import pytest

from dpdm.data import ImageDataset, pixel_digests
from dpdm.privacy.processes import Processes
from dpdm.runs import known
from dpdm.runs.known import KnownImages

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), dtype=np.uint8)
ALONE = ImageDataset(images=IMAGES, name="scans")
IN_GROUPS = dataclasses.replace(ALONE, groups=np.array([3, 0, 1, 1, 2, 0, 4, 4, 4, 2, 0]))


class OneOfThree(Processes):
    """A process of three, which come one after the other, the first one last."""

    def in_turn(self, mine):
        sent[self.rank] = mine[0]
        return [sent[rank] for rank in range(self.size)] if self.first else []


sent = {}


@pytest.mark.parametrize("data", [ALONE, IN_GROUPS], ids=["images", "groups"])
def test_the_first_process_has_the_digests_of_all_images_in_their_order(data, monkeypatch):
    hashed = []
    monkeypatch.setattr(known, "pixel_digests", lambda images: hashed.append(len(images)) or pixel_digests(images))
    for processes in (OneOfThree(rank, 3) for rank in (1, 2, 0)):
        own = data.part(processes.shard(data.num_units))
        of_images = KnownImages(data, own, processes)
        assert len(of_images.digests()) == (len(data) if processes.first else 0)
    assert (of_images.digests() == pixel_digests(IMAGES)).all()
    assert sum(hashed) == len(IMAGES), "each image is digested once"


def test_one_process_digests_all():
    assert (KnownImages(ALONE, ALONE, Processes()).digests() == pixel_digests(IMAGES)).all()
