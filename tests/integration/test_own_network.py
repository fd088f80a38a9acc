"""A release whose network is not one of dpdm's: verified but for its code, opened with it, and refused without it."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import dpdm as package
from dpdm.files import digest, json_text
from dpdm.methods import Prior
from dpdm.networks import Own
from dpdm.runs import Release, verify_release
from dpdm.runs.weights import read_layout, read_weights, save_weights
from dpdm.types import InputError

PRIOR = Prior(centres=1)


class Linear(nn.Module):
    """A network of one's own, as small as may be."""

    def __init__(self, shape, *, num_classes, images_in):
        super().__init__()
        self.layer = nn.Conv2d(images_in * shape[0], shape[0], 1)
        self.classes = nn.Embedding(num_classes + 1, 1)

    def forward(self, x, c_noise, labels):
        return self.layer(x) + (c_noise[:, None] + self.classes(labels))[..., None, None]


class Wider(Linear):
    """The same names, and other shapes."""

    def __init__(self, shape, *, num_classes, images_in):
        super().__init__(shape, num_classes=num_classes + 1, images_in=images_in)


class Double(Linear):
    """The same names and shapes, and another type."""

    def __init__(self, shape, *, num_classes, images_in):
        super().__init__(shape, num_classes=num_classes, images_in=images_in)
        self.double()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    data = package.ImageDataset(images=images, labels=np.arange(24) % 2, num_classes=2, name="scans")
    plan = package.DPSGD(
        dataset_size=24,
        expected_batch_size=8,
        steps=2,
        noise_multiplier=3.0,
        delta=1e-3,
        releases=PRIOR.releases(epsilon=1, delta=1e-3),
    )
    package.Trainer(
        method=package.Diffusion(
            network=Linear, preconditioning=package.MomentMatched(), prior=PRIOR, sampler=package.DDIM(steps=2)
        ),
        plan=plan,
        machine=package.Machine(device="cpu", precision="float32"),
        run=folder / "run",
        ledger=None,
    ).fit(data)
    return folder / "run"


@pytest.fixture
def copied(own, tmp_path):
    for path in (own / "release").iterdir():
        (tmp_path / "release").mkdir(exist_ok=True)
        (tmp_path / "release" / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_verify_checks_all_but_the_code_and_says_so_in_one_line(own, dpdm):
    code, out, err = dpdm("verify", own)
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("network "))
    assert "test_own_network.Linear is not one of dpdm's" in line
    assert "Release.load(run, network=...)" in line
    assert "classes.weight float32 " in out, "names are words, so they are said"
    code, out, _ = dpdm("verify", own, "--json")
    assert json.loads(out)["own_network"] == "test_own_network.Linear"


@pytest.mark.parametrize(
    "line",
    [
        "sample {run} -n 3 -o made.npz",
        "report {run} -o page.html",
        "compare {run} --reference digits:test",
        "export {run} -o pipeline",
        "audit {run} --minutes 1",
    ],
)
def test_verbs_that_draw_say_in_one_line_how_it_is_done_in_python(line, own, dpdm, tmp_path):
    code, out, err = dpdm(*line.format(run=own).split())
    told = [text for text in err.splitlines() if text.startswith("dpdm: ")]
    assert code == 2, err
    assert len(told) == 1
    assert "test_own_network.Linear is not one of dpdm's" in told[0]
    assert "Release.load(run, network=...)" in told[0]
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_it_is_opened_with_its_code_and_draws(own):
    for network in (Linear, Linear((1, 8, 8), num_classes=2, images_in=2)):
        release = Release.load(own, network=network)
        assert release.sample(5, seed=0)[0].shape == (5, 8, 8, 1)
        assert not any(p.requires_grad for p in release.generator.parameters())


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Wider, r"network\.classes\.weight is float32 \(4, 1\) in the network given, and was float32 \(3, 1\)"),
        (Double, r"network\.classes\.weight is float64"),
        (nn.Identity(), "is none in the network given"),
        (lambda shape, **sizes: 3, "no torch.nn.Module"),
        (object(), "neither a torch.nn.Module nor a function"),
    ],
)
def test_another_network_is_refused_in_one_line(network, said, own):
    with pytest.raises(InputError, match=said) as refused:
        Release.load(own, network=network)
    assert "\n" not in str(refused.value)


