"""What every method must do, whatever it is: a new one is added to METHODS, and to TOYS here."""

import atexit
import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_processes import launch
from two_worlds import (
    GROUP_NEIGHBOURS,
    GROUPED,
    IMAGE_NEIGHBOURS,
    IMAGES,
    RecordingPlan,
    World,
    differences,
    public_codec,
    public_start,
    stopped_clock,
)

from diffusers_pipelines import save_pipeline, save_text_pipeline
from dpdm.audit.canaries import train_with_canaries
from dpdm.config import Config, Data, Machine
from dpdm.data import ImageDataset
from dpdm.data.procedural import watched
from dpdm.diffusion import DDIM, EDM, DenoisingLoss, MomentMatched
from dpdm.methods import (
    GAN,
    METHODS,
    NTK,
    AggregatedEmbeddings,
    AggregatedGAN,
    Codec,
    Diffusion,
    Distillation,
    Embedding,
    Evolution,
    Fourier,
    Labels,
    LatentFlow,
    Layers,
    MeanEmbedding,
    Pose,
    Prior,
    PriorAlone,
    PublicFeatures,
    Retrieval,
    SanitizedGAN,
    SlicedWasserstein,
    Start,
    StatisticMatching,
    Teacher,
)
from dpdm.networks import MLP, DiffusersFolder, TextToImageFolder
from dpdm.privacy import InsecureSeededEntropy, MechanismRun
from dpdm.runs import Release, Trainer, verify_release
from dpdm.runs.start import open_starts
from dpdm.types import InputError

