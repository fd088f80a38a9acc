"""The published U-Net: its sizes, where it attends, and what it refuses."""

import random

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from dpdm.diffusion import EDM, DenoisingLoss, PreconditionedDenoiser
from dpdm.networks import UNet
from dpdm.networks.unet import _Attention, _Block
from dpdm.privacy import OneBackwardEach, Vectorized, clipped_grad_sum
from dpdm.types import InputError

PUBLISHED = {  # network, image shape, classes, heights at which it attends, in order
    "mnist": (UNet(), (1, 28, 28), 10, [7] * 4),
    "cifar": (UNet(attention=(16,)), (3, 32, 32), 10, [16, 16, 8, 16]),
    "celeba-32": (UNet(attention=(8, 16)), (3, 32, 32), 0, [16, 16, 8, 8, 8, 8, 16]),
    "celeba-64": (
        UNet(multipliers=(1, 1, 2, 2), attention=(8, 16)),
        (3, 64, 64),
        0,
        [16, 16, 8, 8, 8, 8, 16],
    ),
    "imagenet-32": (UNet(attention=(8, 16)), (3, 32, 32), 1000, [16, 16, 8, 8, 8, 8, 16]),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def perturb(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize(("name", "millions"), [("mnist", 1.75), ("celeba-32", 1.80)])
def test_it_has_as_many_parameters_as_published(name, millions):
    spec, shape, classes, _ = PUBLISHED[name]
    parameters = spec.build(shape, num_classes=classes).parameters()
    assert round(sum(p.numel() for p in parameters) / 1e6, 2) == millions


@torch.no_grad()
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_network_attends_at_its_heights_and_starts_at_zero(name):
    spec, shape, classes, expected = PUBLISHED[name]
    network = spec.build(shape, num_classes=classes)
    heights = []
    for module in network.modules():
        if isinstance(module, _Attention):
            module.register_forward_pre_hook(lambda _, inputs: heights.append(inputs[0].shape[2]))
    raw = network(torch.randn(2, *shape), torch.zeros(2), torch.tensor([0, classes]))
    assert heights == expected
    assert raw.shape == (2, *shape)
    assert (raw == 0).all()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (UNet(attention=(8,)), "attention at height 8: choose among the heights of levels, 28, 14, 7"),
        (UNet(attention=(28, 3)), "attention at height 3: choose among the heights of levels, 28, 14, 7"),
        (UNet(multipliers=(1, 1, 2, 2)), "attention at height 7: choose among the heights of levels, 32, 16, 8, 4"),
    ],
    ids=repr,
)
def test_attention_at_a_height_that_no_level_has_is_refused(spec, says):
    with pytest.raises(InputError) as error:
        spec.build((1, 28, 28), num_classes=0)
    assert str(error.value) == says


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"width": 30}, "width must be a multiple of 4, not 30"),
        ({"width": 0}, "width must be"),
        ({"blocks": 0}, "blocks must be"),
        ({"multipliers": ()}, "multipliers must be"),
        ({"multipliers": (1, 0)}, "multipliers must be"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(settings, says):
    with pytest.raises(InputError, match=says):
        UNet(**settings)


@pytest.mark.parametrize("width", [4, 48, 84])
def test_every_multiple_of_four_is_a_width(width):
    network = UNet(width=width, multipliers=(1, 3), blocks=1, attention=()).build((1, 8, 8), num_classes=0)
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    assert all(norm.num_groups <= 32 and norm.num_channels >= 4 * norm.num_groups for norm in norms)


@torch.no_grad()
@pytest.mark.parametrize("resolution", [0.5, 1, 2])
def test_a_fresh_block_is_its_rescaled_skip(resolution):
    block = _Block(8, 8, 4, resolution=resolution)
    x = torch.randn(2, 8, 4, 6)
    skip = x if resolution == 1 else block.shortcut(interpolate(x, scale_factor=resolution, mode="area"))
    torch.testing.assert_close(block(x, torch.randn(2, 4)), skip / 2**0.5)


@torch.no_grad()
def test_attention_mixes_the_pixels_of_one_image_and_never_images():
    torch.manual_seed(0)
    attention = _Attention(8)
    perturb(attention)
    attention.norm = nn.Identity()  # which mixes pixels too
    x = torch.randn(2, 8, 4, 6)
    changed = x.clone()
    changed[0, :, 1, 2] += 3
    difference = (attention(changed) - attention(x)).abs().amax(dim=1)
    assert (difference[0] > 1e-4).all()
    assert (difference[1] == 0).all()


@torch.no_grad()
def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    attention = _Attention(8).double()
    perturb(attention)
    x = torch.randn(2, 8, 4, 6, dtype=torch.float64)
    q, k, v = (part.flatten(2).mT for part in attention.qkv(attention.norm(x)).chunk(3, dim=1))
    mixed = scaled_dot_product_attention(q, k, v).mT.view_as(x)
    torch.testing.assert_close(attention(x), (x + attention.out(mixed)) / 2**0.5)


def test_all_strategies_give_the_same_clipped_sum():
    torch.manual_seed(0)
    network = UNet(width=8, multipliers=(1, 2), blocks=1, attention=(5,)).build((1, 9, 9), num_classes=3).double()
    perturb(network)
    loss = DenoisingLoss(noise_multiplicity=3)
    batch = loss.draw(
        torch.rand(4, 1, 9, 9, dtype=torch.float64) * 2 - 1,
        torch.tensor([0, 1, 2, 0]),
        null_label=3,
        noise_levels=EDM().noise_levels,
        random_bytes=random.Random(0).randbytes,
    )
    denoiser = PreconditionedDenoiser(network, EDM())
    one, other = (
        clipped_grad_sum(loss, denoiser, batch, max_grad_norm=1.0, strategy=strategy)
        for strategy in (OneBackwardEach(), Vectorized())
    )
    assert (one.grad_norms.reveal(because="test") > 1).any()
    torch.testing.assert_close(one.vector, other.vector)
