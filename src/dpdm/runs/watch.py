"""What anyone may see of a run while it goes, in `watch/`: steps, ε, learning rate, and what the average draws.

All of it is post-processing of noisy sums, as the release is. There are no times: how long a step takes tells the size
of its batch.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dpdm.data.claims import png_with
from dpdm.evaluation import save_grid
from dpdm.privacy import AnyPlan
from dpdm.runs.release import Release
from dpdm.types import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_POINTS = 20  # at which ε is written; accounting takes a second or so
_PICTURES = 4  # quarters of the run, at whose ends pictures are made; the last is of the release itself
_PER_CLASS = 10  # images in a picture
_MOST_CLASSES = 10


class Watch:
    """The folder `watch/` of a run, or nothing at all if `path` is None.

    Args:
        path: The folder.
        plan: What ε is computed of.
        private: Whether the run has a claim; without one its lines say so, and there are no pictures.
        tensorboard: Whether to write the same for TensorBoard, beside.
    """

    def __init__(self, path: Path | None, plan: AnyPlan, *, private: bool, tensorboard: bool) -> None:
        self._path, self._plan, self._private = path, plan, private
        self._epsilon: dict[int, float] = {}  # by step
        if path is not None:
            path.mkdir(exist_ok=True)
        self._writer = tensorboard_writer(path) if path is not None and tensorboard else None

    def epsilon(self, step: int) -> float | None:
        """Return ε of all steps up to the next of twenty points of the plan: a bound for those taken so far."""
        if self._path is None:
            return None
        ahead = min(self._plan.steps, (step * _POINTS // self._plan.steps + 1) * self._plan.steps // _POINTS)
        return self._spent(ahead)

    def record(self, step: int, learning_rate: float, release: Callable[[], Release]) -> None:
        """Write this step's line and picture, if it is one that gets them."""
        if self._path is None:
            return
        points = {self._plan.steps * point // _POINTS for point in range(1, _POINTS + 1)}
        if step in points:
            epsilon = self._spent(step)
            claimed = epsilon if self._private and epsilon < float("inf") else None
            row: dict[str, Any] = {"step": step, "epsilon": claimed, "learning_rate": learning_rate}
            row |= {} if self._private else {"remark": "NOT PRIVATE"}
            with (self._path / "progress.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            write_scalars(self._writer, row)
        if self.has_picture(step):
            self.draw(step, release)

    def has_picture(self, step: int) -> bool:
        """Tell whether a quarter of the plan's steps ends with this one; sums over all records have one each."""
        steps = self._plan.steps
        return not steps or step in {steps * quarter // _PICTURES for quarter in range(1, _PICTURES + 1)}

    def draw(self, step: int, make: Callable[[], Release]) -> None:
        """Write a picture of what the average draws: ten images of each class, of the first ten classes."""
        if self._path is None or not self._private:
            return
        release = make()
        rows = max(1, min(_MOST_CLASSES, release.facts.num_classes))
        images, labels = release.sample(_PER_CLASS * rows, labels=np.arange(_PER_CLASS * rows) % rows, seed=0)
        last = self._plan.steps or self._plan.planned
        name = self._path / f"step-{step:0{len(str(last))}d}.png"
        carried = png_with(json.dumps(release.claim, ensure_ascii=False))  # so that nobody takes it for public
        save_grid(name, images, labels, num_classes=rows, per_class=_PER_CLASS, info=carried)
        if self._writer is not None:
            self._writer.add_image("samples", np.asarray(Image.open(name)), step, walltime=step, dataformats="HWC")

    def _spent(self, step: int) -> float:
        if step not in self._epsilon:
            self._epsilon[step] = self._plan.epsilon(made=self._plan.made_after(step))
        return self._epsilon[step]

    def close(self) -> None:
        """Write what TensorBoard's writer still holds."""
        if self._writer is not None:
            self._writer.close()


def require_tensorboard() -> None:
    """Raise InputError if TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401 (only whether it is there)
    except ImportError:
        raise InputError("machine.tensorboard needs a package of its own: pip install 'dpdm[tensorboard]'") from None


def tensorboard_writer(folder: Path) -> "SummaryWriter":
    """Return a writer of TensorBoard's files."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def write_scalars(writer: "SummaryWriter | None", row: dict[str, Any]) -> None:
    """Write each number of a row, but its step, if there is a writer."""
    if writer is not None:
        for key, value in row.items():
            if key != "step" and isinstance(value, float):
                writer.add_scalar(key, value, row["step"], walltime=row["step"])  # no times: see above
