"""What a person sees while a verb runs: progress with the time left, and notes. All of it goes to standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

Advance = Callable[..., None]
"""Called with a count, a remark, and the total if that was not known before."""


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
            left = f"about {duration((now - started) / (done - before) * (total - done))} left" if done > before else ""
            tell(f"{what}: {done:,} of {total:,}  {left}  {remark}")

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


def duration(seconds: float) -> str:
    """Say how long something takes."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def tell(text: str) -> None:
    """Print one line."""
    print(text, file=sys.stderr, flush=True)
