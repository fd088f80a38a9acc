"""Each number of each sum gets noise of its own, whatever the sum's length, and through a prior's own sums.

Kinds: a shape that nothing enforces; noise that is right in one sum and wrong in a matrix.
"""

import numpy as np
import pytest
import torch
from two_worlds import IMAGES, RecordingPlan, World

from dpdm.audit import parametric
from dpdm.audit.canaries import WatchedRun
from dpdm.methods import Prior
from dpdm.methods.prior import release_prior
from dpdm.privacy import DPSGD, InsecureSeededEntropy, OneBackwardEach
from dpdm.privacy.sums import BoundedSum
from dpdm.types import InputError
from plans import in_memory

PLAN = {"dataset_size": 12, "expected_batch_size": 5, "steps": 0, "delta": 1e-3}
RELEASES = {"first": 5.0, "second": 3.0}
PRIOR = Prior(centres=2, rounds=2)


@pytest.mark.parametrize("noise", ["continuous", "grid"])
@pytest.mark.parametrize("length", [1, 2, 3, 17, 257, 4097])
def test_sums_of_any_length_have_noise_of_their_own_in_every_number(noise, length):
    sums = []
    plan = DPSGD(**PLAN, releases=RELEASES, noise=noise)
    for _ in range(20):
        run = plan.start()
        total = torch.zeros(length, dtype=torch.float64)
        for name, noise_multiplier in RELEASES.items():
            noisy, std = run.release(name, BoundedSum(total, 2.0), num_records=12)
            assert noisy.shape == total.shape
            assert std == pytest.approx(2.0 * noise_multiplier, rel=1e-5)
            sums.append(parametric.as_sum(noisy, plan, noise_multiplier, sensitivity=2.0))
    assert [check for check in parametric.check_sums(sums) if not check.passed] == []


@pytest.mark.parametrize("shape", [(), (1, 8), (8, 1), (3, 3), (2, 3, 4)])
def test_what_is_no_vector_is_refused_before_anything_is_spent(shape):
    run = DPSGD(**PLAN, releases=RELEASES).start()
    with pytest.raises(InputError, match="float64 vector"):
        run.release("first", BoundedSum(torch.zeros(shape, dtype=torch.float64), 2.0), num_records=12)
    assert run.spent == 0


def test_each_sum_of_a_prior_has_noise_of_its_own_in_every_number():
    world, releases = World(), PRIOR.releases(epsilon=1, delta=1e-3)
    plan = RecordingPlan.of(world, **PLAN, releases=releases)
    release_prior(in_memory(plan.start(entropy=InsecureSeededEntropy(0)), len(IMAGES)), IMAGES, PRIOR)
    assert len(world.calls) == len(releases)
    for call in world.calls:
        assert call.total.ndim == 1
        added = call.noisy - call.total
        assert len(added.unique()) == len(added)
    sums = [
        parametric.as_sum(call.noisy - call.total, plan, noise, sensitivity=call.sensitivity)
        for call, noise in zip(world.calls, releases.values(), strict=True)
    ]
    assert [check for check in parametric.check_sums(sums) if not check.passed] == []


def test_an_audit_sees_the_noise_of_each_of_a_priors_sums():
    releases = PRIOR.releases(epsilon=1, delta=1e-3)
    run = WatchedRun(DPSGD(**PLAN, releases=releases), took_part=np.arange(10) < 5, strategy=OneBackwardEach())
    release_prior(in_memory(run, len(IMAGES)), IMAGES, PRIOR)
    assert len(run.sums) == len(releases)
    assert [check for check in parametric.check_sums(run.sums) if not check.passed] == []
    half = [each._replace(noise=each.noise / 2) for each in run.sums]
    assert not parametric.check_sums(half)[0].passed
    twice = [*run.sums, run.sums[2]._replace(noise=-run.sums[2].noise[::-1])]
    assert not parametric.check_sums(twice)[1].passed