TOY = {"network": MLP(width=8, blocks=1), "loss": DenoisingLoss(noise_multiplicity=2)}
FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
PIPELINE = DiffusersFolder(source=save_pipeline(FOLDER / "pipeline"), trains="lora:2")
TEXTS = TextToImageFolder(source=save_text_pipeline(FOLDER / "texts", channels=1), trains="lora:2")
PIXELS = Embedding(features="pixels")
SMALL = {"updates": 5, "batch_size": 8, "latent": 2, "width": 16}
FEATURES = Embedding(features="random-convnet", size=8)
LAYERS = Layers(network="random-convnet", size=8, directions=6, pairs=5, own_pairs=4)
MATCHED = {"layers": LAYERS, "population": 3, "passes": 2, "candidates": 30}
TOYS = {
    "diffusion": Diffusion(preconditioning=EDM(), **TOY),
    "diffusion around a prior": Diffusion(preconditioning=MomentMatched(), prior=Prior(centres=2, rounds=2), **TOY),
    "prior": PriorAlone(prior=Prior(centres=2, rounds=2)),
    "diffusion in latents": Diffusion(codec=Codec(source="?"), prior=Prior(centres=2, rounds=2), **TOY),
    "prior of latents": PriorAlone(codec=Codec(source="?"), prior=Prior(centres=2, rounds=2)),
    "prior without poses": PriorAlone(codec=Pose(), prior=Prior(centres=2, rounds=2)),
    "diffusion without poses": Diffusion(codec=Pose(), prior=Prior(centres=2, rounds=2), **TOY),
    "gan": GAN(width=16, latent=2, discriminator_width=4, batch_size=8),
    "aggregated-gan": AggregatedGAN(width=16, latent=2, discriminator_width=4, batch_size=12, updates=2, lower_every=2),
    "sanitized-gan": SanitizedGAN(
        shards=6, width=16, latent=2, discriminator_width=4, batch_size=6, critic_updates=1, warm_updates=1
    ),
    "flow": LatentFlow(latent=3, encoder_width=4, width=16, couplings=2, coupling_width=4),
    "sliced": SlicedWasserstein(directions=7, bins=4, updates=5, batch_size=64, latent=2, width=16),
    "distillation": Distillation(
        features=PublicFeatures(embedding=Embedding(features="random-convnets", size=8)), images=3, updates=4
    ),
    "evolution": Evolution(rounds=3, population=4),
    "labels": Labels(embedding=PIXELS, per_class=6, from_prior=0),
    "labels beside a prior": Labels(
        embedding=PIXELS, per_class=6, prior=Prior(share=0.5, centres=2, rounds=2), public_classes=2, choice=0.2
    ),
    "mean-embedding": MeanEmbedding(features=Fourier(number=20), **SMALL),
    "mean-embedding by a tangent kernel": MeanEmbedding(features=NTK(width=5), **SMALL),
    "mean-embedding in public features": MeanEmbedding(
        features=PublicFeatures(embedding=Embedding(features="random-convnet", size=8)), **SMALL
    ),
    "aggregated embeddings": AggregatedEmbeddings(
        embedding=Embedding(features="pixels"), queries=6, directions=5, neighbours=3, locality=2.0
    ),
    "evolution of moved candidates": Evolution(rounds=2, population=4, votes=2, augment=1.0, lookahead=2),
    "evolution of a prior": Evolution(rounds=2, population=4, prior=Prior(centres=1)),
    "evolution in features": Evolution(rounds=2, population=4, augment=0.5, embedding=FEATURES),
    "evolution of a prior in features": Evolution(rounds=2, population=4, embedding=FEATURES, prior=Prior(centres=1)),
    "statistics of public images": StatisticMatching(**MATCHED),
    "statistics of a prior": StatisticMatching(prior=Prior(centres=2, rounds=2), **MATCHED),
    "diffusion from a public start": Diffusion(start=Start(sources=("?",)), prior=Prior(centres=2, rounds=2), **TOY),
    "public start alone": Diffusion(start=Start(sources=("?",)), prior=Prior(centres=2, rounds=2), **TOY),
    "low rank from a public start": Diffusion(
        start=Start(sources=("?",), trains="low-rank:2"), prior=Prior(centres=2, rounds=2), **TOY
    ),
    "chosen matrices of a public start": Diffusion(
        start=Start(sources=("?",), trains="chosen:3"), prior=Prior(centres=2, rounds=2), **TOY
    ),
    "low rank of chosen matrices": Diffusion(
        start=Start(sources=("?", "!"), trains="chosen:3,low-rank:2"), prior=Prior(centres=1), **TOY
    ),
    "diffusion from a diffusers folder": Diffusion(
        network=PIPELINE, loss=DenoisingLoss(noise_multiplicity=2), sampler=DDIM(steps=5, sigma_min=0.02)
    ),
    "retrieval, from a public start": Diffusion(
        preconditioning=EDM(), start=Start(sources=("?",), gains=False), retrieval=Retrieval(keep=6), **TOY
    ),
    "retrieval, from a diffusers folder": Diffusion(
        network=PIPELINE, retrieval=Retrieval(keep=6), sampler=DDIM(steps=5, sigma_min=0.02), loss=TOY["loss"]
    ),
    "diffusion from texts and latents": Diffusion(
        network=TEXTS, loss=DenoisingLoss(noise_multiplicity=2), sampler=DDIM(steps=2, sigma_min=0.04)
    ),
    "teacher": Teacher(per_class=6, width=2),
    "one of two public starts": Diffusion(start=Start(sources=("?", "!")), prior=Prior(centres=2, rounds=2), **TOY),
}
PUBLIC = ImageDataset(
    images=np.concatenate([np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8), IMAGES.images[:1]]),
    labels=np.arange(41) % 4,
    num_classes=4,
    name="drawn at random",
    public=True,
)
ALSO = dataclasses.replace(PUBLIC, name="the same")
BUDGET = {
    "epsilon": 3.0,
    "dataset_size": 12,
    "delta": 1e-13,
}  # at which ε is RDP's bound, and calibration takes no time
MACHINE = Machine(device="cpu", precision="float32", strategy="vectorized", physical_batch_size=4)
every_method = pytest.mark.parametrize("name", TOYS)


def plan_of(name, unit="image", **other):
    method, steps = TOYS[name], {}
    if isinstance(method, Diffusion | GAN | AggregatedGAN | SanitizedGAN | LatentFlow | Teacher):
        steps = {"steps": 0} if name == "public start alone" else {"steps": 3, "expected_batch_size": 5}
    return method.plan(**BUDGET | other, **steps, unit=unit)


