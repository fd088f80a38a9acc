"""What may be seen of a run while it goes: steps, ε, learning rate and pictures; never a loss, a norm or a time."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from small_run import SMALL


def test_a_run_shows_steps_epsilon_and_pictures(dpdm, photos, tmp_path):
    code, _, err = dpdm("train", photos, *SMALL, "--epsilon", 1, "--dataset-size", 30, "--run", "run")
    assert code == 0, err
    watch = tmp_path / "run" / "watch"
    rows = [json.loads(line) for line in (watch / "progress.jsonl").read_text().splitlines()]
    assert all(row.keys() == {"step", "epsilon", "learning_rate"} for row in rows)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))
    spent = [row["epsilon"] for row in rows]
    assert spent == sorted(spent)
    claim = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert rows[-1]["step"] == claim["steps"]
    assert rows[-1]["epsilon"] == pytest.approx(claim["epsilon"], rel=1e-6)
    pictures = sorted(watch.glob("*.png"))
    assert pictures[-1].name == f"step-{claim['steps']}.png"  # the release's own: a finished run has a picture
    for picture in pictures:
        Image.open(picture).verify()
    assert {path.suffix for path in watch.iterdir()} == {".jsonl", ".png"}


def test_a_run_without_a_claim_says_so_and_shows_no_pictures(dpdm, photos, tmp_path):
    small = [setting for setting in SMALL if not any(key in setting for key in ("epsilon", "delta"))]
    line = ["train", photos, *small, "--set=privacy.kind=non-private", "--set=preconditioning.kind=edm", "--run", "run"]
    code, _, err = dpdm(*line)
    assert code == 0, err
    watch = tmp_path / "run" / "watch"
    rows = [json.loads(line) for line in (watch / "progress.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["epsilon"] is None and row["remark"] == "NOT PRIVATE" for row in rows)
    assert not list(watch.glob("*.png"))


def test_tensorboard_gets_what_is_public_and_the_private_folder_the_rest(dpdm, photos, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    line = ["train", photos, *SMALL, "--epsilon", 1, "--dataset-size", 30, "--run", "run"]
    code, _, err = dpdm(*line, "--set", "machine.tensorboard=true")
    assert code == 0, err
    seen = {}
    for folder in ("watch", "private/tensorboard"):
        events = EventAccumulator(str(tmp_path / "run" / folder))
        events.Reload()
        seen[folder] = events.Tags()
        for event in events.Scalars("epsilon" if folder == "watch" else "loss"):
            assert event.wall_time == event.step  # how long steps took is not to be read off
    assert set(seen["watch"]["scalars"]) == {"epsilon", "learning_rate"}
    assert seen["watch"]["images"] == ["samples"]
    assert {"loss", "median_grad_norm"} <= set(seen["private/tensorboard"]["scalars"])


def test_without_tensorboard_the_run_is_refused_before_anything_is_spent(dpdm, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    line = ["train", photos, *SMALL, "--epsilon", 1, "--dataset-size", 30, "--run", "run"]
    code, _, err = dpdm(*line, "--set", "machine.tensorboard=true")
    assert code == 2
    assert "pip install 'dpdm[tensorboard]'" in err
    assert not (tmp_path / "run" / "private" / "journal.jsonl").exists()


def test_a_pipeline_makes_the_images_of_its_release(dpdm, trained, photos, tmp_path):
    pipeline = pytest.importorskip("dpdm.runs.pipeline")
    import torch

    import dpdm as package

    code, _, err = dpdm("export", trained, "-o", "pipeline")
    assert code == 0, err
    claim = package.Release.load(trained).statement
    assert claim in (tmp_path / "pipeline" / "README.md").read_text()
    loaded = pipeline.DPDMPipeline.from_pretrained(tmp_path / "pipeline")
    with pytest.raises(AttributeError, match=r"pip install 'dpdm\[diffusers\]'"):
        pipeline.DiffusionPipeline.from_pretrained(tmp_path / "pipeline", local_files_only=True)
    code, said, err = dpdm("verify", "pipeline")
    assert code == 0, err
    assert "not checked: that the weights of the pipeline follow" in said
    made = loaded(7, generator=torch.Generator().manual_seed(3), output_type="np").images
    images, _ = package.Release.load(trained).sample(7, seed=3)
    assert np.abs(made.astype(int) - images).max() <= 1
    chosen = loaded(class_labels=[1, 1], generator=torch.Generator().manual_seed(3), num_inference_steps=2).images
    assert [image.size for image in chosen] == [(images.shape[2], images.shape[1])] * 2
    code, _, err = dpdm("export", trained, "-o", "pipeline")
    assert code == 2
    assert "is not empty" in err
    privacy = trained / "release" / "privacy.json"
    privacy.write_text(privacy.read_text().replace(claim, "(0.01, 1e-9)-DP, trust me"))
    for line in (("export", trained, "-o", "other"), ("compare", trained, "--reference", photos, "--quick")):
        code, _, err = dpdm(*line)
        assert code == 2
        assert "privacy.json states statement" in err
    assert not (tmp_path / "other").exists()
