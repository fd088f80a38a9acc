import builtins
import io

import pytest
import torch

from dpdm import processor


def test_bfloat16_is_chosen_where_the_hardware_has_it_not_where_it_is_emulated(monkeypatch):
    monkeypatch.setattr(processor.torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not processor.has_bfloat16(torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("flags", "known"), [("fpu amx_bf16", True), ("fpu avx512_bf16", True), ("fpu avx2", False), (None, False)]
)
def test_a_processor_has_bfloat16_if_the_system_lists_it(flags, known, monkeypatch):
    def opened(path, **_):
        if flags is None:
            raise FileNotFoundError(path)
        return io.StringIO(f"flags : {flags}")

    monkeypatch.setattr(builtins, "open", opened)
    assert processor.has_bfloat16(torch.device("cpu")) == known
