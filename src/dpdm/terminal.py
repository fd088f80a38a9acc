"""What a person sees while a verb runs: progress with the time left, and notes. All of it goes to standard error.

Whatever is printed, here or elsewhere, is shown in what letters a terminal has, and lost where there is none any more.
"""

import codecs
import io
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

Advance = Callable[..., None]
"""Called with a count, a remark, and the total if that was not known before."""

_IN_ASCII = {"ε": "epsilon", "δ": "delta", "≤": "<=", "∞": "infinity", "×": "x", "█": "#", "·": "."}


def speak_in_its_letters() -> None:
    """Let standard output and error print any text: what their encoding lacks is spelt out, or shown by its number."""
    codecs.register_error("dpdm", _spelt_out)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="dpdm")


def _spelt_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(c, c.encode("ascii", "backslashreplace").decode()) for c in letters), error.end


def leave_the_terminal() -> None:
    """Let what is printed go nowhere where it went to a terminal, which is closed: a run must not end by that."""
    for number in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode):
                speak_to_nobody(number)


def speak_to_nobody(number: int) -> None:
    """Let what is printed to a descriptor, 1 or 2, go nowhere from now on: nobody listens any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


@contextmanager
def show_progress(what: str, total: int | None) -> Iterator[Advance]:
    """Show a bar on a terminal, and a line now and then elsewhere; nothing without a total."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[remark]}"), console=console) as bar:
            task = bar.add_task(what, total=total, remark="")

            def move(count: int, remark: str, total: int | None = total) -> None:
                if bar.tasks[task].completed:
                    bar.update(task, advance=count, remark=remark, total=total)
                else:  # what an earlier process did is no measure of speed
                    bar.reset(task, completed=count, remark=remark, total=total)

            yield move
        return
    done = before = 0
    started = told = time.monotonic()

    def advance(count: int, remark: str, total: int | None = total) -> None:
        nonlocal done, before, started, told
        now = time.monotonic()
        if not done:
            before, started = count, now
        done += count
        if total and (now - told > 30 or done == total):
            told = now
            seconds = (now - started) / max(1, done - before) * (total - done)
            left = f"about {duration(seconds)} left" if before < done < total else ""
            tell("  ".join(part for part in (f"{what}: {done:,} of {total:,}", left, remark) if part))

    yield advance


@contextmanager
def show_stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show one stage after the other; yield what is called with a stage, how much of it is done, and of how much."""
    with ExitStack() as open_now:
        stage, shown = "", 0
        advance: Advance

        def move(name: str, done: int, total: int) -> None:
            nonlocal stage, shown, advance
            if name != stage:
                open_now.close()
                stage, shown, advance = name, 0, open_now.enter_context(show_progress(name, total))
            if done > shown:
                advance(done - shown, "")
                shown = done

        yield move


def remarked(advance: Advance) -> Callable[[str, int, int], None]:
    """Return what shows, beside a bar that stands still, how far a stage is and how long it takes: in per cent."""
    begun: dict[str, tuple[float, int]] = {}

    def show(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        since, before = begun.setdefault(stage, (now, done))
        left = f", about {duration((now - since) / (done - before) * (total - done))} left" if done > before else ""
        advance(0, f"{stage}: {100 * done // max(1, total)} %{left}")

    return show


def duration(seconds: float) -> str:
    """Say how long something takes."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def tell(text: str) -> None:
    """Print one line, if anybody listens."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        speak_to_nobody(2)
