"""Deliberate faults, most of which real code has had, and for each the check that catches it.

A fault is a change of the package's own code, made for the time of one check. `python injected_faults.py FILE` writes
the table of all of them into a Markdown file.
"""

import dataclasses
import json
import math
import os
import re
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import safetensors.torch
import tomli_w
import torch
import two_worlds as worlds
from PIL import Image
from test_processes import WORKER, launch
from torch import Tensor, nn
from two_worlds import (
    GROUP_NEIGHBOURS,
    GROUP_PLAN,
    GROUPED,
    IMAGE_NEIGHBOURS,
    IMAGES,
    NEIGHBOURS,
    NUM_CLASSES,
    PLAN,
    D,
    RecordingPlan,
    World,
    differences,
    extreme,
    fit,
    loader,
    moved,
    plus,
    records,
    train,
)

from dpdm.audit import parametric
from dpdm.audit.canaries import AuditedRun, WatchedRun, train_with_canaries
from dpdm.config import Config, Data, Machine, Privacy, encode
from dpdm.data import Framing, ImageDataset, blank_equal, open_dataset, prepare
from dpdm.diffusion import EDM, Below, DenoisingLoss, NoisyBatch, PreconditionedDenoiser
from dpdm.evaluation.layers import LayerMeans
from dpdm.files import json_text
from dpdm.ledger import Ledger, decisions
from dpdm.ledger import records as of_records
from dpdm.ledger.records import Records
from dpdm.methods import (
    GAN,
    NTK,
    AggregatedEmbeddings,
    AggregatedGAN,
    Codec,
    Diffusion,
    Distillation,
    Embedding,
    Evolution,
    Fourier,
    ImageFacts,
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
    adversary,
    aggregates,
    autoencoder,
    class_means,
    classifier,
    ema,
    evolution,
    feature_maps,
    labels,
    own_draws,
    prior,
    public_classes,
    sanitized_gan,
    shards,
    sliced,
    variations,
)
from dpdm.methods import gains as public_start
from dpdm.methods import matrices as chosen_matrices
from dpdm.methods import statistics as statistics_method
from dpdm.methods.embedding import Embedded
from dpdm.methods.loader import Loader
from dpdm.methods.start import MATRICES
from dpdm.methods.unit_rows import UnitRows
from dpdm.networks import MLP, Posed
from dpdm.networks.codec import ConvCodec
from dpdm.privacy import (
    DPSGD,
    InsecureSeededEntropy,
    LayerWise,
    MechanismRun,
    OneBackwardEach,
    OperatingSystemEntropy,
    Plan,
    Vectorized,
    clipped_grad_sum,
    clipping,
    layer_rules,
    mechanism,
    sums,
)
from dpdm.privacy.accounting import upwards
from dpdm.privacy.auditing import lower_bounds
from dpdm.privacy.clipping import Rows
from dpdm.privacy.journal import Journal
from dpdm.privacy.noise import grid_step
from dpdm.privacy.releases import ShardSums
from dpdm.privacy.sums import BoundedSum
from dpdm.runs import Release, Trainer, drawn, tuning, verify_release
from dpdm.runs.benchmark import Benchmark
from dpdm.runs.pretraining import Pretraining
from dpdm.runs.public import claim_of
from dpdm.runs.release import digest
from dpdm.runs.run import Run
from dpdm.types import InputError
from plans import in_memory

Patch = Any
"""pytest's monkeypatch."""
Check = Callable[[Path], list[str]]
"""Maps an empty folder to what it found wrong; nothing, in sound code."""

# --- checks --------------------------------------------------------------------------------------------------------


def two_worlds(folder: Path, *, load=None, after_backward=None) -> list[str]:
    """A bare loop on the mechanism, in two worlds that differ in one record."""
    found = []
    for neighbour in (NEIGHBOURS["removed"], NEIGHBOURS["nan"], D.plus(extreme(1e6))):
        settings = {"load": load, "after_backward": after_backward, "plan": {"max_grad_norm": 1e-2}}
        settings |= {"strategy": Vectorized()}
        d = train(World(), D, **settings)
        e = train(World(replay=d), neighbour, **settings)
        found += differences(d, e)
    plan = {"dataset_size": 20, "expected_batch_size": 5, "steps": 12}  # with empty batches
    d = train(World(), records(1), plan=plan)
    e = train(World(replay=d), records(2), plan=plan)
    return found + differences(d, e)


def two_worlds_of_the_trainer(folder: Path) -> list[str]:
    """A run with a prior, files and claim included, in two worlds that differ in one image."""
    found = []
    settings = {"prior": Prior(centres=1), "plan": PLAN | {"steps": 2}}
    for name in ("removed", "white"):
        d = fit(World(), IMAGES, folder / name / "d", **settings)
        e = fit(World(replay=d), IMAGE_NEIGHBOURS[name], folder / name / "e", **settings)
        found += differences(d, e)
        claim = json.loads(d.observed["files"]["release/privacy.json"])
        claimed = sum(event.get("steps", 1) for event in claim["events"])
        if claimed != len(d.calls):
            found.append(f"{len(d.calls)} noisy sums were made, and {claimed} are claimed")
    return found


def two_worlds_of_groups(folder: Path) -> list[str]:
    """A run whose unit is a group, with a prior, in worlds that differ in one group of images: of few, and of many."""
    settings = {"prior": Prior(centres=1), "plan": GROUP_PLAN | {"steps": 12, "max_grad_norm": 0.01}}
    d = fit(World(), GROUPED, folder / "d", **settings)
    found = []
    for number, name in enumerate(("removed", "a group of twenty alike")):
        found += differences(d, fit(World(replay=d), GROUP_NEIGHBOURS[name], folder / f"e{number}", **settings))
    return found


def public_images_among_the_private(folder: Path) -> list[str]:
    """A run on images of which one is public too, and so blank, beside a run without it: it may add nothing."""
    last = len(IMAGES) - 1
    d = fit(World(), blank_equal(IMAGES, IMAGES.part(np.array([last]))), folder / "d")
    e = fit(World(replay=d), IMAGES.part(range(last)), folder / "e")
    found = differences(d, e)
    if max(moved(d, e)) > 1e-7:  # what rounding takes, with one example more in a physical batch
        found.append("an image that is blank moved a sum")
    return found


def two_worlds_of_votes(folder: Path) -> list[str]:
    """Private evolution in worlds that differ in an image, in a group, and in whether an image is public too."""
    random = np.random.default_rng(7)
    public = ImageDataset(images=random.integers(0, 256, (40, 8, 8, 1), np.uint8), name="shown", public=True)
    last, method, found = len(IMAGES) - 1, Evolution(rounds=2, population=4), []
    pairs = {
        "image": [(IMAGES, IMAGES.part(range(last))), (IMAGES, IMAGE_NEIGHBOURS["white"])],
        "group": [(GROUPED, GROUP_NEIGHBOURS["a group of twenty alike"])],
        "public": [tuple(plus(IMAGES, image, 1) for image in (public.images[0], 255 - public.images[0]))],
    }
    for _, d, e in _in_both_worlds(folder, method, pairs, public=public):
        found += differences(d, e)
    return found


def two_worlds_of_moved_candidates(folder: Path) -> list[str]:
    """Votes in public features for candidates of a prior, which are moved: in worlds that differ in an image or group.

    Several votes of an image, each for another candidate; and the same images in another order.
    """
    features = Embedding(features="random-convnet", size=8)
    settings = {"votes": 3, "augment": 1.0, "lookahead": 2, "embedding": features, "prior": Prior(centres=1)}
    last, method, found = len(IMAGES) - 1, Evolution(rounds=2, population=4, **settings), []
    turned = np.arange(len(IMAGES))[::-1]
    pairs = {
        "image": [(IMAGES, IMAGES.part(range(last))), (IMAGES, IMAGES.part(turned))],
        "group": [(GROUPED, GROUP_NEIGHBOURS["a group of twenty alike"])],
    }
    for _, d, e in _in_both_worlds(folder, method, pairs):
        found += differences(d, e)
    return found


class NearTie(nn.Module):
    """A classifier whose last bits follow all images of a batch, and decide its answers."""

    def forward(self, x: Tensor) -> Tensor:
        of_batch = (x.double().sum() * 1e3 % 1.0 - 0.5).float().expand(len(x))
        return torch.stack([of_batch, torch.zeros_like(of_batch)], dim=1)


def answers_of_a_search(folder: Path) -> list[str]:
    """The answers that a search counts to compare its runs, with the last private images and without them."""
    labels = np.arange(40) % 2
    data = ImageDataset(images=worlds.images(40).images, labels=labels, num_classes=2, name="private")
    right = tuning._right_answers(NearTie(), data)
    fewer = [tuning._right_answers(NearTie(), data.part(range(number))) for number in range(30, 40)]
    moved = [number for number, answers in enumerate(fewer, 30) if (answers != right[:number]).any()]
    return [f"without the images from the {number}. on, others are answered otherwise" for number in moved]


def candidates_of_a_release(folder: Path) -> list[str]:
    """A run whose candidates are images of another run's release: its claim must count both."""
    first, second = PriorAlone(prior=Prior(centres=1)), Evolution(rounds=2, population=4)
    asked = {"dataset_size": 12, "delta": 1e-13}
    plan = first.plan(epsilon=3.0, **asked)
    Trainer(method=first, plan=plan, run=folder / "first", ledger=None).fit(IMAGES)
    images, earlier = drawn.open_drawn(str(folder / "first"), count=64)
    plan = second.plan(epsilon=9.0, earlier=earlier, **asked)
    both = {"public": images, "earlier": earlier, "run": folder / "second", "ledger": None}
    Trainer(method=second, plan=plan, **both).fit(IMAGES)
    one, both = (json.loads((folder / run / "release" / "privacy.json").read_text()) for run in ("first", "second"))
    if len(both["events"]) != (made := len(one["events"]) + len(both["releases"])):
        return [f"{made} noisy sums were made in all, and {len(both['events'])} are claimed"]
    return []


def two_worlds_of_moments(folder: Path) -> list[str]:
    """Moments of layers in worlds that differ in an image, one at the maximum everywhere, in a group, and by place."""
    random = np.random.default_rng(7)
    public = ImageDataset(images=random.integers(0, 256, (40, 8, 8, 1), np.uint8), name="shown", public=True)
    last, found = len(IMAGES) - 1, []
    layers = Layers(network="random-convnet", size=8, directions=6, pairs=5, own_pairs=4)
    method = StatisticMatching(layers=layers, population=2, passes=1, candidates=40)
    inserted = np.roll(np.arange(len(IMAGES)), 1)
    pairs = {
        "image": [
            (IMAGES, IMAGES.part(range(last))),
            (IMAGES.part(inserted), IMAGES.part(range(last))),
            (IMAGES, IMAGE_NEIGHBOURS["white"]),
            (IMAGES, IMAGE_NEIGHBOURS["first of its class"]),
        ],
        "group": [(GROUPED, GROUP_NEIGHBOURS["a group of twenty alike"])],
        "public": [tuple(plus(IMAGES, image, 1) for image in (public.images[0], public.images[1]))],
    }
    for name, d, e in _in_both_worlds(folder, method, pairs, public=public):
        found += differences(d, e)
        if name == "public" and moved(d, e) != [0.0] * len(d.calls):
            found.append("an image that is public moved a sum")
    return found


def two_worlds_of_gains(folder: Path) -> list[str]:
    """The choice of a public network and its gains, in worlds that differ in an image, a group, or what is public."""
    random = np.random.default_rng(7)
    public = ImageDataset(images=random.integers(0, 256, (40, 8, 8, 1), np.uint8), name="shown", public=True)
    last, network, found = len(IMAGES) - 1, MLP(width=8, blocks=1), []
    (one,) = worlds.public_start(network, public, IMAGES.class_names, scale=3.0).sources
    further = dataclasses.replace(public.part(range(9)), name="further")
    (other,) = worlds.public_start(network, further, IMAGES.class_names, scale=3.0, name="other").sources
    method = Diffusion(network=network, prior=Prior(centres=1), start=Start(sources=(one, other)))
    inserted = np.roll(np.arange(len(IMAGES)), 1)
    pairs = {
        "image": [(IMAGES, IMAGES.part(range(last))), (IMAGES.part(inserted), IMAGES.part(range(last)))],
        "group": [(GROUPED, GROUP_NEIGHBOURS["a group of twenty alike"])],
        "public": [tuple(plus(IMAGES, image, 1) for image in (public.images[0], public.images[1]))],
    }
    for name, d, e in _in_both_worlds(folder, method, pairs, steps=0):
        found += differences(d, e)
        if name == "public" and moved(d, e) != [0.0] * len(d.calls):
            found.append("an image that is public moved a sum")
    return found


