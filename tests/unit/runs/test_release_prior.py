"""The release of a prior: what it finds when there is no noise, and that its noise is the plan's."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dpdm.data import ImageDataset
from dpdm.diffusion import EDM, MomentMatched
from dpdm.diffusion.spectrum import Spectrum, denoised_spectrum, low_frequencies, symmetric_matrices, with_texture
from dpdm.methods import Diffusion, Prior, PriorAlone
from dpdm.methods import prior as prior_module
from dpdm.methods.prior import release_prior
from dpdm.networks import MLP, UNet
from dpdm.privacy import DPSGD, NonPrivate
from dpdm.runs import Trainer
from dpdm.types import InputError, images_to_tensor
from plans import in_memory

PRIOR = Prior(centres=3, rounds=4)
PLAIN = Prior(centres=1)


def plan_for(prior, *, steps, epsilon, size=60, delta=1e-3):
    releases = prior.releases(epsilon=epsilon, delta=delta, alone=not steps)
    plan = DPSGD(dataset_size=size, expected_batch_size=5, steps=steps, delta=delta, releases=releases)
    return plan.calibrate(epsilon=epsilon)


def trainer_of(plan, prior, folder):
    method = Diffusion(network=MLP(width=8, blocks=1), preconditioning=MomentMatched(), prior=prior)
    return Trainer(method=method if plan.steps else PriorAlone(prior=prior), plan=plan, run=folder / "run")


def blobs(number=3000, *, side=8, channels=1, classes=2):
    """Images of `classes` classes in three clusters each, with smooth differences inside a cluster."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=number)
    cluster = rng.integers(3, size=number)
    centres = 60 * rng.standard_normal((classes, 3, side, side, channels))
    ramp = np.linspace(-1, 1, side)[None, :, None, None]
    pixels = 128 + centres[labels, cluster] + 25 * rng.standard_normal((number, 1, 1, 1)) * ramp
    pixels = (pixels + 4 * rng.standard_normal(pixels.shape)).clip(0, 255).astype(np.uint8)
    return ImageDataset(images=pixels, labels=labels, num_classes=classes, name="blobs")


def without_noise(data, prior):
    plan = NonPrivate.dp_sgd(
        dataset_size=len(data), expected_batch_size=10, steps=1, releases=prior.releases(epsilon=1, delta=1e-5)
    )
    run = plan.start(None)
    return release_prior(in_memory(run, len(data)), data, prior), run


def total(prior):
    """The trace of the covariance, averaged over classes by their weights."""
    return prior.mean_variance(torch.tensor(1e6)).item() * len(prior.vectors)


def test_one_gaussian_a_class_has_the_means_and_the_covariance_of_the_records():
    data = blobs()
    prior, run = without_noise(data, Prior(centres=1, max_deviation=2.0))
    assert run.spent == 4
    x = images_to_tensor(data.images).flatten(1).double()
    means = torch.stack([x[data.labels == label].mean(0) for label in range(2)])
    torch.testing.assert_close(prior.centres, means, atol=1e-6, rtol=1e-6)
    for label in range(2):
        deviations = x[data.labels == label] - means[label]
        within = deviations.T @ deviations / len(deviations)
        found = prior.filtered(torch.eye(64, dtype=torch.float64), lambda v: v, torch.full((64,), label))
        leading = prior.vectors[:, : prior.axes.shape[2]]  # where classes have covariances of their own
        torch.testing.assert_close(leading.T @ found @ leading, leading.T @ within @ leading, atol=2e-4, rtol=1e-3)
    pooled = (x - means[data.labels]).T @ (x - means[data.labels]) / len(x)
    share = np.bincount(data.labels) / len(x)
    eye = torch.eye(64, dtype=torch.float64)
    found = sum(share[c] * prior.filtered(eye, lambda v: v, torch.full((64,), c)) for c in range(2))
    torch.testing.assert_close(found, pooled, atol=5e-4, rtol=1e-3)
    assert prior.log_weights.softmax(0).tolist() == pytest.approx(np.bincount(data.labels) / len(x))


def test_several_centres_a_class_explain_what_one_takes_for_variance():
    data = blobs()
    one, _ = without_noise(data, Prior(centres=1, max_deviation=2.0))
    several, run = without_noise(data, Prior(centres=3, rounds=8, max_deviation=2.0))
    assert run.spent == 12
    assert several.centres.shape == (6, 64)
    assert total(several) < 0.5 * total(one)
    # Total variance is kept: centres and what lies about them.
    weights = several.log_weights.exp().view(2, 3)
    weights = weights / weights.sum(1, keepdim=True)
    middle = (weights[:, :, None] * several.centres.view(2, 3, 64)).sum(1)
    between = (weights[:, :, None] * (several.centres.view(2, 3, 64) - middle[:, None]) ** 2).sum((1, 2)).mean()
    assert between + total(several) == pytest.approx(total(one), rel=0.05)


