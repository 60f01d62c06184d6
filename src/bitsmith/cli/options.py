"""The options that several commands share, under one name with one help text each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bitsmith.errors import InputError

__all__ = [
    "MOST_THREADS",
    "AllowPickle",
    "BatchSize",
    "Calibrator",
    "Data",
    "InputShape",
    "Json",
    "Machine",
    "Model",
    "Out",
    "Recipe",
    "Runtime",
    "Seed",
    "SplitOfNpz",
    "Target",
    "Threads",
    "Weights",
    "WeightsAs",
    "checked_threads",
]

MOST_THREADS = 1024
"""More than any machine has a use for; starting many more than there are cores takes minutes."""


def checked_threads(given: int | None) -> int | None:
    """Return what ``--threads`` was given.

    Raises:
        InputError: none, or more than any machine has a use for.
    """
    if given is not None and not 1 <= given <= MOST_THREADS:
        raise InputError(
            f"--threads {given}: from 1 to {MOST_THREADS:,} are possible, and this machine has "
            f"{os.cpu_count()} cores"
        )
    return given


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
        "package.module:callable; quantize and train also take synthetic: samples made from the "
        "batch norms of MODEL. Default: what a zoo model is for.",
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
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FILE",
        help="FILE.onnx; its simulation goes to FILE.onnx.bitsmith/. Weight-only: also FILE.gguf, "
        "or a folder NAME.bitsmith.",
    ),
]
Recipe = Annotated[
    str, typer.Option("--recipe", metavar="RECIPE", help="A preset, or a JSON file.")
]
Runtime = Annotated[
    str, typer.Option("--runtime", metavar="RUNTIME", help="See: bitsmith list runtimes.")
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", callback=checked_threads, help="Of the runtime. Default: its own choice."
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Samples run at once.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of which samples are drawn.")]
Target = Annotated[str, typer.Option("--target", help="Static: the runtime that will execute it.")]
Machine = Annotated[
    str,
    typer.Option(
        "--machine", help="Static: what the file must be exact on: any, vnni or any-order."
    ),
]
Calibrator = Annotated[
    str | None,
    typer.Option("--calibrator", help="Static. Default: the recipe's, mse.", show_default=False),
]
SplitOfNpz = Annotated[
    str | None,
    typer.Option("--split", help="Only for an .npz that does not say: train.", show_default=False),
]
WeightsAs = Annotated[
    str,
    typer.Option(
        "--weights-as",
        metavar="FORM",
        help="Static: int8, or packed: weights of 4 bits and fewer in so many bits; a smaller "
        "file, not a faster one.",
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        "--input-shape",
        metavar="CxHxW",
        help="Of one sample: for --data synthetic, where MODEL is none of the zoo.",
        show_default=False,
    ),
]
