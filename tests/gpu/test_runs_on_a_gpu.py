"""Whole runs on the device: training, sampling, resuming and claims are those of a processor."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from dpdm.audit.canaries import AuditedRun, train_with_canaries
from dpdm.audit.membership import ATTACKS, attack_scores
from dpdm.config import Machine, load_config
from dpdm.diffusion import DDIM, EDM, Churn, DenoisingLoss, DPMSolver, MatchedSolver, MomentMatched, StochasticDDIM
from dpdm.methods import Diffusion, Prior
from dpdm.networks import CompactUNet
from dpdm.privacy import DPSGD, InsecureSeededEntropy, OperatingSystemEntropy
from dpdm.runs import Release, Trainer
from dpdm.runs.verification import verify_release
from dpdm.types import images_to_tensor
from plans import changed

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
# All records enter every step, which is accounted quickly; batches are drawn in test_sums_on_a_gpu.py.
PLAN = DPSGD(dataset_size=24, expected_batch_size=24, steps=4, noise_multiplier=1.0, delta=1e-3)
PRIOR = Prior(centres=2, rounds=1)
ON_A_PRIOR = {
    "prior": PRIOR,
    "preconditioning": MomentMatched(),
    "sampler": MatchedSolver(steps=2, sigma_max=20),
    "plan": changed(PLAN, before=PRIOR.releases(epsilon=2.0, delta=1e-3)),
}


def trainer(device, *, seeded=True, run=None, precision="float32", strategy="layer-wise", plan=PLAN, **settings):
    common = {"preconditioning": EDM(), "sampler": DDIM(steps=3), "loss": DenoisingLoss(noise_multiplicity=2)}
    return Trainer(
        method=Diffusion(network=CompactUNet(width=16), **common | settings),
        plan=plan,
        machine=Machine(device=device.type, precision=precision, strategy=strategy),
        entropy=InsecureSeededEntropy(0) if seeded else OperatingSystemEntropy(),
        run=run,
        ledger=None,
    )


def weights(release):
    return torch.cat([p.detach().flatten().cpu() for p in release.generator.denoiser.network.parameters()])


def alike(found, expected, untrained):
    """Whether two trainings went the same way. Rounding may change the sign of a few gradients, and so Adam's steps."""
    went = (weights(expected) - untrained).norm()
    return (weights(found) - weights(expected)).norm() < 0.03 * went


def untrained_weights(data, **settings):
    generator, _ = trainer(CPU, **settings).build(data)
    return torch.cat([p.detach().flatten() for p in generator.denoiser.network.parameters()])


@pytest.fixture(scope="module")
def untrained(data):
    return untrained_weights(data)


@pytest.fixture(scope="module")
def release(device, data, tmp_path_factory):
    """A private run of four steps on the device, as its settings are by default."""
    return trainer(device, seeded=False, precision="auto", run=tmp_path_factory.mktemp("runs") / "run").fit(data)


@pytest.mark.parametrize("strategy", ["layer-wise", "one-backward-each"])
def test_training_under_a_known_seed_goes_where_the_processors_does(device, data, strategy, untrained, full_float32):
    found, expected = (trainer(where, strategy=strategy).fit(data) for where in (device, CPU))
    assert next(found.generator.denoiser.parameters()).device == device
    assert alike(found, expected, untrained)


def test_training_about_a_prior_goes_where_the_processors_does(device, data, full_float32):
    found, expected = (trainer(where, **ON_A_PRIOR).fit(data) for where in (device, CPU))
    for name, tensor in expected.generator.denoiser.preconditioning.prior.state_dict().items():
        assert torch.equal(found.generator.denoiser.preconditioning.prior.state_dict()[name].cpu(), tensor)
    assert alike(found, expected, untrained_weights(data, **ON_A_PRIOR))
    images, _ = found.sample(5, seed=0)
    assert images.shape == (5, 8, 8, 1)


def test_groups_are_drawn_on_the_device(device, data):
    grouped = dataclasses.replace(data, groups=np.arange(24) // 3)
    plan = changed(PLAN, dataset_size=8, expected_batch_size=8, unit="group")
    assert weights(trainer(device, plan=plan).fit(grouped)).isfinite().all()


def test_a_private_run_claims_what_the_processors_does_and_verifies(device, data, release, tmp_path):
    expected = trainer(CPU, seeded=False).fit(data)
    assert release.claim == expected.claim
    assert release.claim["private"] is True
    run = tmp_path / "run"
    release.save(run / "release")
    verify_release(run)
    assert json.loads((run / "release" / "privacy.json").read_text())["statement"] == expected.claim["statement"]


def test_sampling_on_the_device_repeats_itself_and_survives_saving(device, release, tmp_path):
    for sampler in (DDIM(steps=3), Churn(steps=2), StochasticDDIM(steps=2), DPMSolver(steps=3, sigma_max=20)):
        images, labels = release.sample(5, seed=0, sampler=sampler)
        again, _ = release.sample(5, seed=0, sampler=sampler)
        assert images.dtype == np.uint8
        assert np.array_equal(images, again)
        assert labels.tolist() == [0, 1, 2, 0, 1]
    release.save(tmp_path / "release")
    opened = Release.load(tmp_path)
    opened.generator.to(device)
    assert np.array_equal(opened.sample(5, seed=0)[0], release.sample(5, seed=0)[0])


def test_from_one_start_the_device_draws_the_images_of_the_processor(device, release, tmp_path, full_float32):
    release.save(tmp_path / "release")
    start, labels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3
    for sampler in (DDIM(steps=5), Churn(steps=3, s_churn=0.0), DPMSolver(steps=4, guidance=1.0)):
        images = []
        for where in (device, CPU):
            denoiser = Release.load(tmp_path).generator.denoiser.to(where)
            generator = torch.Generator(where).manual_seed(0)
            with torch.no_grad():
                x = sampler(denoiser, start.to(where), labels.to(where), generator=generator, null_label=3)
            images.append(x.cpu())
        assert torch.allclose(*images, atol=1e-3)


@pytest.mark.parametrize("began", ["device", "processor"])
def test_a_run_that_was_stopped_goes_on_to_where_one_that_was_not_ends(
    device, data, untrained, began, tmp_path, full_float32
):
    """On the device, and on the device after a processor: where a run goes on is no part of its claim."""
    expected = trainer(device).fit(data)
    steps = trainer(device if began == "device" else CPU, run=tmp_path / "run").steps(data)
    assert [next(steps).steps_spent for _ in range(2)] == [1, 2]
    steps.close()
    steps = trainer(device, run=tmp_path / "run").steps(data)
    assert [next(steps).steps_spent for _ in range(2)] == [3, 4]
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert alike(end.value.value, expected, untrained)
    assert end.value.value.claim == expected.claim


def test_an_audit_trains_and_attacks_on_the_device(device, data):
    overrides = ["network.width=16", f"machine.device={device.type}", "loss.noise_multiplicity=1"]
    config = load_config("digits", overrides=overrides)
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, prior=PRIOR))
    plan = ON_A_PRIOR["plan"]
    *_, played = train_with_canaries(config, plan, data, canaries=4, members=4, coins=np.random.default_rng(0))
    assert isinstance(played, AuditedRun)
    assert np.isfinite(played.scores).all()
    x, labels = images_to_tensor(data.images[:4]).to(device), torch.from_numpy(data.labels[:4]).to(device)
    for attack in ATTACKS.values():
        assert np.isfinite(attack_scores(attack, played.generator.denoiser, x, labels)).all()