@pytest.mark.parametrize("shape", [(3, 24, 20), (1, 40, 33), (4, 16, 16)])
def test_low_frequencies_are_orthonormal_and_hold_smooth_images(shape):
    basis = low_frequencies(shape, most=300)
    assert basis.shape[0] == math.prod(shape)
    assert basis.shape[1] <= 300
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    smooth = torch.linspace(-1, 1, shape[1]).double()[None, :, None].expand(shape).flatten()
    assert (basis @ (basis.T @ smooth) - smooth).norm() < 0.1 * smooth.norm()


def test_images_too_large_for_a_covariance_keep_the_variance_outside_of_its_basis(monkeypatch):
    monkeypatch.setattr("dpdm.methods.prior.MOST_COORDINATES", 3 * 5 * 5)
    data = blobs(side=12, channels=3)
    prior, _ = without_noise(data, Prior(centres=1, max_deviation=2.0))
    x = images_to_tensor(data.images).flatten(1).double()
    deviations = x - prior.centres[data.labels]
    expected = deviations.square().sum(1).mean().item()
    assert total(prior) == pytest.approx(expected, rel=0.01)


def test_without_labels_there_is_one_class():
    data = blobs(classes=1)
    data = ImageDataset(images=data.images, labels=None, num_classes=0, name="blobs")
    prior, _ = without_noise(data, PRIOR)
    assert prior.classes.tolist() == [0, 0, 0]
    x = prior.sample(torch.zeros(4, dtype=torch.long), generator=torch.Generator())
    assert x.isfinite().all()


@pytest.mark.parametrize("number", [1, 30])
@pytest.mark.parametrize("prior", [PRIOR, PLAIN], ids=["mixture", "gaussian"])
def test_hardly_any_records_still_give_a_finite_prior(number, prior):
    data = blobs(number=number)
    run = plan_for(prior, steps=0, epsilon=0.1).start(None)
    found = release_prior(in_memory(run, len(data)), data, prior)
    assert run.finished
    for tensor in found.state_dict().values():
        assert tensor.isfinite().all()
    assert (found.variances > 0).all()
    assert (found.class_variances > 0).all()
    assert found.sample(torch.tensor([0, 1]), generator=torch.Generator()).isfinite().all()


def test_releases_share_the_budget_as_they_say():
    prior = Prior(share=0.25, centres=5, rounds=2, split=(0.5, 0.5, 1.5, 0.5, 1.0))
    releases = prior.releases(epsilon=1.0, delta=1e-5)
    squared = [1 / noise**2 for noise in releases.values()]
    parts = (0.125, 0.125, 0.375, 0.125, 0.125, 0.125)
    assert squared == pytest.approx([0.25 * 0.26805112**2 * part for part in parts], rel=1e-6)
    alone = prior.releases(epsilon=1.0, delta=1e-5, alone=True)
    assert sum(1 / noise**2 for noise in alone.values()) == pytest.approx(0.26805112**2, rel=1e-6)
    assert len(Prior(centres=1).releases(epsilon=1.0, delta=1e-5)) == 4


def test_every_release_carries_the_noise_of_its_event():
    class Recording:
        def __init__(self, run):
            self.run, self.seed, self.seen = run, run.seed, []

        def once(self, name, make):
            total, sensitivity = bounded = make()
            noisy = self.run.once(name, lambda: bounded)
            self.seen.append((name, len(total), (noisy.values - total).std().item() / sensitivity))
            return noisy

    data = blobs()
    plan = plan_for(PRIOR, steps=0, epsilon=5.0)
    run = Recording(in_memory(plan.start(None), len(data)))
    release_prior(run, data, PRIOR)
    assert len(run.seen) == len(plan.releases) == 8
    for (name, coordinates, ratio), event in zip(run.seen, plan.releases, strict=True):
        assert name == event.name
        assert ratio == pytest.approx(event.noise_multiplier, rel=5 / math.sqrt(2 * coordinates))


@pytest.mark.proof
def test_nothing_is_released_of_data_that_the_plan_or_the_network_does_not_fit(tmp_path):
    data = blobs(number=60)
    plan = plan_for(PRIOR, steps=0, epsilon=5.0, size=900)
    exact = dataclasses.replace(plan, relation="replace_special")
    trainer = trainer_of(exact, PRIOR, tmp_path)
    with pytest.raises(InputError, match="claimed as exact, and there are 60 records"):
        trainer.fit(data)
    network = UNet(width=8, multipliers=(1,), blocks=1, attention=(5,))
    plan = plan_for(PRIOR, steps=3, epsilon=5.0)
    method = Diffusion(network=network, preconditioning=MomentMatched(), prior=PRIOR)
    trainer = Trainer(method=method, plan=plan, run=tmp_path / "other")
    with pytest.raises(InputError, match="attention at height 5"):
        trainer.fit(data)
    for run in ("run", "other"):
        journal = tmp_path / run / "private" / "journal.jsonl"
        assert not journal.exists() or "spent" not in journal.read_text()


