import numpy as np
import pytest
from PIL import Image

from dpdm.data import Framing
from dpdm.data.framing import to_pillow


def bars(width=32, height=16):
    """Black but for the middle half of the longer, horizontal side, which is white."""
    image = np.zeros((height, width, 1), np.uint8)
    image[:, width // 4 : -width // 4] = 255
    return image


def test_crop_keeps_the_centre():
    assert (Framing(size=16).frame(to_pillow(bars())) == 255).all()


def test_pad_keeps_everything_between_black_margins():
    framed = Framing(size=16, fit="pad").frame(to_pillow(np.full((16, 32, 1), 255, np.uint8)))[..., 0]
    assert (framed[4:12] == 255).all()
    assert (framed[:4] == 0).all()
    assert (framed[12:] == 0).all()


def test_resize_stretches_everything_over_the_square():
    framed = Framing(size=16, fit="resize").frame(to_pillow(bars()))[..., 0]
    assert framed[:, 6:10].min() >= 250  # Lanczos rings a little beside an edge
    assert framed[:, [0, 1, 14, 15]].max() <= 5


@pytest.mark.parametrize("fit", ["crop", "pad", "resize"])
@pytest.mark.parametrize("shape", [(1, 500, 3), (500, 1, 4), (9, 8, 1)])
def test_every_shape_becomes_the_square_asked_for(fit, shape):
    framed = Framing(size=12, fit=fit).frame(to_pillow(np.ones(shape, np.uint8)))
    assert framed.shape == (12, 12, shape[2])
    assert framed.dtype == np.uint8


def test_scaling_down_averages_instead_of_skipping_pixels():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    inner = Framing(size=8).frame(to_pillow(stripes))[1:-1, 1:-1]
    assert np.abs(inner.astype(int) - 127).max() < 10


@pytest.mark.parametrize(("channels", "black"), [(1, [0]), (3, [0, 0, 0])])
def test_what_is_transparent_becomes_black_when_alpha_goes(channels, black):
    hidden_red = np.full((8, 8, 4), (255, 0, 0, 0), np.uint8)
    assert (Framing(channels=channels).frame(to_pillow(hidden_red)) == black).all()


def test_half_transparent_white_becomes_grey_on_black():
    veil = np.full((8, 8, 4), (255, 255, 255, 128), np.uint8)
    assert (Framing(channels=3).frame(to_pillow(veil)) == 128).all()


def test_grey_becomes_equal_colours_and_colours_become_opaque():
    grey = np.full((8, 8, 1), 77, np.uint8)
    assert (Framing(channels=3).frame(to_pillow(grey)) == 77).all()
    assert (Framing(channels=4).frame(to_pillow(grey)) == (77, 77, 77, 255)).all()


def test_an_image_is_framed_the_same_whatever_its_neighbours_are():
    images = np.random.default_rng(0).integers(0, 256, (4, 20, 12, 3), dtype=np.uint8)
    framing = Framing(size=9, channels=1)
    together = framing.frame_all(images)
    for index in range(len(images)):
        assert np.array_equal(framing.frame_all(images[index : index + 1])[0], together[index])


@pytest.mark.parametrize("framing", [Framing(), Framing(size=8, channels=3), Framing(size=8, fit="pad")])
def test_images_in_the_frame_already_come_back_unchanged(framing):
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(framing.frame_all(images), images)
    assert np.array_equal(framing.frame(Image.fromarray(images[0])), images[0])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": 7}, ["data.size", "8", "7"]),
        ({"size": -1}, ["data.size"]),
        ({"fit": "stretch"}, ["data.fit", "crop, pad, resize", "stretch"]),
        ({"channels": 2}, ["data.channels", "2"]),
    ],
)
def test_a_frame_that_cannot_be_is_refused(refused, fields, words):
    with refused(*words):
        Framing(**fields)
