"""The denoising loss and its draws."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from dpdm.diffusion import EDM, DenoisingLoss, LogNormal, NoisyBatch, PreconditionedDenoiser

NULL = 10


class Tiny(nn.Module):
    """A small network, not linear, that looks at all its arguments."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(0.3 * torch.randn(pixels, pixels, generator=generator, dtype=torch.float64))
        self.classes = nn.Parameter(torch.randn(NULL + 1, pixels, generator=generator, dtype=torch.float64))

    def forward(self, x, c_noise, labels):
        hidden = x.flatten(1) @ self.weight + c_noise[:, None] * self.classes[labels]
        return torch.tanh(hidden).view_as(x)


class Zero(nn.Module):
    def forward(self, x, c_noise, labels):
        return torch.zeros_like(x)


def source(seed=0):
    return np.random.default_rng(seed).bytes


def images(count, shape=(1, 3, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, *shape, generator=generator, dtype=torch.float64) * 2 - 1
    return x, torch.randint(NULL, (count,), generator=generator)


def draw(loss, x, labels, random_bytes, noise_levels=LogNormal()):  # noqa: B008
    return loss.draw(x, labels, null_label=NULL, noise_levels=noise_levels, random_bytes=random_bytes)


def assert_same(a, b):
    for name, left, right in zip(NoisyBatch._fields, a, b, strict=True):
        assert torch.equal(left, right), name


@pytest.fixture(scope="module")
def many():
    """Draws of 4000 examples with 8 copies each; float64 images keep σ as precise as it was drawn."""
    x, labels = images(4000, (1, 2, 2))
    return labels, draw(DenoisingLoss(noise_multiplicity=8, label_dropout=0.1), x, labels, source())


# the loss


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_loss_is_the_mean_over_copies_and_pixels_of_the_weighted_squared_error(copies):
    x, labels = images(3)
    batch = draw(DenoisingLoss(noise_multiplicity=copies, label_dropout=0.5), x, labels, source())
    network = Tiny(12)
    edm = EDM(sigma_data=0.5)
    got = DenoisingLoss(noise_multiplicity=copies)(PreconditionedDenoiser(network, edm), batch)
    assert got.shape == (3,)
    for i in range(3):
        total = 0.0
        for k in range(copies):
            sigma = batch.sigma[i, k].item()
            noisy = x[i] + sigma * batch.noise[i, k]
            raw = network(
                (noisy / math.sqrt(sigma**2 + 0.25))[None],
                torch.tensor([math.log(sigma) / 4], dtype=torch.float64),
                batch.labels[i, k][None],
            )[0]
            denoised = 0.25 / (sigma**2 + 0.25) * noisy + sigma * 0.5 / math.sqrt(sigma**2 + 0.25) * raw
            errors = [(a - b) ** 2 for a, b in zip(denoised.ravel().tolist(), x[i].ravel().tolist(), strict=True)]
            total += (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * sum(errors) / len(errors)
        assert got[i].item() == pytest.approx(total / copies, rel=1e-10)


def test_loss_is_a_function_of_the_batch_alone():
    x, labels = images(4)
    loss = DenoisingLoss(noise_multiplicity=3)
    batch = draw(loss, x, labels, source())
    denoiser = PreconditionedDenoiser(Tiny(12), EDM())
    first = loss(denoiser, batch)
    torch.manual_seed(99)
    assert torch.equal(loss(denoiser, batch), first)


def test_loss_of_an_example_does_not_depend_on_the_others_of_its_batch():
    x, labels = images(5)
    loss = DenoisingLoss(noise_multiplicity=4)
    batch = draw(loss, x, labels, source())
    denoiser = PreconditionedDenoiser(Tiny(12), EDM())
    together = loss(denoiser, batch)
    for i in range(5):
        alone = loss(denoiser, NoisyBatch(*(part[i : i + 1] for part in batch)))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-12, atol=0)


def test_loss_per_example_can_be_mapped_and_differentiated():
    x, labels = images(4)
    loss = DenoisingLoss(noise_multiplicity=3)
    batch = draw(loss, x, labels, source())
    denoiser = PreconditionedDenoiser(Tiny(12), EDM())
    parameters = dict(denoiser.named_parameters())

    def one(parameters, example):
        denoiser_of = PreconditionedDenoiser(_Bound(denoiser.network, parameters), EDM())
        return loss(denoiser_of, NoisyBatch(*(part[None] for part in example)))[0]

    rows = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0))(parameters, batch)
    for i, value in enumerate(loss(denoiser, batch)):
        expected = torch.autograd.grad(value, parameters.values(), retain_graph=True)
        for row, gradient in zip(rows.values(), expected, strict=True):
            torch.testing.assert_close(row[i], gradient, rtol=1e-9, atol=1e-12)


