"""How processes become a group."""

from datetime import timedelta

from torch import distributed

from dpdm.training import hardware


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
