"""A public start: weights to begin with, and how far to follow them at each noise level."""

import dataclasses
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tomli_w
import torch
from torch import nn
from two_worlds import IMAGES, images, public_start

from dpdm.config import Machine
from dpdm.data import ImageDataset
from dpdm.diffusion import EDM, GAIN_LEVELS, DPMSolver, GaussianMixture, MatchedPreconditioning, PreconditionedDenoiser
from dpdm.diffusion.noise_levels import LogNormal
from dpdm.methods import Diffusion, ImageFacts, Prior, Start
from dpdm.methods.gains import CHOICE, _Pairs, choose_start, release_gains
from dpdm.methods.start import forget_classes, load_start
from dpdm.networks import MLP, CompactUNet, UNet
from dpdm.privacy import Noisy
from dpdm.runs import Release, Trainer, verify_release
from dpdm.runs.start import START, WEIGHTS, _digest_of, open_start
from dpdm.types import InputError

NETWORK = MLP(width=8, blocks=1)
SHOWN = dataclasses.replace(images(40, seed=7), labels=None, num_classes=0, class_names=(), name="shown", public=True)


@pytest.fixture
def start():
    return public_start.__wrapped__(NETWORK, SHOWN, IMAGES.class_names)  # a folder of its own


def diffusion(start, **changes):
    sampler = DPMSolver(steps=4)
    return Diffusion(**{"network": NETWORK, "prior": Prior(centres=1), "start": start, "sampler": sampler} | changes)


def trainer(method, run=None, *, epsilon=3.0, steps=0, size=12):
    batch = {"expected_batch_size": 4} if steps else {}
    plan = method.plan(epsilon=epsilon, dataset_size=size, delta=1e-13, steps=steps, **batch)
    machine = Machine(device="cpu", precision="float32")
    return Trainer(method=method, plan=plan, machine=machine, run=run, ledger=None)


class Echo(nn.Module):
    """A network that knows the noise, and answers as much of it as it is asked to."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x, c_noise, labels):
        return self.factor * x[:, : x.shape[1] // 2]


def denoiser_with(gains, factor=1.0):
    prior = GaussianMixture.placeholder(64, num_classes=3)
    preconditioning = MatchedPreconditioning(LogNormal(), prior, gains=gains is not None)
    if gains is not None:
        preconditioning.gains.copy_(torch.as_tensor(gains))
    return PreconditionedDenoiser(Echo(factor), preconditioning)


def test_a_gain_scales_what_the_network_adds_and_is_linear_in_the_logarithm_of_sigma():
    x, labels = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.long)
    low, high = GAIN_LEVELS[3], GAIN_LEVELS[4]
    sigma = torch.tensor([low, (low * high) ** 0.5, high, 1000.0])
    gains = torch.zeros(len(GAIN_LEVELS), dtype=torch.float64)
    gains[3], gains[4], gains[-1] = 0.2, 0.6, 0.9
    prior, correction = denoiser_with(None).preconditioning.corrected(Echo(1.0), x, sigma, labels)
    added = denoiser_with(gains)(x, sigma, labels) - prior
    for number, gain in enumerate([0.2, 0.4, 0.6, 0.9]):
        assert torch.allclose(added[number], gain * correction[number], atol=1e-5)
    assert torch.equal(denoiser_with(None)(x, sigma, labels), prior + correction)


class Exactly:
    """A run whose sums have no noise worth the name."""

    seed = 0
    mechanism = SimpleNamespace(plan=SimpleNamespace(dataset_size=200))

    def once(self, name, make):
        bounded = make()
        assert (name, bounded.sensitivity) == ("gains", len(GAIN_LEVELS) ** 0.5)
        return Noisy(bounded.total, 1e-9)


@pytest.mark.parametrize("factor", [-1.0, -0.01, 0.0, 1.0])
def test_a_network_is_followed_as_far_as_it_leads_to_the_images(factor):
    """Grey images, and a prior of mean zero and variance one: D₀ = x / (1 + σ²), and the best correction is -D₀.

    The network is told (x - D₀) / σ = σ D₀, and answers `factor` times that.
    """
    data = ImageDataset(images=np.full((200, 8, 8, 1), 128, dtype=np.uint8), name="grey")
    denoiser = denoiser_with(np.ones(len(GAIN_LEVELS)), factor)
    gains = release_gains(Exactly(), data, denoiser).of_levels
    sigma = torch.tensor(GAIN_LEVELS).double()
    answered = -factor * sigma * denoiser.preconditioning.loss_weight(sigma).rsqrt()
    best = (1 / answered).clamp(max=1) if factor < 0 else torch.zeros(len(sigma))
    assert torch.allclose(gains, best.double(), atol=0.05)


def test_a_row_is_the_same_to_the_bit_whatever_its_neighbours_and_its_place():
    """Of a network of random weights; parts are of one size, and an image's pixels choose its levels and noise."""
    random = np.random.default_rng(0)
    data = ImageDataset(
        images=random.integers(0, 256, (150, 8, 8, 1), np.uint8), labels=np.arange(150) % 3, num_classes=3, name="many"
    )
    facts = ImageFacts(data.shape, data.class_names)
    denoiser = diffusion(public_start(NETWORK, SHOWN, data.class_names)).untrained(facts, seed=3).denoiser
    for parameter in denoiser.network.parameters():
        nn.init.normal_(parameter, std=0.3)

    def rows(images):
        return torch.cat([part for part, _ in _Pairs(denoiser, images, 4, 0).parts()])

    order = random.permutation(150)
    whole, shuffled, without = rows(data), rows(data.part(order)), rows(data.part(np.arange(7, 150)))
    assert (whole != 0).any(dim=1).all()
    assert torch.equal(shuffled, whole[order])
    assert torch.equal(without, whole[7:])


