"""The mathematics of diffusion against values computed outside of the package: by hand, by scipy, from the paper."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from dpdm.diffusion import (
    EDM,
    VE,
    VP,
    Cosine,
    LogNormal,
    LogUniform,
    PreconditionedDenoiser,
    V,
    VariancePreserving,
    Weighted,
    karras_schedule,
)

# Karras et al. 2022, Table 1, "Ours (EDM)", in 40-digit decimal arithmetic; √(1/3) is the default sigma_data.
# sigma_data², σ, c_skip, c_out, c_in, c_noise, λ
EDM_COEFFICIENTS = [
    (1 / 4, 0.002, 0.999984000255996, 0.001999984000192, 1.999984000192, -1.55365202460555, 250004),
    (1 / 4, 0.5, 0.5, 0.353553390593274, 1.4142135623731, -0.173286795139986, 8),
    (1 / 4, 1, 0.2, 0.447213595499958, 0.894427190999916, 0, 5),
    (1 / 4, 80, 3.90609741806961e-05, 0.499990234661093, 0.0124997558665273, 1.09550665866847, 4.00015625),
    (1 / 3, 0.002, 0.999988000143998, 0.001999988000108, 1.73204041535756, -1.55365202460555, 250003),
    (1 / 3, 0.5, 4 / 7, 0.377964473009227, 1.30930734141595, -0.173286795139986, 7),
    (1 / 3, 1, 0.25, 0.5, 0.866025403784439, 0, 4),
    (1 / 3, 80, 5.2080620801e-05, 0.577335234613651, 0.0124996744918818, 1.09550665866847, 3.00015625),
]
# The other columns of the same table, and Salimans & Ho 2022 for v, in the same arithmetic.
# preconditioning, σ, c_skip, c_out, c_in, c_noise, λ
OTHER_COEFFICIENTS = [
    (V(), 0.002, 0.999996000016, 0.001999996000012, 0.999998000006, 0.00127323784708651, 250001),
    (V(), 0.5, 0.8, 0.447213595499958, 0.894427190999916, 0.295167235300867, 5),
    (V(), 1, 0.5, 0.707106781186548, 0.707106781186548, 0.5, 2),
    (V(), 80, 0.000156225589751601, 0.999921884154082, 0.012499023551926, 0.992042667272551, 1.00015625),
    (VP(), 0.002, 1, -0.002, 0.999998000006, 0.0398419753914059, 250000),
    (VP(), 0.5, 1, -0.5, 0.894427190999916, 144.813919539819, 4),
    (VP(), 1, 1, -1, 0.707106781186548, 258.960262432797, 1),
    (VP(), 80, 1, -80, 0.012499023551926, 933.511143240704, 0.00015625),
    (VE(), 0.02, 1, 0.02, 1, -4.60517018598809, 2500),
    (VE(), 0.5, 1, 0.5, 1, -1.38629436111989, 4),
    (VE(), 1, 1, 1, 1, -0.693147180559945, 1),
    (VE(), 80, 1, 80, 1, 3.68887945411394, 0.00015625),
]
# σ at a tenth, a half and nine tenths of the training distribution; least and largest σ
NOISE_LEVELS = [
    (Cosine(), [0.158632766903246, 0.990440733842161, 5.93489756798409], (0.00150343919297757, 90.0171313005218)),
    (
        VariancePreserving(),
        [0.340207376060976, 3.41301142190682, 58.8278008569915],
        (0.00100049762668167, 152.166970283946),
    ),
    (LogUniform(), [0.046873458231842, 1.4142135623731, 42.6680700644648], (0.02, 100)),
]


class Recorder(nn.Module):
    """A network that remembers its arguments and answers with a fixed image."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x, c_noise, labels):
        self.seen = (x, c_noise, labels)
        return self.answer