def trainer(name, folder=None, *, plan=None, unit="image", data=IMAGES, **others):
    method = TOYS[name]
    if isinstance(getattr(method, "codec", None), Codec):
        method = dataclasses.replace(method, codec=public_codec(PUBLIC))
    elif method.start_folders:
        made = [
            public_start(
                TOY["network"],
                images,
                data.class_names,
                name=f"start{number}",
                scale=0.1 + number,
                preconditioning=method.preconditioning,
            )
            for number, images in enumerate((PUBLIC, ALSO)[: len(method.start_folders)])
        ]
        start = dataclasses.replace(method.start, sources=tuple(each.sources[0] for each in made))
        method = dataclasses.replace(method, start=start)
    plan = plan or plan_of(name, unit)
    public = PUBLIC if method.starts_from_images else None
    return Trainer(method=method, plan=plan, machine=MACHINE, public=public, run=folder, ledger=None, **others)


def test_every_method_is_among_the_toys():
    assert {method.kind for method in TOYS.values()} == set(METHODS)


@every_method
def test_what_is_released_is_what_is_planned(name, monkeypatch):
    made, inner = [], MechanismRun._release

    def watched(self, total, *, sensitivity):
        made.append(self.plan.at(self.spent).name)
        return inner(self, total, sensitivity=sensitivity)

    monkeypatch.setattr(MechanismRun, "_release", watched)
    plan = plan_of(name)
    trainer(name, plan=plan).fit(IMAGES)
    assert made == [plan.at(number).name for number in range(plan.planned)]


@every_method
@pytest.mark.parametrize("unit", ["image", "group"])
def test_two_worlds_that_differ_in_one_unit_agree(name, unit, tmp_path):
    data, neighbours = (IMAGES, IMAGE_NEIGHBOURS) if unit == "image" else (GROUPED, GROUP_NEIGHBOURS)
    plan = plan_of(name, unit)
    fields = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}

    def world(images, folder, replay=None):
        seen = World(replay=replay)
        told = []
        with stopped_clock(), watched(lambda *said: told.append(said)):
            entropy = InsecureSeededEntropy(0)
            made = trainer(name, folder, plan=RecordingPlan.of(seen, **fields), entropy=entropy).fit(images)
        of_the_owner = {"metrics.jsonl", "duplicates.json", "kept"}
        files = [path for path in folder.rglob("*") if path.is_file() and not of_the_owner & {*path.parts}]
        seen.observed = {str(path.relative_to(folder)): but_for_shards(path) for path in files}
        seen.observed |= {"claim": repr(made.claim), "told": repr(told)}
        return seen

    d = world(data, tmp_path / "d")
    for number, neighbour in enumerate(list(neighbours.values())[:2]):
        assert differences(d, world(neighbour, tmp_path / f"e{number}", replay=d)) == []


def but_for_shards(path):
    """Return what a file holds; of a checkpoint, all but critics of shards, which are as secret as the images."""
    if not path.name.startswith("checkpoint"):
        return path.read_bytes()
    return {name: tensor for name, tensor in load_file(path).items() if not name.startswith("shards.")}


class Killed(BaseException):
    """What a power cut is to a process."""


@every_method
def test_killed_before_any_of_its_sums_a_run_goes_on_and_repeats_none(name, tmp_path, monkeypatch):
    inner, made, plan = MechanismRun._release, [], plan_of(name)

    def dies_once(self, total, *, sensitivity):
        if self.spent not in made:  # a new sum: the first try dies before it is made
            made.append(self.spent)
            raise Killed
        return inner(self, total, sensitivity=sensitivity)

    monkeypatch.setattr(MechanismRun, "_release", dies_once)
    for number in range(plan.planned):
        with pytest.raises(Killed):
            trainer(name, tmp_path / "run", plan=plan).fit(IMAGES)
        assert made == list(range(number + 1)), "a sum was made again, or left out"
    trainer(name, tmp_path / "run", plan=plan).fit(IMAGES)
    assert verify_release(tmp_path / "run").dataset_size == 12