_CHOICE_OF_MATRICES = 4  # its place among the sums


def two_worlds_of_chosen_matrices(folder: Path) -> list[str]:
    """A choice of matrices, in worlds that differ in an image, in a group, or in what has a gradient of zero."""
    random = np.random.default_rng(7)
    public = ImageDataset(images=random.integers(0, 256, (40, 8, 8, 1), np.uint8), name="shown", public=True)
    last, network, found = len(IMAGES) - 1, MLP(width=8, blocks=1), []
    inserted, alone = np.roll(np.arange(len(IMAGES)), 1), IMAGES.part(range(1))
    pairs = {
        "image": [(IMAGES, IMAGES.part(range(last)))],
        "alone": [(alone, dataclasses.replace(alone, images=public.images[:1]))],  # of which one is blank
        "place": [(IMAGES.part(inserted), IMAGES.part(range(last)))],
        "group": [(GROUPED, GROUP_NEIGHBOURS["a group of twenty alike"])],
        "public": [tuple(plus(IMAGES, image, 1) for image in (public.images[0], public.images[1]))],
    }
    none = {"image": [(IMAGES, IMAGES.part(range(last)))]}
    for first, of_these in ((1.0, pairs), (0.0, none)):  # where all weights are zero, no matrix has a gradient
        start = worlds.public_start(network, public, IMAGES.class_names, scale=0.3 * first, first_scale=first)
        start = dataclasses.replace(start, trains="chosen:3", gains=False)
        method = Diffusion(network=network, prior=Prior(centres=1), start=start)
        try:
            for name, d, e in _in_both_worlds(folder / f"{first}", method, of_these, steps=1, expected_batch_size=5):
                if name == "place":  # by which the step selects
                    d.calls.pop(), e.calls.pop()
                found += differences(d, e)
                if name == "public" and moved(d, e)[_CHOICE_OF_MATRICES] > 0:
                    found.append("an image that is public moved the choice")
        except RuntimeError as error:  # the noisy gradient of the one world is of other shapes than the other's
            found.append(f"weights of other matrices train: {error}")
    return found


def two_worlds_of_latents(folder: Path) -> list[str]:
    """A prior of latents, in worlds that differ in an image, in a group, and in what is public."""
    random = np.random.default_rng(7)
    public = ImageDataset(images=random.integers(0, 256, (40, 8, 8, 1), np.uint8), name="shown", public=True)
    too = [tuple(plus(IMAGES, image, 1) for image in (public.images[0], public.images[1]))]
    return _two_worlds_of(worlds.public_codec(public), folder, public=too)


def two_worlds_of_poses(folder: Path) -> list[str]:
    """A prior of images without pose, in worlds that differ in an image or in a group."""
    return _two_worlds_of(Pose(), folder)


def _two_worlds_of(codec: Codec | Pose, folder: Path, **more: list) -> list[str]:
    last, found = len(IMAGES) - 1, []
    method = PriorAlone(prior=Prior(centres=1), codec=codec)
    inserted = np.roll(np.arange(len(IMAGES)), 1)
    pairs = {
        "image": [(IMAGES, IMAGES.part(range(last))), (IMAGES.part(inserted), IMAGES.part(range(last)))],
        "group": [(GROUPED, GROUP_NEIGHBOURS["a group of twenty alike"])],
        "blank": [(blank_equal(IMAGES, IMAGES.part(np.array([last]))), IMAGES.part(range(last)))],
        **more,
    }
    for name, d, e in _in_both_worlds(folder, method, pairs):
        found += differences(d, e)
        if name in ("public", "blank") and moved(d, e) != [0.0] * len(d.calls):
            found.append(f"an image that is {name} moved a sum")
    return found


def two_worlds_of_trajectories(folder: Path) -> list[str]:
    """Retrieval of public trajectories, in worlds that differ in an image; and the noise levels of private steps."""
    random = np.random.default_rng(7)
    public = ImageDataset(images=random.integers(0, 256, (40, 8, 8, 1), np.uint8), name="shown", public=True)
    small = {"network": MLP(width=8, blocks=1), "preconditioning": EDM(), "loss": DenoisingLoss(noise_multiplicity=2)}
    start = worlds.public_start(small["network"], public, IMAGES.class_names, preconditioning=EDM())
    start = dataclasses.replace(start, gains=False)
    method = Diffusion(**small, start=start, retrieval=Retrieval(keep=8))
    pairs = {"image": [(IMAGES, IMAGES.part(range(len(IMAGES) - 1))), (IMAGES, IMAGE_NEIGHBOURS["white"])]}
    load, found = Loader.__call__, []

    def watched(self, units, random_bytes):
        batch = load(self, units, random_bytes)
        if (batch.sigma > 1).any():  # above `retrieval.level`
            found.append("a private step was taken at a noise level of public trajectories")
        return batch

    with mock.patch.object(Loader, "__call__", watched):
        for _, d, e in _in_both_worlds(folder, method, pairs, public=public, steps=3, expected_batch_size=6):
            found += differences(d, e)
    return found


def two_worlds_of_prototypes(folder: Path) -> list[str]:
    """Private labels for public images, in worlds that differ in an image, in a group, and in what is public."""
    random = np.random.default_rng(7)
    drawn = {"images": random.integers(0, 256, (40, 8, 8, 1), np.uint8), "labels": np.arange(40) % 5}
    public = ImageDataset(**drawn, num_classes=5, name="shown", public=True)
    last, found = len(IMAGES) - 1, []
    prior = Prior(centres=1, share=0.5)
    method = Labels(embedding=Embedding(features="pixels"), per_class=8, prior=prior, public_classes=2, choice=0.2)
    inserted = np.roll(np.arange(len(IMAGES)), 1)
    pairs = {
        "image": [(IMAGES, IMAGES.part(range(last))), (IMAGES.part(inserted), IMAGES.part(range(last)))],
        "class": [(IMAGES, IMAGE_NEIGHBOURS["first of its class"]), (IMAGES, plus(IMAGES, np.zeros(64, np.uint8), 2))],
        "group": [(GROUPED, GROUP_NEIGHBOURS["a group of twenty alike"])],
        "public": [tuple(plus(IMAGES, image, 1) for image in (public.images[0], public.images[1]))],
    }
    for name, d, e in _in_both_worlds(folder, method, pairs, public=public):
        found += differences(d, e)
        if name == "public" and moved(d, e) != [0.0] * len(d.calls):
            found.append("an image that is public moved a sum")
    return found


def two_worlds_of_features(folder: Path) -> list[str]:
    """Sums of features in worlds that differ in an image, in a group, or in one that is blank."""
    last, found = len(IMAGES) - 1, []
    inserted = IMAGES.part(np.roll(np.arange(len(IMAGES)), 1))
    one_image = [(IMAGES, IMAGE_NEIGHBOURS[name]) for name in ("white", "first of its class")]
    pairs = {
        "image": [(inserted, IMAGES.part(range(last))), *one_image],
        "group": [(GROUPED, GROUP_NEIGHBOURS["a group of twenty alike"])],
        "blank": [(blank_equal(IMAGES, IMAGES.part(np.array([last]))), IMAGES.part(range(last)))],
    }
    in_public = PublicFeatures(embedding=Embedding(features="random-convnet", size=8))
    for number, features in enumerate((Fourier(number=8), NTK(width=4), in_public)):
        method = MeanEmbedding(features=features, updates=2, batch_size=12, latent=2, width=16)
        for name, d, e in _in_both_worlds(folder / str(number), method, pairs):
            found += differences(d, e)
            if name == "blank" and moved(d, e) != [0.0] * len(d.calls):
                found.append("an image that is blank moved a sum")
    return found


def two_worlds_of_noisy_embeddings(folder: Path) -> list[str]:
    """Noisy sums of embeddings, in worlds that differ in an image, a group, or what is public."""
    random = np.random.default_rng(7)
    public = ImageDataset(images=random.integers(0, 256, (40, 8, 8, 1), np.uint8), name="shown", public=True)
    method = AggregatedEmbeddings(
        embedding=Embedding(features="pixels"), queries=6, directions=4, neighbours=3, locality=2.0
    )
    last, found = len(IMAGES) - 1, []
    inserted = np.roll(np.arange(len(IMAGES)), 1)
    pairs = {
        "image": [
            (IMAGES, IMAGES.part(range(last))),
            (IMAGES.part(inserted), IMAGES.part(range(last))),
            (IMAGES, plus(IMAGES, np.zeros(64, np.uint8), 2)),
        ],
        "group": [(GROUPED, GROUP_NEIGHBOURS["a group of twenty alike"])],
        "public": [tuple(plus(IMAGES, image, 1) for image in (public.images[0], public.images[1]))],
    }
    for name, d, e in _in_both_worlds(folder, method, pairs, public=public, expected_batch_size=12):
        found += differences(d, e)
        if name == "public" and moved(d, e) != [0.0] * len(d.calls):
            found.append("an image that is public moved a sum")
    return found


def _neighbours() -> dict[str, list[tuple[ImageDataset, ImageDataset]]]:
    """Return pairs that differ in an image, in a group, or in one that is blank."""
    last = len(IMAGES) - 1
    inserted = IMAGES.part(np.roll(np.arange(len(IMAGES)), 1))
    return {
        "image": [(inserted, IMAGES.part(range(last))), (IMAGES, IMAGE_NEIGHBOURS["first of its class"])],
        "group": [(GROUPED, GROUP_NEIGHBOURS["a group of twenty alike"])],
        "blank": [(blank_equal(IMAGES, IMAGES.part(np.array([last]))), IMAGES.part(range(last)))],
    }


def two_worlds_of_a_discriminator(folder: Path) -> list[str]:
    """A generator and what it is trained against, in worlds that differ in an image, a group, or a blank image."""
    return _two_worlds_of_steps(folder, GAN(width=16, latent=2, discriminator_width=4, batch_size=8, most_steps=3))


def two_worlds_of_aggregates(folder: Path) -> list[str]:
    """A generator and sums of a critic's features, in worlds that differ in an image, a group, or a blank image."""
    small = {"width": 16, "discriminator_width": 4, "batch_size": 12, "updates": 1}
    return _two_worlds_of_steps(folder, AggregatedGAN(latent=2, lower_every=2, **small))


def two_worlds_of_a_flow(folder: Path) -> list[str]:
    """An autoencoder and a flow on its codes, in worlds that differ in an image, a group, or a blank image."""
    small = {"encoder_width": 4, "width": 16, "couplings": 2, "coupling_width": 4}
    return _two_worlds_of_steps(folder, LatentFlow(latent=3, flow_share=0.25, **small))


def two_worlds_of_shards(folder: Path) -> list[str]:
    """Shards whose critics are the worst there are, in worlds that differ in an image, a group, or a blank image.

    A critic turns its gradient round when there is one image more or fewer, and otherwise tells its images apart a
    little. So one shard that changes moves a sum by all of its sensitivity, and a second one would move it further.
    """
    method = SanitizedGAN(shards=3, width=16, latent=2, discriminator_width=4, batch_size=6, warm_updates=0)
    pairs, found = _neighbours(), []
    pairs["image"] = [(pairs["image"][0][0], pairs["blank"][0][1]), (IMAGES, IMAGE_NEIGHBOURS["added"])]
    three = worlds.images(3, seed=9)  # one by one, each would be in a shard of its own
    pairs["group"] = [(GROUPED, worlds.plus_group(GROUPED, three.images, three.labels.tolist()))]

    def worst(self, shard_indices, random_bytes):
        rows = torch.zeros(len(shard_indices), *self.made[0].shape)
        for row, shard in zip(rows, shard_indices, strict=True):
            own = self.members[shard]
            place = int(self.data.images[own].sum(dtype=np.int64)) % row.numel()
            row += 1e6 * (1 - 2 * (len(own) % 2))
            row.view(-1)[place] += 1e5
        return shards.Upstream(rows)

    with mock.patch.object(shards.ShardLoader, "__call__", worst):
        for name, d, e in _in_both_worlds(folder, method, pairs, steps=4, expected_batch_size=3, max_grad_norm=0.05):
            found += differences(d, e)
            most = max(moved(d, e))
            if name == "blank" and most > 1e-6:
                found.append("an image that is blank moved a sum")
            if name != "blank" and most < 0.999 * 0.05:
                found.append(f"the worst critic moved a sum by {most} only")
    return found