def test_without_privacy_a_network_that_adds_nothing_is_not_followed(start):
    method = diffusion(start)
    gains = method.untrained(ImageFacts(IMAGES.shape, IMAGES.class_names)).denoiser
    nn.init.zeros_(gains.network.head.weight)
    nn.init.zeros_(gains.network.head.bias)
    run = SimpleNamespace(seed=0, mechanism=Exactly.mechanism, once=lambda name, make: Noisy(make().total, 0.0))
    assert (release_gains(run, IMAGES, gains).of_levels == 0).all()


@pytest.mark.parametrize("epsilon", [0.1, 3.0])
def test_gains_are_from_zero_to_one(start, epsilon):
    gains = trainer(diffusion(start), epsilon=epsilon).fit(IMAGES).generator.denoiser.preconditioning.gains
    assert ((gains >= 0) & (gains <= 1)).all()


def test_without_steps_the_public_network_is_what_draws(start):
    made = trainer(diffusion(start)).fit(IMAGES)
    weights = open_start(start.sources[0]).weights
    state = made.generator.denoiser.network.state_dict()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_private_steps_go_on_from_it(start):
    made = trainer(diffusion(start), steps=2).fit(IMAGES)
    weights = open_start(start.sources[0]).weights
    state = made.generator.denoiser.network.state_dict()
    moved = [name for name in weights if not torch.equal(state[name], weights[name])]
    assert moved
    assert all((state[name] - weights[name]).abs().max() < 0.1 for name in weights), "not from first weights"


@pytest.mark.parametrize(
    ("network", "trains", "moves"),
    [
        (CompactUNet(width=16), "all", {"stem", "head", "condition"}),
        (CompactUNet(width=16), "last", {"up", "head"}),
        (CompactUNet(width=16), "head.*, up.0.conv1.weight", {"up", "head"}),
        (UNet(width=16, multipliers=(1, 2), blocks=1, attention=(8,)), "attention", None),
        (CompactUNet(width=16), "norms", None),
    ],
)
def test_what_trains_is_chosen_by_name(network, trains, moves):
    built = network.build((1, 16, 16), num_classes=3, images_in=2)
    Start(sources=("?",), trains=trains).trained.freeze(built, None)
    trained = {name for name, p in built.named_parameters() if p.requires_grad}
    parts = {name.split(".")[0] for name in trained}
    assert len(trained) > 0
    assert moves is None or (moves <= parts if trains == "all" else parts == moves)


def test_a_name_of_no_parameter_is_refused_with_those_there_are(start):
    method = diffusion(dataclasses.replace(start, trains="attention"))
    with pytest.raises(InputError, match=r"trains = attention names no parameter of the network, whose parts are "):
        trainer(method, steps=2).fit(IMAGES)


