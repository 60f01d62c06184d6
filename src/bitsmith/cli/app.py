"""The program: its commands, and what their errors become.

Exit codes: 0 done; 1 the check that was asked for did not hold; 2 bad input or usage, with one
message ``error: …`` on standard error; 130 interrupted, with nothing half-written: the message says
what there is, if anything; 141 whoever reads standard output went away.
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
from bitsmith.cli.inputs import Command
from bitsmith.cli.inspect import inspect
from bitsmith.cli.list import list_names
from bitsmith.cli.quantize import quantize
from bitsmith.cli.study import study
from bitsmith.cli.train import train
from bitsmith.cli.verify import verify
from bitsmith.errors import BitsmithError, InputError
from bitsmith.version import __version__

__all__ = ["app", "main"]

#: Base of the errors that the parser raises; where it lives differs between versions of typer.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
#: Arguments that messages of the library advise to pass → options.
_OPTIONS = {"(data=…)": "(--data DATA)", "--weights (weights=…)": "--weights"}
_INTERRUPTED = "interrupted; nothing was written"

app = typer.Typer(
    name="bitsmith",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a trained PyTorch network small and fast in fewer bits, and prove that the file "
    "computes what was measured.",
)
app.command("demo", cls=Command)(demo)
app.command("quantize", cls=Command)(quantize)
app.command("train", cls=Command)(train)
app.command("verify", cls=Command)(verify)
app.command("evaluate", cls=Command)(evaluate)
app.command("inspect", cls=Command)(inspect)
app.command("study", cls=Command)(study)
app.command("bench", cls=Command)(bench)
app.command("list", cls=Command)(list_names)


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
    try:
        _find_beside_the_user()
        code = app(args=given, prog_name="bitsmith", standalone_mode=False)
        sys.stdout.flush()
        if code == 130:  # what newer versions of typer make of a KeyboardInterrupt
            return _failed(_INTERRUPTED, 130)
        return code if isinstance(code, int) else 0
    except BitsmithError as error:
        return _failed(_in_options(str(error)), error.exit_code)
    except _UsageError as error:
        message = error.format_message()
        # Without arguments the parser prints the help and raises this with an empty message.
        return _failed(message, 2) if message else 2
    except (KeyboardInterrupt, typer.Abort):
        return _failed(_INTERRUPTED, 130)
    except BrokenPipeError:
        return _unread()
    except SystemExit as error:  # what typer makes of a broken pipe
        if isinstance(error.__context__, BrokenPipeError):
            return _unread()
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", 2)


def _find_beside_the_user() -> None:
    """Let models be imported from the current folder, as ``python -m`` does."""
    try:
        here = str(Path.cwd())
    except FileNotFoundError as error:
        raise InputError(
            "the current folder does not exist any more; change into one that does (cd)"
        ) from error
    if here not in sys.path:
        sys.path.append(here)


def _in_options(message: str) -> str:
    """Return a message of the library with the remedies that the command line has."""
    for argument, option in _OPTIONS.items():
        message = message.replace(argument, option)
    return message


def _unread() -> int:
    """Give up on standard output, whose reader went away; returns what a shell expects then."""
    # Point it elsewhere, or exit complains again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _failed(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
