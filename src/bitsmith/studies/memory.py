"""Bytes of models of 7 and 70 billion parameters in every format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch

from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.insight.storage import granularity_name
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats import formats
from bitsmith.numbers.granularity import PerChannel, PerGroup
from bitsmith.numbers.named_schemes import named_scheme
from bitsmith.numbers.scheme import Scheme
from bitsmith.studies import Options, Study, StudyResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["Memory"]

MODELS = {"7 billion": 7_000_000_000, "70 billion": 70_000_000_000}
#: Rows as long as those of a 7-billion model; how many there are does not matter.
SHAPE = (256, 4096)
#: Formats of bare codes, and what a text on Llama 2 prints for the larger model, in GB.
CODES = {"fp32": 280.0, "fp16": None, "int8": None, "int4": 35.0, "int2": 17.0, "int1": None}


@final
@dataclass(frozen=True)
class Way:
    """A way to store weights: its name, bits of a code, and all bits that a weight takes."""

    name: str
    granularity: str | None
    code_bits: int
    bits: float

    def bytes(self, parameters: int) -> int:
        """Bytes of a model, all of its parameters stored this way."""
        return round(parameters * self.bits / 8)


@final
class Memory(Study, name="memory"):
    """How large a language model is in each format, with the scales that belong to the codes."""

    title = "Bytes of a model of 7 and of 70 billion parameters"
    text = (
        "Weights alone, in GB of 10⁹ bytes. The first table counts the codes and nothing else, as "
        "texts do. The second counts what is really stored: a weight matrix is quantized with "
        "each scheme, and scales and codebooks are counted too."
    )
    figures = ("bytes",)

    def measure(self, options: Options) -> StudyResult:
        bare = [Way(n, None, formats[n].bits, float(formats[n].bits)) for n in CODES]
        stored = list(_stored(options.seed))
        records = [
            Record(
                model=model, recipe=way.name, granularity=way.granularity, metric="parameters",
                value=count, weight_bits=way.code_bits, bits_per_weight=way.bits,
                bytes=way.bytes(count),
            )
            for model, count in MODELS.items()
            for way in bare + stored
        ]  # fmt: skip
        tables = [_bare_table(bare), _stored_table(stored)]
        figure = Figure(
            "bytes",
            "Size in GB",
            "All that is stored of 7 billion parameters: codes, and the scales on top of them.",
            lambda canvas: _draw(canvas, [bare[0], bare[1], *stored]),
            size=(7.0, 0.6 + 0.24 * (2 + len(stored))),
        )
        return StudyResult(tables, [figure], records, _findings(bare, stored))


def _schemes() -> Iterator[tuple[str, Scheme]]:
    channel = PerChannel(0)
    yield "int8 per tensor", Scheme(formats["int8"])
    yield "int8 per channel (W8)", Scheme(formats["int8"], granularity=channel)
    yield "mxfp8 e4m3", named_scheme("mxfp8_e4m3")
    yield "mxfp6 e2m3", named_scheme("mxfp6_e2m3")
    yield "int4 per channel (W4)", Scheme(formats["int4"], granularity=channel)
    for size in (128, 64, 32):
        yield f"int4 group {size} (W4G{size})", Scheme(formats["int4"], granularity=PerGroup(size))
    yield "nf4 group 64", Scheme(formats["nf4"], granularity=PerGroup(64))
    yield "mxfp4", named_scheme("mxfp4")
    yield "nvfp4", named_scheme("nvfp4")
    yield "int3 group 64 (W3G64)", Scheme(formats["int3"], granularity=PerGroup(64))
    yield "int2 group 64 (W2G64)", Scheme(formats["int2"], granularity=PerGroup(64))
    yield "ternary per channel", Scheme(formats["ternary"], granularity=channel)
    yield "int1 per channel (W1)", Scheme(formats["int1"], granularity=channel)


def _stored(seed: int) -> Iterator[Way]:
    """Quantize a matrix with each scheme and read what a weight takes."""
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    for name, scheme in _schemes():
        which = granularity_name(scheme.granularity)
        yield Way(name, which, scheme.format.bits, quantize(weight, scheme).bits_per_weight)


def _bare_table(bare: list[Way]) -> Table:
    rows = []
    differing = []
    for way in bare:
        sizes = [way.bytes(count) / 1e9 for count in MODELS.values()]
        printed = CODES[way.name]
        if printed is not None and printed != sizes[1]:
            differing.append(f"{printed:g} for {way.name} where arithmetic gives {sizes[1]:g}")
        rows.append([way.name, f"{way.bits:g}", *(f"{size:g}" for size in sizes)])
    note = f"Well-known texts on Llama-2 70B print {'; '.join(differing)}." if differing else ""
    columns = ["format", ">bits", *(f">{model}, GB" for model in MODELS)]
    return Table("Codes alone", columns, rows, note)


def _stored_table(stored: list[Way]) -> Table:
    rows = [
        [
            way.name,
            f"{way.bits:.4f}".rstrip("0").rstrip("."),
            f"{100 * (way.bits / way.code_bits - 1):.1f} %",
            *(f"{way.bytes(count) / 1e9:.3f}" for count in MODELS.values()),
        ]
        for way in stored
    ]
    columns = ["scheme", ">bits per weight", ">above the codes"]
    columns += [f">{model}, GB" for model in MODELS]
    note = f"Per channel: one scale for {SHAPE[1]:,} weights, the row of a 7-billion model."
    return Table("Codes with their scales", columns, rows, note)


def _findings(bare: list[Way], stored: list[Way]) -> list[str]:
    count = MODELS["7 billion"]
    full, code = bare[0], next(w for w in bare if w.name == "int4")
    grouped = next(w for w in stored if w.name.startswith("int4 group 64"))
    dearest = max(stored, key=lambda w: w.bits / w.code_bits)
    return [
        f"int4 takes {full.bytes(count) / code.bytes(count):g} times less than float32 by its "
        f"codes ({code.bytes(count) / 1e9:g} GB instead of {full.bytes(count) / 1e9:g} GB), and "
        f"{full.bits / grouped.bits:.2f} times less with a scale for each 64 weights "
        f"({grouped.bytes(count) / 1e9:.2f} GB, {grouped.bits:g} bits per weight).",
        f"Scales weigh most in {dearest.name}: {100 * (dearest.bits / dearest.code_bits - 1):.1f} "
        f"% on top of its codes.",
    ]


def _draw(canvas: Canvas, ways: list[Way]) -> None:
    from bitsmith.insight.report.style import FIRST, SECOND, plain

    axis = canvas.subplots()
    rows = range(len(ways))
    count = MODELS["7 billion"]
    codes = [count * way.code_bits / 8e9 for way in ways]
    whole = [way.bytes(count) / 1e9 for way in ways]
    axis.barh(rows, whole, color=SECOND, height=0.66, label="scales")
    axis.barh(rows, codes, color=FIRST, height=0.66, label="codes")
    for row, size in zip(rows, whole, strict=True):
        axis.text(size, row, f" {size:.2f}", va="center", fontsize=8)
    axis.set_yticks(rows, [way.name for way in ways])
    axis.set_ylim(len(ways) - 0.4, -0.6)
    axis.set_xlim(0, 1.08 * max(whole))
    axis.set_xlabel("GB of 10⁹ bytes")
    axis.legend(loc="lower right", reverse=True)
    plain(axis, grid="")
