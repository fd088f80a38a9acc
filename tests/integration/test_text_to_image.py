"""A text-to-image pipeline from the command line: planned, trained on, claimed, exported, and loaded without dpdm."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small_photos import save

from diffusers_pipelines import save_text_pipeline
from dpdm import Release, Trainer, load_config
from dpdm.runs.exported import write_manifest

UNet2DConditionModel = pytest.importorskip("diffusers").UNet2DConditionModel
export_pipeline = pytest.importorskip("dpdm.runs.pipeline").export_pipeline
pytest.importorskip("peft")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*")

FOLDER = ("--set=network.kind=text-to-image", "--set=network.source=public/texts", "--set=data.size=8")
CLAIM = ("--epsilon=4", "--dataset-size=30", "--set=privacy.delta=1e-3")
STEPS = ("--set=privacy.steps=2", "--set=privacy.expected_batch_size=8", "--set=loss.noise_multiplicity=2")
LOW_RANK = ("--set=network.trains=lora:2", "--set=machine.precision=float32", "--set=sampler.steps=2")
ALL = (*FOLDER, *CLAIM, *STEPS, *LOW_RANK)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a public pipeline, a finished run, and what was exported from it."""
    home = tmp_path_factory.mktemp("made")
    (home / "public").mkdir()
    save_text_pipeline(home / "public" / "texts")
    photos, outside = save(home / "photos"), Path.cwd()
    os.chdir(home)
    try:
        overrides = [each.removeprefix("--set=") for each in (*FOLDER, *STEPS, *LOW_RANK, CLAIM[-1])]
        overrides += ["privacy.epsilon=4.0", "privacy.dataset_size=30", "optimizer.learning_rate=0.3"]
        config = load_config(str(photos), method="diffusion", overrides=overrides)
        data = config.data.open()
        Trainer.from_config(config, data, run=home / "run", ledger=lambda: None).fit(data)
        export_pipeline(home / "run", home / "out", public="public/texts")
        export_pipeline(home / "run", home / "adapter")
    finally:
        os.chdir(outside)
    return home


@pytest.fixture
def public(made, tmp_path):
    return Path(shutil.copytree(made / "public", tmp_path / "public")) / "texts"


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def test_a_plan_says_what_is_public_and_what_is_trained(dpdm, photos, public):
    code, out, err = dpdm("plan", photos, "--method=diffusion", *ALL)
    assert code == 0, err
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        assert f"start       the network of texts/{part}: no ε protects the images that it was trained on" in out


CANDIDATES = tuple(each.replace("network.", "pipeline.network.") for each in FOLDER)
VOTES = ("--method=evolution", *CANDIDATES, *CLAIM, "--set=population=6", "--set=rounds=1", "--set=augment=0")
DRAWN = ("--set=votes=2", "--set=pipeline.steps=2", "--set=pipeline.level=2")


def test_private_images_vote_for_what_a_pipeline_draws(dpdm, photos, public):
    for command, more in (("plan", ()), ("train", ("--run=voted",)), ("train", ("--run=voted",))):
        code, out, err = dpdm(command, photos, *VOTES, *DRAWN, *more)
        assert code == 0, err
        if command == "plan":
            for part in ("unet", "vae", "text_encoder", "tokenizer"):
                assert f"public      the network texts/{part}: no ε protects the images that it was trained on" in out
    elsewhere = public.rename(public.with_name("elsewhere"))
    code, out, err = dpdm("verify", "voted")
    assert code == 0, err
    assert 'public   "texts/vae", SHA-256' in out
    assert dpdm("sample", "voted", "-n", 6, "-o", "images.npz")[0] == 0
    assert np.load("images.npz")["images"].shape == (6, 8, 8, 3)
    elsewhere.rename(public)
    code, _, err = dpdm("audit", "voted")
    assert code == 0, err


def test_a_pipeline_that_was_exported_from_a_run_draws_no_candidates(dpdm, photos, made):
    other = [each.replace("public/texts", str(made / "out")) for each in VOTES]
    code, _, err = dpdm("train", photos, *other, *DRAWN, "--run=voted")
    assert code == 2
    assert "belongs to a private run" in err
    assert not Path("voted").exists()


