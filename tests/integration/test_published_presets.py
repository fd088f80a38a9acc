"""Every preset of a published run takes two steps, with its own network, loss and sampler, on files of its format."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

import dpdm
from dpdm.config import preset_names
from dpdm.networks import UNet

RECORDS = 6
PUBLISHED = [
    name for name in preset_names() if isinstance(getattr(dpdm.load_config(name).method, "network", None), UNet)
]


def write_idx(folder, images, labels):
    folder.mkdir()
    for name, array in (("train-images-idx3-ubyte", images[..., 0]), ("train-labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def write_cifar(folder, images, labels):
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join(f"class {label}" for label in range(10)) + "\n")
    rows = np.concatenate([labels[:, None].astype(np.uint8), images.transpose(0, 3, 1, 2).reshape(len(images), -1)], 1)
    for part in range(5):
        (folder / f"data_batch_{part + 1}.bin").write_bytes(rows[part::5].tobytes())


def write_zip(path, images, labels):
    with zipfile.ZipFile(path, "w") as archive:
        listing = []
        for i, image in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, format="PNG")
            archive.writestr(f"00000/img{i:08}.png", buffer.getvalue())
            listing.append([f"00000/img{i:08}.png", None if labels is None else int(labels[i])])
        archive.writestr("dataset.json", json.dumps({"labels": None if labels is None else listing}))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder that holds a few records of each data set, in the format in which people have it."""
    rng = np.random.default_rng(0)

    def images(height, width, channels):
        return rng.integers(0, 256, (RECORDS, height, width, channels), dtype=np.uint8)

    labels = np.arange(RECORDS)
    monkeypatch.setenv("DPDM_DATA", str(tmp_path))
    write_idx(tmp_path / "mnist", images(28, 28, 1), labels)
    write_idx(tmp_path / "fashion-mnist", images(28, 28, 1), labels)
    write_cifar(tmp_path / "cifar-10-batches-bin", images(32, 32, 3), labels)
    write_zip(tmp_path / "celeba.zip", images(218, 178, 3), None)  # the aligned images, as CelebA comes
    write_zip(tmp_path / "imagenet-32.zip", images(32, 32, 3), 100 * labels)


def test_all_published_data_sets_are_there():
    sources = {dpdm.load_config(name).data.source for name in PUBLISHED}
    assert sources == {"mnist", "fashion-mnist", "celeba", "cifar10", "imagenet-32"}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.proof
def test_a_published_preset_takes_two_steps_and_samples(name, shelf):
    config = dpdm.load_config(
        name,
        overrides=[
            "privacy.steps=2",
            f"privacy.dataset_size={RECORDS}",
            "privacy.expected_batch_size=2",
            "privacy.delta=0.01",
            "sampler.steps=2",
        ],
    )
    published = dpdm.load_config(name)
    assert (config.method.network, config.method.loss, config.method.preconditioning) == (
        published.method.network,
        published.method.loss,
        published.method.preconditioning,
    )
    data = config.data.open()
    assert data.shape == (config.data.channels, config.data.size, config.data.size)
    trainer = dpdm.Trainer.from_config(config, data)
    release = trainer.fit(data)
    images, _ = release.sample(3)
    assert images.shape == (3, config.data.size, config.data.size, config.data.channels)
    assert release.claim["epsilon"] <= published.privacy.epsilon
    for sampler in config.method.samplers.values():
        assert sampler.steps == 1000
        quick = type(sampler)(**{**vars(sampler), "steps": 2})
        assert release.sample(2, sampler=quick)[0].shape == (2, *images.shape[1:])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_has_the_published_figures(name):
    config = dpdm.load_config(name)
    epochs = {"cifar10": 500, "imagenet-32": 100}.get(name, 300)
    batch = 4096 if "mnist" in name else 2048
    copies = 8 if name in ("celeba-64", "cifar10", "imagenet-32") else 32
    assert config.privacy.expected_batch_size == batch
    assert config.privacy.steps == round(epochs * config.privacy.dataset_size / batch)
    assert config.method.loss.noise_multiplicity == copies
    assert config.method.optimizer.learning_rate_at(0) == config.method.optimizer.learning_rate_at(0.7) == 3e-4
    assert config.privacy.delta < 1 / config.privacy.dataset_size
    kind = "V" if name.endswith("0.2") else "EDM"
    assert type(config.method.preconditioning).__name__ == kind