@pytest.mark.proof
def test_a_prior_whose_journal_is_lost_is_refused(tmp_path):
    data = blobs(number=60)
    trainer = trainer_of(plan_for(PLAIN, steps=4, epsilon=5.0), PLAIN, tmp_path)
    steps = trainer.steps(data)
    next(steps)
    steps.close()
    private = tmp_path / "run" / "private"
    (private / "journal.jsonl").unlink()
    for checkpoint in private.glob("checkpoint*"):
        checkpoint.unlink()
    with pytest.raises(InputError, match="the journal counts no release of it"):
        trainer.fit(data)


def test_a_plan_without_the_priors_releases_is_refused_and_a_prior_without_use_too():
    plan = DPSGD(dataset_size=50, expected_batch_size=5, steps=3, delta=1e-3, noise_multiplier=1.0)
    with pytest.raises(InputError, match="its settings need mean of all"):
        Trainer(method=Diffusion(prior=PRIOR, preconditioning=MomentMatched()), plan=plan)
    with pytest.raises(InputError, match="its settings need mean of all"):
        Trainer(method=Diffusion(), plan=plan)
    with pytest.raises(InputError, match="prior is for moment-matched preconditioning"):
        Diffusion(prior=PRIOR, preconditioning=EDM())
    with pytest.raises(InputError, match="its settings need mean of all"):
        Trainer(method=PriorAlone(), plan=plan)
    with pytest.raises(InputError, match="trains no network: take the method prior"):
        Diffusion().plan(epsilon=1.0, dataset_size=50, delta=1e-3, steps=0)
    with pytest.raises(InputError, match="the method prior takes no steps"):
        PriorAlone().plan(epsilon=1.0, dataset_size=50, delta=1e-3, steps=3)


@pytest.mark.proof
def test_a_run_goes_on_with_the_prior_it_released(tmp_path):
    data = blobs(number=60)
    trainer = trainer_of(plan_for(PRIOR, steps=6, epsilon=5.0), PRIOR, tmp_path)
    steps = trainer.steps(data)
    next(steps)
    steps.close()
    sums = tmp_path / "run" / "private" / "sums"
    before = {path.name: path.read_bytes() for path in sums.iterdir()}
    assert len(before) == 8
    release = trainer.fit(data)
    assert {path.name: path.read_bytes() for path in sums.iterdir()} == before
    again = type(release).load(tmp_path / "run")
    torch.testing.assert_close(again.generator.state_dict(), release.generator.state_dict(), rtol=0, atol=0)
    assert release.sample(4)[0].shape == (4, 8, 8, 1)


@pytest.mark.proof
def test_a_sum_that_a_crash_lost_is_never_released_again(tmp_path):
    data = blobs(number=60)
    trainer = trainer_of(plan_for(PLAIN, steps=60, epsilon=5.0), PLAIN, tmp_path)
    steps = trainer.steps(data)
    next(steps)
    del steps
    (tmp_path / "run" / "private" / "sums" / "covariance.safetensors").unlink()
    with pytest.raises(InputError, match="a crash spent 'covariance' before it was saved"):
        trainer.fit(data)


