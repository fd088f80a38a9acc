"""The resume state of a run: safetensors files in `private/`, replaced atomically, without pickle.

It holds no state of any noise or selection: there is none. Nor does it count what is spent: the journal does.
"""

from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dpdm.diffusion import GaussianMixture
from dpdm.files import write_atomically
from dpdm.training.weights import differences, layout_of
from dpdm.types import InputError, is_of_memory


def save_checkpoint(
    path: Path,
    *,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    updates: int,
    before: Path | None = None,
) -> None:
    """Write the state after `updates` updates, and keep the one that was there as `before`.

    On any failure the checkpoint that was there stays whole, under one of both names.
    """
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    whole: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous().cpu()
        place = plain.untyped_storage().data_ptr()
        whole[name] = plain.clone() if place in seen else plain  # the library writes no two that share memory
        seen.add(place)
    metadata = {"updates": str(updates)}
    write_atomically(path, lambda temporary: safetensors.torch.save_file(whole, temporary, metadata), before=before)


def load_checkpoint(path: Path, *, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore what `save_checkpoint` wrote, in place, and return the number of updates it had seen.

    Raises:
        InputError: The file is damaged, or belongs to another network.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            updates = int(file.metadata()["updates"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        weights = _below("network.", tensors)
        if other := differences(layout_of(network.state_dict()), layout_of(weights)):
            raise InputError(
                f"{path} is of a run with another network: {other}; give that one, or choose another --run"
            )
        network.load_state_dict(weights)
        average.load_state_dict(_below("average.", tensors))
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_of_memory(error):
            raise
        raise InputError(f"{path} is damaged ({type(error).__name__}): start a new run in another folder") from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer.", tensors).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return updates


def save_prior(path: Path, prior: GaussianMixture) -> None:
    """Write a released prior."""
    tensors = {name: tensor.contiguous() for name, tensor in prior.state_dict().items()}
    write_atomically(path, lambda temporary: safetensors.torch.save_file(tensors, temporary))


def load_prior(path: Path, *, num_classes: int) -> GaussianMixture:
    """Return the prior that `save_prior` wrote.

    Raises:
        InputError: The file is damaged.
    """
    try:
        return GaussianMixture.from_tensors(safetensors.torch.load_file(path), num_classes=num_classes)
    except (safetensors.SafetensorError, OSError, LookupError, RuntimeError, ValueError) as error:
        if is_of_memory(error):
            raise
        raise InputError(f"{path} is damaged ({type(error).__name__}): start a new run in another folder") from None


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
