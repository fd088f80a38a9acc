"""Wrong arguments are told as an InputError that names the argument."""

import math

import pytest

from dpdm.diffusion import (
    DDIM,
    EDM,
    VE,
    VP,
    Churn,
    Cosine,
    DenoisingLoss,
    LogNormal,
    LogUniform,
    V,
    VariancePreserving,
    karras_schedule,
)
from dpdm.types import InputError

NOT_POSITIVE = [0, -1, math.nan, math.inf]


@pytest.mark.parametrize("value", NOT_POSITIVE)
@pytest.mark.parametrize("name", ["sigma_min", "sigma_max", "rho"])
def test_schedule_rejects_levels_that_are_not_positive_numbers(name, value):
    with pytest.raises(InputError, match=name):
        karras_schedule(5, **{name: value})


def test_schedule_rejects_levels_that_do_not_descend():
    for sigma_min in (1.0, 2.0):
        with pytest.raises(InputError, match=r"sigma_min = .* below sigma_max"):
            karras_schedule(5, sigma_min=sigma_min, sigma_max=1.0)


@pytest.mark.parametrize("steps", [0, -3])
def test_schedule_rejects_less_than_one_step(steps):
    with pytest.raises(InputError, match="steps"):
        karras_schedule(steps)


@pytest.mark.parametrize("value", [-1, -0.001, math.nan])
def test_churn_rejects_an_amount_that_is_negative_or_no_number(value):
    with pytest.raises(InputError, match="s_churn"):
        Churn(s_churn=value)


@pytest.mark.parametrize("value", NOT_POSITIVE)
def test_churn_rejects_fresh_noise_without_a_positive_scale(value):
    with pytest.raises(InputError, match="s_noise"):
        Churn(s_noise=value)


@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        (DDIM(), r"sampler.sigma_min = 0.002 .*--set sampler.sigma_min=0.02"),
        (DDIM(sigma_min=0.02, sigma_max=101), r"noise level of 101, .*--set sampler.sigma_max=100"),
        (Churn(sigma_min=0.02, s_churn=1000, s_max=100), r"noise level of 113.137, .*--set sampler.sigma_max=70.7"),
    ],
)
def test_a_sampler_that_leaves_the_noise_levels_of_training_is_rejected(sampler, says):
    with pytest.raises(InputError, match=says):
        sampler.require_trained(VE().noise_levels)


@pytest.mark.parametrize("preconditioning", [V(), VP(), VE()])
def test_the_noise_level_that_is_proposed_is_accepted(preconditioning):
    with pytest.raises(InputError) as error:
        DDIM(sigma_min=1e-4).require_trained(preconditioning.noise_levels)
    DDIM(sigma_min=float(str(error.value).rpartition("=")[2])).require_trained(preconditioning.noise_levels)


@pytest.mark.parametrize("bounds", [(2.0, 1.0), (math.nan, 1.0)])
def test_churn_between_bounds_that_hold_nothing_is_rejected(bounds):
    with pytest.raises(InputError, match="s_min"):
        Churn(s_min=bounds[0], s_max=bounds[1])


@pytest.mark.parametrize("preconditioning", [EDM(), V(), VE()])
def test_a_sampler_within_the_noise_levels_of_training_is_accepted(preconditioning):
    DDIM(sigma_min=0.02).require_trained(preconditioning.noise_levels)


@pytest.mark.parametrize(
    "levels",
    [
        lambda: LogUniform(sigma_min=2, sigma_max=1),
        lambda: LogUniform(sigma_min=0),
        lambda: Cosine(log_snr_min=13, log_snr_max=-9),
        lambda: Cosine(log_snr_max=math.inf),
        lambda: Cosine(log_snr_min=math.nan),
        lambda: VariancePreserving(t_min=1),
        lambda: VariancePreserving(t_min=0),
        lambda: VariancePreserving(beta_d=-1),
    ],
)
def test_noise_levels_that_make_no_distribution_are_rejected(levels):
    with pytest.raises(InputError, match=r"sigma_min|log_snr|t_min|beta_d"):
        levels()


@pytest.mark.parametrize("value", NOT_POSITIVE)
def test_edm_rejects_a_scale_of_the_data_that_is_not_positive(value):
    with pytest.raises(InputError, match="sigma_data"):
        EDM(sigma_data=value)


@pytest.mark.parametrize("value", NOT_POSITIVE)
def test_lognormal_rejects_a_spread_that_is_not_positive(value):
    with pytest.raises(InputError, match="std"):
        LogNormal(std=value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_lognormal_rejects_a_mean_that_is_no_number(value):
    with pytest.raises(InputError, match="mean"):
        LogNormal(mean=value)


@pytest.mark.parametrize("value", NOT_POSITIVE)
def test_loss_rejects_less_than_one_noisy_copy(value):
    with pytest.raises(InputError, match="noise_multiplicity"):
        DenoisingLoss(noise_multiplicity=value)


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, math.nan])
def test_loss_rejects_a_label_dropout_that_is_no_probability_below_one(value):
    with pytest.raises(InputError, match="label_dropout"):
        DenoisingLoss(label_dropout=value)
