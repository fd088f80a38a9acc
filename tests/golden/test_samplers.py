"""Samplers against denoisers whose flow is known: Gaussian data in closed form, a mixture by scipy, points exactly."""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch

from dpdm.diffusion import DDIM, Churn, DPMSolver, Guided, StochasticDDIM, karras_schedule

MU, S = 0.3, 0.5
NO_LABELS = torch.zeros(4, dtype=torch.int64)


def heun(**fields):
    return Churn(s_churn=0.0, **fields)


def gaussian(x, sigma, labels):
    """The exact denoiser of data N(MU, S² I)."""
    shrink = S**2 / (S**2 + sigma**2)
    return MU + shrink[:, None, None, None] * (x - MU)


def two_points(x, sigma, labels):
    """The exact denoiser of data that is -1 or 1 in every pixel, independently."""
    return torch.tanh(x / sigma[:, None, None, None] ** 2)


def start(dtype=torch.float64, shape=(4, 1, 3, 3), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def sample(sampler, denoiser, noise, seed=0):
    labels = torch.zeros(len(noise), dtype=torch.int64)
    return sampler(denoiser, noise, labels, generator=torch.Generator().manual_seed(seed))


def gain_per_sigma(sigma):
    """dx/dσ of the Gaussian flow, for x − MU = 1."""
    return sigma / (S**2 + sigma**2)


def ddim_factor(sigma, following):
    return 1 + (following - sigma) * gain_per_sigma(sigma)


def heun_factor(sigma, following):
    euler = ddim_factor(sigma, following)
    if following == 0:
        return euler
    return 1 + (following - sigma) * (gain_per_sigma(sigma) + gain_per_sigma(following) * euler) / 2


def exact_flow(x, sigma, following):
    return MU + (x - MU) * math.sqrt((S**2 + following**2) / (S**2 + sigma**2))


class LastArgument:
    """A denoiser that keeps the x of its last call: the state at sigma_min, before the final step to zero."""

    def __init__(self, denoiser):
        self.denoiser = denoiser

    def __call__(self, x, sigma, labels):
        self.x, self.sigma = x, sigma[0].item()
        return self.denoiser(x, sigma, labels)


def fitted_order(sampler, denoiser, sigma_min, exact_at_sigma_min):
    """Minus the slope of log error against log steps, between sigma_max and sigma_min.

    The step from sigma_min to zero is left out: it is an Euler step of both samplers, whose error depends on
    sigma_min and not on the number of steps, so it would be a floor under the errors and spoil the order. And
    sigma_min is fixed and not small, so that already the coarsest of these schedules resolves the flow.
    """
    intervals = [64, 128, 256, 512]
    errors = []
    for n in intervals:
        last = LastArgument(denoiser)
        sample(sampler(steps=n + 1, sigma_min=sigma_min), last, start())
        assert last.sigma == pytest.approx(sigma_min)
        errors.append((last.x - exact_at_sigma_min).abs().max().item())
    return -np.polyfit(np.log(intervals), np.log(errors), 1)[0]


@pytest.mark.parametrize(("sampler", "factor"), [(DDIM(), ddim_factor), (heun(), heun_factor)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampler_of_gaussian_data_is_its_linear_recursion(sampler, factor, dtype):
    noise = start(dtype)
    levels = karras_schedule(sampler.steps).tolist()
    expected = noise.double() * 80 - MU
    for sigma, following in itertools.pairwise(levels):
        expected = expected * factor(sigma, following)
    got = sample(sampler, gaussian, noise)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), MU + expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (DDIM(steps=4000), 2e-3),
        (heun(steps=400), 2e-4),
        (heun(steps=2000), 3e-5),
        (DPMSolver(steps=400), 2e-4),
        (DPMSolver(steps=2000), 3e-5),
    ],
)
def test_sampler_of_gaussian_data_converges_to_the_exact_flow_at_zero(sampler, tolerance):
    noise = start()
    exact = exact_flow(80 * noise, 80, 0)
    torch.testing.assert_close(sample(sampler, gaussian, noise), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("sampler", "order"), [(DDIM, 1), (heun, 2), (DPMSolver, 2)])
