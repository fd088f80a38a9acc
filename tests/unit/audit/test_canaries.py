"""What is planted for an audit moves the sums as the worst record would, and moves nothing else."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from scipy.stats import norm

from dpdm.audit.canaries import (
    AuditedRun,
    Planted,
    PlantedLoss,
    WatchedRun,
    log_likelihood_ratio,
    train_with_canaries,
)
from dpdm.audit.opened import units_that_took_part
from dpdm.audit.report import of_units
from dpdm.config import Config, Data, Machine
from dpdm.data import ImageDataset
from dpdm.diffusion import EDM, DenoisingLoss, MomentMatched, PreconditionedDenoiser
from dpdm.methods import Diffusion, ImageFacts, Prior, PriorAlone
from dpdm.methods.prior import PRIOR_SUMS
from dpdm.networks import MLP, CompactUNet
from dpdm.privacy import (
    DPSGD,
    LayerWise,
    OneBackwardEach,
    OperatingSystemEntropy,
    Plan,
    PoissonSums,
    ShardSums,
    Vectorized,
    clipped_grad_sum,
)
from dpdm.privacy.sums import BoundedSum
from dpdm.runs import Release, verify_release
from dpdm.runs.public import claim_of
from dpdm.runs.verification import release_settings
from dpdm.types import InputError
from plans import changed

LOSS = DenoisingLoss(noise_multiplicity=2, label_dropout=0.0)
PLAN = DPSGD(dataset_size=60, expected_batch_size=20, steps=4, noise_multiplier=1.2, max_grad_norm=0.7, delta=1e-3)


def images(number, *, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (number, 8, 8, 1), dtype=np.uint8)
    return ImageDataset(images=pixels, labels=np.arange(number) % 3, num_classes=3, name="made up")


@pytest.mark.parametrize("rate", [1.0, 0.3, 0.01])
def test_scores_are_log_likelihood_ratios(rate):
    seen, sigma = np.linspace(-6, 6, 25), 1.7
    without = norm.pdf(seen, 0, sigma)
    within = (1 - rate) * without + rate * norm.pdf(seen, 1, sigma)
    found = log_likelihood_ratio(seen, noise_multiplier=sigma, sample_rate=rate)
    assert found == pytest.approx(np.log(within / without), abs=1e-9)


@pytest.mark.parametrize("network", [MLP(width=16, blocks=1), CompactUNet(width=16)], ids=["mlp", "unet"])
@pytest.mark.parametrize("strategy", [OneBackwardEach(), Vectorized(), LayerWise()], ids=["one", "vmap", "layers"])
def test_a_canary_is_its_own_coordinate_at_full_length_and_images_keep_their_gradients(strategy, network):
    torch.manual_seed(0)
    denoiser = PreconditionedDenoiser(network.build((1, 8, 8), num_classes=3), EDM())
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.1 * torch.randn_like(p))
    module = Planted(denoiser, 5)
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    noisy = LOSS.draw(
        x, torch.tensor([0, 1, 2, 0]), null_label=3, noise_levels=EDM().noise_levels, random_bytes=os.urandom
    )
    coordinate, loudness = torch.tensor([0, 0, 2, 4]), torch.tensor([0.0, 0.0, 700.0, 0.0])  # the last is not there
    planted = module.plant(noisy, coordinate, loudness)
    total = clipped_grad_sum(PlantedLoss(LOSS), module, planted, max_grad_norm=0.7, strategy=strategy).vector
    of_images = type(noisy)(*(t[:2] for t in noisy))
    expected = clipped_grad_sum(LOSS, denoiser, of_images, max_grad_norm=0.7, strategy=strategy).vector
    torch.testing.assert_close(total[:-6], expected, rtol=1e-4, atol=1e-6)
    assert total[-6:].tolist() == pytest.approx([0, 0, 0.7, 0, 0, 0], rel=1e-4)


def test_earlier_releases_are_watched_and_returned_as_they_would_be():
    plan = changed(PLAN, before={"first": 0.01})
    took_part = np.array([True, False, True, True])
    run = WatchedRun(plan, took_part=took_part, strategy=OneBackwardEach())
    total = torch.arange(7, dtype=torch.float64)
    noisy, std = run.release("first", BoundedSum(total, 2.0), num_records=60)
    assert std == 0.02
    assert noisy.shape == total.shape
    assert (noisy - total).abs().max() < 0.2
    assert ((run.scores > 0) == took_part).all()
    assert run.spent == 1


def config(**other):
    method = Diffusion(network=MLP(width=16, blocks=1), loss=LOSS, **other)
    return Config(data=Data(source="made up"), method=method, machine=Machine(precision="float32"))


def outcome(settings, plan, data, **other):
    planted = {"canaries": 40, "members": 15} | other
    *steps, played = train_with_canaries(settings, plan, data, coins=np.random.default_rng(1), **planted)
    assert isinstance(played, AuditedRun)
    assert steps == (list(range(1, plan.steps + 1)) or [plan.planned])
    return played


def test_the_whole_plan_is_played_and_its_canaries_are_found_when_there_is_hardly_noise():
    plan = changed(PLAN, noise_multiplier=0.05, expected_batch_size=30, relation="replace_special")
    played = outcome(config(preconditioning=EDM()), plan, images(60))
    assert played.plan.relation == "add_or_remove_one"
    selected = played.scores > 0  # of those that took part, all but the few that no step selected
    assert not (selected & ~played.took_part).any()
    assert selected[played.took_part].mean() > 0.6  # of some twenty, each by chance
    assert played.members.shape == played.were_in.shape == (15,)
    assert 0 < played.were_in.sum() < 15
    assert not any(tensor.shape == (41, 1) for tensor in played.generator.state_dict().values())


@pytest.mark.parametrize("steps", [0, 2])
def test_a_prior_is_released_and_watched_too(steps):
    prior = Prior(centres=1)
    plan = changed(PLAN, steps=steps, before=dict.fromkeys(PRIOR_SUMS, 0.1))
    settings = config(preconditioning=MomentMatched(), prior=prior)
    if not steps:
        settings = dataclasses.replace(settings, method=PriorAlone(prior=prior))
    played = outcome(settings, plan, images(60))
    assert ((played.scores > 0) == played.took_part).all()


def test_members_are_those_that_a_run_can_have_learnt_anything_of():
    """A public image takes no part: it would look like a member that no attack can find."""
    whole = images(60)
    blank = np.arange(60) % 3 > 0
    played = outcome(config(preconditioning=EDM()), PLAN, dataclasses.replace(whole, blank=blank))
    assert not blank[played.members].any()
    grouped = dataclasses.replace(whole, blank=np.arange(60) < 41, groups=np.arange(60) // 4)
    assert units_that_took_part(grouped).tolist() == [10, 11, 12, 13, 14], "the group of 40 to 43 has three others"


def test_a_groups_score_is_the_mean_of_its_images_that_took_part():
    """Were a public image's score taken for zero, a group with one would look like a member: other scores are below."""
    whole = dataclasses.replace(images(6), groups=np.array([0, 0, 0, 1, 1, 1]))
    scores = np.array([-3.0, -3.0, -9.0, -4.0, -5.0, -6.0])
    assert of_units(whole, scores).tolist() == [-5.0, -5.0]
    blank = np.array([False, False, True, False, False, False])
    assert of_units(dataclasses.replace(whole, blank=blank), scores).tolist() == [-3.0, -5.0]


