"""Symmetric against asymmetric on the first convolution of pretrained networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch

from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.numbers.scales import scale_zero_point
from bitsmith.studies import Options, Setting, Study, StudyResult
from bitsmith.studies.first_layer.errors import FORMS, Outcome, outcomes, scheme_of
from bitsmith.studies.first_layer.findings import Layers, findings
from bitsmith.studies.first_layer.networks import Network, known_networks
from bitsmith.studies.first_layer.pictures import draw_errors, draw_layers

__all__ = ["PUBLISHED", "FirstLayer"]

#: Smallest and largest weight of the first convolution of torchvision's ResNet-18, as texts print
#: them: enough for scale and zero point.
PUBLISHED = (-0.8433799, 1.0164733)


@final
class FirstLayer(Study, name="first-layer"):
    """What a zero point buys."""

    title = "Symmetric against asymmetric on a first convolution"
    text = (
        "A symmetric range mirrors the largest weight around 0 and needs no zero point, which "
        "keeps the arithmetic short; an asymmetric one goes from the smallest weight to the "
        "largest. Where the two ends differ, the mirrored range has codes that no weight takes, "
        "and larger steps. Shown on the first convolution of a pretrained network, nearest "
        "rounding: scale, zero point, mean absolute error and its histogram; then on every "
        "convolution, where the question is how far the steps explain the errors. Narrow leaves "
        "out the lowest code, as integer runtimes expect it of 8-bit weights."
    )
    figures = ("errors", "layers")
    settings: ClassVar[Mapping[str, Setting]] = {"bits": Setting(8, "bits of a code", 2, 8)}

    def measure(self, options: Options) -> StudyResult:
        bits = int(options.settings["bits"])
        chosen, skipped = known_networks(options)
        found = {
            n: {name: outcomes(weight, bits) for name, weight in n.weights.items()} for n in chosen
        }
        firsts = {network: layers[network.first] for network, layers in found.items()}
        figures = [
            Figure(
                "errors",
                "Weights with both ranges, and the histogram of the error",
                "Left: weights of the first convolution, and the codes of both ranges: grey ends "
                "are codes without a weight. Right: error of each weight with one scale; dashes: "
                "half a step. One scale for all channels.",
                lambda canvas: draw_errors(canvas, firsts, bits),
                size=(7.4, 2.9 * len(firsts)),
            ),
            Figure(
                "layers",
                "What smaller steps give, in every convolution",
                "By how much an asymmetric range shortens the step, and the mean absolute error "
                "with it, with 95 % intervals over weights. Dashes: the error falls as the step "
                "does. Large marks: the first layer.",
                lambda canvas: draw_layers(canvas, found),
                size=(7.4, 3.3),
            ),
        ]
        tables = [_table(firsts, bits), _range_table(bits)]
        records = [
            r
            for n, layers in found.items()
            for name in layers
            for r in _records(n, name, layers, bits)
        ]
        return StudyResult(tables, figures, records, findings(found, bits), skipped)


def _table(firsts: Mapping[Network, Sequence[Outcome]], bits: int) -> Table:
    rows = [
        [
            network.name,
            o.granularity,
            o.form,
            _numbers(o.scale, ".7f"),
            _numbers(o.zero_point, ".0f"),
            f"{o.unused:.3g} of {o.codes}",
            f"{o.mae:.4g}",
            f"{o.largest:.4g}",
        ]
        for network, found in firsts.items()
        for o in found
    ]
    columns = ["network", "granularity", "range", ">scale", ">zero point", ">codes unused"]
    counted = ", ".join(f"{n.name}: {n.weights[n.first].numel():,}" for n in firsts)
    return Table(
        f"The first convolution at {bits} bits",
        [*columns, ">mean |error|", ">largest"],
        rows,
        f"Weights: {counted}. Unused: at the ends of the range; per channel their mean.",
    )


def _numbers(values: torch.Tensor, form: str) -> str:
    low, high = (format(float(v), form) for v in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _range_table(bits: int) -> Table:
    low, high = (torch.tensor(v) for v in PUBLISHED)
    rows = []
    for form in FORMS:
        scale, zero = scale_zero_point(low, high, scheme_of(form, bits))
        rows.append([form, f"{float(scale):.7f}", str(int(zero))])
    return Table(
        f"The range {PUBLISHED[0]} to {PUBLISHED[1]} at {bits} bits",
        ["range", ">scale", ">zero point"],
        rows,
        "The first convolution of torchvision's ResNet-18 as well-known texts print it; they give "
        "0.0072935 with zero point −12, and 0.0079723, at 8 bits. Scales follow from the range "
        "alone; errors need the weights.",
    )


def _records(network: Network, name: str, layers: Layers, bits: int) -> list[Record]:
    records = []
    for o in layers[name]:
        keys: dict[str, Any] = {
            "model": network.key, "layer": name, "op": "conv", "granularity": o.granularity,
            "weight_bits": bits, "recipe": f"int{bits} {o.form}", "algorithm": "nearest",
            "n": o.error.numel(),
        }  # fmt: skip
        records.append(Record(**keys, metric="mae", value=o.mae))
        if name == network.first and o.granularity == "per-tensor":
            records.append(Record(**keys, metric="scale", value=o.step))
            records.append(Record(**keys, metric="zero_point", value=float(o.zero_point[0])))
    return records
