"""Per-tensor against per-channel and per-group scales, on weights of unlike rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch

from bitsmith.errors import DataError, WeightsError
from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.interval import mean_interval
from bitsmith.insight.measure import Record
from bitsmith.insight.storage import granularity_name
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.integer import int8
from bitsmith.numbers.granularity import PerChannel, PerTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.studies import Options, Study, StudyResult
from bitsmith.studies.granularity.drawing import draw_layers, draw_rows
from bitsmith.studies.granularity.errors import (
    BITS,
    SIZES,
    Layers,
    Outcome,
    outcomes,
    unlike_rows,
)

__all__ = ["Granularities"]

EXAMPLE = ((0.1, -0.2, 0.15), (2.5, -3.0, 2.8))
#: What tutorials print of the example: the last code, and the errors of channel 0.
PRINTED = {"code": 118, "per-tensor": 0.007563, "per-channel": 0.000493}
COLUMNS, GROUPS = 256, (64, 32)
MODEL, MODEL_GROUPS = "cifar-resnet20", (16,)


@final
class Granularities(Study, name="granularity"):
    """How many weights may share a scale."""

    title = "One scale per tensor, per channel or per group"
    text = (
        "A scale is set by the largest weight that it serves. Where rows (output channels) are of "
        "unlike size, one scale for all wastes the codes of the small rows. First a worked "
        "example of two rows, then a matrix whose rows differ 100 times in size, then the "
        "convolutions of a trained network; nearest rounding, symmetric, 8 and 4 bits."
    )
    figures = ("rows", "layers")

    def measure(self, options: Options) -> StudyResult:
        repeats = 6 if options.quick else 20
        drawn = [
            outcomes(unlike_rows(COLUMNS, options.seed * repeats + i), GROUPS)
            for i in range(repeats)
        ]
        layers, skipped = _layers()
        example = _example()
        tables = [_example_table(example), _synthetic_table(drawn)]
        figures = [
            Figure(
                "rows",
                "Relative error of each row",
                f"A {len(SIZES)} × {COLUMNS} matrix whose rows differ 100 times in size (first of "
                f"{repeats} draws). Logarithmic axes; lower is better.",
                lambda canvas: draw_rows(canvas, drawn[0]),
                size=(7.2, 3.2),
            )
        ]
        if layers:
            tables.append(_layer_table(layers))
            figures.append(
                Figure(
                    "layers",
                    "Relative error of each convolution of ResNet-20",
                    "Mean |error| / mean |weight|, at 8 and at 4 bits. The first layer has 3 input "
                    "channels, which no group divides.",
                    lambda canvas: draw_layers(canvas, layers),
                    size=(7.2, 0.9 + 0.2 * len(layers)),
                )
            )
        records = _records(example, drawn, layers)
        findings = _findings(example, drawn, layers)
        return StudyResult(tables, figures, records, findings, skipped)


def _layers() -> tuple[Layers, list[str]]:
    """Return what becomes of each convolution of the network, or why that is not known."""
    from bitsmith.zoo import load_model

    try:
        module = load_model(MODEL).module
    except (DataError, WeightsError) as error:
        return {}, [f"ResNet-20: {error}"]
    weights = {n: p.detach() for n, p in module.named_parameters() if p.dim() == 4}
    return {
        name.removesuffix(".weight"): outcomes(weight, MODEL_GROUPS)
        for name, weight in weights.items()
    }, []


def _example() -> list[tuple[str, list[list[int]], list[float]]]:
    """Return granularity, codes, and the error of each channel."""
    weight = torch.tensor(EXAMPLE)
    found = []
    for granularity in (PerTensor(), PerChannel(0)):
        q = quantize(weight, Scheme(int8, granularity=granularity))
        errors = (q.dequantize() - weight).double().abs().mean(1).tolist()
        found.append((granularity_name(granularity), q.codes.tolist(), errors))
    return found


def _example_table(example: list[tuple[str, list[list[int]], list[float]]]) -> Table:
    rows = [
        [name, *(" ".join(map(str, row)) for row in codes), *(f"{e:.5f}" for e in errors)]
        for name, codes, errors in example
    ]
    computed = {name: errors[0] for name, _, errors in example}
    ours = [f"{name} {value:.5f}" for name, value in computed.items()]
    theirs = [f"{name} {PRINTED[name]}" for name in computed]
    columns = ["granularity", "codes of channel 0", "codes of channel 1"]
    return Table(
        f"[{', '.join(str(list(row)) for row in EXAMPLE)}] in int8",
        [*columns, ">mean error, channel 0", ">mean error, channel 1"],
        rows,
        f"Tutorials print {PRINTED['code']} for the last code, where 2.8 · 127 / 3 = "
        f"{2.8 * 127 / 3:.2f} rounds to {example[0][1][1][2]}, and for the errors of channel 0 "
        f"{', '.join(theirs)}, where arithmetic gives {', '.join(ours)}.",
    )


def _by_cut(drawn: Sequence[list[Outcome]]) -> list[list[Outcome]]:
    """Return the repeats of each granularity and width."""
    return [list(group) for group in zip(*drawn, strict=True)]


def _synthetic_table(drawn: Sequence[list[Outcome]]) -> Table:
    rows = []
    for group in _by_cut(drawn):
        mae, low, high = mean_interval([o.mae for o in group])
        first = group[0]
        rows.append(
            [
                str(first.bits),
                first.granularity,
                f"{first.bits_per_weight:.4g}",
                f"{mae:.3g}",
                f"{low:.3g} to {high:.3g}",
                f"{100 * mean_interval([o.row_relative for o in group])[0]:.2f} %",
            ]
        )
    columns = [">bits", "granularity", ">bits per weight", ">mean error", ">95 % interval"]
    return Table(
        f"{len(SIZES)} × {COLUMNS} weights, rows that differ 100 times in size",
        [*columns, ">relative error of a row"],
        rows,
        f"Over {len(drawn)} draws. Relative: mean |error| / mean |weight| of a row, on average.",
    )


def _layer_table(layers: Layers) -> Table:
    cuts = list(dict.fromkeys(o.granularity for found in layers.values() for o in found))
    rows = []
    for name, found in layers.items():
        own = {(o.bits, o.granularity): o for o in found}
        cells = [own.get((bits, cut)) for bits in BITS for cut in cuts]
        rows.append([name, *("–" if o is None else f"{100 * o.relative:.2f} %" for o in cells)])
    columns = [f">{bits} bits {cut}" for bits in BITS for cut in cuts]
    stored = {o.granularity: o.bits_per_weight for o in layers[list(layers)[-1]] if o.bits == 4}
    note = ", ".join(f"{cut} {bits:.4g}" for cut, bits in stored.items())
    return Table(
        "Convolutions of ResNet-20: mean |error| / mean |weight|",
        ["layer", *columns],
        rows,
        f"Bits per weight at 4 bits, in the last layer: {note}.",
    )


def _records(
    example: list[tuple[str, list[list[int]], list[float]]],
    drawn: Sequence[list[Outcome]],
    layers: Layers,
) -> list[Record]:
    records = [
        Record(op="worked example", layer=f"channel {i}", granularity=name, weight_bits=8,
               metric="mae", value=error, algorithm="nearest", n=len(EXAMPLE[0]))
        for name, _, errors in example
        for i, error in enumerate(errors)
    ]  # fmt: skip
    for group in _by_cut(drawn):
        keys = _keys(group[0]) | {"op": "unlike rows", "value": mean_interval(_maes(group))[0]}
        if group[0].granularity != "per-tensor":
            delta, low, high = mean_interval(_against_one_scale(group, drawn))
            keys |= {"reference": keys["value"] - delta, "delta": delta}
            keys |= {"delta_low": low, "delta_high": high}
        records.append(Record(**keys, metric="mae"))
    for name, found in layers.items():
        for o in found:
            keys = _keys(o) | {"op": "conv", "model": MODEL, "layer": name}
            records.append(Record(**keys, metric="mae", value=o.mae))
    return records


def _keys(o: Outcome) -> dict[str, Any]:
    return {
        "granularity": o.granularity, "weight_bits": o.bits, "algorithm": "nearest",
        "bits_per_weight": o.bits_per_weight, "n": o.n,
    }  # fmt: skip


def _maes(group: Sequence[Outcome]) -> list[float]:
    return [o.mae for o in group]


def _against_one_scale(group: Sequence[Outcome], drawn: Sequence[list[Outcome]]) -> list[float]:
    """Return, for each draw, the error less that of one scale for the same draw and width."""
    base = [
        next(o.mae for o in found if o.bits == group[0].bits and o.granularity == "per-tensor")
        for found in drawn
    ]
    return [o.mae - mae for o, mae in zip(group, base, strict=True)]


def _findings(
    example: list[tuple[str, list[list[int]], list[float]]],
    drawn: Sequence[list[Outcome]],
    layers: Layers,
) -> list[str]:
    before, after = (errors[0] for _, _, errors in example)
    found = [
        f"In the worked example the error of channel 0 falls {before / after:.0f} times, from "
        f"{before:.5f} with one scale to {after:.5f} with one a channel."
    ]
    for bits in BITS:
        parts = []
        for group in (g for g in _by_cut(drawn) if g[0].bits == bits):
            lost, low, high = mean_interval([100 * o.row_relative for o in group])
            parts.append(
                f"{group[0].granularity} {lost:.2f} % [{low:.2f}, {high:.2f}] in "
                f"{group[0].bits_per_weight:.4g} bits"
            )
        found.append(
            f"With unlike rows at {bits} bits a row is off by this share of its mean weight: "
            f"{', '.join(parts)}."
        )
    for bits in BITS if layers else ():
        pairs = [
            [
                next(o for o in own if (o.bits, o.granularity) == (bits, cut))
                for own in layers.values()
            ]
            for cut in ("per-tensor", "per-channel")
        ]
        one, many = ([o.relative for o in found] for found in pairs)
        better = sum(b < a for a, b in zip(one, many, strict=True))
        found.append(
            f"At {bits} bits one scale a channel lowers the error of {better} of {len(layers)} "
            f"convolutions of ResNet-20, on average over layers from "
            f"{100 * sum(one) / len(one):.2f} % to {100 * sum(many) / len(many):.2f} %."
        )
    return found