def test_a_member_whose_coin_says_no_is_not_there(monkeypatch):
    from dpdm.audit import canaries

    seen = []
    loader = canaries._PlantedLoader

    def spy(load, *others):
        seen.append(load._data)
        return loader(load, *others)

    monkeypatch.setattr(canaries, "_PlantedLoader", spy)
    data = images(60)
    played = outcome(config(preconditioning=EDM()), PLAN, data)
    there = {image.tobytes() for image in seen[0].images}
    for index, was_in in zip(played.members, played.were_in, strict=True):
        assert (data.images[index].tobytes() in there) == was_in
    assert len(there) == 60 - (~played.were_in).sum()


def test_the_weights_of_an_audit_can_be_no_release(tmp_path):
    """Whoever saves them with the plan's own claim has a folder that neither loads nor verifies."""
    plan = changed(PLAN, steps=1)
    settings, data = config(preconditioning=EDM()), images(60)
    played = outcome(settings, plan, data)
    claim, facts = claim_of(plan, (), entropy=OperatingSystemEntropy()), ImageFacts(data.shape, data.class_names)
    whole = release_settings(settings.method, plan, 0, data.name, facts, ())
    Release(settings.method.untrained(facts), claim, whole).save(tmp_path / "sound")
    verify_release(tmp_path / "sound")
    Release(played.generator, claim, whole).save(tmp_path / "a")
    for use in (verify_release, Release.load):
        with pytest.raises(InputError, match="do not fit together"):
            use(tmp_path / "a")


