"""What a run keeps to itself: settings, journal, checkpoint, losses and norms. Never publish it."""

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpdm.config import decode_plan, read_toml
from dpdm.data import ImageDataset, find_duplicates
from dpdm.diffusion import GaussianMixture
from dpdm.files import write_json, write_toml
from dpdm.privacy.mechanism import Diagnostics, Mechanism, MechanismRun, figures_of, keep, kept_as
from dpdm.training.checkpoint import load_checkpoint, load_prior, save_checkpoint, save_prior
from dpdm.training.watch import tensorboard_writer, write_scalars
from dpdm.types import InputError

ASKED = "epsilon"
"""The key of what a run's noise was calibrated to: a person's figure, where a noise multiplier is a processor's."""

_NOISE = (ASKED, "privacy.earlier", "privacy.noise_multiplier")  # what epsilon decides, if nothing else differs
_MOST_SAID = 3  # settings, in one line
_CHECKPOINT, _BEFORE = "checkpoint.safetensors", "checkpoint.before.safetensors"
_DAMAGED = "checkpoint.damaged.safetensors"
_PERFORMANCE = (
    "training.physical_batch_size",
    "training.strategy",
    "training.device",
    "training.precision",
    "training.tensorboard",
)


class PrivateFolder:
    """The folder `private/` of a run, or nothing at all if `path` is None.

    Args:
        path: The folder.
        settings: All settings of the run.
        asked: The ε that its plan was calibrated to, if it was.
        seconds_between_saves: Of `save_now_and_then`.

    Raises:
        InputError: The folder holds a run with other settings, performance aside.
    """

    @staticmethod
    def kept_plan(path: Path, plan: Mechanism) -> Mechanism | None:
        """Return the plan that a run in this folder began with, if it began and `plan` asks for the same."""
        if not (path / "config.toml").exists():
            return None
        table = read_toml(path / "config.toml")
        try:
            began = decode_plan(table["privacy"])
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
            settings = {**settings, ASKED: asked}
        self._seconds, self._saved_at = seconds_between_saves, time.monotonic()
        if path is None:
            return
        if (path / "config.toml").exists():
            there, here = _flat(read_toml(path / "config.toml")), _flat(settings)
            other = [
                key for key in there.keys() | here.keys() if there.get(key) != here.get(key) and key not in _PERFORMANCE
            ]
            if other:
                raise InputError(
                    f"{path.parent} holds another run ({_differences(other, there, here)}): "
                    + (
                        f"choose another --run or, if these are its images, moved, correct it in {path}/config.toml"
                        if other == ["opened"]
                        else "choose another --run, or repeat the settings of that one"
                    )
                )
        else:
            made = False
            try:
                if path.parent.exists() and any(path.parent.iterdir()):
                    raise InputError(
                        f"{path.parent} is not empty and holds no run that can go on: choose another --run folder"
                    )
                path.mkdir(parents=True, mode=0o700)
                made = True
                write_toml(path / "config.toml", settings)
            except OSError as error:
                if made:
                    self.remove()
                why = error.strerror or type(error).__name__
                raise InputError(f"{path.parent} cannot be written ({why}): choose another --run folder") from None
        if settings["training"]["tensorboard"]:
            self._writer = tensorboard_writer(path / "tensorboard")

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

    def restore_prior(self, *, num_classes: int) -> GaussianMixture | None:
        """Return the prior that this run released, if it has."""
        if self.path is None or not (self.path / "prior.safetensors").exists():
            return None
        return load_prior(self.path / "prior.safetensors", num_classes=num_classes)

    def save_prior(self, prior: GaussianMixture) -> None:
        """Keep the prior, which cannot be released again."""
        if self.path is not None:
            save_prior(self.path / "prior.safetensors", prior)

    def restore(self, denoiser: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the checkpoint, or the one before if it is damaged, and return its number of updates; 0 without one."""
        found = [] if self.path is None else [self.path / name for name in (_CHECKPOINT, _BEFORE)]
        found = [path for path in found if path.exists()]
        for path in found:
            try:
                updates = load_checkpoint(path, network=denoiser, average=average, optimizer=optimizer)
            except InputError:
                if path == found[-1]:
                    raise
                continue
            if path != found[0]:  # else the next save would put the damaged one in the place of this one
                found[0].replace(found[0].with_name(_DAMAGED))
            return updates
        return 0

    def save_now_and_then(self, *state: object) -> None:
        """Save if the last time is a minute ago."""
        if time.monotonic() - self._saved_at > self._seconds:
            self.save(*state)  # type: ignore[arg-type]

    def save(self, denoiser: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, updates: int) -> None:
        """Replace the checkpoint, and keep the one before."""
        self._saved_at = time.monotonic()
        if self.path is None:
            return
        save_checkpoint(
            self.path / _CHECKPOINT,
            network=denoiser,
            average=average,
            optimizer=optimizer,
            updates=updates,
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
            "clipped": float((norms > mechanism.plan.max_grad_norm).float().mean()) if len(norms) else None,
        }
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        write_scalars(self._writer, row)
        self.record_disclosures(mechanism)

    def report_duplicates(self, data: ImageDataset) -> None:
        """List images that are equal in every pixel and lie in several units of protection, once in a run."""
        if self.path is not None and not (self.path / "duplicates.json").exists():
            equal = find_duplicates(data.images, data.groups, data.blank)
            write_json(self.path / "duplicates.json", {"equal_records": equal})

    def close(self) -> None:
        """Write what TensorBoard's writer still holds."""
        if self._writer is not None:
            self._writer.close()

    def record_disclosures(self, mechanism: MechanismRun) -> None:
        """Write down why secrets were revealed, if there are new reasons."""
        if self.path is not None and len(mechanism.disclosures) > self._disclosures:
            write_json(self.path / "disclosures.json", mechanism.disclosures)
            self._disclosures = len(mechanism.disclosures)


def _differences(keys: list[str], there: dict[str, Any], here: dict[str, Any]) -> str:
    """Name up to three settings that differ, leaving out noise that merely follows from another ε."""
    said = [f"{key} is {there.get(key)} there and {here.get(key)} here" for key in sorted(keys) if key not in _NOISE]
    more = [f"{len(said) - _MOST_SAID} more"] if len(said) > _MOST_SAID else []
    return ", ".join([*said[:_MOST_SAID], *more]) or "of another epsilon"


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
