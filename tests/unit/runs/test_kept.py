"""Rows of numbers about private images: each made once, whatever the order, the neighbours, and what was killed."""

import os

import numpy as np
import pytest
import torch

from dpdm.data.procedural import watched
from dpdm.runs.kept import keep_rows
from dpdm.types import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (600, 4, 4, 1), dtype=np.uint8)


class Made:
    """Makes rows that tell which image they are of, and counts the images that it was asked for."""

    def __init__(self, *, dies_at=None):
        self.calls, self.dies_at = 0, dies_at

    def __call__(self, images):
        assert images.shape == (256, 4, 4, 1)
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        return torch.from_numpy(images.reshape(256, 16)[:, :5].astype(np.float32))


def right(rows, images=IMAGES):
    return np.array_equal(rows[0 : len(images)], images.reshape(len(images), 16)[:, :5])


@pytest.mark.parametrize("kept", [False, True])
def test_each_image_has_its_row(tmp_path, kept):
    make = Made()
    rows = keep_rows(tmp_path / "a" if kept else None, IMAGES, make, made_by="the first five")
    assert len(rows) == 600
    assert right(rows)
    assert make.calls == 3


def test_rows_are_found_again_in_any_order_and_only_new_ones_are_made(tmp_path):
    keep_rows(tmp_path, IMAGES[:300], Made(), made_by="the first five")
    again, make = IMAGES[np.random.default_rng(1).permutation(600)], Made()
    assert right(keep_rows(tmp_path, again, make, made_by="the first five"), again)
    assert make.calls == 2  # 300 new ones
    make = Made()
    assert right(keep_rows(tmp_path, IMAGES, make, made_by="the first five"))
    assert make.calls == 0


def test_equal_images_share_a_row(tmp_path):
    twice, make = np.concatenate([IMAGES[:200], IMAGES[:200]]), Made()
    assert right(keep_rows(tmp_path, twice, make, made_by="the first five"), twice)
    assert make.calls == 1


def test_the_rows_of_images_that_are_gone_are_removed(tmp_path):
    keep_rows(tmp_path, IMAGES, Made(), made_by="the first five")
    make = Made()
    assert right(keep_rows(tmp_path, IMAGES[100:], make, made_by="the first five"), IMAGES[100:])
    assert make.calls == 0
    assert (tmp_path / "rows").stat().st_size == 500 * 5 * 4
    assert (tmp_path / "keys").stat().st_size == 500 * 64


def test_what_was_made_before_a_kill_is_not_made_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        keep_rows(tmp_path, IMAGES, Made(dies_at=2), made_by="the first five")
    make = Made()
    assert right(keep_rows(tmp_path, IMAGES, make, made_by="the first five"))
    assert make.calls == 1


@pytest.mark.parametrize("cut", range(1, 24, 7))
@pytest.mark.parametrize("name", ["rows", "keys"])
def test_half_a_row_that_a_power_cut_left_is_made_again(tmp_path, name, cut):
    keep_rows(tmp_path, IMAGES, Made(), made_by="the first five")
    os.truncate(tmp_path / name, (tmp_path / name).stat().st_size - cut)
    make = Made()
    assert right(keep_rows(tmp_path, IMAGES, make, made_by="the first five"))
    assert make.calls == 1
    assert right(keep_rows(tmp_path, IMAGES, make, made_by="the first five"))


@pytest.mark.parametrize("name", ["rows", "keys"])
def test_rows_that_were_changed_are_made_anew(tmp_path, name):
    keep_rows(tmp_path, IMAGES, Made(), made_by="the first five")
    content = bytearray((tmp_path / name).read_bytes())
    content[5000] ^= 1
    (tmp_path / name).write_bytes(content)
    make = Made()
    assert right(keep_rows(tmp_path, IMAGES, make, made_by="the first five"))
    assert make.calls in (1, 3)


@pytest.mark.parametrize("columns", ["6", "-1", "Infinity", "1e300", "0.5"])
def test_a_wrong_number_of_columns_is_found(tmp_path, columns):
    keep_rows(tmp_path, IMAGES, Made(), made_by="the first five")
    (tmp_path / "about.json").write_text(f'{{"columns": {columns}, "made_by": "the first five"}}')
    make = Made()
    assert right(keep_rows(tmp_path, IMAGES, make, made_by="the first five"))
    assert make.calls == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"columns": 0, "made_by": "the first five"}', '{"columns": "5"}'])
def test_files_that_say_nothing_are_made_anew(tmp_path, content):
    keep_rows(tmp_path, IMAGES, Made(), made_by="the first five")
    (tmp_path / "about.json").write_text(content)
    make = Made()
    assert right(keep_rows(tmp_path, IMAGES, make, made_by="the first five"))
    assert make.calls == 3


def test_rows_of_another_maker_are_made_anew(tmp_path):
    keep_rows(tmp_path, IMAGES, Made(), made_by="the last five")
    make = Made()
    assert right(keep_rows(tmp_path, IMAGES, make, made_by="the first five"))
    assert make.calls == 3


def test_a_row_does_not_depend_on_the_images_beside_it(tmp_path):
    """A product of matrices rounds otherwise for one row than for many: parts have one size, filled up."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 33)

    def make(images):
        return layer(torch.from_numpy(images.reshape(len(images), 16)).float()).detach()

    together = keep_rows(None, IMAGES, make, made_by="a layer")[0:600]
    alone = [keep_rows(None, IMAGES[number : number + 1], make, made_by="a layer")[0:1] for number in range(0, 600, 97)]
    assert np.array_equal(np.concatenate(alone), together[::97])


@pytest.mark.parametrize(
    "rows",
    [torch.zeros(256, 5).double(), torch.zeros(255, 5), torch.zeros(256)],
    ids=["float64", "one too few", "no columns"],
)
def test_what_makes_no_rows_is_refused(tmp_path, rows):
    with pytest.raises(InputError, match="the first five does not make one row of float32 for each image"):
        keep_rows(tmp_path, IMAGES, lambda images: rows, made_by="the first five")


def test_a_row_that_is_not_finite_counts_as_zero_and_stops_nothing():
    """Else one private image could stop a run after its first noisy sums, and so could what fills up the last part."""

    def make(images):
        rows = torch.from_numpy(images.reshape(len(images), 16).astype(np.float32))
        return torch.where(rows.sum(1, keepdim=True) == 0, float("nan"), rows)

    images = np.concatenate([IMAGES[:3], np.zeros_like(IMAGES[:1])])
    rows = keep_rows(None, images, make, made_by="own")[0:4]
    assert np.array_equal(rows[:3], IMAGES[:3].reshape(3, 16))
    assert not rows[3].any()


@pytest.mark.parametrize("number", [1, 255, 256, 257, 599, 600])
def test_what_is_told_does_not_depend_on_the_number_of_images(number):
    """It is a secret where one image more or less is what a claim is about, and where images are in groups."""
    told = []
    with watched(lambda *said: told.append(said)):
        keep_rows(None, IMAGES[:number], Made(), made_by="the first five", name="features")
    assert told == [("features, in percent", percent, 100) for percent in range(1, 101)]
