"""What a run keeps to itself, in `private/`: settings, journal, noisy sums, checkpoint, losses. Never publish it."""

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from dpdm.config import decode_plan, read_toml
from dpdm.data import ImageDataset, find_equal
from dpdm.files import is_first_of_its_folders, write_atomically, write_json, write_toml
from dpdm.privacy.diagnostics import Diagnostics
from dpdm.privacy.figures import figures_of, keep, kept_as
from dpdm.privacy.mechanism import MechanismRun, Noisy
from dpdm.privacy.plan import AnyPlan
from dpdm.privacy.processes import Processes
from dpdm.runs.known import KnownImages
from dpdm.runs.run_folder import in_words
from dpdm.runs.watch import tensorboard_writer, write_scalars
from dpdm.runs.weights import differences, layout_of
from dpdm.types import InputError, is_of_memory

ASKED = "epsilon"
"""The key of what a run's noise was calibrated to: a person's figure, where a noise multiplier is a processor's."""

ASKED_FOR = ("data", "privacy", "public")
"""The tables of what a person asked for: `facts`, `plan`, `opened` and ε follow from them, and are compared instead."""

State = Mapping[str, nn.Module | torch.optim.Optimizer]
"""What a run goes on with, by name: no state of any noise or selection is among it."""

_NOISE = (ASKED, "plan.releases")  # what epsilon decides, if nothing else differs
_MOST_SAID = 3  # settings, in one line
_CHECKPOINT, _BEFORE = "checkpoint.safetensors", "checkpoint.before.safetensors"
_DAMAGED = "checkpoint.damaged.safetensors"


class PrivateFolder:
    """The folder `private/` of a run, or nothing at all if `path` is None.

    Args:
        path: The folder.
        settings: All settings of the run. `[machine]` may be another when it goes on.
        asked: The ε that its plan was calibrated to, if it was.
        seconds_between_saves: Of `save_now_and_then`.

    Raises:
        InputError: The folder holds a run with other settings.
    """

    @staticmethod
    def kept_plan(path: Path, plan: AnyPlan) -> AnyPlan | None:
        """Return the plan that a run in this folder began with, if it began and `plan` asks for the same."""
        if not (path / "config.toml").exists():
            return None
        table = read_toml(path / "config.toml")
        try:
            began = decode_plan(table["plan"])
            asked = figures_of(began)._replace(asked=table.get(ASKED))
            return kept_as(plan, keep(began, asked) or began)
        except (InputError, LookupError, TypeError):  # what is wrong with it shows where all settings are compared
            return None

    def __init__(
        self,
        path: Path | None,
        settings: dict[str, Any],
        *,
        asked: float | None = None,
        seconds_between_saves: float = 60.0,
    ) -> None:
        self.path, self._writer = path, None
        self._disclosures = 0
        if asked is not None:
            settings = {ASKED: asked, **settings}
        self._seconds, self._saved_at = seconds_between_saves, time.monotonic()
        if path is None:
            return
        if (path / "config.toml").exists():
            self._require_same(path, settings)
        else:
            self._make(path, settings)
        if settings["machine"]["tensorboard"]:
            self._writer = tensorboard_writer(path / "tensorboard")

    def _require_same(self, path: Path, settings: dict[str, Any]) -> None:
        there, here = _flat(read_toml(path / "config.toml")), _flat(settings)
        keys = [key for key in there.keys() | here.keys() if key.partition(".")[0] not in ("machine", *ASKED_FOR)]
        other = [key for key in keys if there.get(key) != here.get(key)]
        if not other:
            return
        moved = f"choose another folder or, if these are its images, moved, correct it in {path}/config.toml"
        what_to_do = moved if other == ["opened"] else "choose another folder, or repeat the settings of that one"
        raise InputError(f"{path.parent} holds another run ({_differences(other, there, here)}): {what_to_do}")

    def _make(self, path: Path, settings: dict[str, Any]) -> None:
        made = False
        try:
            if not is_first_of_its_folders(path / "config.toml"):  # before which nothing is spent
                raise InputError(f"{path.parent} is not empty and holds no run that can go on: choose another folder")
            path.mkdir(parents=True, mode=0o700, exist_ok=True)
            made = True
            write_toml(path / "config.toml", settings)
        except OSError as error:
            if made:
                self.remove()
            why = error.strerror or type(error).__name__
            raise InputError(f"{path.parent} cannot be written ({why}): choose another folder") from None

    @property
    def journal(self) -> Path | None:
        """Where the mechanism counts its noisy sums."""
        return None if self.path is None else self.path / "journal.jsonl"

    def remove(self) -> None:
        """Remove a run that has spent nothing and may not begin."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            shutil.rmtree(self.path.parent / "watch", ignore_errors=True)
            with suppress(OSError):  # it may hold what a person put there
                self.path.parent.rmdir()

    def _sum(self, name: str) -> Path | None:
        return None if self.path is None else self.path / "sums" / f"{name}.safetensors"

    def keep_sum(self, name: str, noisy: Noisy) -> None:
        """Keep a noisy sum, which cannot be made again."""
        if (path := self._sum(name)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors = {"values": noisy.values.contiguous().cpu(), "std": torch.tensor(noisy.std, dtype=torch.float64)}
            write_atomically(path, lambda temporary: safetensors.torch.save_file(tensors, temporary))

    def kept_sum(self, name: str) -> Noisy | None:
        """Return a noisy sum that was kept, if it was.

        Raises:
            InputError: Its file is damaged.
        """
        path = self._sum(name)
        if path is None or not path.exists():
            return None
        try:
            tensors = safetensors.torch.load_file(path)
            return Noisy(tensors["values"], float(tensors["std"]))
        except (safetensors.SafetensorError, OSError, LookupError, RuntimeError, ValueError) as error:
            raise _damaged(path, error) from None

    def restore(self, state: State) -> int:
        """Load the checkpoint, or the one before if it is damaged, and return its number of updates; 0 without one."""
        found = [] if self.path is None or not state else [self.path / name for name in (_CHECKPOINT, _BEFORE)]
        found = [path for path in found if path.exists()]
        for path in found:
            try:
                updates = _load(path, state)
            except InputError:
                if path == found[-1]:
                    raise
                continue
            if path != found[0]:  # else the next save would put the damaged one in the place of this one
                found[0].replace(found[0].with_name(_DAMAGED))
            return updates
        return 0

    def save_now_and_then(self, state: State, updates: int) -> None:
        """Save if the last time is a minute ago."""
        if time.monotonic() - self._saved_at > self._seconds:
            self.save(state, updates)

    def save(self, state: State, updates: int) -> None:
        """Replace the checkpoint, and keep the one before: on any failure one of both stays whole."""
        self._saved_at = time.monotonic()
        if self.path is None or not state:
            return
        tensors, metadata = _tensors(state), {"updates": str(updates)}
        write_atomically(
            self.path / _CHECKPOINT,
            lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata),
            before=self.path / _BEFORE,
        )

    def record(self, step: int, diagnostics: Diagnostics, mechanism: MechanismRun) -> None:
        """Append this step's losses and norms, which ε does not cover, and why secrets were revealed."""
        if self.path is None:
            return
        losses = diagnostics.losses.reveal(because="mean loss, written to private/metrics.jsonl")
        norms = diagnostics.grad_norms.reveal(because="gradient norms, written to private/metrics.jsonl")
        size, losses, norms = len(losses), losses[losses.isfinite()], norms[norms.isfinite()]  # not of blank records
        row = {
            "step": step,
            "batch_size": size,
            "loss": float(losses.mean()) if len(losses) else None,
            "median_grad_norm": float(norms.median()) if len(norms) else None,
            "clipped": float((norms > mechanism.plan.poisson[-1].radius).float().mean()) if len(norms) else None,
        }
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        write_scalars(self._writer, row)
        self.record_disclosures(mechanism)

    def report_duplicates(self, data: ImageDataset, known: KnownImages, processes: Processes) -> None:
        """List images that are equal in every pixel and lie in several units, and those that are blank, once in a run.

        Blank are those that are among the public images too.
        """
        report = None if self.path is None else self.path / "duplicates.json"
        if not processes.any(report is not None and not report.exists()):
            return
        digests = known.digests()
        if report is not None:
            equal = find_equal(digests, data.groups, data.blank)
            blank = [] if data.blank is None else np.flatnonzero(data.blank).tolist()
            write_json(report, {"equal_records": equal, "blank_records": blank})

    def close(self) -> None:
        """Write what TensorBoard's writer still holds."""
        if self._writer is not None:
            self._writer.close()

    def record_disclosures(self, mechanism: MechanismRun) -> None:
        """Write down why secrets were revealed, if there are new reasons."""
        if self.path is not None and len(mechanism.disclosures) > self._disclosures:
            write_json(self.path / "disclosures.json", mechanism.disclosures)
            self._disclosures = len(mechanism.disclosures)