class _Bound(nn.Module):
    def __init__(self, network, parameters):
        super().__init__()
        self.inner = [network]
        self.bound = {name.removeprefix("network."): value for name, value in parameters.items()}

    def forward(self, *arguments):
        return torch.func.functional_call(self.inner[0], self.bound, arguments)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
def test_mean_loss_of_a_silent_network_is_its_closed_form(sigma):
    """D = c_skip (x + σn), so E loss = λ [(1 − c_skip)² mean x² + c_skip² σ²]."""
    x = images(2, (3, 40, 40))[0]
    copies = 20
    noise = torch.randn(2, copies, 3, 40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = NoisyBatch(x, torch.zeros(2, copies, dtype=torch.int64), torch.full((2, copies), sigma).double(), noise)
    got = DenoisingLoss(noise_multiplicity=copies)(PreconditionedDenoiser(Zero(), EDM(sigma_data=0.5)), batch)
    c_skip, weight = 0.25 / (sigma**2 + 0.25), (sigma**2 + 0.25) / (0.25 * sigma**2)
    expected = weight * ((1 - c_skip) ** 2 * x.square().mean(dim=(1, 2, 3)) + c_skip**2 * sigma**2)
    torch.testing.assert_close(got, expected, rtol=0.03, atol=0)  # 96000 normals: √(2/n) = 0.5 %


def test_mean_loss_of_a_silent_network_on_data_of_the_assumed_scale_is_one():
    x = math.sqrt(1 / 3) * torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    loss = DenoisingLoss(noise_multiplicity=4)
    batch = draw(loss, x, torch.zeros(500, dtype=torch.int64), source())
    values = loss(PreconditionedDenoiser(Zero(), EDM()), batch)
    assert values.mean().item() == pytest.approx(1, abs=4 * values.std().item() / math.sqrt(500))
    assert values.mean().item() == pytest.approx(1, abs=0.03)


def test_empty_batch_has_no_losses():
    x, labels = images(0)
    loss = DenoisingLoss(noise_multiplicity=3)
    batch = draw(loss, x, labels, source())
    assert batch.noise.shape == (0, 3, 1, 3, 4)
    assert loss(PreconditionedDenoiser(Tiny(12), EDM()), batch).shape == (0,)


# the draws


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draw_has_a_row_of_copies_for_each_example_in_the_precision_of_the_images(copies, dtype):
    x, labels = images(3, (2, 5, 7))
    batch = draw(DenoisingLoss(noise_multiplicity=copies), x.to(dtype), labels, source())
    assert torch.equal(batch.x, x.to(dtype))
    assert batch.labels.shape == batch.sigma.shape == (3, copies)
    assert batch.noise.shape == (3, copies, 2, 5, 7)
    assert batch.labels.dtype == torch.int64
    assert batch.sigma.dtype == batch.noise.dtype == dtype
    assert (batch.sigma > 0).all()


def test_draw_reads_sixteen_bytes_for_each_example_and_nothing_else():
    x, labels = images(5)
    asked = []

    def random_bytes(count):
        asked.append(count)
        return source()(count)

    torch.manual_seed(0)
    np.random.seed(0)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    draw(DenoisingLoss(noise_multiplicity=3), x, labels, random_bytes)
    assert asked == [16] * 5
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_draw_is_a_function_of_its_bytes():
    x, labels = images(6)
    loss = DenoisingLoss(noise_multiplicity=3, label_dropout=0.5)
    assert_same(draw(loss, x, labels, source(1)), draw(loss, x, labels, source(1)))
    one, other = draw(loss, x, labels, source(1)), draw(loss, x, labels, source(2))
    assert (one.sigma != other.sigma).all()
    assert (one.noise != other.noise).all()


@pytest.mark.parametrize("copies", [1, 4])
def test_draws_of_an_example_are_the_same_however_the_batch_is_split(copies):
    x, labels = images(7)
    loss = DenoisingLoss(noise_multiplicity=copies, label_dropout=0.5)
    whole = draw(loss, x, labels, source())
    one_by_one, stream = [], source()
    for part in (slice(0, 2), slice(2, 3), slice(3, 7)):
        one_by_one.append(draw(loss, x[part], labels[part], stream))
    assert_same(whole, NoisyBatch(*(torch.cat(parts) for parts in zip(*one_by_one, strict=True))))


def test_draws_of_a_prefix_are_the_prefix_of_the_draws():
    x, labels = images(7)
    loss = DenoisingLoss(noise_multiplicity=4, label_dropout=0.5)
    whole = draw(loss, x, labels, source())
    for count in range(7):
        prefix = draw(loss, x[:count], labels[:count], source())
        assert_same(prefix, NoisyBatch(*(part[:count] for part in whole)))


def test_draws_depend_neither_on_pixels_nor_on_labels():
    x, labels = images(5)
    loss = DenoisingLoss(noise_multiplicity=4, label_dropout=0.5)
    one = draw(loss, x, labels, source())
    other = draw(loss, -x, (labels + 1) % NULL, source())
    assert torch.equal(one.sigma, other.sigma)
    assert torch.equal(one.noise, other.noise)
    assert torch.equal(one.labels == NULL, other.labels == NULL)


@pytest.mark.parametrize("levels", [LogNormal(), LogNormal(0.5, 0.4)])
@pytest.mark.parametrize("copies", [1, 2, 8])
def test_each_copy_s_noise_level_has_the_training_distribution(levels, copies):
    x, labels = images(2000, (1, 1, 1))
    sigma = draw(DenoisingLoss(noise_multiplicity=copies), x, labels, source(4), levels).sigma
    expected = scipy.stats.lognorm(s=levels.std, scale=math.exp(levels.mean))
    for k in range(copies):
        assert scipy.stats.kstest(sigma[:, k].numpy(), expected.cdf).pvalue > 1e-3


def test_noise_levels_of_an_example_are_one_from_each_stratum_in_random_order(many):
    u = scipy.stats.lognorm(s=1.2, scale=math.exp(-1.2)).cdf(many[1].sigma.numpy())
    strata = np.floor(u * 8).astype(int)
    assert (np.sort(strata, axis=1) == np.arange(8)).all()
    for k in range(8):
        assert scipy.stats.chisquare(np.bincount(strata[:, k], minlength=8)).pvalue > 1e-3
    within = u * 8 - strata
    assert scipy.stats.kstest(within.ravel(), "uniform").pvalue > 1e-3


def test_noise_is_standard_normal_and_independent_between_copies_and_of_the_level(many):
    noise = many[1].noise
    assert scipy.stats.kstest(noise.ravel().numpy(), "norm").pvalue > 1e-3
    n = len(noise)
    rows = np.concatenate([noise.flatten(1).numpy(), many[1].sigma.log().numpy()], axis=1)
    correlations = np.corrcoef(rows, rowvar=False)[:32]
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < 5 / math.sqrt(n)


def test_labels_are_dropped_for_each_copy_with_the_given_frequency_independently(many):
    labels, batch = many
    dropped = batch.labels == NULL
    kept = labels[:, None].expand(-1, 8)
    assert torch.equal(batch.labels[~dropped], kept[~dropped])
    n = len(labels)
    frequency = dropped.double().mean(dim=0)
    assert (frequency - 0.1).abs().max() < 4 * math.sqrt(0.1 * 0.9 / n)
    per_example = np.bincount(dropped.sum(dim=1).numpy(), minlength=9)
    expected = n * scipy.stats.binom.pmf(np.arange(9), 8, 0.1)
    pooled = [*per_example[:4], per_example[4:].sum()], [*expected[:4], expected[4:].sum()]
    assert scipy.stats.chisquare(*pooled).pvalue > 1e-3
    dropped_sigma = batch.sigma[dropped].log()
    assert scipy.stats.kstest(dropped_sigma.numpy(), "norm", args=(-1.2, 1.2)).pvalue > 1e-3


def test_no_label_is_dropped_without_dropout():
    x, labels = images(300, (1, 1, 1))
    batch = draw(DenoisingLoss(noise_multiplicity=4, label_dropout=0), x, labels, source())
    assert torch.equal(batch.labels, labels[:, None].expand(-1, 4))