def test_sampler_has_its_order_along_the_path_of_gaussian_data(sampler, order):
    exact = exact_flow(80 * start(), 80, 0.05)
    assert fitted_order(sampler, gaussian, 0.05, exact) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("sampler", "order"), [(DDIM, 1), (heun, 2), (DPMSolver, 2)])
def test_sampler_has_its_order_along_the_path_of_a_denoiser_that_is_not_linear(sampler, order):
    # Below σ ≈ 0.5 the points of this data draw paths near 0 apart so fast that order 2 shows only from 500 steps on.
    flow = scipy.integrate.solve_ivp(
        lambda sigma, x: (x - np.tanh(x / sigma**2)) / sigma,
        (80, 0.5),
        80 * start().numpy().ravel(),
        method="DOP853",
        rtol=1e-11,
        atol=1e-11,
    )
    exact = torch.from_numpy(flow.y[:, -1]).view(4, 1, 3, 3)
    assert fitted_order(sampler, two_points, 0.5, exact) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    "sampler",
    [
        Churn(steps=40, s_churn=10),
        Churn(steps=40, s_churn=10, s_min=0, s_max=math.inf, s_noise=1.01),
        Churn(steps=60, s_churn=1000, s_min=0, s_max=math.inf),  # γ at its bound √2 − 1
        Churn(steps=40, s_churn=30, s_min=0.05, s_max=1.0, s_noise=1.1),
    ],
)
def test_churn_of_gaussian_data_has_the_moments_of_its_recursion(sampler):
    """Algorithm 2 on a linear denoiser maps mean and variance linearly, so both are known without sampling."""
    levels = karras_schedule(sampler.steps).tolist()
    mean, variance = -MU, levels[0] ** 2
    for sigma, following in itertools.pairwise(levels):
        gamma = 0.0
        if sampler.s_min <= sigma <= sampler.s_max:
            gamma = min(sampler.s_churn / sampler.steps, math.sqrt(2) - 1)
        raised = sigma + gamma * sigma
        factor = heun_factor(raised, following)
        mean *= factor
        variance = factor**2 * (variance + (raised**2 - sigma**2) * sampler.s_noise**2)
    x = sample(sampler, gaussian, start(torch.float32, (800, 1, 8, 8)))
    n = x.numel()  # 51200: four standard errors are 0.009 of the mean, 1.3 % of the standard deviation
    assert x.mean().item() == pytest.approx(MU + mean, abs=4 * math.sqrt(variance / n))
    assert x.std().item() == pytest.approx(math.sqrt(variance), rel=4 / math.sqrt(2 * n))


def moments_of_stochastic_ddim(steps, sigma_min=0.002):
    """Mean and variance at sigma_min, and after the last step, by the recursion of Euler-Maruyama on Gaussian data."""
    levels = karras_schedule(steps, sigma_min=sigma_min).tolist()
    mean, variance = -MU, levels[0] ** 2
    for sigma, following in itertools.pairwise(levels[:-1]):
        factor = 1 + 2 * (following - sigma) * gain_per_sigma(sigma)
        mean *= factor
        variance = factor**2 * variance + 2 * (sigma - following) * sigma
    last = S**2 / (S**2 + levels[-2] ** 2)
    return (mean, variance), (last * mean, last**2 * variance)


def test_stochastic_ddim_of_gaussian_data_has_the_moments_of_its_recursion():
    mean, variance = moments_of_stochastic_ddim(40)[1]
    x = sample(StochasticDDIM(steps=40), gaussian, start(torch.float32, (800, 1, 8, 8)))
    n = x.numel()
    assert x.mean().item() == pytest.approx(MU + mean, abs=4 * math.sqrt(variance / n))
    assert x.std().item() == pytest.approx(math.sqrt(variance), rel=4 / math.sqrt(2 * n))