def test_a_crash_between_two_sums_loses_neither(tmp_path, monkeypatch):
    """Each is stored as soon as it is made: a run goes on with those that were."""
    data = blobs(number=60)
    trainer = trainer_of(plan_for(PLAIN, steps=0, epsilon=5.0), PLAIN, tmp_path)
    moments = prior_module.second_moments

    def dies(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(prior_module, "second_moments", dies)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(data)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run" / "private" / "sums").iterdir()}
    assert sorted(kept) == ["class means.safetensors", "mean of all.safetensors"]
    monkeypatch.setattr(prior_module, "second_moments", moments)
    trainer.fit(data)
    for name, content in kept.items():
        assert (tmp_path / "run" / "private" / "sums" / name).read_bytes() == content


def test_the_prior_alone_is_a_release(tmp_path):
    data = blobs()
    plan = plan_for(PRIOR, steps=0, epsilon=5.0, size=3000, delta=1e-5)
    assert 4.9 < plan.epsilon() <= 5
    assert "8 Gaussian releases, PLD" in plan.statement
    trainer = trainer_of(plan, PRIOR, tmp_path)
    release = trainer.fit(data)
    images, labels = type(release).load(tmp_path / "run").sample(2000, seed=0)
    for label in range(2):
        real = data.images[data.labels == label].mean(0)
        assert np.abs(images[labels == label].mean(0) - real).mean() < 6


def textured(side=18):
    """A covariance of one strong direction, and of a rest with its own variance at each pixel and alike neighbours."""
    row, column = (axis.flatten().double() for axis in torch.meshgrid(*[torch.arange(side)] * 2, indexing="ij"))
    distance = ((row[:, None] - row) ** 2 + (column[:, None] - column) ** 2).sqrt()
    deviation = 0.1 + 0.2 * row / side
    rest = torch.outer(deviation, deviation) * torch.exp(-distance / 1.5)
    leading = torch.ones(side**2, dtype=torch.float64) / side
    return rest + 30 * torch.outer(leading, leading)


def test_texture_is_found_below_the_noise_of_single_entries():
    truth = textured()
    generator = torch.Generator().manual_seed(0)
    dimensions = len(truth)
    noise_std = 0.03
    noise = torch.randn(dimensions * (dimensions + 1) // 2, generator=generator, dtype=torch.float64)
    noisy = truth + symmetric_matrices(noise_std * noise, cells=1)[0]
    white = denoised_spectrum(noisy, noise_std=noise_std, least_variance=1e-4)
    found = with_texture(white, noisy, (1, 18, 18))
    assert len(white.variances) < dimensions / 4

    def covariance(spectrum):
        kept = spectrum.vectors @ spectrum.variances.diag() @ spectrum.vectors.T
        outside = torch.eye(dimensions, dtype=torch.float64) - spectrum.vectors @ spectrum.vectors.T
        return kept + spectrum.floor * outside

    def error(covariance):
        """What is left of images of the true covariance by the Wiener filter of this one, at σ = 0.2."""
        eye = torch.eye(dimensions, dtype=torch.float64)
        wiener = covariance @ torch.linalg.inv(covariance + 0.04 * eye)
        return ((eye - wiener) @ truth @ (eye - wiener).T + 0.04 * wiener @ wiener.T).trace().item()

    least, of_white, of_found = error(truth), error(covariance(white)), error(covariance(found))
    assert of_found - least < 0.6 * (of_white - least)
    assert covariance(found).trace().item() == pytest.approx(truth.trace().item(), rel=0.05)
    assert (found.variances > 0).all()


def test_of_three_channels_each_pair_has_a_correlation_of_its_own():
    side, generator = 5, torch.Generator().manual_seed(0)
    mixing = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    truth = 0.05 * torch.kron(mixing.T @ mixing, torch.eye(side**2, dtype=torch.float64))
    noise = torch.randn(75 * 76 // 2, generator=generator, dtype=torch.float64)
    noisy = truth + symmetric_matrices(0.01 * noise, cells=1)[0]
    none = Spectrum(torch.zeros(75, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64), 0.05)
    found = with_texture(none, noisy, (3, side, side))
    covariance = (found.vectors @ found.variances.diag() @ found.vectors.T).view(3, side**2, 3, side**2)
    same_pixel = covariance.diagonal(dim1=1, dim2=3).mean(-1)
    assert same_pixel[0, 1].item() == pytest.approx(0.7 * 0.8 * 0.05, rel=0.15)  # 30 % are left uncorrelated
    assert abs(same_pixel[0, 2].item()) < 0.005


@pytest.mark.proof
def test_a_prior_that_takes_nearly_all_of_the_budget_leaves_some_to_the_steps():
    plan = plan_for(Prior(share=0.95), steps=20, epsilon=1.0, size=1000, delta=1e-5)
    assert 0.99 < plan.epsilon() <= 1


def test_classes_have_covariances_of_their_own():
    """One class varies from left to right and the other from top to bottom; both vary where the other does not."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=4000)
    ramp = np.linspace(-1, 1, 8)
    across, down = np.broadcast_to(ramp, (8, 8)), np.broadcast_to(ramp[:, None], (8, 8))
    pattern = np.where(labels[:, None, None] == 0, across, down)
    pixels = 128 + 40 * rng.standard_normal((4000, 1, 1)) * pattern + 3 * rng.standard_normal((4000, 8, 8))
    data = ImageDataset(
        images=pixels.clip(0, 255).astype(np.uint8)[..., None], labels=labels, num_classes=2, name="ramps"
    )
    prior, _ = without_noise(data, Prior(centres=1, max_deviation=2.0))
    for label, own, other in ((0, across, down), (1, down, across)):
        x = prior.sample(torch.full((3000,), label), generator=torch.Generator().manual_seed(0))
        along = [(x @ torch.from_numpy(p.copy()).flatten() / np.linalg.norm(p)).var().item() for p in (own, other)]
        assert along[0] > 20 * along[1]
