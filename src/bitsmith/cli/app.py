"""The program: its commands, and what their errors become.

Exit codes: 0 done; 1 the check that was asked for did not hold; 2 bad input or usage, with one
message ``error: …`` on standard error; 130 interrupted, with nothing half-written: the message says
what there is, if anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bitsmith.cli.bench import bench
from bitsmith.cli.demo import demo
from bitsmith.cli.evaluate import evaluate
from bitsmith.cli.inspect import inspect
from bitsmith.cli.list import list_names
from bitsmith.cli.quantize import quantize
from bitsmith.cli.study import study
from bitsmith.cli.train import train
from bitsmith.cli.verify import verify
from bitsmith.errors import BitsmithError
from bitsmith.version import __version__

__all__ = ["app", "main"]

#: Base of the errors that the parser raises; where it lives differs between versions of typer.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_INTERRUPTED = "interrupted; nothing was written"

app = typer.Typer(
    name="bitsmith",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a trained PyTorch network small and fast in fewer bits, and prove that the file "
    "computes what was measured.",
)
app.command("demo")(demo)
app.command("quantize")(quantize)
app.command("train")(train)
app.command("verify")(verify)
app.command("evaluate")(evaluate)
app.command("inspect")(inspect)
app.command("study")(study)
app.command("bench")(bench)
app.command("list")(list_names)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"bitsmith {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of all commands."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing is raised.

    Args:
        arguments: without the program's name; None: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # as python -m does, so that a model beside the user is found
    try:
        code = app(args=given, prog_name="bitsmith", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # what newer versions of typer make of a KeyboardInterrupt
            return _failed(_INTERRUPTED, 130)
        return code if isinstance(code, int) else 0
    except BitsmithError as error:
        return _failed(str(error), error.exit_code)
    except _UsageError as error:
        message = error.format_message()
        # Without arguments the parser prints the help and raises this with an empty message.
        return _failed(message, 2) if message else 2
    except (KeyboardInterrupt, typer.Abort):
        return _failed(_INTERRUPTED, 130)
    except BrokenPipeError:
        # The reader of standard output went away: point it elsewhere, or exit complains again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", 2)


def _failed(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