def _two_worlds_of_steps(folder: Path, method) -> list[str]:
    found = []
    pairs = _neighbours()  # which differ in the last image, so that the draws of all others are the same
    pairs["image"] = [(IMAGES, IMAGE_NEIGHBOURS[name]) for name in ("removed", "white")]
    steps = {"steps": 4, "expected_batch_size": 9, "max_grad_norm": 0.05}
    for name, d, e in _in_both_worlds(folder, method, pairs, **steps):
        found += differences(d, e)
        if name == "blank" and max(moved(d, e)) > 1e-6:
            found.append("an image that is blank moved a sum")
    return found


def two_worlds_of_a_teacher(folder: Path) -> list[str]:
    """A classifier and the public images it labels, in worlds that differ in an image, a group, or what is public."""
    random = np.random.default_rng(7)
    public = ImageDataset(images=random.integers(0, 256, (40, 8, 8, 1), np.uint8), name="shown", public=True)
    method, found = Teacher(per_class=3, width=2), []
    pairs = _neighbours()  # which differ in the last image, so that the draws of all others are the same
    pairs["image"] = [(IMAGES, IMAGE_NEIGHBOURS[name]) for name in ("removed", "white")]
    pairs["public"] = [(plus(IMAGES, public.images[0], 1), IMAGES)]
    steps = {"steps": 4, "expected_batch_size": 9, "max_grad_norm": 0.05}
    for name, d, e in _in_both_worlds(folder, method, pairs, public=public, **steps):
        found += differences(d, e)
        if name in ("blank", "public") and max(moved(d, e)) > 1e-6:
            found.append("an image that is blank moved a sum")
    return found


def two_worlds_of_histograms(folder: Path) -> list[str]:
    """Histograms of projections, in worlds that differ in an image, a group, or a blank image."""
    method, found = SlicedWasserstein(directions=6, bins=4, updates=2, batch_size=64, latent=2, width=16), []
    for name, d, e in _in_both_worlds(folder, method, _neighbours()):
        found += differences(d, e)
        if name == "blank" and moved(d, e) != [0.0] * len(d.calls):
            found.append("an image that is blank moved a sum")
    return found


def two_worlds_of_distillation(folder: Path) -> list[str]:
    """Images that follow sums of random networks' features, in worlds that differ in an image, a group, or a blank."""
    in_networks = PublicFeatures(embedding=Embedding(features="random-convnets", size=8))
    method, found = Distillation(features=in_networks, images=2, updates=2), []
    for name, d, e in _in_both_worlds(folder, method, _neighbours()):
        found += differences(d, e)
        if name == "blank" and moved(d, e) != [0.0] * len(d.calls):
            found.append("an image that is blank moved a sum")
    return found


def images_of_a_release(folder: Path) -> list[str]:
    """A run that begins with a network trained on images of another run's release: its claim must count both."""
    network, method = MLP(width=8, blocks=1), PriorAlone(prior=Prior(centres=1))
    asked = {"dataset_size": 12, "delta": 1e-13}
    plan = method.plan(epsilon=3.0, **asked)
    first = Trainer(method=method, plan=plan, run=folder / "first", entropy=OperatingSystemEntropy(), ledger=None)
    first.fit(IMAGES)
    images, earlier = drawn.open_drawn(str(folder / "first"), count=64)
    facts = ImageFacts(IMAGES.shape, IMAGES.class_names)
    for _ in Pretraining(
        public=images, facts=facts, method=Diffusion(network=network), minutes=1e-6, earlier=earlier
    ).steps(folder / "start"):
        pass
    second = Diffusion(network=network, prior=Prior(centres=1), start=Start(sources=(str(folder / "start"),)))
    config = Config(
        data=Data(source="?"),
        method=second,
        privacy=Privacy(epsilon=9.0, steps=0, **asked),
        machine=Machine(device="cpu"),
    )
    Trainer.from_config(config, IMAGES, run=folder / "second", ledger=lambda: None).fit(IMAGES)
    one, both = (json.loads((folder / run / "release" / "privacy.json").read_text()) for run in ("first", "second"))
    noise = [[event["noise_multiplier"] for event in claim["events"]] for claim in (one, both)]
    made = len(noise[0]) + len(both["releases"])
    if noise[1][: len(noise[0])] != noise[0] or len(noise[1]) != made:
        return [f"{made} noisy sums were made in all, and {len(noise[1])} are claimed"]
    return []


def _in_both_worlds(folder: Path, method, pairs, *, public=None, **steps) -> Iterator[tuple[str, World, World]]:
    """Yield the kind of each pair of data sets, and the worlds of a run on either."""
    for name, both in pairs.items():
        unit = "group" if name == "group" else "image"
        sound = method.plan(epsilon=3.0, dataset_size=12, delta=1e-13, unit=unit, **steps)
        fields = {field.name: getattr(sound, field.name) for field in dataclasses.fields(sound)}
        for number, (one, other) in enumerate(both):
            d, e = World(), World()
            e.replay = d
            for world, data in ((d, one), (e, other)):
                plan = RecordingPlan.of(world, **fields)
                entropy = InsecureSeededEntropy(0)
                place = folder / f"{name} {number} {world is d}"
                trainer = Trainer(method=method, plan=plan, public=public, run=place, entropy=entropy, ledger=None)
                world.observed = {"weights": dict(trainer.fit(data).generator.state_dict())}
            yield name, d, e


def known_again(folder: Path) -> list[str]:
    """A registered folder of images beside what is prepared from it, at another size and by another name."""
    for number, image in enumerate(IMAGES.images):
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).resize((16, 16)).save(folder / "photos" / f"{number}.png")
    book = Ledger(str(folder / "ledger.sqlite"))
    photos = open_dataset(folder / "photos", size=8)
    book.register(Records.of(photos), epsilon=1.0, delta=1e-5, relation="add_or_remove_one")
    prepare(
        folder / "ready",
        lambda read: open_dataset(folder / "photos", size=10, read=read),
        Framing(size=10, channels=1),
    )
    others = dataclasses.replace(open_dataset(folder / "ready"), name="others")
    try:
        book.register(Records.of(others), epsilon=1.0, delta=1e-5, relation="add_or_remove_one")
    except InputError:
        return []
    return ["the same images have a budget under each of two names"]


def runs_on_a_benchmark(folder: Path) -> list[str]:
    """Two runs on a benchmark beside what their releases say, and the same images by another name."""
    book = Ledger(str(folder / "ledger.sqlite"), tell=lambda line: None)
    shared = dataclasses.replace(IMAGES, public=True)
    method = PriorAlone(prior=Prior(centres=1))
    plan = method.plan(epsilon=1.0, dataset_size=12, delta=1e-3)
    book.declare_benchmark(Records.of(shared), delta=plan.delta, relation=plan.relation)
    said = [
        Trainer(method=method, plan=plan, run=folder / name, ledger=book).fit(shared).statement for name in ("a", "b")
    ]
    together = f"ε ≤ {upwards(book.account(shared.name).epsilon_if_planned)} together"
    found = [] if said[1].startswith("BENCHMARK: 2 runs") and together in said[1] else ["another sum than the ledger's"]
    try:
        book.register(Records("others", IMAGES.images), epsilon=1.0, delta=1e-3, relation=plan.relation)
        found.append("its images have a total by another name")
    except InputError:
        pass
    try:
        Trainer(method=method, plan=plan, ledger=book).fit(dataclasses.replace(shared, images=255 - shared.images))
        found.append("other images, whatever was spent on them, go by its name")
    except InputError:
        pass
    return found


def statistics(folder: Path, *, entropy=None) -> list[str]:
    """`dpdm audit`'s checks of noise and batch selection."""
    before = {"first": 5.0, "second": 3.0}
    plan = DPSGD(dataset_size=300, expected_batch_size=30, steps=100, noise_multiplier=1.5, delta=1e-3, releases=before)
    checks = parametric.check_mechanism(plan, draws=400_000, entropy=entropy)
    return [check.name for check in checks if not check.passed]


def noise_of_the_prior(folder: Path) -> list[str]:
    """`dpdm audit`'s checks of the noise on the sums that a prior is made of, as these are released."""
    settings = Prior(centres=2, rounds=2)
    plan = DPSGD(
        dataset_size=12,
        expected_batch_size=5,
        steps=0,
        delta=1e-3,
        releases=settings.releases(epsilon=1, delta=1e-3),
    )
    run = WatchedRun(plan, took_part=np.arange(10) < 5, strategy=OneBackwardEach())
    prior.release_prior(in_memory(run, len(IMAGES)), IMAGES, settings)
    return [check.name for check in parametric.check_sums(run.sums) if not check.passed]


def four_processes(folder: Path, *, share_of_noise: str = "") -> list[str]:
    """The noise that four processes get, as one run."""
    change = _NOISE_OF_EACH.replace("SHARE", share_of_noise) if share_of_noise else ""
    result = launch(4, change + WORKER, "continuous", 40, 0.5, folder=folder)
    assert result.returncode == 0, result.stderr
    saw = [json.loads(path.read_text()) for path in sorted(folder.glob("saw*.json"))]
    off = [each["std"] for each in saw if abs(each["std"] / (2.0 * 0.5) - 1) > 5 * (2 * 8 * 20_000) ** -0.5]
    return [f"noise of standard deviation {std}, accounted 1{', twice' * (1.9 < std < 2.1)}" for std in off]


_NOISE_OF_EACH = """
from dpdm.privacy.mechanism import MechanismRun
from dpdm.privacy.noise import gaussian

def release(self, total, *, sensitivity):
    if self._made == self._journal.spent:
        self._journal.reserve(self._at_once())
    std = self.plan.noise_std(self._made, sensitivity) * (SHARE)
    self._made += 1
    return self.processes.sum(total + gaussian(len(total), std=std, random_bytes=self._stream("noise")))

MechanismRun._release = release
"""


def canaries(folder: Path) -> list[str]:
    """`dpdm audit`'s canaries in every noisy sum."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    data = ImageDataset(images=pixels, labels=np.arange(300) % 3, num_classes=3, name="made up")
    plan = DPSGD(dataset_size=300, expected_batch_size=60, steps=30, noise_multiplier=4.2, delta=1e-3)
    config = Config(
        data=Data(source="made up"),
        method=Diffusion(
            network=MLP(width=8, blocks=1),
            preconditioning=EDM(),
            loss=DenoisingLoss(noise_multiplicity=1, label_dropout=0.0),
        ),
        machine=Machine(precision="float32", strategy="vectorized"),
    )
    *_, played = train_with_canaries(config, plan, data, canaries=3000, members=20, coins=rng)
    assert isinstance(played, AuditedRun)
    bounds = lower_bounds(played.scores, played.took_part, delta=plan.delta)
    found = max(bounds.one_run, bounds.one_run_gaussian, bounds.gaussian)
    return [f"ε ≥ {found}, claimed {plan.epsilon()}"] if found > plan.epsilon() else []


def journal(folder: Path) -> list[str]:
    """Noisy sums are counted beside a run that dies without a word, again and again."""
    plan = DPSGD(dataset_size=100, expected_batch_size=10, steps=6, noise_multiplier=4.0, delta=1e-3)
    path, made, found = folder / "journal.jsonl", 0, []
    for _ in range(5):
        run = plan.start(path)
        if run.steps_spent < made:
            found.append(f"{made} noisy sums were made, and the journal says {run.steps_spent}")
        for _ in range(2):
            try:
                run._release(torch.zeros(1, dtype=torch.float64), sensitivity=1.0)
            except InputError:
                break
            made += 1
        run.close()
    if made > plan.steps:
        found.append(f"{made} noisy sums were made, and {plan.steps} were planned")
    return found


def verification(folder: Path, *, tamper=None) -> list[str]:
    """`dpdm verify` on a release."""
    plan = DPSGD(dataset_size=12, expected_batch_size=5, steps=2, noise_multiplier=4.0, delta=1e-3)
    sound = fit(World(), IMAGES, folder / "run", plan=PLAN | {"steps": 2})
    release = Release.load(folder / "run")
    settings = release.settings | {"plan": encode(plan)}
    claim = claim_of(plan, (), entropy=mechanism.OperatingSystemEntropy())
    release = dataclasses.replace(release, settings=settings, claim=claim)
    assert sound.calls
    release.save(folder / "release")
    if tamper is not None:
        tamper(folder / "release")
    try:
        verify_release(folder / "release")
    except InputError as error:
        return [str(error)]
    return []


def one_row_each(indices, random_bytes) -> tuple[torch.Tensor, ...]:
    return (torch.ones(len(indices), 2),)


def refusal(folder: Path, *, module: nn.Module | None = None, load=one_row_each, strategy=None) -> list[str]:
    """What would make a record weigh more than it should is refused before anything is spent."""
    run = DPSGD(dataset_size=10, expected_batch_size=9, steps=2, noise_multiplier=4.0, delta=1e-3).start(
        strategy=strategy
    )
    module = module or nn.Sequential(nn.Linear(2, 2), *_MIXING)
    try:
        run.backward(lambda m, batch: m(batch[0]).sum(1), module, num_records=10, load=load)
    except InputError as error:
        return [str(error)] if not run.spent else ["something was spent before"]
    return []


_MIXING: list[nn.Module] = []


class Noisy(nn.Linear):
    """A network that draws: dropout, by the generator that all share."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5)