@pytest.mark.parametrize(("variance", "sigma", "c_skip", "c_out", "c_in", "c_noise", "weight"), EDM_COEFFICIENTS)
def test_edm_coefficients_are_those_of_the_paper(variance, sigma, c_skip, c_out, c_in, c_noise, weight):
    edm = EDM(sigma_data=math.sqrt(variance))
    at = torch.tensor([sigma], dtype=torch.float64)
    got = edm.coefficients(at)
    assert got.c_skip.item() == pytest.approx(c_skip, rel=1e-12)
    assert got.c_out.item() == pytest.approx(c_out, rel=1e-12)
    assert got.c_in.item() == pytest.approx(c_in, rel=1e-12)
    assert got.c_noise.item() == pytest.approx(c_noise, rel=1e-12, abs=1e-15)
    assert edm.loss_weight(at).item() == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize(
    ("preconditioning", "sigma", "c_skip", "c_out", "c_in", "c_noise", "weight"), OTHER_COEFFICIENTS
)
def test_other_coefficients_are_those_of_the_papers(preconditioning, sigma, c_skip, c_out, c_in, c_noise, weight):
    at = torch.tensor([sigma], dtype=torch.float64)
    got = preconditioning.coefficients(at)
    assert [c.item() for c in got] == pytest.approx([c_skip, c_out, c_in, c_noise], rel=1e-12)
    assert preconditioning.loss_weight(at).item() == pytest.approx(weight, rel=1e-12)
    single = preconditioning.coefficients(at.float())
    assert [c.item() for c in single] == pytest.approx([c_skip, c_out, c_in, c_noise], rel=1e-5)


