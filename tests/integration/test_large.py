"""Data sets that memory need not hold, and the shapes and sizes of the paper's colour data sets."""

import os
import subprocess
import sys

import numpy as np
import pytest

TWO_GIGABYTES = 2_000_000_000

TRAIN = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({TWO_GIGABYTES}, {TWO_GIGABYTES}))  # all that a process has of its own
from dpdm.cli import main
main()
"""


def synthesise(path, count, shape, *, classes):
    """Write `count` images of four by four coloured squares into an .npy file, without ever holding them all."""
    rng = np.random.default_rng(0)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, *shape))
    for start in range(0, count, 20_000):
        number = min(20_000, count - start)
        squares = rng.integers(0, 256, (number, 4, 4, shape[2]), dtype=np.uint8)
        images[start : start + number] = squares.repeat(shape[0] // 4, 1).repeat(shape[1] // 4, 2)
    images.flush()
    return rng.integers(0, classes, count) if classes else None


@pytest.mark.slow
def test_a_million_images_are_prepared_and_trained_on_with_two_gigabytes(tmp_path):
    synthesise(tmp_path / "million.npy", 1_000_000, (32, 32, 3), classes=0)
    settings = ["--set=network.width=16", "--set=privacy.steps=3", "--set=privacy.expected_batch_size=64"]
    settings += ["--set=prior.centres=2", "--set=data.num_classes=0", "--set=privacy.delta=1e-7"]
    train = ["train", "ready", "--epsilon=1", "--dataset-size=1000000", "-r", "run", *settings]
    for line in (["prepare", "million.npy", "-o", "ready"], train):
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, *line],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "2"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "release" / "privacy.json").exists()


COLOUR = {
    "cifar10": (50_000, (32, 32, 3), 10),
    "celeba-32": (162_770, (32, 32, 3), 0),
    "celeba-64": (162_770, (64, 64, 3), 0),
    "imagenet-32": (1_281_167, (32, 32, 3), 1000),
}
"""The paper's colour data sets: how many images, their shape, how many classes."""


@pytest.mark.slow
@pytest.mark.parametrize("matched", [False, True], ids=["edm", "moment-matched"])
@pytest.mark.parametrize("preset", COLOUR)
def test_a_preset_for_colour_runs_to_the_end_on_data_of_that_shape_and_size(preset, matched, tmp_path):
    """With the preset's own network; batches are small here, or two cores would take hours."""
    count, shape, classes = COLOUR[preset]
    labels = synthesise(tmp_path / "images.npy", count, shape, classes=classes)
    source = tmp_path / "images.npy"
    if labels is not None:
        source = tmp_path / "images.npz"
        np.savez(source, images=np.load(tmp_path / "images.npy"), labels=labels, num_classes=np.array(classes))
    settings = ["--set=privacy.steps=2", "--set=privacy.expected_batch_size=4", "--set=loss.noise_multiplicity=2"]
    settings += [f"--set=data.source={source}", "--set=sampler.steps=2"]
    settings += ["--set=preconditioning.kind=moment-matched", "--set=prior.centres=2"] if matched else []
    for line in (
        ["train", preset, "--epsilon=10", "-r", "run", *settings],
        ["verify", "run"],
        ["sample", "run", "-n", "4", "-o", "made.npz"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "dpdm", *line], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "made.npz") as made:
        assert made["images"].shape == (4, *shape)