def _damaged(path: Path, error: Exception) -> InputError:
    """Return what is said of a file of a run that cannot be read; an error for lack of memory is raised as it is."""
    if is_of_memory(error):
        raise error
    return InputError(f"{path} is damaged ({type(error).__name__}): start a new run in another folder")


def _tensors(state: State) -> dict[str, Tensor]:
    """Return all tensors of a state by name, no two of which share memory: the library writes none that do."""
    tensors: dict[str, Tensor] = {}
    for name, part in state.items():
        if isinstance(part, nn.Module):
            tensors |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        else:
            for index, values in part.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{key}": value for key, value in values.items()}
    whole: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous().cpu()
        place = plain.untyped_storage().data_ptr()
        whole[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return whole


def _load(path: Path, state: State) -> int:
    """Restore what `save` wrote, in place, and return the number of updates it had seen.

    Raises:
        InputError: The file is damaged, or belongs to another network.
    """
    modules = {name: part for name, part in state.items() if isinstance(part, nn.Module)}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            updates = int(file.metadata()["updates"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        for name, module in modules.items():
            weights = _below(f"{name}.", tensors)
            if other := differences(layout_of(module.state_dict()), layout_of(weights)):
                raise InputError(
                    f"{path} is of a run with another network: {other}; give that one, or choose another folder"
                )
            module.load_state_dict(weights)
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None
    for name, part in state.items():
        if not isinstance(part, nn.Module):
            found: dict[int, dict[str, Tensor]] = {}
            for key, tensor in _below(f"{name}.", tensors).items():
                index, inner = key.split(".", 1)
                found.setdefault(int(index), {})[inner] = tensor
            part.load_state_dict({"state": found, "param_groups": part.state_dict()["param_groups"]})
    return updates


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _differences(keys: list[str], there: dict[str, Any], here: dict[str, Any]) -> str:
    """Name up to three settings that differ, leaving out noise that merely follows from another ε."""
    said = [f"{key} is {in_words(there.get(key), here.get(key))}" for key in sorted(keys) if key not in _NOISE]
    more = [f"{len(said) - _MOST_SAID} more"] if len(said) > _MOST_SAID else []
    return ", ".join([*said[:_MOST_SAID], *more]) or "of another epsilon"


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
