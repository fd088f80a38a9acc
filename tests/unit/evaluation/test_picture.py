import os

import numpy as np
import pytest
from PIL import Image

from dpdm.evaluation import image_grid, one_row_per_class, save_grid, side_by_side
from dpdm.types import InputError


def noise(number, *, height=5, width=7, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (number, height, width, channels), dtype=np.uint8)


def pixels(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "RGB"
        return np.asarray(picture)


def find(picture, part):
    """The corners at which `part` occurs in `picture`, pixel for pixel."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, part.shape)[..., 0, :, :, :]
    return [tuple(corner) for corner in np.argwhere((windows == part).all(axis=(-3, -2, -1)))]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("scale", [1, 3])
def test_a_grid_shows_every_image_pixel_for_pixel_in_reading_order(channels, scale):
    images = noise(5, channels=channels)
    grid = image_grid(images, columns=2, scale=scale)
    assert grid.dtype == np.uint8
    assert grid.shape == (3 * 5 * scale + 2 * 2, 2 * 7 * scale + 2, channels)
    for index, image in enumerate(images):
        top, left = (index // 2) * (5 * scale + 2), (index % 2) * (7 * scale + 2)
        cell = grid[top : top + 5 * scale, left : left + 7 * scale]
        assert np.array_equal(cell, np.kron(image, np.ones((scale, scale, 1), dtype=np.uint8)))


def test_a_grid_is_opaque_white_between_images_and_where_the_last_row_has_none_left():
    grid = image_grid(np.zeros((3, 4, 4, 4), dtype=np.uint8), columns=2)
    assert (grid[6:, 6:] == 255).all()
    assert (grid[4:6] == 255).all()
    assert (grid[:, 4:6] == 255).all()


def test_one_row_per_class_takes_the_first_images_of_each_class_and_fills_up_with_white():
    images, labels = noise(6), np.array([2, 0, 2, 2, 0, 2])
    rows = one_row_per_class(images, labels, num_classes=4, per_class=3).reshape(4, 3, 5, 7, 1)
    assert np.array_equal(rows[0, :2], images[[1, 4]])
    assert np.array_equal(rows[2], images[[0, 2, 3]])
    assert (rows[0, 2] == 255).all()
    assert (rows[[1, 3]] == 255).all()


def test_a_saved_grid_has_a_row_for_each_class_enlarged_to_a_size_one_can_see(tmp_path):
    images, labels = noise(12, height=16, width=16), np.arange(12) % 3
    save_grid(tmp_path / "grid.png", images, labels, num_classes=3, per_class=4)
    order = [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    assert np.array_equal(
        pixels(tmp_path / "grid.png"),
        image_grid(images[order], columns=4, scale=3).repeat(3, axis=2),
    )


def test_without_labels_a_saved_grid_shows_the_first_images_in_as_many_rows(tmp_path):
    images = noise(30, height=48, width=40, channels=3)
    save_grid(str(tmp_path / "grid.png"), images, None, num_classes=2, per_class=4)
    assert np.array_equal(pixels(tmp_path / "grid.png"), image_grid(images[:8], columns=4))


@pytest.mark.parametrize(
    ("side", "shown"), [(8, 48), (16, 48), (20, 40), (24, 48), (28, 56), (48, 48), (64, 64), (256, 256)]
)
def test_small_images_are_enlarged_by_a_whole_factor_and_large_ones_left_alone(tmp_path, side, shown):
    save_grid(tmp_path / "one.png", noise(1, height=side, width=side), None, num_classes=1, per_class=1)
    assert pixels(tmp_path / "one.png").shape == (shown, shown, 3)


def test_what_is_transparent_shows_as_white_and_what_is_half_so_as_half(tmp_path):
    images = np.zeros((1, 48, 48, 4), dtype=np.uint8)
    images[0, :16] = (200, 100, 0, 255)
    images[0, 16:32] = (200, 100, 0, 0)
    images[0, 32:] = (0, 0, 0, 51)
    save_grid(tmp_path / "one.png", images, None, num_classes=1, per_class=1)
    picture = pixels(tmp_path / "one.png")
    assert (picture[:16] == (200, 100, 0)).all()
    assert (picture[16:32] == 255).all()
    assert (picture[32:] == 204).all()


def test_side_by_side_shows_both_grids_in_order_under_their_captions(tmp_path):
    left, right = noise(6, height=48, width=48, channels=3), noise(2, height=40, width=40, seed=1)
    side_by_side(tmp_path / "two.png", left, right, columns=3, captions=("gjpq", "h"))
    picture = pixels(tmp_path / "two.png")
    left_grid = image_grid(left, columns=3)
    ((top, x_left),) = find(picture, left_grid)
    ((top_right, x_right),) = find(picture, image_grid(right, columns=2).repeat(3, axis=2))
    assert top == top_right
    assert x_right > x_left + left_grid.shape[1]
    bar = (picture[:top] < 200).any(axis=2)
    gutter = (x_left + left_grid.shape[1] + x_right) // 2
    ink_left, ink_right = np.argwhere(bar[:, :gutter]), np.argwhere(bar[:, gutter:])
    assert ink_left.size > 0
    assert ink_right.size > 0
    assert ink_left[:, 0].max() > ink_right[:, 0].max(), "descenders reach below the common baseline"
    assert (picture[[0, -1]] == 255).all()
    assert (picture[:, [0, -1]] == 255).all()


def test_captions_wider_than_their_grids_do_not_run_into_each_other(tmp_path):
    one = np.zeros((1, 48, 48, 1), dtype=np.uint8)
    side_by_side(tmp_path / "two.png", one, one, columns=1, captions=("m" * 20, "m" * 20))
    inked = (pixels(tmp_path / "two.png")[:30] < 200).any(axis=(0, 2))
    columns = np.flatnonzero(inked)
    assert np.diff(columns).max() >= 10
    assert columns[0] >= 10
    assert columns[-1] < len(inked) - 10


def test_a_picture_that_cannot_be_finished_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    path.write_bytes(b"old")

    def fail_half_way(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_grid(path, noise(4), None, num_classes=2, per_class=2)
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_picture_may_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        save_grid(tmp_path / "grid.png", noise(4), None, num_classes=2, per_class=2)
    finally:
        os.umask(before)
    assert (tmp_path / "grid.png").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "images",
    [noise(2, channels=2), noise(2)[0], noise(2).astype(float), noise(0)],
    ids=["two channels", "one image", "not uint8", "none"],
)
def test_what_is_no_picture_is_refused(tmp_path, images):
    with pytest.raises(InputError, match=r"must be uint8|nothing to show"):
        image_grid(images, columns=2)
    with pytest.raises(InputError, match=r"must be uint8|nothing to show"):
        save_grid(tmp_path / "grid.png", images, None, num_classes=2)
    with pytest.raises(InputError, match=r"must be uint8|nothing to show"):
        side_by_side(tmp_path / "grid.png", noise(2), images)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told_in_one_line(tmp_path):
    images = noise(2)
    with pytest.raises(InputError, match=r"columns must be a number above 0, not 0"):
        image_grid(images, columns=0)
    with pytest.raises(InputError, match=r"2 images need as many labels"):
        one_row_per_class(images, np.zeros(3, dtype=np.int64), num_classes=1)
    with pytest.raises(InputError, match=r"per_class must be a number above 0, not 0"):
        save_grid(tmp_path / "grid.png", images, None, num_classes=2, per_class=0)
    with pytest.raises(InputError, match=r"the folder .*missing does not exist"):
        save_grid(tmp_path / "missing" / "grid.png", images, None, num_classes=2)
    with pytest.raises(InputError, match=r"plain ASCII .* not ε = 1 and b"):
        side_by_side(tmp_path / "grid.png", images, images, captions=("ε = 1", "b"))
