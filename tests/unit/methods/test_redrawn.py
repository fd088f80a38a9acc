"""A public pipeline that draws private evolution's candidates, and draws them again under noise."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusers_pipelines import save_pipeline, save_text_pipeline
from dpdm import Evolution, ImageDataset, InputError, Pipeline, Prior, Release, Trainer
from dpdm.files import digest, json_text
from dpdm.methods import ImageFacts
from dpdm.methods import codec as codecs
from dpdm.methods.redrawn import PublicDraws, Redrawn
from dpdm.networks import DiffusersFolder, TextToImageFolder
from dpdm.runs import verify_release
from dpdm.types import tensor_to_images

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
GREY, COLOUR = ImageFacts((1, 8, 8), ("ant", "bee")), ImageFacts((3, 8, 8), ("ant", "bee"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return DiffusersFolder(source=save_pipeline(tmp_path_factory.mktemp("pipelines") / "small"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return TextToImageFolder(source=save_text_pipeline(tmp_path_factory.mktemp("pipelines") / "texts"))


def images(count, channels=1, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (count, 8, 8, channels), dtype=np.uint8)


def run(size=1, rank=0, seed=0):
    """What drawing asks of a run, as one of `size` processes."""
    processes = SimpleNamespace(shard=lambda n: range(rank, n, size), sum=lambda value: value)
    return SimpleNamespace(
        seed=seed,
        device=torch.device("cpu"),
        processes=processes,
        autocast=lambda: torch.autocast("cpu", enabled=False),
    )


def private(channels=1):
    labels = np.arange(60) % 2
    names = GREY.class_names
    return ImageDataset(
        images=images(60, channels), labels=labels, num_classes=2, class_names=names, name="private", public=False
    )


def evolved(pipeline, folder=None, *, channels=1, **changes):
    method = Evolution(**{"rounds": 2, "population": 4, "pipeline": pipeline} | changes)
    plan = method.plan(epsilon=4.0, dataset_size=60, delta=1e-3)
    return Trainer(method=method, plan=plan, run=folder, ledger=None).fit(private(channels))


@pytest.mark.parametrize("kind", ["small", "texts"])
def test_the_less_noise_the_more_alike_is_an_image_that_is_drawn_again(kind, request):
    folder = request.getfixturevalue(kind)
    channels = 3 if kind == "texts" else 1
    facts = COLOUR if kind == "texts" else GREY
    draws, of = PublicDraws(Pipeline(network=folder, steps=4), facts, run()), images(24, channels)
    labels, generator = torch.arange(24) % 2, draws._generator
    with torch.inference_mode():  # of random weights, an autoencoder by itself makes another image of one
        decoded = tensor_to_images(codecs.decoded(generator.codec, generator.seen_of(of)))
    apart = [float(np.abs(draws(labels, of, level).astype(int) - decoded).mean()) for level in (0.03, 2.0, 14.0)]
    assert apart[0] < 0.8 * min(apart[1:])
    if kind == "small":
        assert apart[0] < 5
        assert apart[1] < apart[2]
    assert draws(labels).shape == of.shape


def test_draws_are_of_the_public_seed_and_of_all_processes_together(small):
    labels = torch.arange(20) % 2

    def drawn(**of_run):
        return PublicDraws(Pipeline(network=small, steps=3), GREY, run(**of_run))(labels, images(20), 3.0).astype(int)

    whole = drawn()
    assert np.array_equal(whole, drawn())
    assert not np.array_equal(whole, drawn(seed=1))
    parts = [drawn(size=2, rank=rank) for rank in range(2)]
    assert np.abs(parts[0] + parts[1] - whole).max() <= 1  # other batches, other last digits
    assert not parts[0][1::2].any()


def test_children_are_drawn_from_the_parents_that_were_voted_for_under_less_and_less_noise(small):
    asked = []

    class Draws(PublicDraws):
        def __call__(self, labels, of=None, level=None):
            asked.append((labels, of, level))
            return super().__call__(labels, of, level)

    draws = Draws(Pipeline(network=small, steps=2, level=4.0), GREY, run())
    pool = draws.pool(3, None)
    redrawn = Redrawn(pool, SimpleNamespace(), run(), draws)
    population = redrawn.first(3)
    assert np.array_equal(redrawn.images(population).flatten(0, 1), pool.images)
    second = torch.tensor([[0, 0, 1], [1, 0, 0]]).double()
    for level in (2.0, 1.0):
        redrawn.narrow([0.5, 0.5])
        children = redrawn.children(population, second)
        labels, of, under = asked[-1]
        assert under == level
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]
        before = redrawn.images(population)
        assert np.array_equal(of, torch.stack([*[before[0, 2]] * 3, *[before[1, 0]] * 3]))
        population = children
    assert redrawn.images(population).shape == (2, 3, 8, 8, 1)


@pytest.mark.parametrize("kind", ["small", "texts"])
def test_a_run_needs_no_public_images_and_its_claim_names_the_network(kind, request, tmp_path):
    folder, channels = request.getfixturevalue(kind), 3 if kind == "texts" else 1
    release = evolved(Pipeline(network=folder, level=2.0, steps=2), tmp_path / "run", channels=channels, lookahead=1)
    parts = [folder.name] if kind == "small" else [f"texts/{part}" for part in ("unet", "vae", "text_encoder")]
    for part in parts:
        assert f"it does not protect what was declared public: '{parts[0]}'" in release.statement
        assert f"'{part}' (SHA-256" in release.statement
    verify_release(tmp_path / "run")
    assert folder.source not in (tmp_path / "run" / "release" / "config.toml").read_text()
    drawn, labels = Release.load(tmp_path / "run").sample(8, seed=0)  # without the folder
    assert drawn.shape == (8, 8, 8, channels)
    assert set(labels) == {0, 1}


def test_a_claim_that_names_another_network_is_refused(small, tmp_path):
    evolved(Pipeline(network=small, level=2.0, steps=2), tmp_path / "run")
    config = tmp_path / "run" / "release" / "config.toml"
    text = config.read_text()
    assert text.count(small.digest) == 2
    claim = tmp_path / "run" / "release" / "privacy.json"
    said = json.loads(claim.read_text())
    assert [part["sha256"] for part in said["public"]] == [small.digest]
    config.write_text(text.replace(small.digest, "0" * 64, 1))
    said["sha256"]["config.toml"] = digest(config)
    claim.write_text(json_text(said))
    with pytest.raises(InputError, match="names other public data than the method evolution is made with"):
        verify_release(tmp_path / "run")


def test_draws_of_a_prior_are_drawn_again(small):
    """The private images are dark; the network's own draws are grey, and so are those under much noise."""
    dark = ImageDataset(images=images(400, high=60), name="dark", public=False)

    def brightness(level):
        pipeline = Pipeline(network=small, level=level, steps=4)
        method = Evolution(rounds=1, population=30, prior=Prior(centres=1, share=0.9), pipeline=pipeline)
        plan = method.plan(epsilon=50.0, dataset_size=400, delta=1e-3)
        return Trainer(method=method, plan=plan, run=None, ledger=None).fit(dark).sample(60, seed=0)[0].mean()

    assert brightness(0.1) < 60 < 90 < brightness(60.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"level": 0.0}, "level must be"),
        ({"steps": 0}, "steps must be"),
        ({"guidance": -1.0}, "guidance"),
        ({"network": "small"}, "pipeline.network must be a diffusers folder, not str"),
        ({"network": DiffusersFolder(source="small", trains="last")}, "pipeline.network.trains is for private steps"),
    ],
)
def test_settings_that_draw_nothing_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        Pipeline(**{"network": DiffusersFolder(source="small")} | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"level": 1000.0}, "level = 1000, halved 2 times, must stay between"),
        ({"level": 0.01}, "level = 0.01, halved 2 times, must stay between"),
        ({"guidance": 2.0}, "pipeline.guidance: small knows no images without class"),
        ({"network": DiffusersFolder(source="nowhere")}, "nowhere holds no diffusers pipeline"),
    ],
)
def test_what_cannot_draw_is_refused_before_the_first_sum(changes, says, small, tmp_path):
    with pytest.raises(InputError, match=says):
        evolved(Pipeline(**{"network": small} | changes), tmp_path / "run")
    assert not (tmp_path / "run" / "release").exists()


