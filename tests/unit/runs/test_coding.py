"""A codec of public images is trained, goes on where it was interrupted, and is where private images are learnt."""

import dataclasses
import json
import tomllib

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from dpdm.config import Machine, load_config
from dpdm.data import ImageDataset
from dpdm.diffusion import DenoisingLoss
from dpdm.methods import Codec, Diffusion, ImageFacts, Prior, PriorAlone, Start
from dpdm.networks import MLP, CompactUNet
from dpdm.networks.codec import ConvCodec
from dpdm.runs import Release, Trainer, measure_step, pretraining, verify_release
from dpdm.runs.coding import SPREAD, Coding
from dpdm.runs.pretraining import Pretraining
from dpdm.runs.start import open_start
from dpdm.types import InputError, images_to_tensor

FACTS = ImageFacts((1, 16, 16), ("0", "1"))
MACHINE = Machine(device="cpu", precision="float32")
NETWORK = CompactUNet(width=16, patch=1)


def bars(count, seed=0, name="shown", public=True):
    """Images of two classes: a bright bar that lies, or stands, anywhere."""
    random = np.random.default_rng(seed)
    labels, places = np.arange(count) % 2, random.integers(1, 13, count)
    images = random.integers(0, 30, (count, 16, 16, 1), np.uint8)
    for image, label, place in zip(images, labels, places, strict=True):
        (image if label else image.transpose(1, 0, 2))[place : place + 3] += 200
    return ImageDataset(images=images, labels=labels, num_classes=2, name=name, public=public)


def coding(**changes):
    given = {"public": bars(200), "facts": FACTS, "minutes": 1e-6, "machine": MACHINE}
    return Coding(**given | changes)


def trained(folder, **changes):
    for _ in coding(**changes).steps(folder):
        pass
    return str(folder)


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("made") / "codec", minutes=0.25)


def denoiser(folder, codec, **changes):
    method = Diffusion(network=NETWORK, prior=Prior(centres=1), codec=codec and Codec(source=codec))
    given = {"public": bars(200), "facts": FACTS, "method": method, "minutes": 1e-6, "machine": MACHINE}
    for _ in Pretraining(**given | changes).steps(folder):
        pass
    return str(folder)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(pretraining, "_BATCH", 16)


def trainer(method, run=None, **steps):
    plan = method.plan(epsilon=3.0, dataset_size=60, delta=1e-13, **steps)
    return Trainer(method=method, plan=plan, run=run, ledger=None, machine=MACHINE)


def private(seed=9, number=60):
    return bars(number, seed, "private", public=False)


def test_what_it_decodes_is_nearer_to_images_than_a_blur_of_as_many_numbers(codec):
    made = ConvCodec(FACTS.shape)
    made.load_state_dict(open_start(codec).weights)
    x = images_to_tensor(bars(50, 3).images)
    with torch.no_grad():
        latents = made.encode(x)
        error = (made.decode(latents) - x).square().mean()
    blurred = interpolate(avg_pool2d(x, 2), scale_factor=2, mode="bilinear")  # 64 numbers, as the latent has
    assert np.prod(latents.shape[1:]) == 64
    assert error < 0.7 * (blurred - x).square().mean()
    assert abs(float(latents.std()) - SPREAD) < 0.25


def test_interrupted_it_goes_on_and_a_finished_one_is_refused(tmp_path):
    steps = coding(minutes=10).steps(tmp_path / "codec")
    assert [next(steps).updates for _ in range(3)] == [1, 2, 3]
    steps.close()
    steps = coding(minutes=10).steps(tmp_path / "codec")
    assert next(steps).updates == 4
    steps.close()
    with pytest.raises(InputError, match="another run \\(public_images"):
        next(coding(minutes=10, public=bars(200, 3)).steps(tmp_path / "codec"))
    done = tmp_path / "done"
    trained(done)
    with pytest.raises(InputError, match="holds a start already"):
        next(coding().steps(done))
    start = open_start(done)
    assert (start.preconditioning, start.part.name, start.shape) == ("codec", "shown (codec)", FACTS.shape)


@pytest.mark.parametrize("kind", ["prior", "diffusion"])
def test_images_are_learnt_in_its_latents_and_the_claim_names_what_it_was_trained_on(kind, codec, tmp_path):
    data, steps = private(), {}
    method = PriorAlone(prior=Prior(centres=1), codec=Codec(source=codec))
    if kind == "diffusion":
        method = Diffusion(network=NETWORK, prior=Prior(centres=1), codec=Codec(source=codec))
        steps = {"steps": 3, "expected_batch_size": 8}
    made = trainer(method, tmp_path / "run", **steps).fit(data)
    images, _ = made.sample(4, seed=1)
    assert images.shape == (4, 16, 16, 1)
    assert verify_release(tmp_path / "run").starts == (("codec", open_start(codec).sha256),)
    claim = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert claim["public"] == [{"name": "shown (codec)", "sha256": bars(200).digest(), "images": 200}]
    assert "'shown (codec)' (200 images" in claim["statement"]
    opened = Release.load(tmp_path / "run")
    assert np.array_equal(opened.sample(4, seed=1)[0], images)
    state, weights = opened.generator.state_dict(), open_start(codec).weights
    assert all(torch.equal(state[f"codec.{name}"], value) for name, value in weights.items())
    said = tomllib.loads((tmp_path / "run" / "release" / "config.toml").read_text())
    assert said["codec"] == {"kind": "autoencoder", "source": "codec", "sha256": open_start(codec).sha256}
    kept = tmp_path / "run" / "private" / "kept" / "latents"
    assert (kept / "rows").stat().st_size == 60 * 64 * 4
    again = trainer(load_method(tmp_path / "run", codec), None, **steps)
    assert again.fit(data).settings == made.settings


