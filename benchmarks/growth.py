"""How time and memory grow with a size: work of several sizes, each in a process of its own, and tables of it."""

import math
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

FORK: Final = multiprocessing.get_context("fork")
Row = dict[str, Any]
Make = Callable[[int], Any]  # from a size to the work of that size


def measure(work: Callable[[], object]) -> tuple[float, int]:
    """Return the processor seconds of `work`, and by how many bytes a process of its own grew at its peak.

    Pages of files that are mapped do not count: whoever needs the room takes them back.
    """
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_measured, args=(work, sender))
    child.start()
    sender.close()
    found: tuple[float, int] = receiver.recv()
    child.join()
    return found


def _measured(work: Callable[[], object], sender: Any) -> None:
    before, mapped, done = _resident("VmRSS"), [_resident("RssFile")], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            mapped.append(_resident("RssFile"))

    threading.Thread(target=watch, daemon=True).start()
    start = time.process_time()
    work()
    seconds = time.process_time() - start
    done.set()
    sender.send((seconds, max(0, _resident("VmHWM") - before - max(mapped) + mapped[0])))


def _resident(what: str) -> int:
    said = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(said.split(f"{what}:")[1].split()[0])


def row(what: str, of: str, sizes: Sequence[int], make: Make, *, at: int = 0, by: str = "the first process") -> Row:
    """Return one row: what each size costs, of which `make` returns the work, for whoever does it `at` its size."""
    seconds, grown = zip(*(measure(make(size)) for size in sizes), strict=True)
    return {"what": what, "of": of, "sizes": sizes, "seconds": seconds, "bytes": grown, "at": at or sizes[-1], "by": by}


def tables(rows: Sequence[Row]) -> str:
    """Return two tables: of what was measured at its full size, and of what is projected from the largest size."""
    whole, projected = list[str](), list[str]()
    for each in rows:
        largest, seconds = each["sizes"][-1], each["seconds"][-1]
        times, mega = each["at"] / largest, [_number(of / 1e6) for of in each["bytes"]]
        grown = mega[0] if len(mega) == 1 else f"{mega[0]} to {mega[-1]}"
        cells = [each["what"], each["by"], f"{largest:,} {each['of']}", _number(seconds), _exponent(each), grown]
        if times != 1:
            cells += [f"{each['at']:,}", _number(seconds * times / 3600)]
        (whole if times == 1 else projected).append(f"| {' | '.join(cells)} |")
    head = "| what | by | measured | s | exponent | MB |", "|---|---|---|---|---|---|"
    more = f"{head[0]} projected | h |", f"{head[1]}---|---|"
    said = "\n**Projected**, in proportion to the seconds of the largest size\n"
    return "\n".join(["\n**Measured at full size**\n", *head, *whole, said, *more, *projected, ""])


def _exponent(of: Row) -> str:
    """Return how the seconds grew with the size, by the first and the last size."""
    if len(of["sizes"]) < 2:
        return ""
    grown = math.log(max(of["seconds"][-1], 1e-9) / max(of["seconds"][0], 1e-9))
    return f"{grown / math.log(of['sizes'][-1] / of['sizes'][0]):.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
