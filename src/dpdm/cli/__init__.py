"""The command line: one verb for each thing that a person does, from `dpdm plan` to `dpdm ledger`.

A person's mistake ends in one plain line and exit code 2; Ctrl-C in 130, SIGTERM in 143, what is nobody's mistake
(a full disk, too little memory) in 1. The heavy imports wait until a verb runs, so that help is instant.
"""

import re
import sys
from typing import Annotated, Any

import typer

import dpdm
from dpdm.cli.advising import advise
from dpdm.cli.checking import check
from dpdm.cli.claims import audit, report, verify
from dpdm.cli.export import export
from dpdm.cli.images import sample
from dpdm.cli.ledger import ledger
from dpdm.cli.planning import plan
from dpdm.cli.pretraining import pretrain
from dpdm.cli.scores import compare, evaluate
from dpdm.cli.training import prepare, train
from dpdm.cli.tuning import tune
from dpdm.terminal import speak_in_its_letters, speak_to_nobody

app = typer.Typer(pretty_exceptions_enable=False)
verbs = (
    *(check, advise, plan, prepare, pretrain, train, tune),
    *(sample, export, evaluate, compare, verify, audit, report),
)
for verb in verbs:
    app.command()(verb)
app.add_typer(ledger, name="ledger")


@app.callback(invoke_without_command=True)
def _without_a_verb(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Turn a private image data set into a generator whose images anyone may see, at a stated (ε, δ)."""
    if version:
        print(f"dpdm {dpdm.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


_MOST_SAID = 2000  # characters of an error
_UsageError: Any = typer.BadParameter.__base__  # the parser's class for all mistakes in a line of words


def _usage(error: Any) -> str:  # noqa: ANN401 (the parser is typer's own affair)
    path = error.ctx.command_path if error.ctx else "dpdm"
    return f"{' '.join(error.format_message().split())} ({path} --help)"


def _one_line(text: str) -> str:
    """Return what a terminal can show in a line: an error may quote a stranger's file, with codes that move cursors."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.splitlines()))
    return shown if len(shown) <= _MOST_SAID else f"{shown[: _MOST_SAID // 2]} ... {shown[-_MOST_SAID // 2 :]}"


def _wanted(error: BaseException) -> str:
    """Return what an error of too little memory says was asked for."""
    said = " ".join(str(error).split())
    found = re.search(r"(?:tried to allocate|Unable to allocate) ([\d.]+) ?([A-Za-z]+)", said, re.IGNORECASE)
    if found is None:
        return said[:_MOST_SAID] or "it is not known how much was asked for"
    number, unit = found.groups()
    asked = f"{int(number) / 2**30:,.1f} GiB" if unit == "bytes" and number.isdigit() else f"{number} {unit}"
    there = re.search(r"of which ([\d.]+ \w+) is free", said)
    return f"{asked} more were asked for{f', and {there[1]} are free' if there else ''}"


def main() -> None:
    """Run the command line; the one place where errors become exit codes."""
    speak_in_its_letters()
    # Frames around help take 0.1 s. Without any it is UTF-8, whatever letters a terminal has.
    letters = (getattr(sys.stdout, "encoding", None) or "").lower()
    app.rich_markup_mode = None if letters.startswith("utf") else "rich"
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        print("dpdm:", _usage(error), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read this has read enough
        speak_to_nobody(1)
        sys.exit(1)
    except (MemoryError, RuntimeError, ValueError, OSError) as error:
        from dpdm.types import InputError, is_of_memory

        if is_of_memory(error):
            print(
                f"dpdm: not enough memory ({_wanted(error)}): ask for fewer or smaller images, or set "
                "machine.physical_batch_size to fewer at once",
                file=sys.stderr,
            )
            sys.exit(1)
        if not isinstance(error, InputError | OSError):
            raise  # a fault of the program's, which wants its traceback
        print("dpdm:", _one_line(str(error)), file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
