"""The options that several commands share, under one name with one help text each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AllowPickle",
    "BatchSize",
    "Data",
    "Json",
    "Model",
    "Runtime",
    "Seed",
    "Threads",
    "Weights",
]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A zoo name (see: bitsmith list models), package.module:callable, or a .pt2 program.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="A data set's name (see: bitsmith list datasets), an .npz with x and y, or "
        "package.module:callable. Default: what a zoo model is for.",
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Weights of MODEL (safetensors). Default: a zoo model's published weights.",
        show_default=False,
    ),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Accept pickled weights (tensors only).")
]
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the measurements as JSON; - is standard output.",
        show_default=False,
    ),
]
Runtime = Annotated[
    str, typer.Option("--runtime", metavar="RUNTIME", help="See: bitsmith list runtimes.")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Of the runtime. Default: its own choice."),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Samples run at once.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of which samples are drawn.")]