def load_method(run, codec):
    """Return the method of a release's settings, its codec where it is here."""
    method = load_config(str(run / "release" / "config.toml"), overrides=["data.source=digits"]).method
    return method.begun_from((codec,))


def test_another_codec_in_a_release_is_refused(codec, tmp_path):
    """Nothing private paid for its weights, so they must be the public ones: else they could be private images."""
    made = trainer(PriorAlone(prior=Prior(centres=1), codec=Codec(source=codec))).fit(private())
    next(made.generator.codec.parameters()).data.flatten()[0] += 1
    made.save(tmp_path / "release")
    with pytest.raises(InputError, match=r"holds another codec than the public one that config\.toml names"):
        verify_release(tmp_path / "release")
    del made.settings["codec"]["sha256"]
    made.save(tmp_path / "release")
    with pytest.raises(InputError, match=r"codec\.sha256|in codec"):
        verify_release(tmp_path / "release")


def test_a_start_in_the_same_latents_is_begun_with_and_no_other(codec, tmp_path):
    start, plain = denoiser(tmp_path / "start", codec), denoiser(tmp_path / "plain", None)
    assert open_start(start).shape == (4, 4, 4)
    method = Diffusion(
        network=NETWORK, prior=Prior(centres=1), codec=Codec(source=codec), start=Start(sources=(start,))
    )
    made = trainer(method, tmp_path / "run", steps=0).fit(private())
    assert [name for name, _ in verify_release(tmp_path / "run").starts] == ["start", "codec"]
    assert {part.name for part in made.public} == {"shown", "shown (codec)"}
    (tmp_path / "others").mkdir()
    other = trained(tmp_path / "others" / "codec", seed=3)
    for wrong in (
        dataclasses.replace(method, codec=Codec(source=other)),
        dataclasses.replace(method, codec=None),
        dataclasses.replace(method, start=Start(sources=(plain,))),
    ):
        with pytest.raises(InputError, match="was not made in the latents of this run's codec"):
            trainer(wrong, steps=0).rehearse(private())


def test_what_is_no_codec_or_one_for_other_images_is_refused_before_the_first_sum(codec, tmp_path):
    plain = denoiser(tmp_path / "plain", None)
    with pytest.raises(InputError, match="the start of shown holds no codec: make one by dpdm pretrain --kind codec"):
        trainer(PriorAlone(codec=Codec(source=plain))).rehearse(private())
    with pytest.raises(InputError, match="is a codec, and no network that draws images"):
        trainer(Diffusion(network=NETWORK, start=Start(sources=(codec,))), steps=0).rehearse(private())
    large = ImageDataset(images=np.zeros((60, 20, 20, 1), np.uint8), name="large")
    with pytest.raises(InputError, match=r"is for images of 1 × 16 × 16 .*not 1 × 20 × 20"):
        trainer(PriorAlone(codec=Codec(source=codec))).rehearse(large)
    with pytest.raises(InputError, match="holds no start"):
        trainer(PriorAlone(codec=Codec(source=str(tmp_path / "none")))).rehearse(private())
    with pytest.raises(InputError, match=r"codec\.source is empty"):
        Codec(source="")
    with pytest.raises(InputError, match="64 hexadecimal"):
        Codec(source="codec", sha256="12")
    with pytest.raises(InputError, match=r"another codec than the one that codec\.sha256 names"):
        trainer(PriorAlone(codec=Codec(source=codec, sha256=64 * "0"))).rehearse(private())


def test_a_private_image_that_it_was_trained_on_takes_no_part(codec, tmp_path):
    data = private()
    images = data.images.copy()
    images[3] = bars(200).images[3]
    data = dataclasses.replace(data, images=images)
    trainer(PriorAlone(prior=Prior(centres=1), codec=Codec(source=codec)), tmp_path / "run").fit(data)
    told = json.loads((tmp_path / "run" / "private" / "duplicates.json").read_text())
    assert told["blank_records"] == [3]


def test_memory_and_time_are_those_of_latents(codec):
    method = Diffusion(network=MLP(width=8, blocks=1), loss=DenoisingLoss(noise_multiplicity=2))
    inside = dataclasses.replace(method, codec=Codec(source=codec))
    assert inside.memory(FACTS, public=0, records=100) == 100 * 64
    assert method.memory(FACTS, public=0, records=100) == 0
    config = load_config("digits", overrides=["privacy.epsilon=1"])
    plan = method.plan(epsilon=3.0, dataset_size=60, delta=1e-13, steps=2)
    few, many = (measure_step(dataclasses.replace(config, method=one), FACTS, plan) for one in (inside, method))
    assert few.parameters < many.parameters
