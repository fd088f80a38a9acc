"""How processes become a group, and what their devices can do."""

from datetime import timedelta

import torch
from torch import distributed

from dpdm.runs import hardware


def test_processes_wait_for_one_another_for_days(monkeypatch):
    """The first one may work alone for hours, on a picture or a classifier: half an hour is the default."""
    begun, ended = [], []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(distributed, "init_process_group", lambda *args, **options: begun.append((args, options)))
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: ended.append(True))
    with hardware.joined_processes():
        assert begun == [(("gloo",), {"timeout": timedelta(days=7)})]
        assert not ended
    assert ended == [True]


def test_a_process_alone_forms_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(distributed, "init_process_group", None)
    with hardware.joined_processes() as processes:
        assert (processes.rank, processes.size) == (0, 1)


def test_a_gpu_comes_with_its_number_since_threads_do_not_share_which_one_is_current(monkeypatch):
    monkeypatch.setattr(hardware.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware.torch.cuda, "current_device", lambda: 1)
    assert hardware.choose_device("auto") == hardware.choose_device("cuda") == torch.device("cuda", 1)
    assert hardware.choose_device("cpu") == torch.device("cpu")