@pytest.mark.proof
def test_code_is_not_taken_for_a_release_that_needs_none(trained):
    with pytest.raises(InputError, match="leave out network="):
        Release.load(trained, network=Linear)


def rewritten(folder, **tensors):
    """Write other weights, and their digest."""
    path = folder / "release" / "model.safetensors"
    before = read_weights(path, read_layout(path))
    save_weights(path, {name: t for name, t in (before | tensors).items() if t is not None})
    claim = json.loads((folder / "release" / "privacy.json").read_text())
    claim["sha256"]["model.safetensors"] = digest(path)
    (folder / "release" / "privacy.json").write_text(json_text(claim))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"denoiser.network.a note of a secret": torch.zeros(1)}, "letters, digits and _"),
        ({f"denoiser.network.{'a' * 300}": torch.zeros(1)}, "letters, digits and _"),
        ({"of_an_audit": torch.ones(())}, "do not fit together"),
        ({"denoiser.preconditioning.prior.more": torch.zeros(1)}, "do not fit together"),
        ({"denoiser.preconditioning.prior.floor": None}, "do not fit together"),
        ({"denoiser.network.layer.bias": torch.full((1,), float("nan"))}, "not finite"),
    ],
    ids=["a name that is text", "a long name", "the stamp of an audit", "more of a prior", "less of one", "NaN"],
)
def test_what_needs_no_code_is_checked(tensors, said, copied):
    rewritten(copied, **tensors)
    with pytest.raises(InputError, match=said):
        verify_release(copied)


@pytest.mark.parametrize("name", ["package.Net\\u001b[1m", "a b.c", ".Net", "a..b", "x" * 300, "package.Nét", ""])
def test_the_name_of_a_class_is_no_text(name, copied):
    path = copied / "release" / "config.toml"
    path.write_text(path.read_text().replace("test_own_network.Linear", name))
    claim = json.loads((copied / "release" / "privacy.json").read_text())
    claim["sha256"]["config.toml"] = digest(path)
    (copied / "release" / "privacy.json").write_text(json_text(claim))
    for use in (verify_release, Release.load):
        with pytest.raises(InputError, match=r"name of a class|valid TOML|no run writes"):
            use(copied)


def test_no_code_is_loaded_by_a_name_in_a_release(own, copied, tmp_path, monkeypatch):
    """The module that a release names is on the path, and stays where it is."""
    (tmp_path / "evil.py").write_text("raise SystemExit('loaded')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = copied / "release" / "config.toml"
    path.write_text(path.read_text().replace("test_own_network.Linear", "evil.Net"))
    claim = json.loads((copied / "release" / "privacy.json").read_text())
    claim["sha256"]["config.toml"] = digest(path)
    (copied / "release" / "privacy.json").write_text(json_text(claim))
    assert verify_release(copied).own_network == "evil.Net"
    with pytest.raises(InputError, match=r"evil\.Net is not one of dpdm's"):
        Release.load(copied)
    Release.load(copied, network=Linear)


def test_names_of_classes_that_are_made_in_functions_are_plain():
    class Local(nn.Module):
        pass

    assert Own.of(Local()).type == f"{__name__}.test_names_of_classes_that_are_made_in_functions_are_plain.Local"
    odd = type("my net", (nn.Module,), {"__module__": "a.b"})
    assert Own.of(odd()).type == "a.b"
    long = type("Net" * 200, (nn.Module,), {"__module__": "a"})
    assert Own.of(long()).type == "Module"