def test_stochastic_ddim_is_euler_maruyama_written_out_with_the_same_fresh_noise():
    sampler = StochasticDDIM(steps=9, sigma_min=0.02, sigma_max=30)
    noise, generator = start(), torch.Generator().manual_seed(5)
    levels = karras_schedule(9, sigma_min=0.02, sigma_max=30).tolist()
    x = noise * 30
    for i in range(8):
        drift = 2 * (x - torch.tanh(x / levels[i] ** 2)) / levels[i] * (levels[i + 1] - levels[i])
        fresh = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = x + drift + math.sqrt(2 * levels[i] * (levels[i] - levels[i + 1])) * fresh
    torch.testing.assert_close(sample(sampler, two_points, noise, seed=5), torch.tanh(x / levels[8] ** 2))


def test_stochastic_ddim_has_weak_order_one():
    """The moments of Gaussian data at sigma_min, which the recursion gives without sampling error.

    The exact SDE forgets its start: from σ = 80 the mean keeps a share (S² + σ_min²) / (S² + 80²) of its error.
    """
    intervals, errors = [512, 1024, 2048, 4096], []
    share = (S**2 + 0.05**2) / (S**2 + 80**2)
    exact = -MU * share, S**2 + 0.05**2 + share**2 * (80**2 - S**2 - 80**2)
    for n in intervals:
        (mean, variance), _ = moments_of_stochastic_ddim(n + 1, sigma_min=0.05)
        errors.append((abs(mean - exact[0]), abs(variance - exact[1])))
    for error in zip(*errors, strict=True):
        assert -np.polyfit(np.log(intervals), np.log(error), 1)[0] == pytest.approx(1, abs=0.1)


def test_dpm_solver_is_algorithm_2_written_out():
    noise = start()
    levels = karras_schedule(9, sigma_min=0.01, sigma_max=30).tolist()
    log = [-math.log(sigma) for sigma in levels[:-1]]
    x, answers = noise * 30, []
    for i in range(8):
        answers.append(torch.tanh(x / levels[i] ** 2))
        h = log[i + 1] - log[i]
        combined = answers[-1]
        if i:
            r = (log[i] - log[i - 1]) / h
            combined = (1 + 1 / (2 * r)) * answers[-1] - 1 / (2 * r) * answers[-2]
        x = levels[i + 1] / levels[i] * x - math.expm1(-h) * combined
    sampler = DPMSolver(steps=9, sigma_min=0.01, sigma_max=30)
    torch.testing.assert_close(sample(sampler, two_points, noise), torch.tanh(x / levels[8] ** 2))


def test_dpm_solver_needs_fewer_calls_than_ddim_for_the_same_error():
    exact = exact_flow(80 * start(), 80, 0)
    error = [(sample(s, gaussian, start()) - exact).abs().max() for s in (DPMSolver(steps=20), DDIM(steps=50))]
    assert error[0] < error[1]


@pytest.mark.parametrize("sampler", [DDIM, StochasticDDIM, Churn, DPMSolver])
def test_guidance_goes_beyond_the_class_away_from_the_null_class(sampler):
    """Two Gaussian classes of one spread: the guided denoiser is that of a Gaussian of the extrapolated mean."""
    centre = torch.tensor([0.2, 0.6, 0.1])  # two classes and the null class, 2

    def denoiser(x, sigma, labels):
        shrink = S**2 / (S**2 + sigma**2)
        means = centre[labels]
        return (means + shrink * (x[:, 0, 0, 0] - means))[:, None, None, None]

    noise = start(torch.float32, (4, 1, 1, 1))
    labels = torch.tensor([0, 1, 0, 1])
    guided = sampler(steps=30, guidance=1.5)(
        denoiser, noise, labels, generator=torch.Generator().manual_seed(0), null_label=2
    )
    beyond = centre[labels] + 1.5 * (centre[labels] - centre[2])
    centre = torch.cat([beyond, torch.zeros(1)])
    expected = sampler(steps=30)(denoiser, noise, torch.arange(4), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-5)