def test_a_plan_needs_settings_alone_and_says_what_each_set_takes(dpdm, photos, public, monkeypatch):
    for path in public.rglob("*.safetensors"):
        path.unlink()
    code, out, err = dpdm("plan", photos, "--method=diffusion", *ALL, "--json")
    assert code == 0, err
    report = json.loads(out)
    unet, by_set = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(public / "unet")), report["by_set"]
    assert by_set["all"]["parameters"] == sum(p.numel() for p in unet.parameters())
    assert report["parameters"] == by_set["lora:4"]["parameters"] // 2
    assert report["seconds_per_step"] >= 0
    code, out, err = dpdm("plan", photos, "--method=diffusion", *ALL)
    assert "counted: the public weights are not here" in out
    assert "network.trains=attention: " in out
    code, _, err = dpdm("train", photos, "--method=diffusion", *ALL, "--run=run")
    assert (code, err.count("\n")) == (2, 1)
    assert "is missing" in err
    monkeypatch.setattr("dpdm.runs.rehearsal.memory_there", lambda device: 2**16)
    code, _, err = dpdm("plan", photos, "--method=diffusion", *ALL)
    assert code == 2
    assert "a step on one image needs about" in err


def test_a_run_goes_on_and_its_release_holds_no_public_weight(dpdm, photos, public, tmp_path):
    for _ in range(2):
        code, _, err = dpdm("train", photos, "--method=diffusion", *ALL, "--run=run")
        assert code == 0, err
    assert "kept" in os.listdir(tmp_path / "run" / "private")
    with safe_open(tmp_path / "run" / "release" / "model.safetensors", "pt") as file:
        names = [*file.keys()]
    assert all("lora_" in name or name == "denoiser.network.prompts" for name in names)
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        assert f'public   "texts/{part}", SHA-256' in out
    assert 'prompt   "a photo of a {class}": declared, and for {class} the name of each class' in out
    assert json.loads(dpdm("verify", "run", "--json")[1])["prompt"] == "a photo of a {class}"
    for command in (("sample", "run/release", "-n", 4, "-o", "made.npz"), ("report", "run/release", "-o", "made.html")):
        code, _, err = dpdm(*command)
        assert (code, err.count("\n")) == (2, 1)
        assert "needs the public file texts/unet" in err
        assert "--public" in err
        code, _, err = dpdm(*command, "--public=public/texts")
        assert code == 0, err
    with np.load(tmp_path / "made.npz") as drawn:
        assert drawn["images"].shape == (4, 8, 8, 3)
        assert "it does not protect what was declared public: 'texts/unet'" in str(drawn["claim"])


def test_the_whole_folder_of_a_run_knows_its_pipeline(run, public, photos, dpdm, tmp_path):
    """So nobody has to name it: not where images are drawn, judged, or begun with, for which `--public` is the run."""
    code, _, err = dpdm("sample", "run", "-n", 30, "-o", "made.npz")
    assert code == 0, err
    code, _, err = dpdm("compare", "run", "made.npz", "-n", 30, "--reference", photos, "--num-classes=3", "--quick")
    assert code == 0, err
    evolution = ("--method=evolution", "--public=run", *CLAIM, "--set=data.size=8", "--run=next")
    code, _, err = dpdm("train", photos, *evolution, "--set=population=20", "--set=rounds=1", "--set=votes=1")
    assert code == 0, err
    assert "earlier releases of" in dpdm("verify", "next")[1]


def test_another_pipeline_opens_no_release(run, public, dpdm):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(public / "vae")
    with torch.no_grad():
        vae.quant_conv.bias.add_(1)
    vae.save_pretrained(public / "vae")
    for command in (("sample", "run", "-n", 4, "-o", "made.npz"), ("export", "run", "-o", "again")):
        code, _, err = dpdm(*command, "--public=public/texts")
        assert (code, err.count("\n")) == (2, 1)
        assert "vae is not the public file texts/vae" in err


LOADED = """
import sys
sys.modules["dpdm"] = None  # whoever imports it fails
import torch
from diffusers import DiffusionPipeline
folder, adapter, inputs, answers = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
if adapter:
    pipeline.load_lora_weights(adapter)
x, t, prompts = torch.load(inputs)
words, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
with torch.no_grad():
    raw = pipeline.unet(x, t, words).sample
    decoded = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample
    images = pipeline(prompts, num_inference_steps=2, height=8, width=8, output_type="np").images
torch.save((raw, decoded, torch.from_numpy(images)), answers)
"""


