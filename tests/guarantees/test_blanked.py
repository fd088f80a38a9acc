"""Private images that are public too are blank: they add zero, and nothing shows whether there were any."""

import dataclasses
import json
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from two_worlds import GROUP_PLAN, GROUPED, IMAGES, LOSS, World, differences, fit, images, moved, plus

from dpdm.data import Fit, ImageDataset, blank_equal, find_duplicates, open_dataset
from dpdm.diffusion import EDM
from dpdm.methods import Prior
from dpdm.methods.loader import Loader
from dpdm.privacy import InsecureSeededEntropy, clipped_grad_sum
from dpdm.runs.public import taking_part_of
from dpdm.runs.start import open_start, save_start
from dpdm.types import InputError
from strategies import every_strategy

PUBLIC = images(5, seed=99)
BOTH = plus(IMAGES, PUBLIC.images[2], 1)  # its last image is public
REMOVED = IMAGES
CHANGED = plus(IMAGES, 255 - PUBLIC.images[2], 1)


def blanked(data):
    return blank_equal(data, PUBLIC)


@pytest.mark.parametrize("strategy", ["one-backward-each", "vectorized", "layer-wise"])
@pytest.mark.parametrize("prior", [None, Prior(centres=3, rounds=2)], ids=["steps", "prior"])
@pytest.mark.proof
def test_a_blanked_image_adds_the_zero_vector_to_every_sum(strategy, prior, tmp_path):
    """Not what a black image adds: that would be as far from nothing as any image is."""
    d = fit(World(), blanked(BOTH), tmp_path / "d", strategy=strategy, prior=prior)
    e = fit(World(replay=d), blanked(REMOVED), tmp_path / "e", strategy=strategy, prior=prior)
    assert differences(d, e) == []
    assert max(moved(d, e)) <= 1e-6  # what rounding takes, with one example more in a physical batch
    shown = fit(World(replay=d), BOTH, tmp_path / "f", strategy=strategy, prior=prior)
    assert differences(d, shown) == []
    assert max(moved(d, shown)) > 1e-3, "without the mask it is there"


@pytest.mark.parametrize("prior", [None, Prior(centres=3, rounds=2)], ids=["steps", "prior"])
def test_two_worlds_of_which_only_one_has_an_image_of_the_reference(prior, tmp_path):
    """The kind: a choice by a public image that shows who is in the data."""
    d = fit(World(), blanked(BOTH), tmp_path / "d", prior=prior)
    e = fit(World(replay=d), blanked(CHANGED), tmp_path / "e", prior=prior)
    assert blanked(BOTH).blank.tolist() == [False] * 12 + [True]
    assert not blanked(CHANGED).blank.any()
    assert differences(d, e) == []
    assert max(moved(d, e)) > 1e-3


@pytest.mark.parametrize("prior", [None, Prior(centres=2, rounds=1)], ids=["steps", "prior"])
def test_data_that_are_public_altogether_are_trained_on_as_none(prior, tmp_path):
    everything = fit(World(), blank_equal(IMAGES, IMAGES), tmp_path / "d", prior=prior)
    assert all(torch.equal(call.total, torch.zeros_like(call.total)) for call in everything.calls)
    assert everything.observed["weights"]


OF_GROUPS = {  # of the neighbour's last group: which of its images are public
    "none": (),
    "one": (1,),
    "all but one": (0, 2),
    "all": (0, 1, 2),
}


@pytest.mark.parametrize("prior", [None, Prior(centres=3, rounds=2)], ids=["steps", "prior"])
@pytest.mark.parametrize("which", OF_GROUPS)
def test_two_worlds_that_differ_in_a_group_of_which_some_images_are_public(which, prior, tmp_path):
    members = images(3, seed=5).images
    public = dataclasses.replace(PUBLIC, images=PUBLIC.images.copy())
    public.images[: len(OF_GROUPS[which])] = members[list(OF_GROUPS[which])]
    more = dataclasses.replace(
        GROUPED,
        images=np.concatenate([GROUPED.images, members]),
        labels=np.append(GROUPED.labels, [0, 1, 2]),
        groups=np.append(GROUPED.groups, [6] * 3),
    )
    d = fit(World(), blank_equal(GROUPED, public), tmp_path / "d", plan=GROUP_PLAN, prior=prior)
    e = fit(World(replay=d), blank_equal(more, public), tmp_path / "e", plan=GROUP_PLAN, prior=prior)
    assert differences(d, e) == []
    assert (max(moved(d, e)) <= 1e-6) == (which == "all")


def test_the_others_of_a_group_keep_their_weight_and_are_all_that_is_drawn():
    data = blank_equal(GROUPED, IMAGES.part(np.array([0, 3, 11])))
    np.testing.assert_allclose(data.weights[[0, 2, 6]], [0, 1 / 3, 1 / 3])
    assert data.weights[[3, 11]].tolist() == [0, 0]
    batch = Loader(data, LOSS, EDM().noise_levels, torch.device("cpu"))(
        np.arange(6), InsecureSeededEntropy(0).stream("diffusion", 0)
    )
    assert batch.x[[1, 5]].isnan().all(), "groups 1 and 5 have no other image"
    left = batch.x[[0, 2, 3, 4]]
    assert left.isfinite().all()
    shown = {x.numpy().tobytes() for x in ((left + 1) * 127.5).round().to(torch.uint8).flatten(0, 1)}
    assert shown <= {image.tobytes() for image in np.delete(GROUPED.images, [0, 3, 11], axis=0)}