def test_what_is_to_be_trained_is_refused_without_steps(start):
    method = diffusion(dataclasses.replace(start, trains="last"))
    with pytest.raises(InputError, match=r"start\.trains is for private steps"):
        method.plan(epsilon=1.0, dataset_size=12, steps=0)


def test_a_start_for_another_network_is_refused_before_anything_is_spent(start, tmp_path):
    method = diffusion(start, network=MLP(width=16, blocks=1))
    with pytest.raises(InputError, match="is for another network or other images"):
        trainer(method, tmp_path / "run").fit(IMAGES)
    assert not (tmp_path / "run").exists()


def edit(path, old, new):
    """Replace a text, and make the digest of all that the file says anew."""
    text = path.read_text()
    assert old in text
    table = tomllib.loads(text.replace(old, new, 1))
    path.write_text(tomli_w.dumps(table | {"said_sha256": _digest_of(table)}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / START).unlink(), "holds no start"),
        (lambda folder: (folder / WEIGHTS).unlink(), "is missing"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"12"), "damaged"),
        (lambda folder: (folder / START).write_text("version = 99"), "another version"),
        (lambda folder: (folder / START).write_text("version = 1"), "another version"),
        (lambda folder: (folder / START).write_text("version = 2"), "cannot be read"),
        (lambda folder: edit(folder / START, "images = 40", "images = 40\ndrawn = true"), "and not what it cost"),
        (lambda folder: (folder / START).write_text("version = "), "not valid TOML"),
        (lambda folder: edit(folder / START, "images = 40\n", "images = 40.5\n"), "public data of a number of images"),
        (
            lambda folder: (folder / START).write_text(
                (folder / START).read_text().replace("images = 40", "images = 41")
            ),
            "was edited",
        ),
    ],
)
def test_a_damaged_start_is_one_line_before_anything_is_spent(start, tmp_path, damage, says):
    damage(Path(start.sources[0]))
    with pytest.raises(InputError, match=says) as refusal:
        trainer(diffusion(start), tmp_path / "run").fit(IMAGES)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_start_for_another_size_is_refused(start, tmp_path):
    """A network of convolutions takes any size, and has learnt one."""
    edit(Path(start.sources[0]) / START, "    1,\n    8,\n    8,\n", "    1,\n    16,\n    16,\n")
    with pytest.raises(InputError, match="is for images of 1 × 16 × 16"):
        trainer(diffusion(start), tmp_path / "run").fit(IMAGES)
    assert not (tmp_path / "run").exists()


def test_a_start_that_knows_other_classes_is_refused(start, tmp_path):
    edit(Path(start.sources[0]) / START, "classes = []", 'classes = ["ant", "bee", "cow"]')
    with pytest.raises(InputError, match=r"knows the classes ant, bee, cow, ..., and these images have 0, 1"):
        trainer(diffusion(start), tmp_path / "run").fit(IMAGES)
    assert not (tmp_path / "run").exists()


def test_a_start_needs_a_prior(start):
    with pytest.raises(InputError, match="are for moment-matched preconditioning"):
        Diffusion(preconditioning=EDM(), start=start)


