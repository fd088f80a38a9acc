"""What every sampler promises: a new one is added to SAMPLERS, and to nothing else."""

import math
import random
from typing import get_args

import exact_gaussian
import numpy as np
import pytest
import torch

from dpdm import diffusion
from dpdm.diffusion import DDIM, Churn, DPMSolver, MatchedSolver, StochasticDDIM, karras_schedule
from dpdm.diffusion.samplers import Sampler
from dpdm.methods.denoising import AnySampler
from dpdm.types import InputError

SAMPLERS = {  # with the denoiser's calls in n steps
    DDIM: lambda n: n,
    StochasticDDIM: lambda n: n,
    Churn: lambda n: 2 * n - 1,
    DPMSolver: lambda n: n,
    MatchedSolver: lambda n: n,
}
DRAWS_MORE = {StochasticDDIM, Churn}
NULL_LABEL = 2
NOT_POSITIVE = (0, -1, math.nan, math.inf)
every_sampler = pytest.mark.parametrize("kind", SAMPLERS, ids=lambda kind: kind.kind)


def start(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def draw(sampler, noise, *, seed=0, denoiser=None):
    labels = torch.zeros(len(noise), dtype=torch.int64)
    denoiser = denoiser or exact_gaussian.denoiser(noise.shape[1:])
    return sampler(denoiser, noise, labels, generator=torch.Generator().manual_seed(seed), null_label=NULL_LABEL)


class Watched:
    """A denoiser that keeps the arguments of its calls."""

    def __init__(self, shape):
        self.denoiser = exact_gaussian.denoiser(shape)
        self.preconditioning = self.denoiser.preconditioning
        self.seen = []

    def __call__(self, x, sigma, labels):
        self.seen.append((x, sigma, labels))
        return self.denoiser(x, sigma, labels)


def test_every_sampler_is_among_them():
    public = [each for name in diffusion.__all__ if isinstance(each := getattr(diffusion, name), type)]
    assert {each for each in public if issubclass(each, Sampler)} == {Sampler, *SAMPLERS}
    assert set(get_args(AnySampler)) == set(SAMPLERS)
    assert len({kind.kind for kind in SAMPLERS}) == len(SAMPLERS)


@every_sampler
@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (4, 1, 3, 5), (3, 4, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_are_finite_and_of_the_shape_and_precision_of_the_draws_which_stay_as_they_are(kind, shape, dtype):
    noise = start(*shape, dtype=dtype)
    kept = noise.clone()
    images = draw(kind(steps=5), noise)
    assert images.shape == noise.shape
    assert images.dtype == dtype
    assert images.isfinite().all()
    assert torch.equal(noise, kept)


@every_sampler
def test_the_same_draws_are_the_same_images(kind):
    noise, sampler = start(4, 1, 3, 3), kind(steps=7)
    one, again, other = (draw(sampler, noise, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert torch.equal(one, other) == (kind not in DRAWS_MORE)


@every_sampler
def test_draws_come_from_the_given_generator_alone(kind):
    def shared():
        return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())

    before, generator = shared(), torch.Generator().manual_seed(3)
    untouched = generator.get_state()
    kind(steps=7)(
        exact_gaussian.denoiser((1, 3, 3)), start(4, 1, 3, 3), torch.zeros(4, dtype=torch.int64), generator=generator
    )
    assert shared() == before
    assert torch.equal(generator.get_state(), untouched) == (kind not in DRAWS_MORE)


@every_sampler
def test_gaussian_images_come_out_with_their_mean_and_standard_deviation(kind):
    """Within 0.02, and 3 %.

    Of 25,600 pixels four standard errors are 0.0125 of the mean, and 1.8 % of the standard deviation; the 200 steps of
    a sampler of order 1 miss it by 1.3 %.
    """
    pixels = draw(kind(steps=200), start(400, 1, 8, 8))
    assert pixels.mean().item() == pytest.approx(exact_gaussian.MEAN, abs=0.02)
    assert pixels.std().item() == pytest.approx(exact_gaussian.STD, rel=0.03)


@every_sampler
def test_guidance_changes_nothing_where_classes_are_alike(kind):
    noise = start(4, 1, 3, 3)
    torch.testing.assert_close(draw(kind(steps=7, guidance=1.5), noise), draw(kind(steps=7), noise))


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_denoiser_is_called_as_often_as_documented_with_one_level_and_the_label_of_each_image(kind, steps):
    labels, watched, sampler = torch.tensor([0, 1, 1, 0]), Watched((1, 3, 3)), kind(steps=steps)
    noise = start(4, 1, 3, 3, dtype=torch.float32)
    sampler(watched, noise, labels, generator=torch.Generator().manual_seed(0))
    assert len(watched.seen) == SAMPLERS[kind](steps)
    for x, sigma, passed in watched.seen:
        assert x.shape == noise.shape
        assert sigma.shape == (4,)
        assert sigma.dtype == noise.dtype
        assert (sigma == sigma[0]).all()
        assert torch.equal(passed, labels)


@every_sampler
def test_no_call_is_outside_of_the_levels_that_training_must_have_met(kind):
    watched, sampler = Watched((1, 3, 3)), kind(steps=9, sigma_min=0.01, sigma_max=20)
    draw(sampler, start(2, 1, 3, 3), denoiser=watched)
    levels = [sigma[0].item() for _, sigma, _ in watched.seen]
    assert min(levels) >= 0.01 * (1 - 1e-9)
    assert max(levels) <= sampler.highest_level * (1 + 1e-9)


@every_sampler
def test_the_levels_are_the_schedule_of_the_sampler_s_fields(kind):
    sampler = kind(steps=9, sigma_min=0.01, sigma_max=20, rho=5)
    assert torch.equal(sampler.schedule(), karras_schedule(9, sigma_min=0.01, sigma_max=20, rho=5))


@every_sampler
def test_guidance_without_a_null_label_is_refused_in_one_line(kind):
    with pytest.raises(InputError, match=r"guidance = 1 needs .*label_dropout"):
        kind(guidance=1.0)(
            exact_gaussian.denoiser((1, 3, 3)),
            start(4, 1, 3, 3),
            torch.zeros(4, dtype=torch.int64),
            generator=torch.Generator(),
        )


@every_sampler
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        *(({name: value}, name) for name in ("sigma_min", "sigma_max", "rho") for value in NOT_POSITIVE),
        *(({"sigma_min": least, "sigma_max": 1.0}, "sigma_min = .* below sigma_max") for least in (1.0, 2.0)),
        *(({"steps": steps}, "steps") for steps in (0, -3, 100_001)),
        *(({"guidance": value}, "guidance") for value in (-0.1, math.nan, math.inf)),
    ],
)
def test_fields_that_make_no_schedule_are_refused_by_name(kind, fields, named):
    with pytest.raises(InputError, match=named):
        kind(**fields)
