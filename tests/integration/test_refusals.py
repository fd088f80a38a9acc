"""On the command line, too, what can refuse a run does so in one line, with exit code 2, and leaves nothing behind."""

import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from small_run import SMALL

from dpdm.diffusion import DDIM
from dpdm.ledger import Ledger
from dpdm.runs import rehearsal


def no_room(patch):
    patch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(10**9, 10**9, 1000))


def read_only(patch):
    def mkdir(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    patch.setattr(Path, "mkdir", mkdir)


CASES = {
    "a device": (["machine.device=cuda"], lambda p: p.setattr(torch.cuda, "is_available", lambda: False), "no CUDA"),
    "TensorBoard": (
        ["machine.tensorboard=true"],
        lambda p: p.setitem(sys.modules, "torch.utils.tensorboard", None),
        "pip install",
    ),
    "memory": ([], lambda p: p.setattr(rehearsal, "memory_there", lambda device: 1000), "memory"),
    "a disk": ([], no_room, "make room there"),
    "a folder": ([], read_only, "cannot be written"),
    "a sampler": ([], lambda p: p.setattr(DDIM, "_integrate", lambda *arguments: [][0]), "sampler fails"),
    "a sampler beyond training": (["preconditioning.kind=ve", "sampler.sigma_min=1e-4"], None, "sigma_min"),
    "guidance": (["sampler.guidance=1", "loss.label_dropout=0"], None, "guidance"),
    "TF32": ([], lambda p: p.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1"), "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    "a network": (["network.kind=unet", "network.width=8", "network.attention=[5]"], None, "attention at height 5"),
    "a network too large": (
        ["network.kind=mlp", "network.width=65536", "network.blocks=30"],
        None,
        "a smaller network",
    ),
    "a network without code": (["network.kind=own", "network.type=package.Net"], None, "Diffusion(network=...)"),
}


@pytest.mark.parametrize("case", CASES)
def test_train_refuses_in_one_line_and_leaves_neither_folder_nor_entry(case, dpdm, photos, tmp_path, monkeypatch):
    changes, patch, said = CASES[case]
    settings = [text for text in SMALL if not (changes and "network.kind" in changes[0] and "network." in text)]
    line = ["train", photos, "--epsilon", 1, "--dataset-size", 30, "--run", tmp_path / "run", *settings]
    book = tmp_path / "book.sqlite"
    with monkeypatch.context() as during:
        if patch is not None:
            patch(during)
        code, out, err = dpdm(*line, *[f"--set={text}" for text in changes], "--ledger", book)
    told = [text for text in err.splitlines() if text.startswith("dpdm: ")]
    assert code == 2, err
    assert out == ""
    assert len(told) == 1
    assert said in told[0]
    assert not (tmp_path / "run").exists()
    assert not book.exists() or Ledger(str(book)).storage.entries() == []
