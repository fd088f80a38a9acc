"""The words of `dpdm.types`: the crossing between files and networks, and values that must not slip out."""

import copy
import io
import json
import math
import pickle

import numpy as np
import pytest
import torch

from dpdm.types import InputError, Sensitive, images_to_tensor, require_positive, tensor_to_images

SECRET = 0.123456789


def test_round_trip_of_images_is_exact_for_all_256_levels():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert (tensor_to_images(images_to_tensor(images)) == images).all()


@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (2, 4, 6, 1), (0, 4, 4, 3)])
def test_round_trip_of_images_keeps_every_pixel_in_its_place(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    x = images_to_tensor(images)
    assert x.dtype == torch.float32
    assert x.shape == (shape[0], shape[3], shape[1], shape[2])
    back = tensor_to_images(x)
    assert back.dtype == np.uint8
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, images)


def test_tensor_holds_channels_first_from_minus_one_to_one():
    images = np.zeros((1, 2, 3, 3), dtype=np.uint8)
    images[0, 1, 2, 0] = 255
    images[0, 0, 1, 2] = 51
    x = images_to_tensor(images)
    assert x[0, 0, 1, 2] == 1
    assert x[0, 2, 0, 1].item() == pytest.approx(-0.6)
    assert (x == -1).sum() == 16


def test_crossing_shares_no_memory():
    for channels in (1, 3):
        images = np.full((2, 4, 4, channels), 9, dtype=np.uint8)
        x = images_to_tensor(images)
        x.fill_(0.5)
        assert (images == 9).all()
        tensor_to_images(x).fill(0)
        assert (x == 0.5).all()


def test_images_of_any_memory_layout_cross_alike():
    images = np.random.default_rng(1).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    for view in (images[::-1], images[:, ::2, ::-1], np.asfortranarray(images)):
        assert torch.equal(images_to_tensor(view), images_to_tensor(view.copy()))


def test_values_outside_of_the_range_are_clamped_and_those_inside_rounded_to_the_nearest_level():
    levels = torch.tensor([-3.0, -1.0, 0.49 / 127.5 - 1, 0.51 / 127.5 - 1, 1.0, 1.2, math.inf, -math.inf])
    for dtype in (torch.float32, torch.float64):
        images = tensor_to_images(levels.to(dtype).view(1, 1, 2, 4))
        assert images.ravel().tolist() == [0, 0, 0, 1, 255, 255, 255, 0]


def test_tensors_that_need_gradients_can_become_images():
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    assert tensor_to_images(x).shape == (1, 2, 2, 1)


@pytest.mark.parametrize("channels", [pytest.param(1), 3])
def test_read_only_images_cross_without_a_warning(channels):
    images = np.zeros((2, 4, 4, channels), dtype=np.uint8)
    images.flags.writeable = False
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # otherwise torch warns once in a process, and another test may have had it
    try:
        images_to_tensor(images)
    finally:
        torch.set_warn_always(before)


@pytest.mark.parametrize("show", [repr, str, format, "{}".format, "{!r:>40}".format, "%s".__mod__, "%r".__mod__])
def test_sensitive_shows_nothing(show):
    shown = show(Sensitive(SECRET))
    assert "123" not in shown
    assert shown.strip() == "Sensitive(...)"


def test_sensitive_inside_of_containers_shows_nothing():
    assert "123" not in repr({"loss": [Sensitive(SECRET)]})


@pytest.mark.parametrize(
    "leak",
    [
        pickle.dumps,
        lambda value: pickle.dumps(value, protocol=0),
        json.dumps,
        copy.copy,
        copy.deepcopy,
        float,
        vars,
        lambda value: f"{value:.3f}",
        lambda value: torch.save({"loss": value}, io.BytesIO()),
    ],
    ids=["pickle", "pickle-0", "json", "copy", "deepcopy", "float", "vars", "format", "torch.save"],
)
def test_sensitive_refuses_every_other_way_out_and_the_refusal_shows_nothing(leak):
    with pytest.raises(TypeError) as refusal:
        leak(Sensitive(SECRET))
    assert "123" not in str(refusal.value)


def test_reveal_returns_the_value_and_notes_each_reason_once():
    disclosures = []
    one, other = Sensitive(SECRET, disclosures), Sensitive([1, 2], disclosures)
    assert disclosures == []
    assert one.reveal(because="to plot it") == SECRET
    assert one.reveal(because="to plot it") == SECRET
    assert other.reveal(because="to plot it") == [1, 2]
    assert other.reveal(because="to stop") == [1, 2]
    assert disclosures == ["to plot it", "to stop"]


def test_reveal_needs_a_named_reason():
    with pytest.raises(TypeError):
        Sensitive(SECRET).reveal()
    assert Sensitive(SECRET).reveal(because="no run keeps a list") == SECRET


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf])
def test_require_positive_names_the_first_argument_that_is_not(value):
    require_positive(a=1, b=1e-300, c=1e300)
    with pytest.raises(InputError, match=r"^b must be a number above 0"):
        require_positive(a=1, b=value, c=value)
