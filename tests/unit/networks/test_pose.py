"""Images without their pose: what is learnt of an image is its own, and comes back where it was."""

import numpy as np
import pytest
import torch

from dpdm.methods import ImageFacts, Pose, PriorAlone
from dpdm.networks.pose import Posed, posed_shape
from dpdm.types import InputError, levels_to_tensor

SHAPE = (1, 28, 28)


def strokes(number, *, shift=(0, 0), lean=0.0, side=28):
    """Return images of a thick soft bar and a dot, moved and leaning."""
    y, x = np.mgrid[:side, :side].astype(float)
    images = np.zeros((number, side, side, 1), np.uint8)
    for each in range(number):
        middle = side / 2 + shift[0] + 0.1 * each, side / 2 + shift[1]
        across = x - middle[0] - lean * (y - middle[1])
        bar = np.exp(-((across / 2.0) ** 4) - ((y - middle[1]) / 7.0) ** 8)
        dot = np.exp(-(((across - 5) / 2.0) ** 2) - ((y - middle[1] - 4) / 2.0) ** 2)
        images[each, ..., 0] = np.clip(255 * (bar + dot), 0, 255).round()
    return images


def straight(posed, images):
    """Return the part of rows that is the image, and that which is its pose, in levels."""
    rows = posed.rows(images).view(len(images), *posed.latent[1:])
    return rows[:, : posed.shape[1]], rows[:, posed.shape[1] :]


def drawn(posed, images):
    rows = posed.rows(images).view(len(images), *posed.latent).to(torch.uint8)
    return posed.decode(levels_to_tensor(rows.movedim(1, -1).numpy()))


def test_a_row_is_of_its_image_alone_to_the_bit():
    random = np.random.default_rng(0)
    images = np.concatenate([strokes(20), random.integers(0, 256, (20, 28, 28, 1), dtype=np.uint8)])
    posed = Posed(SHAPE)
    rows, order = posed.rows(images), random.permutation(40)
    assert torch.equal(rows, torch.cat([posed.rows(images[each : each + 1]) for each in range(40)]))
    assert torch.equal(rows[order], posed.rows(images[order]))
    assert torch.equal(rows, rows.round())
    assert rows.min() >= 0
    assert rows.max() <= 255


def test_where_a_thing_is_and_how_it_leans_is_told_by_its_pose_alone():
    posed = Posed(SHAPE)
    one, at_home = straight(posed, strokes(8))
    for moved in (strokes(8, shift=(2, -2)), strokes(8, lean=0.4)):
        other, pose = straight(posed, moved)
        assert (one - other).abs().mean() < 4
        assert (at_home - pose).abs().max() > 15
    assert (strokes(8).astype(float) - strokes(8, shift=(2, -2))).__abs__().mean() > 15


@pytest.mark.parametrize(("side", "most"), [(28, 4), (27, 4), (9, 25)])
def test_an_image_comes_back_where_it_was(side, most):
    posed = Posed((1, side, side))
    images = strokes(6, shift=(1, -1), lean=0.2, side=side)
    back = (drawn(posed, images) + 1) * 127.5
    assert back.shape == (6, 1, side, side)
    assert (back[:, 0] - torch.from_numpy(images[..., 0]).float()).square().mean().sqrt() < most


def test_on_a_white_ground_it_is_the_same_in_white():
    dark, light = Posed(SHAPE), Posed(SHAPE, ground=255)
    images = strokes(6, shift=(2, 1), lean=-0.3)
    of_dark, of_light = straight(dark, images), straight(light, 255 - images)
    assert torch.equal(of_dark[0], 255 - of_light[0])
    assert torch.equal(of_dark[1], of_light[1])
    assert torch.allclose(drawn(dark, images), -drawn(light, 255 - images), atol=1e-5)


def test_images_of_nothing_and_of_noise_are_no_trouble():
    posed, random = Posed(SHAPE), np.random.default_rng(0)
    nothing = np.zeros((1, 28, 28, 1), np.uint8)
    assert (straight(posed, nothing)[0] == 0).all()
    assert torch.allclose(drawn(posed, nothing), torch.full((1, 1, 28, 28), -1.0))
    noise = random.integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)
    assert drawn(posed, noise).isfinite().all()
    wild = torch.from_numpy(random.normal(0, 50, (4, *posed.latent))).float()
    assert posed.decode(wild.clamp(-1, 1)).abs().max() <= 1


def test_sides_are_such_as_networks_halve():
    assert posed_shape((1, 28, 28)) == (1, 32, 28)
    assert posed_shape((1, 27, 30)) == (1, 32, 30)


def test_many_images_are_seen_a_few_at_a_time(monkeypatch):
    images, posed = strokes(10), Posed(SHAPE)
    whole = posed.rows(images)
    monkeypatch.setattr("dpdm.networks.pose._AT_ONCE", 3 * 28 * 28)
    assert torch.equal(posed.rows(images), whole)


def test_what_it_is_not_for_is_refused():
    for act in ("require_images", "untrained"):
        with pytest.raises(InputError, match="pose is for grey images"):
            getattr(PriorAlone(codec=Pose()), act)(ImageFacts((3, 8, 8), ()))
    with pytest.raises(InputError, match="ground must be from 0 to 255"):
        Pose(ground=256)