@pytest.mark.parametrize("preconditioning", [EDM(), V(), VP(), VE()], ids=lambda p: type(p).__name__)
def test_the_denoiser_is_exact_where_the_network_is(preconditioning):
    """Each says what F is to predict; with that F the denoised image is the clean one."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4, 1, 3, 3, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.02, 0.5, 1.0, 80.0], dtype=torch.float64)
    scale = sigma[:, None, None, None]
    variance = scale**2 + 1 / 3
    exact = {
        "EDM": (scale * clean / math.sqrt(1 / 3) - math.sqrt(1 / 3) * noise) / variance.sqrt(),
        "V": -(noise - scale * clean) / (1 + scale**2).sqrt(),
        "VP": noise,
        "VE": -noise,
    }[type(preconditioning).__name__]
    denoiser = PreconditionedDenoiser(Recorder(exact), preconditioning)
    denoised = denoiser(clean + scale * noise, sigma, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(denoised, clean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("levels", "expected", "span"), NOISE_LEVELS)
def test_training_noise_levels_are_those_of_the_papers(levels, expected, span):
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert levels.quantile(u).tolist() == pytest.approx(expected, rel=1e-12)
    assert levels.span == pytest.approx(span, rel=1e-12)
    ends = levels.quantile(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert ends.tolist() == pytest.approx(span, rel=1e-9)


def test_the_time_of_a_noise_level_is_the_inverse_of_its_noise_level():
    t = torch.linspace(1e-5, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(VariancePreserving().t(VariancePreserving().sigma(t)), t, rtol=1e-9, atol=0)


def test_edm_takes_data_for_uniform_in_minus_one_to_one_and_ln_sigma_as_the_paper_has_it():
    assert EDM().sigma_data == pytest.approx(0.5773502691896258, rel=1e-15)
    assert EDM().noise_levels == LogNormal(mean=-1.2, std=1.2)


def test_network_of_gaussian_data_sees_unit_variance_when_called_through_the_denoiser():
    generator = torch.Generator().manual_seed(0)
    sigma = torch.tensor([0.002, 0.5, 1.0, 80.0], dtype=torch.float64)
    y = math.sqrt(1 / 3) * torch.randn(4, 3, 200, 200, generator=generator, dtype=torch.float64)
    x = y + sigma[:, None, None, None] * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    network = Recorder(torch.zeros_like(x))
    PreconditionedDenoiser(network, EDM())(x, sigma, torch.zeros(4, dtype=torch.int64))
    # the variance of n normals has a relative standard error of √(2/n) = 0.4 %
    torch.testing.assert_close(network.seen[0].var(dim=(1, 2, 3)), torch.ones_like(sigma), rtol=0.02, atol=0)


def test_denoiser_is_the_skip_plus_the_scaled_network_of_the_scaled_input():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 3, 5, generator=generator, dtype=torch.float64)
    answer = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    labels = torch.tensor([7, 2])
    network = Recorder(answer)
    denoised = PreconditionedDenoiser(network, EDM(sigma_data=0.5))(x, torch.tensor([0.5, 1.0]).double(), labels)
    torch.testing.assert_close(denoised[0], 0.5 * x[0] + 0.353553390593274 * answer[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(denoised[1], 0.2 * x[1] + 0.447213595499958 * answer[1], rtol=1e-12, atol=1e-12)
    seen_x, seen_noise, seen_labels = network.seen
    torch.testing.assert_close(seen_x[0], 1.4142135623731 * x[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen_x[1], 0.894427190999916 * x[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        seen_noise, torch.tensor([-0.173286795139986, 0.0], dtype=torch.float64), rtol=1e-12, atol=1e-15
    )
    assert seen_labels.tolist() == [7, 2]


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.0, 0.3), (1.5, 2.0)])
def test_lognormal_quantile_is_scipy_s(mean, std):
    u = np.concatenate([[1e-9, 1e-6], np.linspace(0.001, 0.999, 101), [1 - 1e-6, 1 - 1e-9]])
    expected = scipy.stats.lognorm.ppf(u, s=std, scale=math.exp(mean))
    np.testing.assert_allclose(LogNormal(mean, std).quantile(torch.from_numpy(u)).numpy(), expected, rtol=1e-9)


def test_weighted_noise_levels_are_those_of_the_base_reweighted():
    base = LogUniform(sigma_min=1.0, sigma_max=16.0)
    u = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    alike = Weighted(base=base, levels=(1.0, 16.0), weights=(2.0, 2.0))
    torch.testing.assert_close(alike.quantile(u), base.quantile(u), rtol=1e-6, atol=0)
    # Weight w = 2 v over ln σ = v ln 16 is the density 2 v: its distribution function v² is undone by a root.
    rising = Weighted(base=base, levels=(1.0, 16.0), weights=(0.0, 3.0))
    torch.testing.assert_close(rising.quantile(u), 16 ** u.sqrt(), rtol=1e-3, atol=0)
    half = Weighted(base=base, levels=(3.99, 4.01), weights=(0.0, 1.0))
    assert (half.quantile(u) > 3.98).all(), "none where the weight is zero"
    assert half.span == base.span
    assert half.quantile(u.float()).dtype == torch.float32


def test_lognormal_median_and_one_sigma_quantile_are_known_by_hand():
    u = torch.tensor([0.5, 0.8413447460685429], dtype=torch.float64)
    expected = torch.tensor([0.30119421191220214, 1.0], dtype=torch.float64)  # exp(-1.2), exp(-1.2 + 1.2)
    torch.testing.assert_close(LogNormal().quantile(u), expected)


@pytest.mark.parametrize(
    ("steps", "sigma_min", "sigma_max", "rho", "expected"),
    [
        (1, 0.002, 80, 7, [80]),
        (2, 0.002, 80, 7, [80, 0.002]),
        (3, 0.002, 80, 7, [80, 2.515218976147, 0.002]),
        (5, 0.1, 10, 2, [10, 6.00625, 3.025, 1.05625, 0.1]),
        (4, 1, 10, 1, [10, 7, 4, 1]),
        # the schedule of 35 network evaluations of the paper
        (18, 0.002, 80, 7, [80, 57.58598472125, 40.78557379651, 28.37458460416, 19.35245298033, 12.91008238076,
                            8.4009353091, 5.315194521796, 3.256821519766, 1.92333983704, 1.088170636545,
                            0.5853481231945, 0.2964422844792, 0.139516468731, 0.05994731123547, 0.02293451837233,
                            0.007528019962784, 0.002]),
    ],
)  # fmt: skip
def test_karras_schedule_has_the_levels_of_the_paper(steps, sigma_min, sigma_max, rho, expected):
    levels = karras_schedule(steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    assert levels.dtype == torch.float64
    np.testing.assert_allclose(levels.numpy(), [*expected, 0], rtol=1e-11)


def test_karras_schedule_descends_to_exactly_zero_evenly_in_the_power_one_over_rho():
    for rho in (1.0, 3.0, 7.0, 12.5):
        levels = karras_schedule(37, sigma_min=0.01, sigma_max=50, rho=rho)
        assert len(levels) == 38
        assert levels[-1] == 0
        assert (levels.diff() < 0).all()
        assert levels[0].item() == pytest.approx(50, rel=1e-12)
        assert levels[-2].item() == pytest.approx(0.01, rel=1e-12)
        gaps = (levels[:-1] ** (1 / rho)).diff()
        torch.testing.assert_close(gaps, gaps[:1].expand(36))


def test_karras_schedule_with_a_larger_rho_takes_more_of_its_steps_near_sigma_min():
    below_one = [int((karras_schedule(100, rho=rho) < 1).sum()) for rho in (1, 3, 7, 15)]
    assert below_one == sorted(set(below_one))