@every_strategy
def test_a_blank_record_in_a_batch_gives_no_gradient_and_changes_no_other_record(strategy):
    from two_worlds import NUM_CLASSES, Network

    from dpdm.diffusion import PreconditionedDenoiser

    denoiser = PreconditionedDenoiser(Network(), EDM())
    torch.nn.init.normal_(denoiser.network.out.weight)
    sums = []
    for data in (blanked(BOTH), blanked(CHANGED)):
        assert data.num_classes == NUM_CLASSES
        loader = Loader(data, LOSS, EDM().noise_levels, torch.device("cpu"))
        for units in (np.arange(13), np.arange(12), np.array([12])):
            batch = loader(units, InsecureSeededEntropy(0).stream("diffusion", 0))
            sums.append(clipped_grad_sum(LOSS, denoiser, batch, max_grad_norm=1e-3, strategy=strategy).vector)
    assert torch.equal(sums[2], torch.zeros_like(sums[2]))
    torch.testing.assert_close(sums[0], sums[1], rtol=0, atol=1e-9)
    assert torch.linalg.vector_norm(sums[3] - sums[0]) > 1e-4
    assert torch.linalg.vector_norm(sums[5]) > 1e-4


def test_equal_is_equal_in_every_pixel_and_each_image_is_judged_by_itself():
    near = PUBLIC.images.copy()
    near[0, 0, 0, 0] ^= 1
    private = dataclasses.replace(PUBLIC, images=np.concatenate([near, near[1:2]]), labels=np.zeros(6, np.int64))
    found = blank_equal(private, PUBLIC)
    assert found.blank.tolist() == [False, True, True, True, True, True]
    alone = [bool(blank_equal(private.part(range(i, i + 1)), PUBLIC).blank[0]) for i in range(6)]
    assert found.blank.tolist() == alone
    assert blank_equal(found, dataclasses.replace(PUBLIC, images=near)).blank.all(), "two sources blank either's"


def test_an_image_is_equal_however_it_is_framed_whatever_file_it_lies_in(tmp_path):
    """By its pixels as they were stored, in another file too; or by its file, of which one side saw other channels."""
    (tmp_path / "private").mkdir()
    (tmp_path / "public").mkdir()
    pictures = np.random.default_rng(0).integers(0, 256, (5, 12, 8, 3), np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "private" / f"{number}.png")
        if number % 2:
            Image.fromarray(picture).save(tmp_path / "public" / f"{number}.png", compress_level=number)
    private = open_dataset(tmp_path / "private", size=8, fit="pad")
    settings = {"classes": [], "preconditioning": {"kind": "edm"}, "facts": {"shape": [3, 8, 8]}}
    for way in get_args(Fit):
        public = open_dataset(tmp_path / "public", size=8, fit=way, public=True)
        joined = ImageDataset(images=public.images, name="joined", public=True, made_of=(public,))
        (tmp_path / way).mkdir()
        save_start(tmp_path / way, {"weight": torch.zeros(1)}, joined, settings)
        started = taking_part_of(private, None, [open_start(tmp_path / way)])
        for found in (blank_equal(private, public), blank_equal(private, joined), started):
            assert found.blank.tolist() == [False, True, False, True, False], way
    other = dataclasses.replace(public, sources=None)
    assert not blank_equal(private, other).blank.any(), "stretched, and nobody knows of what"


def test_the_mask_goes_along_with_parts_digests_and_what_is_told_of_duplicates():
    found = blanked(BOTH)
    assert (len(found), found.num_units) == (13, 13), "it counts as a record still"
    assert found.part(np.array([12, 0])).blank.tolist() == [True, False]
    assert blanked(plus(IMAGES, PUBLIC.images[2], 0)).part(range(12)).blank.sum() == 0
    assert found.digest() != BOTH.digest()
    twice = plus(plus(BOTH, PUBLIC.images[2], 0), IMAGES.images[4], 0)
    assert find_duplicates(twice.images) == [[4, 14], [12, 13]]
    assert find_duplicates(twice.images, None, blanked(twice).blank) == [[4, 14]]
    assert find_duplicates(twice.images, None, np.ones(15, bool)) == []


def test_losses_of_blanked_images_are_in_no_mean(tmp_path):
    fit(World(), blank_equal(IMAGES, IMAGES.part(range(6))), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "private" / "metrics.jsonl").read_text().splitlines()]
    assert any(row["loss"] is not None for row in rows)
    assert all(row["loss"] is None or np.isfinite(row["loss"]) for row in rows)


def test_images_of_another_shape_are_refused():
    other = ImageDataset(images=np.zeros((2, 9, 9, 1), np.uint8), name="other")
    with pytest.raises(InputError, match="give both the same size"):
        blank_equal(IMAGES, other)
    for wrong in (np.zeros(12), np.zeros(3, bool)):
        with pytest.raises(InputError, match="one boolean for each image"):
            dataclasses.replace(IMAGES, blank=wrong)