@every_method
def test_a_release_verifies_loads_and_draws_the_same(name, tmp_path):
    made = trainer(name, tmp_path / "run").fit(IMAGES)
    verified = verify_release(tmp_path / "run")
    assert verified.statement == made.statement
    opened = Release.load(tmp_path / "run", public=TEXTS.source if made.generator.parts else None)
    assert opened.generator.state_dict().keys() == made.generator.state_dict().keys()
    for images in (made.sample(6, seed=3)[0], opened.sample(6, seed=3)[0]):
        assert images.shape == (6, 8, 8, 1)
        assert np.array_equal(images, made.sample(6, seed=3)[0])


@every_method
def test_images_without_labels_are_trained_on_or_refused_in_one_line(name):
    data = ImageDataset(images=IMAGES.images, name="unlabelled")
    if isinstance(TOYS[name], Labels | Teacher):  # which names classes
        with pytest.raises(InputError, match="names the classes of images, and these have no two: give labels"):
            trainer(name, data=data).fit(data)
        return
    release = trainer(name, data=data).fit(data)
    images, labels = release.sample(3, seed=0)
    assert images.shape == (3, 8, 8, 1)
    assert (labels == 0).all()


@every_method
def test_a_generator_is_its_state(name):
    """What is saved is all there is: another one with the same state draws the same."""
    method, facts = trainer(name).method, trainer(name).fit(IMAGES).facts
    one, other = (method.untrained(facts, seed=seed).eval() for seed in (0, 1))
    other.load_state_dict(one.state_dict())
    labels = torch.tensor([0, 1, 2])
    drawn = [generator.draw(labels, random=torch.Generator().manual_seed(0)) for generator in (one, other)]
    assert torch.equal(*drawn)
    assert drawn[0].shape == (3, *facts.shape)


@every_method
def test_an_audit_plays_the_plan_with_hardly_any_noise_and_finds_the_canaries(name):
    """Of those that took part a Poisson batch may have missed some, and no other can look as if it had."""
    method = trainer(name).method
    settings = Config(data=Data(source="made up"), method=method, machine=MACHINE)
    public, starts = PUBLIC if method.starts_from_images else None, open_starts(method.start_folders)
    given = {"public": public, "starts": starts, "canaries": 30, "members": 4, "coins": np.random.default_rng(0)}
    *_, played = train_with_canaries(settings, plan_of(name, epsilon=200.0), IMAGES, **given)
    assert len(played.sums) == len(played.plan.full)
    assert played.scores[played.took_part].max() > 1
    assert played.scores[~played.took_part].max() < 0


WORKER = """
import sys
import torch
from dpdm.privacy import InsecureSeededEntropy
from dpdm.runs.hardware import joined_processes
from test_methods import IMAGES, trainer
torch.set_num_threads(1)
with joined_processes() as processes:
    made = trainer(sys.argv[1], "run", entropy=InsecureSeededEntropy(0)).fit(IMAGES)
    torch.save(dict(made.generator.state_dict()), f"state{processes.rank}.pt")
"""


@pytest.mark.proof
@pytest.mark.parametrize("name", [name for name in TOYS if name != "sanitized-gan"])
def test_two_processes_are_one_run(name, tmp_path):
    """Both come to the same generator; of the same sums over all records as one alone, but for what rounding takes."""
    done = launch(2, WORKER, name, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"state{rank}.pt") for rank in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    trainer(name, tmp_path / "alone", entropy=InsecureSeededEntropy(0)).fit(IMAGES)
    together, alone = (
        {file.name: load_file(file)["values"] for file in (tmp_path / run / "private").glob("sums/*.safetensors")}
        for run in ("run", "alone")
    )
    assert len(alone) == len(plan_of(name).full)
    assert all(torch.allclose(alone[key], together[key], atol=1e-6) for key in alone | together)


@pytest.mark.proof
def test_critics_of_shards_are_in_one_process_and_a_second_is_refused_before_anything_is_spent(tmp_path):
    done = launch(2, WORKER, "sanitized-gan", folder=tmp_path)
    assert done.returncode != 0
    assert "keeps all critics in one process: start it without torchrun" in done.stderr
    assert not (tmp_path / "run" / "private").exists()
