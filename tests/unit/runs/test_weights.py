"""The file of weights is the one that the library writes, and any other is refused by its header."""

import pytest
import safetensors.torch
import torch

from dpdm.runs import weights
from dpdm.runs.weights import (
    all_finite,
    layout_of,
    read_layout,
    read_weights,
    reader,
    require_storable,
    save_weights,
)
from dpdm.types import InputError

KINDS = ("float32", "float64", "int64", "int32", "bfloat16", "float16", "bool", "uint8", "int8", "int16")


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    made = {kind: (5 * torch.randn(3, 2, generator=generator)).to(getattr(torch, kind)) for kind in KINDS}
    return made | {"none": torch.zeros(0, 3), "one": torch.tensor(4.0), "a.turned": torch.arange(6.0).view(2, 3).T}


def test_the_file_is_that_of_the_library(tensors, tmp_path):
    save_weights(tmp_path / "w", tensors)
    whole = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert (tmp_path / "w").read_bytes() == whole


def test_what_is_written_is_read(tensors, tmp_path):
    save_weights(tmp_path / "w", tensors)
    layout = read_layout(tmp_path / "w")
    assert layout == layout_of(tensors)
    found = read_weights(tmp_path / "w", layout)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert read_weights(tmp_path / "w", layout, below="a.").keys() == {"turned"}
    assert torch.equal(reader(tmp_path / "w", layout)("float64", slice(1, 3)), tensors["float64"][1:3])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["float64", "bfloat16", "float16", "one"])
def test_one_number_that_is_not_finite_is_found(tensors, tmp_path, bad, kind, monkeypatch):
    monkeypatch.setattr(weights, "_PART", 2)  # numbers at a time
    save_weights(tmp_path / "w", tensors)
    assert all_finite(tmp_path / "w", layout_of(tensors))
    tensors[kind].view(-1)[-1] = bad
    save_weights(tmp_path / "w", tensors)
    assert not all_finite(tmp_path / "w", layout_of(tensors))


def test_a_byte_more_or_less_is_refused(tensors, tmp_path):
    save_weights(tmp_path / "w", tensors)
    whole = (tmp_path / "w").read_bytes()
    for other in (whole[:-1], whole + b"\0", whole[:100], b"", whole[:8]):
        (tmp_path / "w").write_bytes(other)
        with pytest.raises(InputError, match=r"damaged|not as a run writes it"):
            read_layout(tmp_path / "w")


def test_what_no_release_could_hold_is_refused_before_it_is_trained():
    with pytest.raises(InputError, match="complex64, which is no weight's"):
        require_storable({"spectrum": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(InputError, match="more than a release holds"):
        require_storable({"wide": torch.empty(2**15, 2**15, device="meta")})
