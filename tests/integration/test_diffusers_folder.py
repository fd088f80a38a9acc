"""A diffusers folder from the command line: planned, trained on from, claimed, exported, and loaded without dpdm."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from small_photos import save

from diffusers_pipelines import save_pipeline
from dpdm import Release, Trainer, load_config
from dpdm.config import decode_plan
from dpdm.files import digest, json_text, read_json, write_json
from dpdm.privacy import OperatingSystemEntropy
from dpdm.runs.exported import write_manifest
from dpdm.runs.public import claim_of
from dpdm.runs.release import SCHEMA

export_pipeline = pytest.importorskip("dpdm.runs.pipeline").export_pipeline
pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*")

FOLDER = ("--set=network.kind=diffusers", "--set=network.source=public/pipeline", "--set=data.size=8")
DELTA = "--set=privacy.delta=1e-3"
CLAIM = ("--epsilon=4", "--dataset-size=30", DELTA)
STEPS = ("--set=privacy.steps=2", "--set=privacy.expected_batch_size=8", "--set=loss.noise_multiplicity=2")
LOW_RANK = ("--set=network.trains=lora:2", "--set=machine.precision=float32")
ALL = (*FOLDER, *CLAIM, *STEPS, *LOW_RANK)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a public pipeline, a finished run, and what was exported from it."""
    home = tmp_path_factory.mktemp("made")
    save_pipeline(home / "public" / "pipeline", in_channels=3, out_channels=3)
    photos, outside = save(home / "photos"), Path.cwd()
    os.chdir(home)
    try:
        overrides = [each.removeprefix("--set=") for each in (*FOLDER, *STEPS, *LOW_RANK, DELTA)]
        overrides += ["privacy.epsilon=4.0", "privacy.dataset_size=30"]
        config = load_config(str(photos), method="diffusion", overrides=overrides)
        data = config.data.open()
        Trainer.from_config(config, data, run=home / "run", ledger=lambda: None).fit(data)
        export_pipeline(home / "run", home / "out")
    finally:
        os.chdir(outside)
    return home


@pytest.fixture
def public(made, tmp_path):
    return Path(shutil.copytree(made / "public", tmp_path / "public")) / "pipeline"


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.fixture
def out(made, tmp_path):
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def test_a_plan_says_what_is_public_and_what_is_trained(dpdm, photos, public):
    code, out, err = dpdm("plan", photos, "--method=diffusion", *ALL)
    assert code == 0, err
    assert "start       the network of pipeline: no ε protects the images that it was trained on" in out


def test_the_same_command_begins_and_goes_on_and_a_release_needs_the_folder_no_more(dpdm, photos, public, tmp_path):
    for _ in range(2):
        code, _, err = dpdm("train", photos, "--method=diffusion", *ALL, "--run=run")
        assert code == 0, err
    sha256 = digest(public / "unet" / "diffusion_pytorch_model.safetensors")
    shutil.rmtree(public)
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert f'public   "pipeline", SHA-256 {sha256}: declared so, and the claim does not protect it' in out
    assert "public/pipeline" not in (tmp_path / "run" / "release" / "config.toml").read_text()
    assert dpdm("sample", "run", "-n", 4, "-o", "made.npz", "--set", "sampler.steps=2")[0] == 0
    with np.load(tmp_path / "made.npz") as made:
        assert "it does not protect what was declared public: 'pipeline'" in str(made["claim"])


LOADED = """
import sys
sys.modules["dpdm"] = None  # whoever imports it fails
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
x, t, labels = torch.load(sys.argv[2])
with torch.no_grad():
    raw = pipeline.unet(x, t, class_labels=labels).sample
product = pipeline.scheduler.alphas_cumprod[t][:, None, None, None]
torch.save((x - (1 - product).sqrt() * raw) / product.sqrt(), sys.argv[3])
"""


def test_an_export_is_loaded_without_dpdm_and_denoises_the_same(run, out, tmp_path):
    denoiser = Release.load(run).generator.denoiser.cpu()
    t, labels = torch.tensor([3, 250, 700]), torch.tensor([0, 2, 3])
    x = torch.randn(3, 3, 8, 8)
    torch.save((x, t, labels), tmp_path / "inputs.pt")
    line = [sys.executable, "-c", LOADED, "out", "inputs.pt", "answers.pt"]
    alone = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(line, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sigma = denoiser.preconditioning.noise_levels.levels[t].float()
    with torch.no_grad():
        ours = denoiser(x * (1 + sigma**2).sqrt()[:, None, None, None], sigma, labels)
    theirs = torch.load(tmp_path / "answers.pt")
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * sigma.max().item())