class Experts(nn.Module):
    """Two layers, between which rows are shared out by what is in them."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x, c_noise=None, labels=None):
        rows = x.flatten(1)
        high = (rows[:, 0] if c_noise is None else c_noise) > 0.25
        out = torch.zeros_like(rows)
        out[high], out[~high] = self.high(rows[high]), self.low(rows[~high])
        return out.view_as(x)


class OneExpert(nn.Linear):
    def forward(self, x, c_noise, labels):
        return super().forward(x.flatten(1)).view_as(x)


def uneven(indices, random_bytes) -> tuple[torch.Tensor, ...]:
    return (torch.stack([torch.tensor([float(i % 3), 1.0]) for i in indices]),)


def mirrored(indices, random_bytes) -> tuple[torch.Tensor, ...]:
    return (torch.cat([*one_row_each(indices, random_bytes), -one_row_each(indices, random_bytes)[0]]),)


def layer_wise(folder: Path, *, network: Callable[[], nn.Module] = lambda: OneExpert(64, 64)) -> list[str]:
    """A record moves a sum of clipped gradients by no more than the clipping norm, layer by layer."""
    module = PreconditionedDenoiser(network(), EDM())
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    sigma = torch.tensor([[4.0] * high + [1e-3] * (4 - high) for high in (1, 2, 2, 2, 2, 2, 2, 3)])
    x = torch.full((8, 1, 8, 8), 0.3)
    x[3] = -1.0
    noise = torch.randn(1, 1, 1, 8, 8, generator=torch.Generator().manual_seed(3)).expand(8, 4, 1, 8, 8)
    batch, loss = NoisyBatch(x, torch.zeros(8, 4, dtype=torch.long), sigma, noise), DenoisingLoss(noise_multiplicity=4)

    def total(keep: list[int]) -> torch.Tensor:
        some = NoisyBatch(*(part[keep] for part in batch))
        return clipped_grad_sum(loss, module, some, max_grad_norm=1e-3, strategy=LayerWise()).vector

    whole = total([*range(8)])
    without = [total([i for i in range(8) if i != gone]) for gone in range(1, 7)]
    distances = [float((whole - part).norm()) / 1e-3 for part in without]
    return [f"a record moves the sum by {max(distances):.3f} C"] if max(distances) > 1 + 1e-6 else []


def length_layer_wise(folder: Path) -> list[str]:
    """Clipped gradients are no longer than the clipping norm, layer by layer."""
    found = []
    for row in torch.randn(50, 8, generator=torch.Generator().manual_seed(0)):
        part = clipped_grad_sum(
            lambda m, batch: m(batch[0]).square().sum(1) * 1e3,
            nn.Linear(8, 8, bias=False),
            (row[None],),
            max_grad_norm=1.0,
            strategy=LayerWise(),
        )
        length = float(part.vector.norm())
        found += [f"a gradient of length {length}"] if length > 1 else []
    return found


def stated(folder: Path) -> list[str]:
    """A statement says no smaller ε and δ than were computed."""
    found = []
    for delta in (1.2345649e-05, 9.9999949e-06, 1e-5):
        plan = DPSGD(dataset_size=1000, expected_batch_size=10, steps=3, noise_multiplier=2.0, delta=delta)
        epsilon_said, delta_said = map(float, re.findall(r"[\d.e-]+", plan.statement)[:2])
        if epsilon_said < plan.epsilon() or delta_said < delta:
            found.append(f"({epsilon_said}, {delta_said}) is stated, ({plan.epsilon()}, {delta}) was computed")
    return found


def bound_on_the_grid(folder: Path) -> list[str]:
    """Clipped gradients on the grid are no longer than the clipping norm."""
    rows = torch.randn(200, 2000, generator=torch.Generator().manual_seed(0))
    found = []
    for row in rows:
        part = clipped_grad_sum(
            lambda m, batch: batch[0] @ m.weight[0],
            nn.Linear(2000, 1, bias=False),
            (row[None],),
            max_grad_norm=1.0,
            grid=grid_step(1.0),
        )
        length = float(torch.linalg.vector_norm(part.vector))
        found += [f"a gradient of length {length}"] if length > 1 else []
    return found


# --- faults --------------------------------------------------------------------------------------------------------


def after(patch: Patch, change: Callable[[MechanismRun, nn.Module, Any, int], None]) -> None:
    """Have `change` look at every step's gradients, diagnostics and number of records, and alter the gradients."""
    backward = MechanismRun.backward

    def changed(self, loss, module, *, num_records, load, physical_batch_size=64):
        sound = backward(
            self, loss, module, num_records=num_records, load=load, physical_batch_size=physical_batch_size
        )
        change(self, module, sound, num_records)
        return sound

    patch.setattr(MechanismRun, "backward", changed)


def scale_noise(factor: float) -> Callable[[Patch], None]:
    def inject(patch: Patch) -> None:
        sound = Plan.noise_std
        patch.setattr(Plan, "noise_std", lambda self, number, size: factor * sound(self, number, size))

    return inject


def noise_by_step(key: Callable[[int], int]) -> Callable[[Patch], None]:
    """Take the noise of a step from a key that is a function of its number."""

    def inject(patch: Patch) -> None:
        sound = MechanismRun._stream

        def stream(self, purpose):
            if purpose != "noise":
                return sound(self, purpose)
            return InsecureSeededEntropy(7).stream(purpose, key(self._made))

        patch.setattr(MechanismRun, "_stream", stream)

    return inject


def uniform_noise(patch: Patch) -> None:
    def noise(number, *, std, random_bytes):
        words = np.frombuffer(random_bytes(8 * number), dtype=np.uint64)
        return torch.from_numpy((words / 2.0**64 - 0.5) * std * math.sqrt(12))

    patch.setattr(mechanism, "gaussian", noise)


def normal_in_every_other_coordinate(patch: Patch) -> None:
    sound = mechanism.gaussian

    def noise(number, *, std, random_bytes):
        values = sound(number, std=std, random_bytes=random_bytes)
        values[1::2] = values[1::2].sign() * std
        return values

    patch.setattr(mechanism, "gaussian", noise)


