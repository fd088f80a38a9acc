"""Latents: of which shapes, the same to the bit whatever is computed beside them, and images again."""

import numpy as np
import pytest
import torch

from dpdm.networks.codec import ConvCodec, latent_shape


def codec(shape, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvCodec(shape)


def images(number, shape, seed=0):
    channels, height, width = shape
    return np.random.default_rng(seed).integers(0, 256, (number, height, width, channels), np.uint8)


@pytest.mark.parametrize(
    ("shape", "latent"),
    [((1, 28, 28), (4, 7, 7)), ((3, 32, 32), (8, 8, 8)), ((3, 18, 33), (8, 5, 9)), ((4, 64, 64), (8, 16, 16))],
)
def test_sides_that_do_not_divide_are_continued_and_cut_again(shape, latent):
    made, x = codec(shape), torch.rand(2, *shape) * 2 - 1
    assert latent_shape(shape) == made.latent == latent
    latents = made.encode(x)
    assert latents.shape == (2, *latent)
    assert latents.abs().max() <= 1
    assert made.decode(latents).shape == x.shape
    assert made.levels(images(3, shape)).shape == (3, np.prod(latent))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 27, 20)])
def test_a_latent_is_the_same_to_the_bit_whatever_is_beside_it_and_on_however_many_cores(shape):
    made, shown, before = codec(shape), images(70, shape), torch.get_num_threads()
    whole = made.levels(shown)
    alone = torch.cat([made.levels(shown[number : number + 1]) for number in range(70)])
    mixed = np.random.default_rng(1).permutation(70)
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        others = made.levels(shown[mixed])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole, alone)
    assert torch.equal(whole[mixed], others)


def test_sums_of_a_latent_are_exact_whatever_the_weights():
    """In another order of the channels each sum has its terms in another order, and comes to the same bits."""
    made, x = codec((1, 16, 16)), torch.rand(4, 64, 4, 4, dtype=torch.float64) * 500 - 250
    layer = made.encoder.conv1.double()
    layer.weight.data.normal_(std=3.0, generator=torch.Generator().manual_seed(0))
    from dpdm.networks import codec as module

    before = module._exactly(layer, x)
    turned = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    layer.weight.data = layer.weight.data[:, turned]
    assert torch.equal(module._exactly(layer, x[:, turned]), before)
    assert torch.equal(module._exactly(layer, x.flip(0)[:, turned]).flip(0), before)


def test_levels_are_the_latents_of_training_rounded():
    made, shown = codec((3, 16, 16)), images(20, (3, 16, 16))
    x = torch.from_numpy(shown).permute(0, 3, 1, 2) / 127.5 - 1
    exact = made.levels(shown).view(20, 4, 4, 8).permute(0, 3, 1, 2) / 127.5 - 1
    assert (made.encode(x) - exact).abs().max() < 0.01