@pytest.mark.parametrize(
    "changes",
    [
        {"sources": ()},
        {"sources": ("",)},
        {"sources": ("two\nlines",)},
        {"sources": ("s", "s")},
        {"sources": tuple("abcdefghi")},
        {"sha256": ("0" * 64, "1" * 64)},
        {"share": 0.0},
        {"share": 1.0},
        {"share": 0.1, "gains": False},
        {"sha256": ("any words at all",)},
        {"trains": "*, Alice has cancer"},
        {"trains": "low-rank:0"},
        {"trains": "low-rank:4,head.*"},
        {"trains": "chosen:8,low-rank:4,chosen:8"},
        {"trains": "chosen:99999"},
        {"trains": ",".join("*" * 99)},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(InputError):
        Start(**{"sources": ("s",)} | changes)


def test_a_release_names_the_public_images_and_keeps_no_path(start, tmp_path):
    made = trainer(diffusion(start), tmp_path / "run").fit(IMAGES)
    (part,) = made.public
    assert part == ("shown", SHOWN.digest(), 40, False, ())
    assert f"'shown' (40 images, SHA-256 {SHOWN.digest()[:16]}…)" in made.statement
    assert verify_release(tmp_path / "run").public == (part,)
    text = (tmp_path / "run" / "release" / "config.toml").read_text()
    assert str(Path(start.sources[0]).parent) not in text
    images, _ = Release.load(tmp_path / "run").sample(3, seed=0)
    assert images.shape == (3, 8, 8, 1)


def test_gains_that_no_run_comes_to_are_refused(start, tmp_path):
    made = trainer(diffusion(start)).fit(IMAGES)
    made.generator.denoiser.preconditioning.gains[3] = 1.5
    made.save(tmp_path / "release")
    with pytest.raises(InputError, match="gains that are not from 0 to 1"):
        verify_release(tmp_path / "release")


def test_another_network_beside_a_plan_without_steps_is_refused(start, tmp_path):
    """Nothing private paid for its weights, so they must be the public ones: else they could be private images."""
    made = trainer(diffusion(start)).fit(IMAGES)
    next(made.generator.denoiser.network.parameters()).data.flatten()[0] += 1
    made.save(tmp_path / "release")
    with pytest.raises(InputError, match=r"holds another network than a public one that config\.toml names"):
        verify_release(tmp_path / "release")


def test_settings_that_name_a_start_take_no_other(start):
    method = diffusion(dataclasses.replace(start, sha256=("0" * 64,)))
    with pytest.raises(InputError, match="another start than the one that the settings name"):
        trainer(method).fit(IMAGES)


def test_an_image_that_is_public_too_takes_no_part(start, tmp_path):
    private = dataclasses.replace(IMAGES, images=np.concatenate([SHOWN.images[:1], IMAGES.images[1:]]))
    trainer(diffusion(start), tmp_path / "run").fit(private)
    text = (tmp_path / "run" / "private" / "duplicates.json").read_text()
    assert '"blank_records": [\n    0\n  ]' in text


def test_classes_that_are_forgotten_are_alike_and_stay_so():
    network = CompactUNet(width=16).build((1, 16, 16), num_classes=3, images_in=2)
    forget_classes(network)
    table = network.condition.classes.weight
    assert (table == 0).all()
    assert not table.requires_grad


def test_weights_that_fit_are_loaded_whole(start):
    network = diffusion(start).untrained(ImageFacts(IMAGES.shape, IMAGES.class_names)).denoiser.network
    opened = open_start(start.sources[0])
    load_start(network, opened, ImageFacts(IMAGES.shape, IMAGES.class_names))
    assert all(torch.equal(value, opened.weights[name]) for name, value in network.state_dict().items())


def two_starts(start, **changes):
    """Return that start beside a far one, whose corrections are large and mean nothing."""
    further = dataclasses.replace(SHOWN.part(range(9)), name="further")
    (other,) = public_start.__wrapped__(NETWORK, further, IMAGES.class_names, scale=3.0, name="far").sources
    return dataclasses.replace(start, sources=(other, *start.sources), **changes)


def test_most_images_vote_for_the_network_that_leaves_least_of_them(start):
    both = two_starts(start)
    made = trainer(diffusion(both), epsilon=200.0).fit(IMAGES)
    weights = [open_start(source).weights for source in both.sources]
    state = made.generator.denoiser.network.state_dict()
    assert [all(torch.equal(state[name], w[name]) for name in w) for w in weights] == [False, True]


def test_votes_are_counted_by_hand(start):
    """An image votes for the start with the smaller ⟨c, c⟩ − 2 ⟨c, r⟩ over all levels."""
    facts, starts = ImageFacts(IMAGES.shape, IMAGES.class_names), [open_start(s) for s in two_starts(start).sources]
    denoiser = diffusion(start).untrained(facts).denoiser
    seen = {}

    def once(name, make):
        seen[name] = make()
        return Noisy(torch.tensor([1.0, 2.0]), 1.0)

    plan = SimpleNamespace(dataset_size=12)
    run = SimpleNamespace(starts=starts, seed=3, once=once, mechanism=SimpleNamespace(plan=plan))
    assert choose_start(run, IMAGES, denoiser, facts, starts) is starts[1], (
        "by the noisy counts, whatever the exact ones"
    )
    expected = torch.zeros(2)
    for number in range(len(IMAGES)):
        left = []
        for each in starts:
            load_start(denoiser.network, each, facts)
            (rows, _), *_ = _Pairs(denoiser, IMAGES.part(range(number, number + 1)), 12, 3).parts()
            explained, squared = rows.view(2, -1).sum(1)
            left.append(float(squared - 2 * explained))
        expected[int(np.argmin(left))] += 1
    assert torch.allclose(seen[CHOICE].total.float(), expected)
    assert seen[CHOICE].sensitivity == 1


def test_a_claim_names_every_start_whichever_was_chosen(start, tmp_path):
    made = trainer(diffusion(two_starts(start)), tmp_path / "run").fit(IMAGES)
    assert [part.name for part in made.public] == ["further", "shown"]
    verified = verify_release(tmp_path / "run")
    assert [name for name, _ in verified.starts] == ["far", "start"]
    assert len({digest for _, digest in verified.starts}) == 2
    assert Release.load(tmp_path / "run").sample(3, seed=0)[0].shape == (3, 8, 8, 1)


def test_two_starts_of_one_budget_share_it(start):
    one, two = (diffusion(each).plan(epsilon=1.0, dataset_size=12, steps=0) for each in (start, two_starts(start)))
    multipliers = {release.name: release.noise_multiplier for release in two.releases}
    alone = {release.name: release.noise_multiplier for release in one.releases}
    assert multipliers[CHOICE] == multipliers["gains"] == pytest.approx(2**0.5 * alone["gains"], rel=1e-3)


def test_two_starts_of_one_name_or_of_one_public_set_are_refused(start, tmp_path):
    (first,) = start.sources
    again = public_start.__wrapped__(NETWORK, SHOWN, IMAGES.class_names, name="again").sources
    alike = public_start.__wrapped__(NETWORK, dataclasses.replace(SHOWN, name="else"), IMAGES.class_names).sources
    for others, says in ((again, "not the only start that was made with shown"), (alike, "are called alike")):
        with pytest.raises(InputError, match=says):
            trainer(diffusion(dataclasses.replace(start, sources=(first, *others))), tmp_path / "run").fit(IMAGES)
        assert not (tmp_path / "run").exists()


def test_a_run_that_chose_a_start_goes_on_with_it(start, tmp_path):
    method = diffusion(two_starts(start))
    whole = trainer(method, tmp_path / "run", steps=3)
    steps = whole.steps(IMAGES)
    next(steps)
    steps.close()
    made = trainer(method, tmp_path / "run", steps=3).fit(IMAGES)
    state = made.generator.denoiser.network.state_dict()
    near = [
        all((state[name] - w).abs().max() < 0.1 for name, w in open_start(source).weights.items())
        for source in method.start_folders
    ]
    assert sum(near) == 1


def test_a_process_without_images_votes_for_none(start):
    facts, starts = ImageFacts(IMAGES.shape, IMAGES.class_names), [open_start(s) for s in two_starts(start).sources]
    empty, seen = IMAGES.part(range(0)), []

    def once(name, make):
        seen.append(make())
        return Noisy(torch.tensor([2.0, 1.0]), 1.0)

    plan = SimpleNamespace(dataset_size=12)
    run = SimpleNamespace(starts=starts, seed=3, once=once, mechanism=SimpleNamespace(plan=plan))
    assert choose_start(run, empty, diffusion(start).untrained(facts).denoiser, facts, starts) is starts[0]
    assert seen[0].total.tolist() == [0.0, 0.0]


def test_a_choice_without_gains_is_rehearsed_too(start, monkeypatch):
    rehearsed = []
    monkeypatch.setattr("dpdm.methods.diffusion.rehearse_gains", lambda *given: rehearsed.append(given))
    trainer(diffusion(two_starts(start, gains=False))).rehearse(IMAGES)
    assert len(rehearsed) == 1


def test_a_start_that_hardly_helps_is_said_and_one_that_does_is_not():
    method = Diffusion(network=MLP(width=8, blocks=1), start=Start(sources=("public",)), prior=Prior(centres=1))
    generator = method.untrained(ImageFacts((1, 8, 8), ()))
    assert generator.remark == ""
    generator.denoiser.preconditioning.gains.fill_(0.05)
    assert generator.remark.startswith("the public start hardly helps: its images are far from the private ones")
    assert Diffusion(network=MLP(width=8, blocks=1)).untrained(ImageFacts((1, 8, 8), ())).remark == ""