def second_half_like_the_first(patch: Patch) -> None:
    sound = mechanism.gaussian

    def noise(number, *, std, random_bytes):
        half = sound(-(-number // 2), std=std, random_bytes=random_bytes)
        return torch.cat([half, half])[:number]

    patch.setattr(mechanism, "gaussian", noise)


def keystream_from_the_step(patch: Patch) -> None:
    """One key for a run, and the step's number as the first counter: AES makes one pair of draws of each."""

    def stream(self, purpose):
        if purpose != "noise":
            return self._entropy.stream(purpose, self._made)
        key = vars(self).setdefault("key", int.from_bytes(os.urandom(8)))
        stream = InsecureSeededEntropy(key).stream(purpose, 0)
        stream(16 * self._made)
        return stream

    patch.setattr(MechanismRun, "_stream", stream)


def every_other_noise_from(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Patch], None]:
    """Make every other noise from the one before it, if it is as long."""

    def inject(patch: Patch) -> None:
        sound, last = mechanism.gaussian, [torch.zeros(0)]

        def noise(number, *, std, random_bytes):
            if len(last[0]) == number:
                values, last[0] = change(last[0]) * std, torch.zeros(0)
                return values
            values = sound(number, std=std, random_bytes=random_bytes)
            last[0] = values / std
            return values

        patch.setattr(mechanism, "gaussian", noise)

    return inject


def in_another_order(noise: torch.Tensor) -> torch.Tensor:
    return -noise.view(-1, 2)[torch.randperm(len(noise) // 2)].flatten() if len(noise) % 2 == 0 else noise


def of_the_same_lengths(noise: torch.Tensor) -> torch.Tensor:
    if len(noise) % 2:
        return noise
    angle = 2 * math.pi * torch.rand(len(noise) // 2, dtype=torch.float64)
    return (noise.view(-1, 2).norm(dim=1)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)).flatten()


def one_noise_for_each_row(patch: Patch) -> None:
    """Take a matrix for a sum, and add one noise to all of a row."""
    sound, vector = MechanismRun._release, mechanism._require_vector
    patch.setattr(mechanism, "_require_vector", lambda total, sensitivity: None)

    def release(self, total, *, sensitivity):
        if total.ndim < 2:
            vector(total, sensitivity)
            return sound(self, total, sensitivity=sensitivity)
        of_rows = sound(self, torch.zeros(len(total), dtype=torch.float64), sensitivity=sensitivity)
        return total + of_rows.view(-1, *[1] * (total.ndim - 1))

    patch.setattr(MechanismRun, "_release", release)


def prior_of_matrices(patch: Patch) -> None:
    """Release the sums of a prior as matrices, with one noise for each row."""
    one_noise_for_each_row(patch)
    release = WatchedRun.release

    def as_matrix(self, name, bounded, *, num_records):
        rows = next(rows for rows in (8, 5, 3, 2, 1) if len(bounded.total) % rows == 0)
        matrix = bounded._replace(total=bounded.total.view(rows, -1))
        noisy = release(self, name, matrix, num_records=num_records)
        return noisy._replace(values=noisy.values.flatten())

    patch.setattr(WatchedRun, "release", as_matrix)


def one_noise_for_each_row_of_a_weight(patch: Patch) -> None:
    def change(run, module, diagnostics, num_records):
        for p in module.parameters():
            if p.ndim > 1:
                p.grad = p.grad.flatten(1)[:, :1].expand(-1, p[0].numel()).reshape(p.shape)

    after(patch, change)


def batches_moved_by_a_record(patch: Patch) -> None:
    """Every other batch is the one before it, one record on."""
    sound, last = mechanism.poisson, []

    def moved(records, *, sample_rate, random_bytes):
        if last:
            return np.sort((last.pop() + 1) % records)
        last.append(sound(records, sample_rate=sample_rate, random_bytes=random_bytes))
        return last[0]

    patch.setattr(mechanism, "poisson", moved)


def batches_of_the_sizes_before(patch: Patch) -> None:
    """Every other batch is the one before it, of other records."""
    sound, last = mechanism.poisson, []

    def renamed(records, *, sample_rate, random_bytes):
        if last:
            return np.sort(np.random.default_rng().permutation(records)[: len(last.pop())])
        last.append(sound(records, sample_rate=sample_rate, random_bytes=random_bytes))
        return last[0]

    patch.setattr(mechanism, "poisson", renamed)


def rows_unchecked(patch: Patch) -> None:
    for module in (clipping, mechanism):
        patch.setattr(module, "require_rows", lambda batch, records=None: None)


def draws_unchecked(patch: Patch) -> None:
    patch.setattr(clipping, "no_shared_draws", nullcontext)
    patch.setattr(mechanism, "no_shared_draws", nullcontext)


def dropout_under_a_known_seed(patch: Patch) -> None:
    draws_unchecked(patch)
    forward, build = worlds.Network.forward, worlds.build

    def dropped(self, x, c_noise, labels):
        return nn.functional.dropout(forward(self, x, c_noise, labels), 0.5)

    def seeded(seed=0):
        torch.manual_seed(7)
        return build(seed)

    patch.setattr(worlds.Network, "forward", dropped)
    patch.setattr(worlds, "build", seeded)


def layers_unchecked(patch: Patch) -> None:
    def unchecked(self, loss, module, batch):
        yield self._gradients(loss, module, batch)

    patch.setattr(LayerWise, "__call__", unchecked)


def rounded_products(patch: Patch) -> None:
    """Round the operands of products to ten bits, as TF32 does, after norms were taken without."""
    sound = layer_rules.Factored.weighted_sum

    def rounded(t: torch.Tensor) -> torch.Tensor:
        return ((t.float().contiguous().view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)

    patch.setattr(
        layer_rules.Factored,
        "weighted_sum",
        lambda self, factors: sound(self._replace(a=rounded(self.a), g=rounded(self.g)), factors),
    )


def delta_rounded_to_nearest(patch: Patch) -> None:
    sound = Plan.statement.fget
    patch.setattr(Plan, "statement", property(lambda self: sound(self).replace(repr(self.delta), f"{self.delta:g}", 1)))


def batches_by_step(key: Callable[[int], int]) -> Callable[[Patch], None]:
    """Select the batch of a step by a key that is a function of its number."""

    def inject(patch: Patch) -> None:
        sound = MechanismRun._stream

        def stream(self, purpose):
            if purpose != "selection":
                return sound(self, purpose)
            return InsecureSeededEntropy(7).stream(purpose, key(self._made))

        patch.setattr(MechanismRun, "_stream", stream)

    return inject


def no_noise(patch: Patch) -> None:
    patch.setattr(mechanism, "gaussian", lambda number, *, std, random_bytes: torch.zeros(number, dtype=torch.float64))


def shuffled_batches(patch: Patch) -> None:
    state: dict[str, Any] = {"order": np.empty(0, dtype=np.int64)}

    def shuffled(records, *, sample_rate, random_bytes):
        size = round(records * sample_rate)
        if len(state["order"]) < size:
            state["order"] = np.random.default_rng().permutation(records)
        chosen, state["order"] = state["order"][:size], state["order"][size:]
        return np.sort(chosen)

    patch.setattr(mechanism, "poisson", shuffled)


def batches_of_one_size(patch: Patch) -> None:
    def fixed(records, *, sample_rate, random_bytes):
        return np.sort(np.random.default_rng().choice(records, round(records * sample_rate), replace=False))

    patch.setattr(mechanism, "poisson", fixed)


def double_clip(patch: Patch) -> None:
    sound = clipping.clip_factors
    patch.setattr(clipping, "clip_factors", lambda norms, clip, numel: sound(norms, 2 * clip, numel))


def let_nan_through(patch: Patch) -> None:
    patch.setattr(clipping, "clip_factors", lambda norms, clip, numel: (clip / norms).clamp_max(1))
    patch.setattr(Rows, "weighted_sum", lambda self, factors: factors @ self.rows.double())


def norm_without_the_embedding(patch: Patch) -> None:
    embedding = 4 * (NUM_CLASSES + 1)  # the first parameter
    patch.setattr(Rows, "norms", lambda self: torch.linalg.vector_norm(self.rows[:, embedding:].double(), dim=1))


def clip_means_of_physical_batches(patch: Patch) -> None:
    sound = clipping.vectorized_rows

    def rows(loss, module, batch, parameters):
        each = sound(loss, module, batch, parameters)
        mean = each.rows.mean(0, keepdim=True).expand_as(each.rows)
        return Rows(mean, each.losses)

    patch.setattr(clipping, "vectorized_rows", rows)
    patch.setattr(
        clipping, "clip_factors", lambda norms, clip, numel: (clip / norms.mean()).expand_as(norms).clamp_max(1)
    )


def divide_by_the_realised_size(patch: Patch) -> None:
    def change(run, module, diagnostics, num_records):
        size = len(diagnostics.losses.reveal(because="a fault"))
        for p in module.parameters():
            p.grad *= run.plan.expected_batch_size / max(1, size)

    after(patch, change)


def divide_by_a_size_from_the_records(patch: Patch) -> None:
    def change(run, module, diagnostics, num_records):
        for p in module.parameters():
            p.grad *= run.plan.expected_batch_size / max(1, num_records * run.plan.sample_rate)

    after(patch, change)


def skip_steps_that_are_not_finite(patch: Patch) -> None:
    def change(run, module, diagnostics, num_records):
        if not diagnostics.losses.reveal(because="a fault").isfinite().all():
            for p in module.parameters():
                p.grad = None

    after(patch, change)


def skip_empty_batches(patch: Patch) -> None:
    backward, sound = MechanismRun.backward, mechanism.poisson

    def changed(self, loss, module, *, num_records, load, physical_batch_size=64):
        chosen = sound(num_records, sample_rate=self.plan.sample_rate, random_bytes=self._stream("selection"))
        if len(chosen):
            return backward(
                self, loss, module, num_records=num_records, load=load, physical_batch_size=physical_batch_size
            )
        self._made += 1
        return None

    patch.setattr(MechanismRun, "backward", changed)


def forget_on_resuming(patch: Patch) -> None:
    sound = Journal._read

    def read(self, path, claim):
        sound(self, path, claim)
        self.spent = 0

    patch.setattr(Journal, "_read", read)


def reserve_in_memory(patch: Patch) -> None:
    sound = Journal._append
    patch.setattr(Journal, "_append", lambda self, entry: sound(self, entry) if "claim" in entry else None)


def one_step_more(patch: Patch) -> None:
    def reserve(self, count):
        self._append({"spent": min(self.spent + 1, self.planned)})
        self.spent += 1
        return 1

    at = Plan.at
    patch.setattr(Journal, "reserve", reserve)
    patch.setattr(Plan, "at", lambda self, number: at(self, min(number, self.planned - 1)))


def moments_without_clipping(patch: Patch) -> None:
    patch.setattr(sums, "_clip", lambda rows, max_norm: rows.double())


def triangle_by_two(patch: Patch) -> None:
    patch.setattr(sums, "_isometry", lambda row, column: 1 + (row != column).double())


def class_counts_in_the_settings(patch: Patch) -> None:
    sound = Trainer.settings

    def settings(self, data, generator):
        plain = sound(self, data, generator)
        return plain | {"facts": plain["facts"] | {"counts": np.bincount(data.labels, minlength=3).tolist()}}

    patch.setattr(Trainer, "settings", settings)
    patch.setattr("dpdm.runs.trainer.require_readable", lambda *arguments: None)  # which would refuse the run


def earlier_releases_not_claimed(patch: Patch) -> None:
    sound = Plan.events
    patch.setattr(Plan, "events", lambda self, *, made=None: sound(self, made=made)[len(self.full) :])


def images_one_by_one(patch: Patch) -> None:
    patch.setattr(Loader, "__call__", Loader._draw)
    patch.setattr(ImageDataset, "num_units", property(len))


def images_at_full_weight(patch: Patch) -> None:
    patch.setattr(ImageDataset, "weights", property(lambda self: np.ones(len(self))))


def images_chosen_by_the_batch(patch: Patch) -> None:
    sound = DenoisingLoss.choose

    def choose(self, sizes, *, random_bytes):
        shared = random_bytes(16)
        return (sound(self, sizes, random_bytes=lambda count: shared) + len(sizes)) % sizes[:, None]

    patch.setattr(DenoisingLoss, "choose", choose)


def black_in_place_of_blank(patch: Patch) -> None:
    sound = Loader._draw

    def shown(self, images, random_bytes):
        batch = sound(self, images, random_bytes)
        return batch._replace(x=batch.x.nan_to_num(-1))

    patch.setattr(Loader, "_draw", shown)


def blank_images_vote(patch: Patch) -> None:
    sound = ImageDataset.weights.fget
    shown = lambda self: sound(dataclasses.replace(self, blank=None))  # noqa: E731
    patch.setattr(ImageDataset, "weights", property(shown))


def two_whole_votes(patch: Patch) -> None:
    sound = evolution.votes

    def twice(parts, *, bins):
        both = ((torch.cat([chosen, (chosen + 1) % bins], dim=1), weights) for chosen, weights in parts)
        return BoundedSum(sound(both, bins=bins).total * math.sqrt(2), 1.0)

    patch.setattr(evolution, "votes", twice)


def realised_divisor(patch: Patch) -> None:
    sound = Run.of_batch

    def of_batch(self, name, number, *, dimensions, load):
        seen = []

        def counted(units, draws):
            seen.append(len(units))
            return load(units, draws)

        noisy = sound(self, name, number, dimensions=dimensions, load=counted)
        expected = self.mechanism.plan.expected_batch_size
        return noisy._replace(values=noisy.values * expected / sum(seen))

    patch.setattr(Run, "of_batch", of_batch)


def nearest_rows_alone(patch: Patch) -> None:
    """Add the two rows that are next to a query, each as it is: one more displaces another."""
    sound = UnitRows.of_class

    def of_class(self, units, label, weigh):
        rows = sound(self, units, label, lambda rows: torch.ones(len(rows), dtype=torch.float64))
        near = torch.where(rows.any(1), weigh(rows), -1.0).topk(2).indices
        return torch.zeros_like(rows).index_copy_(0, near, rows[near])

    patch.setattr(UnitRows, "of_class", of_class)


def _votes_times(factor: float, module: types.ModuleType, patch: Patch) -> None:
    """Count each vote so many times, and state the sensitivity of one."""
    sound = module.votes

    def louder(parts, *, bins):
        total, sensitivity = sound(parts, bins=bins)
        return BoundedSum(factor * total, sensitivity)

    patch.setattr(module, "votes", louder)


def votes_of_norm_above_one(patch: Patch) -> None:
    _votes_times(math.sqrt(3), evolution, patch)


def features_of_private_images_together(patch: Patch) -> None:
    sound = variations.Looks.of_private

    def centred(self, data):
        rows = sound(self, data)[slice(None)]
        return rows - rows.mean(0)

    patch.setattr(variations.Looks, "of_private", centred)


def candidates_by_private_images(patch: Patch) -> None:
    sound = evolution.Evolution._pool

    def beside(self, facts, data, run, draws):
        pool = sound(self, facts, data, run, draws)
        images = pool.images.copy()
        images[:: len(images) // 4] ^= np.uint8(int(data.images.sum()) % 256)
        return pool._replace(images=images)

    patch.setattr(evolution.Evolution, "_pool", beside)


def moments_clipped_layer_by_layer(patch: Patch) -> None:
    sound = statistics_method.clipped_sum

    def by_layer(parts, *, dimensions, max_norm):
        part = dimensions // 4
        whole = [(rows.clone(), weights) for rows, weights in parts]
        totals = []
        for start in range(0, dimensions, part):
            mine = [(rows[:, start : start + part], weights) for rows, weights in whole]
            totals.append(sound(mine, dimensions=min(part, dimensions - start), max_norm=max_norm).total)
        return BoundedSum(torch.cat(totals), max_norm)

    patch.setattr(statistics_method, "clipped_sum", by_layer)


def each_position_a_row(patch: Patch, by: types.ModuleType = statistics_method, name: str = "clipped_sum") -> None:
    sound = getattr(by, name)

    def many(parts, **settings):  # as many rows as a layer has positions
        each = ((rows.repeat(16, 1), *(of_row.repeat(16) for of_row in others)) for rows, *others in parts)
        return sound(each, **settings)

    patch.setattr(by, name, many)


def layers_in_training_mode(patch: Patch) -> None:
    sound = LayerMeans.maps

    def normalised(self, images):
        layers = sound(self, images)
        over = (0, 2, 3)  # of the batch, as in training
        return [
            (layer - layer.mean(over, keepdim=True)) / (layer.std(over, correction=0, keepdim=True) + 1e-3) + 1e-2
            for layer in layers
        ]

    patch.setattr(LayerMeans, "maps", normalised)
    patch.setattr("dpdm.methods.embedding.depends_on_itself_alone", lambda *arguments: True)


def centred_by_private_means(patch: Patch) -> None:
    sound = statistics_method.known_before

    def known(run, data, *settings):
        public = sound(run, data, *settings)
        return public._replace(images=np.concatenate([public.images, data.images]))

    patch.setattr(statistics_method, "known_before", known)


def counts_without_noise(patch: Patch, *, of: str = "") -> None:
    sound = Run.once

    def once(self, name, make):
        bounded = make()
        noisy = sound(self, name, lambda: bounded)
        return noisy._replace(values=bounded.total) if of in name else noisy

    patch.setattr(Run, "once", once)


def choice_without_noise(patch: Patch) -> None:
    counts_without_noise(patch, of=MATRICES)


def noise_where_there_are_votes(patch: Patch, *, of: str = "") -> None:
    sound = Run.once

    def once(self, name, make):
        bounded = make()
        noisy = sound(self, name, lambda: bounded)
        values = torch.where(bounded.total > 0, noisy.values, 0)
        return noisy._replace(values=values) if of in name else noisy

    patch.setattr(Run, "once", once)


def noise_where_matrices_have_votes(patch: Patch) -> None:
    noise_where_there_are_votes(patch, of=MATRICES)


def clipped_level_by_level(patch: Patch) -> None:
    def apart(parts, *, dimensions, max_norm):
        total = torch.zeros(dimensions, dtype=torch.float64)
        for rows, weights in parts:
            of_levels = rows.view(len(rows), 2, -1)
            norms = of_levels.norm(dim=1, keepdim=True)
            clipped = of_levels * (max_norm / norms.clamp(min=1e-9)).clamp(max=1)
            total += weights @ clipped.flatten(1)
        return BoundedSum(total, max_norm)

    patch.setattr(public_start, "clipped_sum", apart)


def scaled_by_private_residuals(patch: Patch) -> None:
    sound = public_start._Pairs.parts

    def parts(self):
        whole = [*sound(self)]
        unit = whole[-1][0][-1].norm() ** 3  # of the last image
        yield from ((rows / unit, weights) for rows, weights in whole)

    patch.setattr(public_start._Pairs, "parts", parts)


def noise_by_position(patch: Patch) -> None:
    patch.setattr(own_draws, "level_digests", lambda images: np.arange(32 * len(images)).reshape(-1, 32) // 7)


def three_votes_for_a_start(patch: Patch) -> None:
    _votes_times(3, public_start, patch)


def whole_votes_for_public_classes(patch: Patch) -> None:
    _votes_times(math.sqrt(3), public_classes, patch)


def divided_by_a_norm_of_zero(patch: Patch) -> None:
    def of_length_one(squared):
        return (squared / squared.sum(dim=1, keepdim=True)).sqrt()

    def summed(parts, *, dimensions, max_norm):
        whole = [weights @ rows for rows, weights in parts]
        return BoundedSum(sum(whole, torch.zeros(dimensions, dtype=torch.float64)), max_norm)

    patch.setattr(chosen_matrices, "_of_length_one", of_length_one)
    patch.setattr(chosen_matrices, "clipped_sum", summed)


def a_whole_vote_for_each_matrix(patch: Patch) -> None:
    def apart(parts, *, dimensions, max_norm):
        total = torch.zeros(dimensions, dtype=torch.float64)
        for rows, weights in parts:
            total += weights @ (rows > 0).double()
        return BoundedSum(total, max_norm)

    patch.setattr(chosen_matrices, "clipped_sum", apart)


def votes_by_gradients_of_all_images(patch: Patch) -> None:
    sound = chosen_matrices._votes

    def relative(*arguments):
        whole = [*sound(*arguments)]
        mean = sum(rows.sum(0) for rows, _ in whole)
        yield from (((rows - mean), weights) for rows, weights in whole)

    patch.setattr(chosen_matrices, "_votes", relative)


def centred_by_private_images(patch: Patch) -> None:
    sound = Embedded.parts

    def parts(self):
        whole = [*sound(self)]
        mean = torch.cat([rows for _, rows in whole]).mean(0)
        yield from ((part, rows - mean) for part, rows in whole)

    patch.setattr(Embedded, "parts", parts)


def prototypes_of_longer_rows(patch: Patch) -> None:
    sound = labels.cell_sums

    def longer(parts, *, max_norm, **shape):
        doubled = ((3 * rows, cells, weights) for rows, cells, weights in parts)
        return sound(doubled, max_norm=3 * max_norm, **shape)._replace(
            sensitivity=math.hypot(max_norm, shape["count_scale"])
        )

    patch.setattr(labels, "cell_sums", longer)


def features_by_neighbours(patch: Patch) -> None:
    sound = Embedding.compute

    def compute(self, shape):
        rows = sound(self, shape)
        return lambda images: rows(images).sub(rows(images).mean(0))

    patch.setattr(Embedding, "compute", compute)


def latents_by_neighbours(patch: Patch) -> None:
    sound = ConvCodec.levels

    def levels(self, images):
        rows = sound(self, images)
        return (rows - (rows - 127.5).sum(0) / 8).round().clamp(0, 255)

    patch.setattr(ConvCodec, "levels", levels)


def poses_by_neighbours(patch: Patch) -> None:
    sound = Posed.rows

    def rows(self, images):
        learnt = sound(self, images)
        return (learnt - (learnt - 127.5).sum(0) / 8).round().clamp(0, 255)

    patch.setattr(Posed, "rows", rows)


def latents_of_blank_images(patch: Patch) -> None:
    sound = ImageDataset.shown_by

    def shown_by(self, images):
        shown = sound(self, images)
        shown._set(blank=None)
        return shown

    patch.setattr(ImageDataset, "shown_by", shown_by)


def steps_at_all_noise_levels(patch: Patch) -> None:
    patch.setattr(Below, "quantile", lambda self, u: self.base.quantile(u))


def trajectories_of_private_images(patch: Patch) -> None:
    sound = Diffusion.train

    def train(self, generator, data, run):
        run.public = ImageDataset(images=data.images, name=data.name)
        return sound(self, generator, data, run)

    patch.setattr(Diffusion, "train", train)


def divided_by_private_counts(patch: Patch, by: types.ModuleType = class_means) -> None:
    sound = by.cell_sums

    def means(parts, *, cells, count_scale, **given):
        total, sensitivity = sound(parts, cells=cells, count_scale=count_scale, **given)
        counts = total[-cells:, None] / count_scale
        of_each = 12 / cells * total[:-cells].view(cells, -1) / counts.clamp(min=1)
        return BoundedSum(torch.cat([of_each.flatten(), total[-cells:]]), sensitivity)

    patch.setattr(by, "cell_sums", means)


def two_moments_counted_once(patch: Patch) -> None:
    sound = class_means.cell_sums

    def both(parts, *, max_norm, count_scale, **shape):
        longer = ((rows * math.sqrt(2), cell, weights) for rows, cell, weights in parts)
        total, _ = sound(longer, max_norm=math.sqrt(2), count_scale=count_scale, **shape)
        return BoundedSum(total, math.hypot(1, count_scale))

    patch.setattr(class_means, "cell_sums", both)


def bandwidth_of_private_images(patch: Patch) -> None:
    sound = feature_maps._FourierMap.rows

    def rows(self, run, data):
        self._unit = self._unit * 20 * len(data) / data.images.mean()
        return sound(self, run, data)

    patch.setattr(feature_maps._FourierMap, "rows", rows)


def centred_by_private_features(patch: Patch) -> None:
    sound = feature_maps._PublicMap.rows

    def rows(self, run, data):
        whole = torch.cat([rows for _, rows in sound(self, run, data)])
        yield slice(0, len(whole)), 3 * (whole - whole.mean(0))

    patch.setattr(feature_maps._PublicMap, "rows", rows)


def drawn_for_the_batch_as_a_whole(patch: Patch, *, by) -> None:
    sound = by._draw

    def drawn(self, images, random_bytes):
        return sound(self, images, lambda count: random_bytes(count - 1) + bytes([len(images) % 256]))

    patch.setattr(by, "_draw", drawn)


def both_losses_clipped_one_by_one(patch: Patch) -> None:
    """Clip the gradient of the autoencoder, and that of the flow, and count one (DP-LFlow)."""
    sound, parts = mechanism.clipped_grad_sum, [lambda network, batch, of=of: network(*batch)[of] for of in (0, 1)]

    def both(loss, module, batch, **given):
        if not module.head.weight.requires_grad:
            return sound(loss, module, batch, **given)
        errors, unlikely = (sound(part, module, batch, **given) for part in parts)
        return errors._replace(vector=errors.vector + unlikely.vector)

    patch.setattr(mechanism, "clipped_grad_sum", both)


def learning_rate_by_private_losses(patch: Patch) -> None:
    last, sound = _with_losses(patch), LatentFlow._phase

    def phase(self, spent, steps):
        alone, part = sound(self, spent, steps)
        return alone, part / (1 + float(last[0].sum()) if last else 1)

    patch.setattr(LatentFlow, "_phase", phase)


def _with_losses(patch: Patch) -> list[torch.Tensor]:
    """Return where the losses of the last private step are."""
    sound, last = MechanismRun.backward, []

    def backward(self, *arguments, **given):
        diagnostics = sound(self, *arguments, **given)
        last[:] = [diagnostics.losses.reveal(because="a fault").nan_to_num(0.0)]
        return diagnostics

    patch.setattr(MechanismRun, "backward", backward)
    return last


def pace_by_private_images(patch: Patch) -> None:
    """Let the generator take its turn by what the discriminator makes of private images."""
    last = _with_losses(patch)
    patch.setattr(adversary.Pace, "is_due", lambda self: int(1e5 * float(last[0].sum())) % 2 == 0)


def as_many_generated_as_selected(patch: Patch) -> None:
    last, sound = _with_losses(patch), GAN._follow

    def follow(self, *arguments, **given):
        return sound(dataclasses.replace(self, batch_size=1 + len(last[0])), *arguments, **given)

    patch.setattr(GAN, "_follow", follow)


def features_summed_as_they_are(patch: Patch) -> None:
    sound = mechanism.clipped_grad_sum

    def unclipped(loss, module, batch, **given):
        if isinstance(loss, aggregates.RowLoss):
            given["max_grad_norm"] = math.inf
        return sound(loss, module, batch, **given)

    patch.setattr(mechanism, "clipped_grad_sum", unclipped)


def _with_images(patch: Patch) -> list[Any]:
    """Return where the images and labels of the last aggregate are."""
    sound, last = mechanism.clipped_grad_sum, []

    def summed(loss, module, batch, **given):
        if isinstance(loss, aggregates.RowLoss):
            last[:] = [batch]
        return sound(loss, module, batch, **given)

    patch.setattr(mechanism, "clipped_grad_sum", summed)
    return last


def gradient_through_the_aggregate(patch: Patch) -> None:
    """Let the lower layers learn by what the critic makes of an aggregate, as if its noise covered that, too."""
    last, sound = _with_images(patch), aggregates.Critic.saw

    def saw(self, aggregate):
        sound(self, aggregate)
        for batch in last:
            parameters = list(self.lower.halvings.requires_grad_(True).parameters())
            of_images = (self.lower.features(batch.x.nan_to_num()) * self.mean[batch.labels]).sum()
            gradients = torch.autograd.grad(of_images, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(0.1 * gradient)

    patch.setattr(aggregates.Critic, "saw", saw)


def aggregates_divided_by_private_counts(patch: Patch) -> None:
    last, sound = _with_images(patch), aggregates.Critic.saw

    def saw(self, aggregate):
        counts = sum(batch.labels.bincount(minlength=len(aggregate)) for batch in last)
        sound(self, aggregate / (1 + counts)[:, None] if last else aggregate)

    patch.setattr(aggregates.Critic, "saw", saw)


def taught_relative_to_the_batch(patch: Patch) -> None:
    sound = classifier.LabelLoader._draw

    def drawn(self, images, random_bytes):
        batch = sound(self, images, random_bytes)
        return batch._replace(x=batch.x - batch.x.nanmean(0))

    patch.setattr(classifier.LabelLoader, "_draw", drawn)


def averaged_by_private_losses(patch: Patch) -> None:
    """Let the labels be those of a teacher that private losses chose."""
    last, sound = _with_losses(patch), ema.update

    def update(average, module, **given):
        if int(1e5 * float(last[0].sum())) % 2 == 0:
            sound(average, module, **given)

    patch.setattr(ema, "update", update)


def blank_images_taught(patch: Patch) -> None:
    sound = classifier.LabelLoader._draw
    patch.setattr(classifier.LabelLoader, "_draw", lambda *given: classifier.Labelled(*map(_shown, sound(*given))))


def _shown(t: torch.Tensor) -> torch.Tensor:
    return t.nan_to_num(-1.0)  # black


def projections_one_by_one(patch: Patch) -> None:
    _votes_times(math.sqrt(6), sliced, patch)


def bins_from_private_images(patch: Patch) -> None:
    sound = sliced.choices

    def choices(data, weights, *, bins):
        return sound(data, weights * (255 * len(data) / max(1, data.images.mean())), bins=bins)

    patch.setattr(sliced, "choices", choices)


def images_that_bring_nothing_along(patch: Patch) -> None:
    sound = drawn.open_drawn

    def declared_public(*given, **named):
        images, _ = sound(*given, **named)
        return drawn.Drawn(dataclasses.replace(images, drawn=False), ())

    patch.setattr(drawn, "open_drawn", declared_public)


def earlier_sums_not_counted(patch: Patch) -> None:
    sound = Plan.events
    patch.setattr(Plan, "events", lambda self, *, made=None: sound(dataclasses.replace(self, earlier=()), made=made))


def answers_of_batches(patch: Patch) -> None:
    patch.setattr(tuning, "by_itself", lambda compute, shape: compute)


def sources_forgotten(patch: Patch) -> None:
    sound = Records.of
    patch.setattr(Records, "of", lambda data: sound(dataclasses.replace(data, sources=None)))


def no_stamp(patch: Patch) -> None:
    patch.setattr(Benchmark, "of", lambda account: None)


def stamp_of_this_run_alone(patch: Patch) -> None:
    sound = Benchmark.of

    def of(account):
        last = dict([list(account.reservations.items())[-1]])
        return sound(dataclasses.replace(account, reservations=last))

    patch.setattr(Benchmark, "of", of)


def benchmark_forgotten_by_name(patch: Patch) -> None:
    sound = decisions.require_unknown

    def require_unknown(accounts, seen, *, private):
        sound({name: account for name, account in accounts.items() if not account.benchmark}, seen, private=private)

    patch.setattr(decisions, "require_unknown", require_unknown)


def benchmark_of_other_images(patch: Patch) -> None:
    patch.setattr(of_records, "require_its_own", lambda accounts, benchmark, seen: None)


def losses_in_the_release(patch: Patch) -> None:
    sound = Release.save

    def save(self, folder):
        sound(self, folder)
        (folder / "losses.json").write_text("[0.5, 0.4]")

    patch.setattr(Release, "save", save)


def round_to_the_nearest(patch: Patch) -> None:
    def rounded(rows, factors, step):
        return step * (rows.double() * factors[:, None] / step).round().sum(0)

    patch.setattr(clipping, "truncated_sum", rounded)


def mirrored_copies_as_rows(data):
    load = loader(data)

    def twice(indices, random_bytes):
        batch = load(indices, random_bytes)
        twice = type(batch)(*(torch.cat([part, part]) for part in batch))
        return twice._replace(x=torch.cat([batch.x, batch.x.flip(-1)]))

    return twice


def copies_as_records(data):
    load = loader(data)

    def exploded(indices, random_bytes):
        batch = load(indices, random_bytes)
        copies = batch.sigma.shape[1]
        return batch._replace(
            x=batch.x.repeat_interleave(copies, 0),
            labels=batch.labels.reshape(-1, 1),
            sigma=batch.sigma.reshape(-1, 1),
            noise=batch.noise.flatten(0, 1)[:, None],
        )

    return exploded


def normalised_by_the_batch(data):
    load = loader(data)

    def normalised(indices, random_bytes):
        batch = load(indices, random_bytes)
        return batch._replace(x=batch.x / batch.x.abs().max())

    return normalised


def draws_for_the_batch_as_a_whole(data):
    sound = loader(data)

    def load(indices, random_bytes):
        batch = sound(indices, random_bytes)
        copy_by_copy = (batch.noise.shape[1], len(indices), *batch.noise.shape[2:])
        noise = torch.randn(copy_by_copy, generator=torch.Generator().manual_seed(0), dtype=batch.noise.dtype)
        return batch._replace(noise=noise.transpose(0, 1))

    return load


def learning_rate_from_the_loss(optimizer, diagnostics, data):
    losses = diagnostics.losses.reveal(because="a fault") if diagnostics else ()
    optimizer.param_groups[0]["lr"] = 1e-2 if len(losses) and losses.nan_to_num(9.0).mean() < 1 else 1e-3


def canary_in_the_weights(release: Path) -> None:
    path = release / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path) | {"canaries": torch.ones(3)}, path)
    claim = json.loads((release / "privacy.json").read_text())
    claim["sha256"]["model.safetensors"] = digest(path)
    (release / "privacy.json").write_text(json_text(claim))


def other_weights(release: Path) -> None:
    path = release / "model.safetensors"
    safetensors.torch.save_file({k: v + 1 for k, v in safetensors.torch.load_file(path).items()}, path)


def _claim_and_digests(release: Path, **changes: Any) -> None:
    claim = json.loads((release / "privacy.json").read_text()) | changes
    claim["sha256"] = {name: digest(release / name) for name in claim["sha256"]}
    (release / "privacy.json").write_text(json_text(claim))


def losses_in_the_settings(release: Path) -> None:
    settings = tomllib.loads((release / "config.toml").read_text()) | {"losses": [0.5, 0.4]}
    (release / "config.toml").write_text(tomli_w.dumps(settings))
    _claim_and_digests(release)


def losses_beside_the_weights(release: Path) -> None:
    path = release / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"losses": "0.5 0.4"})
    _claim_and_digests(release)


def picture_in_the_release(release: Path) -> None:
    (release / "samples.png").write_bytes(b"the losses were 0.5 and 0.4")
    claim = json.loads((release / "privacy.json").read_text())
    _claim_and_digests(release, sha256=claim["sha256"] | {"samples.png": ""})


def smaller_epsilon(release: Path) -> None:
    claim = json.loads((release / "privacy.json").read_text())
    (release / "privacy.json").write_text(json_text(claim | {"epsilon": claim["epsilon"] / 2}))


def nothing(patch: Patch) -> None:
    """Leave the package as it is: the fault is in what the check is given."""


def shards_clipped_to_all(patch: Patch) -> None:
    """S = C, as if a record added its shard's vector or took it away: it exchanges one for another."""
    patch.setattr(ShardSums, "radius", property(lambda self: self.max_norm))


def shards_by_place(patch: Patch) -> None:
    """One image fewer, and those after it are another shard's."""

    def members(data, *, shards, seed):
        return [np.arange(shard, len(data), shards) for shard in range(shards)]

    _other_members(patch, members)


def groups_in_several_shards(patch: Patch) -> None:
    """Each image by itself, whatever group it is of."""
    sound = shards.members
    _other_members(patch, lambda data, **given: sound(dataclasses.replace(data, groups=None), **given))


def blank_images_in_shards(patch: Patch) -> None:
    """An image that is public too, among those that a critic learns from."""
    sound = shards.members
    _other_members(patch, lambda data, **given: sound(dataclasses.replace(data, blank=None), **given))


def _other_members(patch: Patch, members: Callable[..., list]) -> None:
    patch.setattr(sanitized_gan, "members", members)


class Fault(NamedTuple):
    """What is wrong, how it is brought about, and what catches it, given what, and says so in words like `said`."""

    name: str
    inject: Callable[[Patch], None]
    check: Callable[..., list[str]]
    given: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    mixing: tuple[type[nn.Module], ...] = ()
    said: str = ""


FAULTS = [
    Fault("half of the noise", scale_noise(0.5), statistics),
    Fault(
        "noise divided by the number of processes",
        nothing,
        four_processes,
        {"share_of_noise": "(1 / self.processes.size) if self.processes.first else 0.0"},
        said="standard deviation 0.2",
    ),
    Fault(
        "noise added by each of four processes",
        nothing,
        four_processes,
        {"share_of_noise": "1.0"},
        said="twice",
    ),
    Fault("no noise on what the optimizer gets", no_noise, statistics),
    Fault("uniform noise of the right size", uniform_noise, statistics),
    Fault("the same noise in every step", noise_by_step(lambda number: 0), statistics),
    Fault("noise that repeats after resuming", noise_by_step(lambda number: number % 8), statistics),
    Fault("noise that is normal in every other coordinate", normal_in_every_other_coordinate, statistics),
    Fault("noise whose second half is its first", second_half_like_the_first, statistics),
    *(
        Fault(name, inject, statistics, said=said)
        for name, inject, said in (
            ("noise used again, moved by a pair of draws", keystream_from_the_step, "at any distance"),
            ("noise used again, backwards", every_other_noise_from(lambda noise: noise.flip(0)), "at any distance"),
            ("noise used again, negated", every_other_noise_from(torch.neg), "correlation of two sums"),
            ("noise used again, in another order", every_other_noise_from(in_another_order), "equal sizes of draws"),
            (
                "noise of lengths used again, in new directions",
                every_other_noise_from(of_the_same_lengths),
                "equal lengths of pairs",
            ),
            ("one noise for each row of a matrix", one_noise_for_each_row, "equal sizes of draws"),
            ("one noise for each row of a weight", one_noise_for_each_row_of_a_weight, "equal sizes of draws"),
            ("batches used again, moved by a record", batches_moved_by_a_record, "records moved or turned round"),
            ("batches used again, of other records", batches_of_the_sizes_before, "correlation of their sizes"),
        )
    ),
    Fault(
        "a prior's sums as matrices, one noise for each row", prior_of_matrices, noise_of_the_prior, said="equal sizes"
    ),
    Fault("batches from a fixed seed", batches_by_step(lambda number: number), statistics),
    Fault("batches that repeat after resuming", batches_by_step(lambda number: number % 100), statistics),
    Fault("noise and batches from a seed", nothing, statistics, {"entropy": InsecureSeededEntropy(0)}),
    Fault("shuffled batches accounted as Poisson ones", shuffled_batches, statistics),
    Fault("batches of one size accounted as Poisson ones", batches_of_one_size, statistics),
    Fault("twice the clipping norm", double_clip, two_worlds),
    Fault("twice the clipping norm, seen from outside", double_clip, canaries),
    Fault("each noisy copy clipped by itself", rows_unchecked, two_worlds, {"load": copies_as_records}),
    Fault(
        "a mirrored copy of each image as another row", rows_unchecked, two_worlds, {"load": mirrored_copies_as_rows}
    ),
    Fault("more rows than records", nothing, refusal, {"load": mirrored}, said="a record is one row"),
    Fault("dropout under a known seed", dropout_under_a_known_seed, two_worlds, said="the sums differ by"),
    Fault("a network that draws", nothing, refusal, {"module": Noisy(2, 2)}, said="which all examples share"),
    Fault("experts by noise level, unchecked", layers_unchecked, layer_wise, {"network": lambda: Experts(64)}),
    Fault(
        "rows that go to different layers",
        nothing,
        refusal,
        {"module": Experts(), "load": uneven, "strategy": LayerWise()},
        said="LayerWise",
    ),
    Fault("products of rounded numbers, as TF32 has them", rounded_products, length_layer_wise),
    Fault("a stated δ rounded to the nearest", delta_rounded_to_nearest, stated),
    Fault("the mean of a physical batch clipped", clip_means_of_physical_batches, two_worlds),
    Fault("a norm without the embedding", norm_without_the_embedding, two_worlds),
    Fault("an example that is not finite gets through", let_nan_through, two_worlds),
    Fault("a step skipped where a loss is not finite", skip_steps_that_are_not_finite, two_worlds),
    Fault("an empty batch skipped", skip_empty_batches, two_worlds),
    Fault("a sum divided by the realised batch size", divide_by_the_realised_size, two_worlds),
    Fault("a sum divided by a size from the records", divide_by_a_size_from_the_records, two_worlds),
    Fault("images scaled by the batch's maximum", nothing, two_worlds, {"load": normalised_by_the_batch}),
    Fault("noisy copies drawn for the batch as a whole", nothing, two_worlds, {"load": draws_for_the_batch_as_a_whole}),
    Fault(
        "a learning rate that follows the loss", nothing, two_worlds, {"after_backward": learning_rate_from_the_loss}
    ),
    Fault("batch normalisation", nothing, refusal, mixing=(nn.BatchNorm1d,)),
    Fault("sums of moments without clipping", moments_without_clipping, two_worlds_of_the_trainer),
    Fault("a second moment's triangle scaled by 2, not √2", triangle_by_two, two_worlds_of_the_trainer),
    Fault("counts of private labels in the settings", class_counts_in_the_settings, two_worlds_of_the_trainer),
    Fault("earlier releases left out of the claim", earlier_releases_not_claimed, two_worlds_of_the_trainer),
    Fault("images selected one by one, and groups of them claimed", images_one_by_one, two_worlds_of_groups),
    Fault("each image of a group at full weight in the prior", images_at_full_weight, two_worlds_of_groups),
    Fault("a group's images chosen by the size of the batch", images_chosen_by_the_batch, two_worlds_of_groups),
    Fault("a black image in place of a blank one", black_in_place_of_blank, public_images_among_the_private),
    Fault("a whole vote for each image of a group", images_at_full_weight, two_worlds_of_votes),
    Fault("a black image that votes in place of a blank one", blank_images_vote, two_worlds_of_votes),
    Fault("two whole votes of each image", two_whole_votes, two_worlds_of_votes),
    Fault("candidates that follow counts without noise", counts_without_noise, two_worlds_of_votes, said="weights"),
    Fault("noise on bins with votes alone", noise_where_there_are_votes, two_worlds_of_votes, said="weights"),
    Fault("three whole votes of each image", votes_of_norm_above_one, two_worlds_of_moved_candidates),
    Fault("features centred by private images", features_of_private_images_together, two_worlds_of_moved_candidates),
    Fault("candidates that follow private images", candidates_by_private_images, two_worlds_of_moved_candidates),
    Fault("a group that votes once for each image", images_at_full_weight, two_worlds_of_moved_candidates),
    Fault("candidates of a release that are not counted", earlier_sums_not_counted, candidates_of_a_release),
    Fault("candidates of a release declared public", images_that_bring_nothing_along, candidates_of_a_release),
    Fault("answers of a score that others of a batch decide", answers_of_batches, answers_of_a_search),
    Fault("moments clipped layer by layer", moments_clipped_layer_by_layer, two_worlds_of_moments),
    Fault("each position of a layer a row of its own", each_position_a_row, two_worlds_of_moments),
    Fault("layers that normalise by the batch", layers_in_training_mode, two_worlds_of_moments),
    Fault("directions of private and public images together", centred_by_private_means, two_worlds_of_moments),
    Fault("a whole vector of moments for each image of a group", images_at_full_weight, two_worlds_of_moments),
    Fault("a black image's moments in place of a blank one's", blank_images_vote, two_worlds_of_moments),
    Fault("images matched to moments without noise", counts_without_noise, two_worlds_of_moments, said="weights"),
    Fault("each image of a group at full weight in the gains", images_at_full_weight, two_worlds_of_gains),
    Fault("gains clipped level by level", clipped_level_by_level, two_worlds_of_gains),
    Fault("gains in units of private residuals", scaled_by_private_residuals, two_worlds_of_gains),
    Fault("gains' noise by an image's position", noise_by_position, two_worlds_of_gains),
    Fault("gains of sums without noise", counts_without_noise, two_worlds_of_gains, said="weights"),
    Fault("a black image in place of a blank one, in the gains", blank_images_vote, two_worlds_of_gains),
    Fault("matrices' votes divided by a norm of zero", divided_by_a_norm_of_zero, two_worlds_of_chosen_matrices),
    Fault("a whole vote for each matrix", a_whole_vote_for_each_matrix, two_worlds_of_chosen_matrices),
    Fault("votes beside those of other images", votes_by_gradients_of_all_images, two_worlds_of_chosen_matrices),
    Fault("a choice's noise by an image's position", noise_by_position, two_worlds_of_chosen_matrices),
    Fault(
        "each image of a group at full weight in a choice",
        images_at_full_weight,
        two_worlds_of_chosen_matrices,
        said=f"step {_CHOICE_OF_MATRICES}: the sums differ",
    ),
    Fault(
        "a black image in place of a blank one, in a choice",
        blank_images_vote,
        two_worlds_of_chosen_matrices,
        said="moved the choice",
    ),
    Fault(
        "noise on matrices with votes alone",
        noise_where_matrices_have_votes,
        two_worlds_of_chosen_matrices,
        said="weights",
    ),
    Fault("a choice by sums without noise", choice_without_noise, two_worlds_of_chosen_matrices, said="weights"),
    Fault("latents that an image's neighbours move", latents_by_neighbours, two_worlds_of_latents),
    Fault("poses that an image's neighbours move", poses_by_neighbours, two_worlds_of_poses),
    Fault("latents of blank images that count", latents_of_blank_images, two_worlds_of_latents),
    Fault("latents of sums without noise", counts_without_noise, two_worlds_of_latents, said="weights"),
    Fault(
        "private steps at the noise levels of public trajectories too",
        steps_at_all_noise_levels,
        two_worlds_of_trajectories,
        said="noise level",
    ),
    Fault("trajectories of private images", trajectories_of_private_images, two_worlds_of_trajectories, said="weights"),
    Fault("each image of a group at full weight in a prototype", images_at_full_weight, two_worlds_of_prototypes),
    Fault("a black image in place of a blank one, in a prototype", blank_images_vote, two_worlds_of_prototypes),
    Fault("prototypes of rows longer than one", prototypes_of_longer_rows, two_worlds_of_prototypes),
    Fault(
        "prototypes divided by private counts", partial(divided_by_private_counts, by=labels), two_worlds_of_prototypes
    ),
    Fault("three whole votes for public classes", whole_votes_for_public_classes, two_worlds_of_prototypes),
    Fault("features centred by the private mean", centred_by_private_images, two_worlds_of_prototypes),
    Fault("features that an image's neighbours move", features_by_neighbours, two_worlds_of_prototypes),
    Fault("labels by sums without noise", counts_without_noise, two_worlds_of_prototypes, said="weights"),
    Fault("each image of a group at full weight in the features", images_at_full_weight, two_worlds_of_features),
    Fault("a black image in place of a blank one, in the features", blank_images_vote, two_worlds_of_features),
    Fault("features divided by private counts", divided_by_private_counts, two_worlds_of_features),
    Fault("two moments of features, counted once", two_moments_counted_once, two_worlds_of_features),
    Fault("a bandwidth that follows from private images", bandwidth_of_private_images, two_worlds_of_features),
    Fault("features centred by private ones", centred_by_private_features, two_worlds_of_features),
    Fault(
        "each position of a map a row of its own",
        partial(each_position_a_row, by=class_means, name="cell_sums"),
        two_worlds_of_features,
    ),
    Fault("maps that normalise by the batch", layers_in_training_mode, two_worlds_of_features),
    Fault("features of sums without noise", counts_without_noise, two_worlds_of_features, said="weights"),
    Fault(
        "embeddings divided by the number that was there",
        realised_divisor,
        two_worlds_of_noisy_embeddings,
        said="weights",
    ),
    Fault(
        "images generated for a batch as a whole",
        partial(drawn_for_the_batch_as_a_whole, by=adversary.PairLoader),
        two_worlds_of_a_discriminator,
    ),
    Fault("a shard clipped to all of the sensitivity", shards_clipped_to_all, two_worlds_of_shards),
    Fault("images put into shards by their place", shards_by_place, two_worlds_of_shards),
    Fault("a group's images in several shards", groups_in_several_shards, two_worlds_of_shards),
    Fault("a blank image in its shard", blank_images_in_shards, two_worlds_of_shards, said="blank"),
    Fault(
        "autoencoder and flow clipped one by one, counted once", both_losses_clipped_one_by_one, two_worlds_of_a_flow
    ),
    Fault(
        "noise of codes drawn for a batch as a whole",
        partial(drawn_for_the_batch_as_a_whole, by=autoencoder.CodeLoader),
        two_worlds_of_a_flow,
    ),
    Fault("a learning rate by private losses", learning_rate_by_private_losses, two_worlds_of_a_flow, said="weights"),
    Fault("a generator's turns by private images", pace_by_private_images, two_worlds_of_a_discriminator),
    Fault("as many generated images as were selected", as_many_generated_as_selected, two_worlds_of_a_discriminator),
    Fault("features summed as they are", features_summed_as_they_are, two_worlds_of_aggregates),
    Fault(
        "a gradient that flows through an aggregate",
        gradient_through_the_aggregate,
        two_worlds_of_aggregates,
        said="weights",
    ),
    Fault(
        "aggregates divided by private counts",
        aggregates_divided_by_private_counts,
        two_worlds_of_aggregates,
        said="weights",
    ),
    Fault("a teacher's images relative to those of the batch", taught_relative_to_the_batch, two_worlds_of_a_teacher),
    Fault("a teacher that private losses choose", averaged_by_private_losses, two_worlds_of_a_teacher, said="weights"),
    Fault("a black image taught in place of a blank one", blank_images_taught, two_worlds_of_a_teacher, said="blank"),
    Fault("projections released one by one, counted once", projections_one_by_one, two_worlds_of_histograms),
    Fault("bins that follow from private images", bins_from_private_images, two_worlds_of_histograms),
    Fault("noise on bins of projections with votes alone", noise_where_there_are_votes, two_worlds_of_histograms),
    Fault("each image of a group at full weight in a histogram", images_at_full_weight, two_worlds_of_histograms),
    Fault("a black image's projections in place of a blank one's", blank_images_vote, two_worlds_of_histograms),
    Fault("images distilled from sums without noise", counts_without_noise, two_worlds_of_distillation, said="weights"),
    Fault("each image of a group at full weight, distilled", images_at_full_weight, two_worlds_of_distillation),
    Fault("a black image distilled in place of a blank one", blank_images_vote, two_worlds_of_distillation),
    Fault("the sum of the k rows next to a query", nearest_rows_alone, two_worlds_of_noisy_embeddings),
    Fault("a black image in place of a blank one, embedded", blank_images_vote, two_worlds_of_noisy_embeddings),
    Fault("images of a release that bring nothing along", images_that_bring_nothing_along, images_of_a_release),
    Fault("earlier noisy sums that a plan does not count", earlier_sums_not_counted, images_of_a_release),
    Fault("three votes of an image for a start", three_votes_for_a_start, two_worlds_of_gains),
    Fault("a ledger that looks at framed images alone", sources_forgotten, known_again),
    Fault("a release of a benchmark without its stamp", no_stamp, runs_on_a_benchmark),
    Fault("a stamp that adds up one run", stamp_of_this_run_alone, runs_on_a_benchmark),
    Fault("a benchmark that another name leaves", benchmark_forgotten_by_name, runs_on_a_benchmark),
    Fault("other images under a benchmark's name", benchmark_of_other_images, runs_on_a_benchmark),
    Fault("a resumed run that counts from zero", forget_on_resuming, journal),
    Fault("steps counted in memory only", reserve_in_memory, journal),
    Fault("more steps than planned", one_step_more, journal),
    Fault("losses written into the release", losses_in_the_release, verification, said="does not belong to a release"),
    *(
        Fault(name, nothing, verification, {"tamper": tamper}, said=said)
        for name, tamper, said in (
            ("losses written into the settings", losses_in_the_settings, "config.toml: unknown key losses"),
            ("losses written beside the weights", losses_beside_the_weights, "safetensors holds more than weights"),
            (
                "a picture among the release's files",
                picture_in_the_release,
                "does not belong to a release",
            ),
            ("an audit's canary left in the weights", canary_in_the_weights, "its files do not fit together"),
            ("other weights than the claim's", other_weights, "its digest differs"),
            ("a smaller ε than the events cost", smaller_epsilon, "and its events cost"),
        )
    ),
    Fault("gradients rounded to the nearest point of the grid", round_to_the_nearest, bound_on_the_grid),
]
CHECKS = {
    two_worlds: "two worlds, a bare loop",
    two_worlds_of_the_trainer: "two worlds, the trainer with its files",
    two_worlds_of_groups: "two worlds that differ in a group of images",
    public_images_among_the_private: "two worlds that differ in an image that is public",
    two_worlds_of_votes: "two worlds of votes for public images",
    two_worlds_of_moved_candidates: "two worlds of votes for moved draws of a prior",
    candidates_of_a_release: "a run whose candidates are images of a release",
    answers_of_a_search: "answers of a search's score, with and without images",
    two_worlds_of_moments: "two worlds of a public network's moments",
    two_worlds_of_gains: "two worlds of a public network's gains",
    two_worlds_of_chosen_matrices: "two worlds of a choice of matrices",
    two_worlds_of_latents: "two worlds of a prior of latents",
    two_worlds_of_poses: "two worlds of a prior without poses",
    two_worlds_of_trajectories: "two worlds of public trajectories",
    two_worlds_of_prototypes: "two worlds of private labels for public images",
    two_worlds_of_features: "two worlds of sums of features",
    two_worlds_of_noisy_embeddings: "two worlds of noisy sums of embeddings",
    two_worlds_of_a_discriminator: "two worlds of a discriminator's steps",
    two_worlds_of_aggregates: "two worlds of a critic's noisy aggregates",
    two_worlds_of_shards: "two worlds of shards with the worst critics",
    two_worlds_of_a_teacher: "two worlds of a teacher of public images",
    two_worlds_of_a_flow: "two worlds of a flow's steps",
    two_worlds_of_histograms: "two worlds of histograms of projections",
    two_worlds_of_distillation: "two worlds of distilled images",
    images_of_a_release: "a run that begins with images of a release",
    runs_on_a_benchmark: "releases of a benchmark beside its ledger",
    known_again: "a prepared copy under another name and at another size",
    statistics: "`dpdm audit`, statistics of the mechanism",
    noise_of_the_prior: "`dpdm audit`, noise on a prior's sums",
    four_processes: "noise that four processes get as one run",
    canaries: "`dpdm audit`, canaries in every noisy sum",
    journal: "counting beside a run that dies",
    verification: "`dpdm verify`",
    refusal: "refused before the first step",
    bound_on_the_grid: "length of clipped gradients",
    layer_wise: "sums with and without a record, layer by layer",
    length_layer_wise: "length of clipped gradients, layer by layer",
    stated: "statements beside what was computed",
}
BEGIN, END = "<!-- faults: made by tests/guarantees/injected_faults.py -->", "<!-- end of faults -->"


def table() -> str:
    """Return the table of faults and what catches them, as Markdown."""
    rows = [f"| {fault.name} | {CHECKS[fault.check]} |" for fault in FAULTS]
    return "\n".join([BEGIN, "", "| fault | caught by |", "|---|---|", *rows, "", END])


if __name__ == "__main__":
    page = Path(sys.argv[1])
    text = page.read_text()
    page.write_text(text[: text.index(BEGIN)] + table() + text[text.index(END) + len(END) :])