def test_an_export_carries_its_claim_and_low_rank_and_verify_says_what_it_checks(dpdm, run, tmp_path):
    code, _, err = dpdm("export", "run", "-o", "out")
    assert code == 0, err
    out, claim = tmp_path / "out", Release.load(run).statement
    assert claim in (out / "README.md").read_text()
    assert (out / "pytorch_lora_weights.safetensors").is_file()
    assert (out / "privacy.json").read_bytes() == (run / "release" / "privacy.json").read_bytes()
    code, said, err = dpdm("verify", "out")
    assert code == 0, err
    assert claim in said
    assert "not checked: that the weights of the pipeline follow from those of the release" in said
    assert "the weights fit the settings" in said


def test_images_that_the_unet_cannot_halve_are_exported_with_a_border_and_drawn_without(dpdm, photos, tmp_path):
    save_pipeline(tmp_path / "public" / "pipeline", sample_size=10, in_channels=3, out_channels=3)
    code, _, err = dpdm("train", photos, "--method=diffusion", *ALL, "--set=data.size=9", "--run=run")
    assert code == 0, err
    assert dpdm("sample", "run", "-n", 4, "-o", "made.npz", "--set", "sampler.steps=2")[0] == 0
    with np.load(tmp_path / "made.npz") as made:
        assert made["images"].shape == (4, 9, 9, 3)
    assert dpdm("export", "run", "-o", "out")[0] == 0
    assert read_json(tmp_path / "out" / "unet" / "config.json")["sample_size"] == 10
    assert "cut off the border" in (tmp_path / "out" / "README.md").read_text()
    code, _, err = dpdm("verify", "out")
    assert code == 0, err


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda out: (out / "unet" / "config.json").write_text("{}"), "is not the file that was exported"),
        (lambda out: (out / "more.txt").write_text("more"), "does not belong to the export"),
        (lambda out: (out / "README.md").unlink(), "is missing"),
        (lambda out: (out / "link").symlink_to("README.md"), "is a link"),
        (lambda out: (out / "manifest.json").write_text('{"sha256": 3}'), "holds no digests"),
        (lambda out: _said_more(out, losses=[1.23]), "holds more than digests"),
        (lambda out: _changed(out, "losses.csv", lambda text: "1.23"), "does not belong to the export"),
        (
            lambda out: _changed(out, "README.md", lambda text: re.sub(r"\([0-9.]+, ", "(0.1, ", text)),
            "does not say what an export of this claim says",
        ),
        (lambda out: (out / "secret words").mkdir(), "does not belong to the export"),
        (lambda out: (out / "two\nlines").write_text("more"), "does not belong to the export"),
        (lambda out: out.with_name("elsewhere").hardlink_to(out / "unet" / "config.json"), "hard link"),
        (
            lambda out: _changed(out, "privacy.json", lambda text: re.sub(r"\([0-9.]+, ", "(0.1, ", text)),
            "privacy.json states statement",
        ),
    ],
)
def test_what_an_export_does_not_hold_is_refused(spoil, match, dpdm, out):
    spoil(out)
    code, _, err = dpdm("verify", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert match in err


def _changed(out, name, change):
    """Change a file of an export, or add it, and write the manifest anew."""
    path = out / name
    path.write_text(change(path.read_text() if path.exists() else ""))
    (out / "manifest.json").unlink()
    write_manifest(out)


def _said_more(out, **more):
    write_json(out / "manifest.json", read_json(out / "manifest.json") | more)


def test_an_export_that_leaves_out_what_was_public_is_refused(dpdm, out):
    settings = tomllib.loads((out / "config.toml").read_text())
    settings["facts"]["public"] = []
    plan = decode_plan(settings["plan"])
    _changed(out, "config.toml", lambda text: tomli_w.dumps(settings))
    digests = {"config.toml": digest(out / "config.toml")}
    claim = {"schema": SCHEMA, **claim_of(plan, (), entropy=OperatingSystemEntropy())}
    whole = read_json(out / "privacy.json")["sha256"] | digests
    _changed(out, "privacy.json", lambda text: json_text({**claim, "sha256": whole}))
    code, _, err = dpdm("verify", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "names other public data than the method diffusion is made with" in err


@pytest.mark.parametrize("key", ["unet", "sha256"])
def test_a_release_whose_settings_leave_out_the_folder_looks_at_nobody_s_disk(key, dpdm, run, public):
    settings = tomllib.loads((run / "release" / "config.toml").read_text())
    del settings["network"][key]
    settings["network"]["source"] = str(public)
    _settings_of(run / "release", settings)
    for command in (("verify", "run"), ("sample", "run", "-n", "2", "-o", "made.npz")):
        code, _, err = dpdm(*command)
        assert (code, err.count("\n")) == (2, 1)
        assert f"lacks network.{key}" in err


def test_a_release_names_one_digest_of_its_folder(dpdm, run):
    settings = tomllib.loads((run / "release" / "config.toml").read_text())
    settings["network"]["sha256"] = "0" * 64
    _settings_of(run / "release", settings)
    code, _, err = dpdm("verify", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "names other public data than the method diffusion is made with" in err


def _settings_of(release, settings):
    """Write other settings into a release, and their digest into its claim."""
    (release / "config.toml").write_text(tomli_w.dumps(settings))
    claim = read_json(release / "privacy.json")
    claim["sha256"]["config.toml"] = digest(release / "config.toml")
    (release / "privacy.json").write_text(json_text(claim))


@pytest.mark.parametrize("taken", ["whole", "parts", "weights"])
def test_what_a_private_run_has_made_is_no_public_folder(taken, dpdm, photos, out, public, tmp_path):
    if taken == "weights":  # beside the settings of a public folder
        name = "unet/diffusion_pytorch_model.safetensors"
        shutil.copy(out / name, public / name)
    else:
        shutil.rmtree(public)
    if taken == "whole":
        shutil.copytree(out, public)
    elif taken == "parts":  # the files that diffusers reads, without the claim beside them
        for name in ("unet", "scheduler"):
            shutil.copytree(out / name, public / name)
        shutil.copy(out / "model_index.json", public)
    for command in (("train", photos, "--run=again"), ("plan", photos)):
        code, _, err = dpdm(command[0], command[1], "--method=diffusion", *ALL, *command[2:])
        assert (code, err.count("\n")) == (2, 1)
        assert "private run" in err
        assert "not public" in err
    assert not (tmp_path / "again").exists()


def test_a_manifest_beside_a_release_hides_no_weights(dpdm, run):
    (run / "release" / "manifest.json").write_text('{"sha256": {}}')
    code, _, err = dpdm("verify", "run")
    assert code == 2
    assert "does not belong to a release" in err


@pytest.mark.parametrize(
    ("spoil", "more", "match"),
    [
        (lambda public: shutil.rmtree(public), (), "holds no diffusers pipeline"),
        (lambda public: None, ("--set=data.size=16",), "set data.channels and data.size"),
        (lambda public: None, ("--set=network.trains=lora:0",), "lora:RANK"),
        (lambda public: None, ("--start=start",), "leave out prior, start and codec"),
        (lambda public: None, ("--set=preconditioning.kind=edm",), "preconditioning follows from the scheduler"),
        (
            lambda public: (public / "unet" / "diffusion_pytorch_model.safetensors").rename(
                public / "unet" / "diffusion_pytorch_model.bin"
            ),
            (),
            "never from a pickle",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_spent(spoil, more, match, dpdm, photos, public, tmp_path):
    spoil(public)
    code, _, err = dpdm("train", photos, "--method=diffusion", *ALL, *more, "--run=run")
    assert (code, err.count("\n")) == (2, 1)
    assert match in err
    assert not (tmp_path / "run").exists()


def test_another_folder_does_not_go_on_with_a_run(dpdm, photos, public):
    from diffusers import UNet2DModel

    assert dpdm("train", photos, "--method=diffusion", *ALL, "--run=run")[0] == 0
    unet = UNet2DModel.from_pretrained(public / "unet")
    with torch.no_grad():
        unet.conv_in.bias.add_(1)
    unet.save_pretrained(public / "unet")
    code, _, err = dpdm("train", photos, "--method=diffusion", *ALL, "--run=run")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds another run" in err


def test_importing_dpdm_and_saying_a_folder_imports_no_diffusers(tmp_path):
    line = "import dpdm, sys; dpdm.DiffusersFolder(source='x'); print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
