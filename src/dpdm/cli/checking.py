"""`dpdm check`: what a folder of images holds, before anything private is spent."""

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

from dpdm.cli.options import AsJson, SetData, Target, fail, load_settings, print_json, say
from dpdm.terminal import show_progress

if TYPE_CHECKING:
    from dpdm.config import Data
    from dpdm.data import PartFound

_VALUES = {"grey": 1, "colour": 3, "colour with transparency": 4}  # of a pixel
_SHOWN = 5  # of sizes and refused files, a line; --json has all


def check(target: Target, set: SetData = None, as_json: AsJson = False) -> None:
    """Show what a source of images holds, and what is public.

    Lists parts, classes, sizes, and files that training would refuse. Stores nothing, and leaves the ledger alone.
    """
    for text in set or []:
        if not text.startswith("data."):
            fail(f"--set {text} changes nothing about images: check takes data.… only")
    data = load_settings(target, None, None, set, claims=False).data
    from dpdm.data import inspect

    done = 0
    with show_progress("looking", None) as advance:

        def on_progress(now: int, total: int) -> None:
            nonlocal done
            advance(now - done if now > done else now, "", total)
            done = now

        parts = inspect(data.source, num_classes=data.num_classes, group=data.group, on_progress=on_progress)
    if as_json:
        print_json({"source": data.source, "parts": {split: _as_json(part) for split, part in parts.items()}})
    else:
        _say_page(data, parts)
    refused = [line for part in parts.values() for line in part.refused]
    if refused:
        fail(f"{len(refused):,} of the files cannot be used: {refused[0]}")


def _say_page(data: "Data", parts: "dict[Any, PartFound]") -> None:
    say(f"{data.source}: for the owner's eyes, since numbers of private images are private")
    for split, part in parts.items():
        say(f"\n{split}: {part.images:,} images")
        classes = [f"{name} {count:,}" for name, count in part.classes.items()]
        say(f"  classes   {len(classes)}: {_some(classes, 20)}" if classes else "  classes   none")
        if part.groups is not None:
            say(f"  groups    {len(part.groups):,}, of {min(part.groups):,} to {max(part.groups):,} images each")
        say(
            f"  pixels    {_counted(Counter({f'{w} x {h}': n for (w, h), n in part.sizes.items()}))}{_size(data, part)}"
        )
        say(f"  channels  {_counted(part.channels)}{_channels(data, part)}")
        say(f"  equal     {part.equal:,}, to an earlier image in every pixel" if part.equal else "  equal     none")
        for number, line in enumerate(part.refused[:_SHOWN]):
            say(f"  {'refused' if not number else '':10}{line}")
        if len(part.refused) > _SHOWN:
            say(f"  {'':10}and {len(part.refused) - _SHOWN:,} more; dpdm prepare --leave-out leaves them out")
    first = next(iter(parts.values()))
    name = data.name or "the name of the folder or file"
    if first.public:
        say("\npublic    all of it: a built-in data set")
        return
    say(f"\npublic    {name}, the names and number of classes, data.size and data.channels.")
    say("          Without --dataset-size, also the exact number of images. Rename classes whose names tell too much.")
    say(f"unit      {_unit(data)}")
    say("          `dpdm ledger register`, or else the first run, fixes the unit of a data set.")
    say(f"next      dpdm advise {shlex.quote(data.source)} --epsilon 3 --dataset-size N {_declared(data, first)}")
    say("          ranks the methods for such images. Take for N a number that may be public, not the exact count.")


def _unit(data: "Data") -> str:
    if data.group is not None:
        return f"one group of images, by data.group={data.group}"
    return (
        "one image. If a person may have several, say whose each image is: --set data.group=folder for a folder\n"
        "          of each person inside the class folders, else the name of a column or of an array of the .npz."
    )


def _declared(data: "Data", part: "PartFound") -> str:
    """Return the options that declare what these images are; 32 where no size is that of all."""
    of_all = min(part.sizes) if len(part.sizes) == 1 else (0, 0)
    size = data.size or (of_all[0] if of_all[0] == of_all[1] else 0) or 32
    channels = data.channels or max((_VALUES[kind] for kind in part.channels), default=1)
    return f"--set data.size={size} --set data.channels={channels} --set data.num_classes={len(part.classes)}"


def _size(data: "Data", part: "PartFound") -> str:
    if data.size is not None:
        return f"; framed to {data.size} x {data.size}, {data.fit}"
    return "; declare one size: --set data.size=28, say" if len(part.sizes) > 1 else ""


def _channels(data: "Data", part: "PartFound") -> str:
    if data.channels is not None:
        return f"; made {data.channels}"
    return "; declare one number: --set data.channels=3, say" if len(part.channels) > 1 else ""


def _counted(counts: "Counter[str]") -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return _some([f"{what} ({count:,})" for what, count in counts.most_common()], _SHOWN)


def _some(items: list[str], most: int) -> str:
    rest = f", and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


def _as_json(part: "PartFound") -> dict[str, Any]:
    return {
        **part._asdict(),
        "sizes": [{"width": width, "height": height, "images": count} for (width, height), count in part.sizes.items()],
        "channels": dict(part.channels),
    }