def test_a_canary_in_a_sum_over_a_batch_is_told_from_others_and_leaves_the_sum_alone():
    sums = PoissonSums(name="means", count=30, expected_batch_size=60, max_norm=0.5, noise_multiplier=4.0)
    plan, took_part = Plan(dataset_size=60, delta=1e-3, releases=(sums,)), np.arange(400) < 200
    run = WatchedRun(plan, took_part=took_part, strategy=OneBackwardEach())
    rows = 0.5 * torch.eye(60, 3)

    def load(indices, draws):
        assert (indices < 60).all()
        return rows[torch.from_numpy(indices)]

    found = [run.batch_sum("means", dimensions=3, num_records=60, load=load, physical_batch_size=37) for _ in range(30)]
    mean = torch.stack([noisy.values for noisy in found]).mean(0)
    assert found[0].std == 2.0
    torch.testing.assert_close(mean, torch.full((3,), 0.5).double(), atol=5 * 2 / 30**0.5, rtol=0)
    # The sum of thirty log-likelihood ratios has mean ± 30 / (2 · 4²), and the standard deviation √30 / 4.
    for coin, mean in ((took_part, 30 / 32), (~took_part, -30 / 32)):
        assert run.scores[coin].mean() == pytest.approx(mean, abs=5 * 30**0.5 / 4 / 200**0.5)


def test_a_canarys_shard_says_the_opposite_where_it_did_not_take_part():
    """Both worlds have the shard: the vectors are half of the sensitivity, one way and the other."""
    took_part = np.array([True, False])
    sums = ShardSums(shards=3, count=1, expected_batch_size=3, max_norm=2.0, noise_multiplier=1e-4)
    plan = Plan(dataset_size=50, delta=1e-3, releases=(sums,))
    run = WatchedRun(plan, took_part=took_part, strategy=OneBackwardEach())
    noisy, _ = run.batch_sum(
        "steps", dimensions=2, num_records=3, load=lambda shards, draws: torch.ones(len(shards), 2)
    )
    assert noisy.tolist() == pytest.approx([3 / 2**0.5] * 2, abs=0.01)
    assert run.scores[0] > 1e6
    assert run.scores[1] < -1e6
    seen, half = np.linspace(-2, 2, 9), dataclasses.replace(sums, shards=6, noise_multiplier=0.8)
    ratio = WatchedRun(
        dataclasses.replace(plan, releases=(half,)), took_part=took_part, strategy=OneBackwardEach()
    )._log_likelihood_ratio(seen, half)
    one, other = (0.5 * norm.pdf(seen, 0, 0.8) + 0.5 * norm.pdf(seen, mean, 0.8) for mean in (0.5, -0.5))
    assert ratio == pytest.approx(np.log(one / other))
