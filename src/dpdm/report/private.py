"""What a report says for the data owner alone."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpdm.files import read_json
from dpdm.types import InputError


def read_private(run: Path) -> dict[str, Any]:
    """Return what no noise covers: losses and norms of training, and the findings of an audit."""
    folder = run / "private"
    if not folder.is_dir():
        raise InputError(f"{run} has no private/ folder: leave out --private, or name the run's own folder")
    found: dict[str, Any] = {"metrics": [], "audit": None}
    if (folder / "metrics.jsonl").is_file():
        rows = list(_rows((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()))
        every = max(1, len(rows) // 200)
        found["metrics"] = rows[::every]
    if (folder / "audit" / "audit.json").is_file():
        found["audit"] = read_json(folder / "audit" / "audit.json")
    return found


def _rows(lines: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what lines say: not a last one that a crash cut short, and no value that is not finite."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        yield {key: value for key, value in row.items() if value is not None and math.isfinite(value)}
