"""What people write against: names, signatures, verbs and options. A change here is a change for all of them.

python tests/golden/test_public_surface.py      # writes public_surface.txt anew, for the diff to be read
"""

import dataclasses
import inspect
from pathlib import Path

import typer.main

import dpdm
from dpdm.cli import app

FILE = Path(__file__).with_name("public_surface.txt")


def surface() -> str:
    lines = []
    for name in sorted(dpdm.__all__):
        value = getattr(dpdm, name)
        if dataclasses.is_dataclass(value):
            lines.append(f"{name}({', '.join(field.name for field in dataclasses.fields(value))})")
        elif callable(value) and not inspect.isclass(value):
            lines.append(f"{name}({', '.join(inspect.signature(value).parameters)})")
        else:
            lines.append(name)
        if inspect.isclass(value) and not issubclass(value, Exception):
            mine = {
                name: member
                for kind in reversed(value.__mro__)
                if kind.__module__.startswith("dpdm")
                for name, member in vars(kind).items()
            }
            for method, function in sorted(mine.items()):
                if method.startswith("_"):
                    continue
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function):
                    lines.append(f"    .{method}({', '.join(inspect.signature(function).parameters)})")
                elif isinstance(function, property):
                    lines.append(f"    .{method}")
    for verb, command in sorted(typer.main.get_command(app).commands.items()):
        options = [" ".join(parameter.opts) or parameter.name for parameter in command.params]
        lines.append(f"dpdm {verb}: {', '.join(options)}")
    return "\n".join(lines) + "\n"


def test_the_public_surface_is_what_the_golden_file_says():
    assert surface() == FILE.read_text(encoding="utf-8"), f"if it is meant, run python {Path(__file__).name}"


if __name__ == "__main__":
    FILE.write_text(surface(), encoding="utf-8")
