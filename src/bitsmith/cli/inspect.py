"""``bitsmith inspect``: what a model is made of, and what would be quantized."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitsmith.cli.options import AllowPickle, Data, Json, Model, Weights
from bitsmith.cli.output import Output, json_path
from bitsmith.cli.samples import check_shape, test_split
from bitsmith.cli.staging import Staging
from bitsmith.cli.tables import amount, percent
from bitsmith.cli.texts import is_text
from bitsmith.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from bitsmith.insight.inspect import Inspection
    from bitsmith.zoo import LoadedModel

__all__ = ["inspect"]


def inspect(
    model: Model,
    data: Data = None,
    weights: Weights = None,
    allow_pickle: AllowPickle = False,
    recipe: Annotated[str, typer.Option(metavar="RECIPE", help="What would be done.")] = "W8A8",
    split: Annotated[str | None, typer.Option(help="Of the data.", show_default=False)] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw range and error of each weight, as .svg or .png.",
            show_default=False,
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Show parameters, bytes in every format, ranges, outliers, and what would be quantized.

    Capturing the model needs one example of its input: random values of a zoo model's shape, or
    a sample of --data for a model of yours.
    """
    output = Output("inspect", json)
    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise InputError(f"--plot {plot} must end in .svg or .png, which says what to write")
    with Staging([plot, json_path(json)]) as staging:
        from bitsmith.insight.inspect import inspect as look
        from bitsmith.insight.inspect import inspect_records
        from bitsmith.zoo import load_model, zoo_models

        trained = model not in zoo_models or zoo_models[model].weights_file is not None
        loaded = load_model(
            model, weights, allow_pickle=allow_pickle, pretrained=trained or weights is not None
        )
        example = _example(loaded, data, split)
        found = look(loaded.module, example, recipe=recipe)
        if plot is not None:
            _draw(found, staging.path(plot))
        _print(output, found, loaded, recipe)
        if not trained and weights is None:
            output.line(f"{model} has no published weights: the values are random ones")
        output.json(inspect_records(found, {"model": loaded.name, "recipe": recipe}), staging)


def _example(loaded: LoadedModel, data: str | None, split: str | None) -> Tensor | None:
    """Return a batch of two: samples of the data, or else random values."""
    import torch

    if data is not None and is_text(data):
        raise InputError(
            f"--data {data}: inspect takes samples of one shape, and this is a text data set; "
            "leave it out: parameters, bytes and weights need no sample"
        )
    if data is not None:
        samples = test_split(data, split)
        check_shape(loaded, samples)
        x, _ = next(iter(samples.batches(2, limit=min(2, samples.n))))
        return x
    if loaded.input_shape is None:
        return None
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *loaded.input_shape, generator=generator)


def _draw(found: Inspection, path: Path) -> None:
    from bitsmith.insight.report.inspection import inspection_figure
    from bitsmith.insight.report.style import png, standalone_svg

    if not found.weights:
        raise InputError("--plot: the model has no weights (parameters with two axes) to draw")
    figure = inspection_figure(found)
    if path.suffix == ".svg":
        path.write_text(standalone_svg(figure.draw, figure.size), encoding="utf-8")
    else:
        path.write_bytes(png(figure.draw, figure.size))


def _print(output: Output, found: Inspection, loaded: LoadedModel, recipe: str) -> None:
    output.heading(loaded.name)
    output.facts([("parameters", f"{found.parameters:,}")])
    _print_sizes(output, found)
    _print_weights(output, found)
    output.heading(f"What {recipe} would do")
    if found.why_not:
        if loaded.dataset is not None and is_text(loaded.dataset):
            why = f"the model takes token ids; bitsmith quantize {loaded.name} shows it once done"
        else:
            why = f"{found.why_not}; pass --data"
        output.line(f"unknown: {why}")
        return
    output.table(
        ["layer", "operator", "outcome", "kernel or reason", ">share of MACs"],
        [(r.layer, r.op, r.outcome, r.reason, percent(r.macs_share)) for r in found.coverage],
    )


def _print_sizes(output: Output, found: Inspection) -> None:
    output.heading("Bytes in every format")
    whole = next(s.bytes for s in found.sizes if s.storage.name == "float32")
    columns = ["format", "scales", ">bytes", ">float32 / this", ">bits per weight"]
    output.table(
        columns,
        [
            (
                s.storage.name,
                s.storage.granularity if s.storage.scheme.scaled else "none",
                amount(s.bytes),
                f"{whole / s.bytes:.2f}" if s.bytes else "-",
                f"{s.bits_per_weight:.3f}",
            )
            for s in found.sizes
        ],
    )
    output.line("Up to 8 bits: weights with their scales; everything else stays float32.")
    for s in found.sizes:
        if s.fitting < s.weights:
            output.line(
                f"{s.storage.name}: the groups divide {s.fitting} of {s.weights} weights; the "
                "others have a float32 scale per output channel"
            )


def _print_weights(output: Output, found: Inspection) -> None:
    output.heading("Weights: spread")
    output.table(
        ["layer", "operator", "shape", ">low", ">high", ">absmax/std", ">kurtosis"],
        [
            (
                w.layer,
                w.op,
                "×".join(map(str, w.shape)),
                f"{w.low:.3g}",
                f"{w.high:.3g}",
                f"{w.outlier:.1f}",
                f"{w.kurtosis:.1f}",
            )
            for w in found.weights
        ],
    )
    output.heading("Mean error of nearest rounding per output channel, % of the mean weight")
    widths = list(found.weights[0].relative) if found.weights else []
    output.table(
        ["layer", *(f">{bits} bits" for bits in widths)],
        [(w.layer, *(f"{100 * e:.2f}" for e in w.relative.values())) for w in found.weights],
    )
