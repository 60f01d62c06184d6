"""``bitsmith bench``: what is fast on this machine, measured now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitsmith.cli.bench_tables import kernel_tables, network_tables
from bitsmith.cli.folder import result_folder
from bitsmith.cli.options import AllowPickle, Data, Json, Weights, checked_threads
from bitsmith.cli.output import Output, json_path, progress, stages
from bitsmith.cli.samples import check_shape, data_name, test_split
from bitsmith.cli.staging import Staging
from bitsmith.cli.texts import check_tokens, is_text, text_split, token_batches
from bitsmith.errors import InputError

if TYPE_CHECKING:
    from bitsmith.insight.bench.kernels import KernelSpeeds
    from bitsmith.zoo import LoadedModel

__all__ = ["bench"]

KERNELS = "kernels"
_MODEL_RECIPES = "W8A8-dynamic,W8,W4G64,W3G64,NF4"
_TURNS = 20


def bench(
    context: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|kernels",
            help="A model (zoo name, package.module:callable, .pt2), or kernels: linear layers of "
            "one shape, beside the operators of PyTorch, ONNX Runtime and llama.cpp.",
        ),
    ],
    recipes: Annotated[
        str | None,
        typer.Option(
            metavar="R,R…",
            help="That pack weights, with commas between them. "
            f"Default: {_MODEL_RECIPES}; for kernels every width.",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[
        str, typer.Option(metavar="NxK", help="kernels: outputs and inputs of the layer.")
    ] = "4096x4096",
    rows: Annotated[
        str, typer.Option(metavar="M,M…", help="kernels: rows of the input, with commas.")
    ] = "1,8,128",
    data: Data = None,
    split: Annotated[str | None, typer.Option(help="Of the data.", show_default=False)] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="MODEL: samples of one call.")
    ] = 1,
    weights: Weights = None,
    allow_pickle: AllowPickle = False,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", callback=checked_threads, help="Of everything. Default: PyTorch's choice."
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.01, help="For each cell of the table.")
    ] = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="kernels: folder for the plot, as kernels.svg and kernels.png.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Measure what is fast here: float32 and recipes by turns, and the memory as the limit.

    Values are medians over at least 20 turns with quartiles; ratios are paired, with a 95 %
    interval.
    """
    output = Output("bench", json)
    _refuse_idle(context, subject == KERNELS)
    if subject == KERNELS:
        _kernels(output, recipes, _shape(shape), _rows(rows), threads, seconds, out, json)
        return
    asked = _listed(recipes or _MODEL_RECIPES, "--recipes")
    with Staging([json_path(json)]) as staging:
        from bitsmith.insight.bench.network import network_speeds
        from bitsmith.insight.bench.records import network_records
        from bitsmith.zoo import load_model

        loaded = load_model(subject, weights, allow_pickle=allow_pickle)
        example, about = _example(loaded, data, split, batch_size)
        with stages() as begin:
            found = network_speeds(
                loaded.module, asked, example, thread_count=threads, seconds=seconds,
                turns=_TURNS, stage=begin,
            )  # fmt: skip
        network_tables(output, found, loaded.name)
        output.json(network_records(found, {"model": loaded.name, **about}), staging)


def _kernels(
    output: Output,
    recipes: str | None,
    shape: tuple[int, int],
    rows: list[int],
    threads: int | None,
    seconds: float,
    out: Path | None,
    json: str | None,
) -> None:
    pictures = [] if out is None else [out / f"kernels.{kind}" for kind in ("svg", "png")]
    with result_folder(out), Staging([*pictures, json_path(json)]) as staging:
        from bitsmith.insight.bench.formats import RECIPES, heats
        from bitsmith.insight.bench.ggml import ggml_folder
        from bitsmith.insight.bench.kernels import kernel_speeds
        from bitsmith.insight.bench.records import kernel_records

        names = RECIPES if recipes is None else _listed(recipes, "--recipes")
        planned = heats(names, ggml_folder())
        total = _TURNS * len(rows) * sum(len(heat.contenders) for heat in planned)
        with progress("measuring", total) as advance:
            found = kernel_speeds(
                shape, rows, planned, thread_count=threads, seconds=seconds, turns=_TURNS,
                advance=advance,
            )  # fmt: skip
        kernel_tables(output, found)
        if pictures:
            _draw(found, *map(staging.path, pictures))
        output.json(kernel_records(found), staging)
    if pictures:
        output.heading("Files")
        for path in pictures:
            output.line(str(path))


def _draw(found: KernelSpeeds, svg: Path, raster: Path) -> None:
    from bitsmith.insight.bench.picture import kernels_figure
    from bitsmith.insight.report.style import png, standalone_svg

    figure = kernels_figure(found)
    svg.write_text(standalone_svg(figure.draw, figure.size), encoding="utf-8")
    raster.write_bytes(png(figure.draw, figure.size))


def _example(
    loaded: LoadedModel, data: str | None, split: str | None, count: int
) -> tuple[Any, dict[str, Any]]:
    """Return one batch of the data, and what records say of it; random where no data is known."""
    import torch

    from bitsmith.data.token_rows import TokenPairs

    if data is None and loaded.dataset is None:
        if loaded.input_shape is None:
            raise InputError(
                f"the inputs of {loaded.name} are not known: pass --data, of which one batch is "
                "what it is timed on"
            )
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, *loaded.input_shape, generator=generator), {}
    name = data_name(data, loaded.dataset)
    if is_text(name):
        check_tokens(loaded, name)
        found = text_split(name, split, None)
        texts = found.first if isinstance(found, TokenPairs) else found
        chosen = texts.sample(min(count, texts.n), seed=0)
        mask = loaded.dataset == "stsb"
        about = {"dataset": name, "split": texts.name, "data_sha256": texts.sha256, "seed": 0}
        return token_batches(chosen, count, mask=mask)[0], about
    samples = test_split(name, split)
    check_shape(loaded, samples)
    x, _ = next(iter(samples.batches(count, limit=min(count, samples.n))))
    about = {"dataset": name, "split": samples.name, "data_sha256": samples.sha256}
    return x, about


def _listed(text: str, option: str) -> list[str]:
    found = [part.strip() for part in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise InputError(f"{option} {text!r}: names with commas between them, each once")
    return found


def _rows(text: str) -> list[int]:
    parts = _listed(text, "--rows")
    if wrong := [p for p in parts if not p.isdecimal() or not int(p)]:
        raise InputError(f"--rows {text!r}: whole numbers from 1 up, not {', '.join(wrong)}")
    return [int(p) for p in parts]


def _shape(text: str) -> tuple[int, int]:
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(p.isdecimal() and int(p) for p in parts):
        raise InputError(f"--shape {text!r}: outputs and inputs, such as 4096x4096")
    return int(parts[0]), int(parts[1])


def _refuse_idle(context: typer.Context, kernels: bool) -> None:
    """Refuse options that were given and have no effect on this subject."""
    idle = {"data", "split", "batch_size", "weights", "allow_pickle"}
    if not kernels:
        idle = {"shape", "rows", "out"}
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name in idle
        and (source := context.get_parameter_source(name)) is not None
        and source.name not in ("DEFAULT", "DEFAULT_MAP")
    ]
    if given:
        other = "a MODEL" if kernels else KERNELS
        raise InputError(f"{', '.join(given)}: only for bitsmith bench {other}; leave out")
