"""``bitsmith inspect``: what a model is made of, and what would be quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitsmith.cli.options import AllowPickle, Data, Json, Model, Weights
from bitsmith.cli.output import Output, json_path
from bitsmith.cli.samples import check_shape, test_split
from bitsmith.cli.staging import Staging
from bitsmith.cli.tables import amount, percent

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
    json: Json = None,
) -> None:
    """Show parameters, bytes in every format, ranges, outliers, and what would be quantized.

    Capturing the model needs one example of its input: random values of a zoo model's shape, or
    a sample of --data for a model of yours.
    """
    output = Output("inspect", json)
    with Staging([json_path(json)]) as staging:
        from bitsmith.insight.inspect import inspect as look
        from bitsmith.insight.inspect import inspect_records
        from bitsmith.zoo import load_model, zoo_models

        trained = model not in zoo_models or zoo_models[model].weights_file is not None
        loaded = load_model(
            model, weights, allow_pickle=allow_pickle, pretrained=trained or weights is not None
        )
        example = _example(loaded, data, split)
        found = look(loaded.module, example, recipe=recipe)
        _print(output, found, loaded.name, recipe)
        if not trained and weights is None:
            output.line(f"{model} has no published weights: the values are random ones")
        output.json(inspect_records(found, {"model": loaded.name, "recipe": recipe}), staging)


def _example(loaded: LoadedModel, data: str | None, split: str | None) -> Tensor | None:
    """Return a batch of two: samples of the data, or else random values."""
    import torch

    if data is not None:
        samples = test_split(data, split)
        check_shape(loaded, samples)
        x, _ = next(iter(samples.batches(2, limit=min(2, samples.n))))
        return x
    if loaded.input_shape is None:
        return None
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *loaded.input_shape, generator=generator)


def _print(output: Output, found: Inspection, name: str, recipe: str) -> None:
    output.heading(name)
    output.facts(
        [
            ("parameters", f"{found.parameters:,}"),
            ("bytes", ", ".join(f"{f} {amount(b)}" for f, b in found.bytes.items())),
        ]
    )
    output.line(
        "(int8 and int4: weights with a float32 scale per output channel; the rest float32)"
    )
    output.heading("Weights: spread, and mean error of nearest rounding against the mean weight")
    columns = ["layer", "operator", "shape", ">low", ">high", ">absmax/std", ">kurtosis"]
    columns += [">8 bits", ">4 bits", ">2 bits"]
    output.table(
        columns,
        [
            (
                w.layer,
                w.op,
                "×".join(map(str, w.shape)),
                f"{w.low:.3g}",
                f"{w.high:.3g}",
                f"{w.outlier:.1f}",
                f"{w.kurtosis:.1f}",
                *(f"{100 * e:.2f} %" for e in w.relative.values()),
            )
            for w in found.weights
        ],
    )
    output.heading(f"What {recipe} would do")
    if found.why_not:
        output.line(f"unknown: {found.why_not}; pass --data")
        return
    output.table(
        ["layer", "operator", "outcome", "kernel or reason", ">share of MACs"],
        [(r.layer, r.op, r.outcome, r.reason, percent(r.macs_share)) for r in found.coverage],
    )