@pytest.mark.parametrize("adapter", ["", "adapter"])
def test_an_export_is_loaded_without_dpdm_and_gives_the_same(adapter, made, tmp_path):
    """The whole pipeline, and the public one with the adapter."""
    release = Release.load(made / "run", public=made / "public" / "texts")
    network, codec = release.generator.denoiser.network.cpu(), release.generator.codec.cpu()
    x, t = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    prompts = [f"a photo of a {name}" for name in release.facts.class_names[:2]]
    torch.save((x, t, prompts), tmp_path / "inputs.pt")
    folder = made / ("public/texts" if adapter else "out")

    def answers(adapter):
        line = [sys.executable, "-c", LOADED, folder, adapter, "inputs.pt", "answers.pt"]
        alone = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([*map(str, line)], cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return torch.load(tmp_path / "answers.pt")

    raw, decoded, images = answers(made / adapter if adapter else "")
    with torch.no_grad():
        assert torch.allclose(raw, network(x, t / network.times, torch.tensor([0, 1])), atol=1e-5)
        assert torch.allclose(decoded, codec.decode(x), atol=1e-5)
    assert images.shape == (2, 8, 8, 3)
    if adapter:  # which changes something
        assert not torch.allclose(raw, answers("")[0], atol=1e-3)


@pytest.mark.parametrize("folder", ["out", "adapter"])
def test_an_export_carries_its_claim_and_verify_checks_it(folder, made, dpdm, tmp_path):
    shutil.copytree(made / folder, tmp_path / "copy")
    claim = (made / "run" / "release" / "privacy.json").read_bytes()
    assert (tmp_path / "copy" / "privacy.json").read_bytes() == claim
    code, said, err = dpdm("verify", "copy")
    assert code == 0, err
    assert "not checked: that the weights of the pipeline follow from those of the release" in said
    with safe_open(tmp_path / "copy" / "pytorch_lora_weights.safetensors", "pt") as file:
        assert "-DP, add or remove one image" in file.metadata()["_dpdm_claim"]
    (tmp_path / "copy" / "more.txt").write_text("more")
    assert dpdm("verify", "copy")[0] == 2


def test_an_export_with_another_autoencoder_is_refused(made, dpdm, tmp_path):
    shutil.copytree(made / "out", tmp_path / "copy")
    path = tmp_path / "copy" / "vae" / "config.json"
    path.write_text(path.read_text().replace("0.18215", "0.5"))
    (tmp_path / "copy" / "manifest.json").unlink()
    write_manifest(tmp_path / "copy")
    code, _, err = dpdm("verify", "copy")
    assert (code, err.count("\n")) == (2, 1)
    assert "vae is another part than the claim names" in err


@pytest.mark.parametrize("added", ["unet/vocab.json", "vae/config.json"])
def test_an_export_with_files_that_no_claim_covers_is_refused(added, made, dpdm, tmp_path):
    shutil.copytree(made / "adapter", tmp_path / "copy")
    path = tmp_path / "copy" / added
    path.parent.mkdir()
    path.write_text('{"words": "of anybody"}')
    (tmp_path / "copy" / "manifest.json").unlink()
    write_manifest(tmp_path / "copy")
    code, _, err = dpdm("verify", "copy")
    assert (code, err.count("\n")) == (2, 1)
    assert "does not belong to the export" in err or "is another part than the claim names" in err


def test_without_low_rank_an_export_needs_the_public_pipeline(dpdm, photos, public):
    trained = (*FOLDER, *CLAIM, *STEPS, "--set=network.trains=norms", "--set=sampler.steps=2")
    code, _, err = dpdm("train", photos, "--method=diffusion", *trained, "--run=whole")
    assert code == 0, err
    code, _, err = dpdm("export", "whole", "-o", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "name its pipeline by --public" in err
    code, _, err = dpdm("export", "whole", "-o", "out", "--public=public/texts")
    assert code == 0, err
    assert dpdm("verify", "out")[0] == 0


def test_what_a_private_run_has_made_is_no_public_folder(made, dpdm, photos, tmp_path):
    shutil.copytree(made / "out", tmp_path / "public" / "texts")
    code, _, err = dpdm("train", photos, "--method=diffusion", *ALL, "--run=again")
    assert (code, err.count("\n")) == (2, 1)
    assert "private run" in err
    for name in ("privacy.json", "README.md", "config.toml", "manifest.json"):
        (tmp_path / "public" / "texts" / name).unlink()
    code, _, err = dpdm("train", photos, "--method=diffusion", *ALL, "--run=again")
    assert "was exported from a private run" in err
    assert not (tmp_path / "again").exists()


@pytest.mark.proof
def test_a_run_is_audited_with_the_public_network_as_reference(run, photos, dpdm, monkeypatch):
    from dpdm.audit import report

    monkeypatch.setattr(report, "check_mechanism", lambda plan: [])
    code, out, err = dpdm("audit", "run", "--minutes", "1", "--held-out", photos)
    assert code == 0, err
    assert "black box    loss less public base's: AUC" in out
    assert "properties   nothing here tells how frequent classes are, and no ε would hide it" in out
    found = json.loads(Path("run/private/audit/audit.json").read_text())
    assert "loss less public base's" in found["black_box"]
    assert found["properties"] is None, "it draws each class alike, and was trained without images of no class"