def test_guidance_calls_the_denoiser_with_and_without_the_class():
    seen = []

    def denoiser(x, sigma, labels):
        seen.append(labels.tolist())
        return x

    Guided(denoiser, guidance=2.0, null_label=9)(torch.zeros(2, 1, 1, 1), torch.ones(2), torch.tensor([3, 4]))
    assert seen == [[3, 4], [9, 9]]


@pytest.mark.parametrize("s_churn", [0.0, 10.0, 40.0, 1000.0])
def test_samples_of_gaussian_data_are_gaussian_with_its_moments_whatever_the_churn(s_churn):
    x = sample(Churn(steps=80, s_churn=s_churn), gaussian, start(torch.float32, (600, 1, 8, 8)))
    assert x.mean().item() == pytest.approx(MU, abs=0.015)
    assert x.std().item() == pytest.approx(S, rel=0.02)
    assert scipy.stats.kstest((x.ravel() - x.mean()) / x.std(), "norm").pvalue > 1e-3


def test_churn_is_algorithm_2_written_out_with_the_same_fresh_noise():
    sampler = Churn(steps=12, s_churn=3, s_min=0.1, s_max=20, s_noise=1.007, sigma_min=0.01, sigma_max=30)
    noise = start()
    generator = torch.Generator().manual_seed(5)
    t = [*karras_schedule(12, sigma_min=0.01, sigma_max=30)[:-1].tolist(), 0.0]

    def slope(x, sigma):
        return (x - torch.tanh(x / sigma**2)) / sigma

    x = noise * t[0]
    churned = 0
    for i in range(12):
        t_hat, x_hat = t[i], x
        if 0.1 <= t[i] <= 20:
            t_hat = t[i] + 0.25 * t[i]  # s_churn / steps = 0.25 < √2 − 1
            fresh = 1.007 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * fresh
            churned += 1
        d = slope(x_hat, t_hat)
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            x = x_hat + (t[i + 1] - t_hat) * (d / 2 + slope(x, t[i + 1]) / 2)
    assert 0 < churned < 12
    torch.testing.assert_close(sample(sampler, two_points, noise, seed=5), x, rtol=1e-10, atol=1e-10)


def test_churn_outside_of_its_range_of_noise_levels_is_heun():
    noise = start()
    assert torch.equal(sample(Churn(s_min=100, s_max=200), gaussian, noise), sample(heun(), gaussian, noise))


@pytest.mark.parametrize(
    "sampler",
    [
        DDIM(steps=60),
        heun(steps=40),
        Churn(steps=40),
        Churn(steps=60, s_churn=40, s_noise=1.003),
        StochasticDDIM(steps=100),
        DPMSolver(steps=40),
    ],
)
def test_samples_of_the_ideal_denoiser_of_a_finite_data_set_end_at_its_points_and_at_all_of_them(sampler):
    data = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(7)) * 2 - 1

    def ideal(x, sigma, labels):
        distance = (x[:, None] - data[None]).double().square().sum(dim=(2, 3, 4))
        weights = torch.softmax(-distance / (2 * sigma.double()[:, None] ** 2), dim=1)
        return torch.einsum("bn,nchw->bchw", weights.to(x.dtype), data)

    x = sample(sampler, ideal, start(torch.float32, (500, 3, 4, 4), seed=8))
    distance, nearest = (x[:, None] - data[None]).abs().amax(dim=(2, 3, 4)).min(dim=1)
    assert distance.max() < 1e-4
    counts = np.bincount(nearest.numpy(), minlength=5)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3  # each of the five points equally often


@pytest.mark.parametrize("sampler", [DDIM(steps=1), heun(steps=1), StochasticDDIM(steps=1), DPMSolver(steps=1)])
def test_one_step_is_the_denoiser_s_answer_to_pure_noise(sampler):
    noise = start()
    expected = gaussian(80 * noise, torch.full((4,), 80.0).double(), None)
    torch.testing.assert_close(sample(sampler, gaussian, noise), expected)