def test_candidates_are_moved_or_drawn_again(small):
    with pytest.raises(InputError, match="augment moves candidates, and a pipeline draws them again"):
        Evolution(augment=1.0, pipeline=Pipeline(network=small))
    shown, method = (
        ImageDataset(images=images(9), name="grey", public=True),
        Evolution(pipeline=Pipeline(network=small)),
    )
    plan = method.plan(epsilon=4.0, dataset_size=60, delta=1e-3)
    with pytest.raises(InputError, match="starts from no public images"):
        Trainer(method=method, plan=plan, public=shown, run=None, ledger=None).fit(private())


def test_guidance_is_for_a_network_that_knows_images_without_class(texts):
    labels = torch.arange(4) % 2
    with_it, without = (
        PublicDraws(Pipeline(network=texts, steps=2, guidance=guidance), COLOUR, run())(labels)
        for guidance in (5.0, 0.0)
    )
    assert not np.array_equal(with_it, without)


def test_weights_that_change_after_a_run_has_named_them_are_refused(tmp_path, monkeypatch):
    folder = DiffusersFolder(source=save_pipeline(tmp_path / "small"))
    weights = Path(folder.source) / "unet" / "diffusion_pytorch_model.safetensors"
    sound = Pipeline.rehearse

    def then_changed(self, *arguments, **settings):
        sound(self, *arguments, **settings)
        save_file({name: value + 1 for name, value in load_file(weights).items()}, weights, {"format": "pt"})

    monkeypatch.setattr(Pipeline, "rehearse", then_changed)
    with pytest.raises(InputError, match="was changed since the run has begun"):
        evolved(Pipeline(network=folder, level=2.0, steps=2), tmp_path / "run")
    assert not (tmp_path / "run" / "release").exists()


def test_memory_counts_the_network(small):
    without = Evolution(rounds=2, population=4).memory(GREY, public=0, records=60)
    network = sum(4 * weight.numel() for weight in Pipeline(network=small).untrained(GREY).parameters())
    counted = Evolution(rounds=2, population=4, pipeline=Pipeline(network=small)).memory(GREY, public=0, records=60)
    assert counted - without > network
