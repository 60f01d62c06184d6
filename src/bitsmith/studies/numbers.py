"""The bits of a number in each float format, and where the values of small formats lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch

from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.numbers.description import describe
from bitsmith.numbers.formats import NumberFormat, formats
from bitsmith.studies import Options, Study, StudyResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["Numbers", "Stored", "store"]

#: Numbers to store: a short decimal, a well-known constant, a fraction, and one that ends
#: beyond the largest value of fp8 e4m3.
NUMBERS = {"0.1": 0.1, "π": math.pi, "1/3": 1 / 3, "448.5": 448.5}
FLOATS = (
    "fp32",
    "fp16",
    "bf16",
    "fp8_e4m3fn",
    "fp8_e5m2",
    "fp6_e2m3fn",
    "fp6_e3m2fn",
    "fp4_e2m1fn",
)
#: Formats whose values are drawn on a line, each scaled so that its largest is 1.
LINES = (
    *("int8", "fp8_e4m3fn", "fp8_e5m2", "int6", "fp6_e2m3fn", "fp6_e3m2fn"),
    *("int4", "fp4_e2m1fn", "nf4", "apot4", "pot4", "ternary"),
)


@final
@dataclass(frozen=True)
class Stored:
    """A number in a format.

    Attributes:
        number: the number, in float64.
        format: name of the format.
        bits: sign, exponent and mantissa as digits, from the most significant.
        value: what the code stands for.
    """

    number: float
    format: str
    bits: tuple[str, str, str]
    value: float

    @property
    def error(self) -> float:
        """``value − number``."""
        return self.value - self.number

    @property
    def relative(self) -> float:
        """``|error| / |number|``."""
        return abs(self.error / self.number)


def store(number: float, number_format: NumberFormat) -> Stored:
    """Return ``number`` in a float format, with the fields of its code.

    >>> store(0.1, formats["bf16"]).bits, store(0.1, formats["bf16"]).value
    (('0', '01111011', '1001101'), 0.10009765625)
    """
    code = number_format.encode(torch.tensor(number, dtype=torch.float64).to(torch.float32))
    value = float(number_format.decode(code))
    width = number_format.bits
    digits = f"{int(code) & ((1 << width) - 1):0{width}b}"
    sign, exponent, _ = number_format.fields
    bits = (digits[:sign], digits[sign : sign + exponent], digits[sign + exponent :])
    return Stored(number, number_format.name, bits, value)


@final
class Numbers(Study, name="numbers"):
    """What a code of each float format means, and which numbers a format has."""

    title = "The bits of a number in each format"
    text = (
        "A float is a sign, an exponent that chooses a power of two, and a mantissa that divides "
        "the way to the next power into equal steps. The same number is stored in formats of 32 "
        "to 4 bits; what lies beyond the largest value saturates. Small formats have so few "
        "values that all of them can be drawn."
    )
    figures = ("bits", "values")

    def measure(self, options: Options) -> StudyResult:
        stored = {
            name: [store(number, formats[kind]) for kind in FLOATS]
            for name, number in NUMBERS.items()
        }
        described = [describe(formats[name]) for name in formats]
        figures = [
            Figure(
                "bits",
                "Sign, exponent and mantissa",
                "Each row is one code, the most significant bit first; right, the value that it "
                "stands for and its relative error.",
                lambda canvas: _draw_bits(canvas, stored),
                size=(7.4, 7.6),
            ),
            Figure(
                "values",
                "Every value of formats of at most 8 bits",
                "Each format is scaled so that its largest value is 1, as a scale does. Left: on a "
                "linear axis, where the lowest integer has no mirror image. Right: the positive "
                "values on a logarithmic one.",
                _draw_values,
                size=(7.4, 4.2),
            ),
        ]
        records = _records(stored, described)
        tables = [_number_table(stored), _format_table(described)]
        return StudyResult(tables, figures, records, _findings(stored))


def _number_table(stored: dict[str, list[Stored]]) -> Table:
    rows = [
        [name, s.format, " ".join(filter(None, s.bits)), f"{s.value:.9g}", *_errors(s)]
        for name, group in stored.items()
        for s in group
    ]
    columns = ["number", "format", "sign exponent mantissa", ">value", ">error", ">relative error"]
    return Table("The same number in each float format", columns, rows)


def _errors(s: Stored) -> tuple[str, str]:
    return (f"{s.error:+.3g}", f"{100 * s.relative:.3g} %") if s.error else ("0", "0 %")


def _format_table(described: list[dict[str, Any]]) -> Table:
    rows = [
        [
            str(d["name"]),
            str(d["family"]),
            str(d["bits"]),
            f"{d['sign_bits']} + {d['exponent_bits']} + {d['mantissa_bits']}",
            *("learned" if d[key] is None else f"{d[key]:.5g}" for key in ("min", "max", "step")),
            f"{d['values']:,}",
        ]
        for d in sorted(described, key=lambda d: (str(d["family"]), int(d["bits"])))
    ]
    columns = ["format", "family", ">bits", ">sign + exponent + mantissa"]
    columns += [">smallest", ">largest", ">smallest step", ">values"]
    note = "The values of a learned table belong to each tensor. −0 and +0 count as one value."
    return Table("All formats", columns, rows, note)


def _records(stored: dict[str, list[Stored]], described: list[dict[str, Any]]) -> list[Record]:
    records = [
        Record(
            recipe=s.format, weight_bits=formats[s.format].bits, metric="value", value=s.value,
            reference=s.number, delta=s.error,
        )
        for group in stored.values()
        for s in group
    ]  # fmt: skip
    for d in described:
        for metric in ("min", "max", "step", "values"):
            if d[metric] is not None:
                own = {"recipe": d["name"], "weight_bits": d["bits"]}
                records.append(Record(**own, metric=metric, value=d[metric]))
    return records


def _findings(stored: dict[str, list[Stored]]) -> list[str]:
    tenth, beyond = stored["0.1"], stored["448.5"]
    exact = [s.format for s in tenth if not s.error]
    cut = [f"{s.format} ({s.value:g})" for s in beyond if abs(s.number) > formats[s.format].max]
    half, brain = formats["fp16"], formats["bf16"]
    at_one = {f.name: 2.0 ** -f.fields[2] for f in (half, brain)}
    return [
        f"0.1 is stored exactly by {', '.join(exact) if exact else 'none'} of the {len(tenth)} "
        f"formats; its relative error grows from {100 * tenth[0].relative:.2g} % in "
        f"{tenth[0].format} to {100 * tenth[-1].relative:.3g} % in {tenth[-1].format}.",
        f"448.5 lies beyond the largest value of {', '.join(cut)} and becomes that value.",
        f"{half.name} and {brain.name} both have {half.bits} bits: {half.name} steps by "
        f"{at_one[half.name]:g} above 1 and ends at {half.max:g}; {brain.name} steps by "
        f"{at_one[brain.name]:g} and ends at {brain.max:.3g}.",
    ]


def _draw_bits(canvas: Canvas, stored: dict[str, list[Stored]]) -> None:
    from bitsmith.insight.report.style import FIRST, INK, MUTED, PAPER, SECOND, THIRD

    axes = canvas.subplots(len(stored), 1, gridspec_kw={"hspace": 0.22})
    for axis, (name, group) in zip(axes, stored.items(), strict=True):
        for row, s in enumerate(group):
            left = 0
            for digits, colour in zip(s.bits, (SECOND, FIRST, THIRD), strict=True):
                axis.barh(row, len(digits), 0.8, left, color=colour)
                for i, digit in enumerate(digits):
                    at = {"ha": "center", "va": "center_baseline", "fontsize": 6.5}
                    axis.text(left + i + 0.5, row, digit, color=PAPER, **at)
                left += len(digits)
            share = f"{100 * s.relative:.2g}" if s.relative < 0.99 else f"{100 * s.relative:.0f}"
            text = f"{s.value:.7g}  ({share} %)" if s.error else f"{s.value:.7g}"
            axis.text(32.5, row, text, va="center", fontsize=7.5, color=INK)
        axis.set_title(name, fontsize=10, color=INK, pad=3)
        axis.set_yticks(range(len(group)), [s.format for s in group], fontsize=7.5)
        axis.set_ylim(len(group) - 0.5, -0.5)
        axis.set_xlim(0, 41)
        axis.set_facecolor("none")
        axis.tick_params(length=0)
        axis.xaxis.set_visible(False)
        for side in axis.spines.values():
            side.set_visible(False)
    key = (("sign", SECOND), ("exponent", FIRST), ("mantissa", THIRD))
    for i, (what, colour) in enumerate(key):
        axes[0].text((17.2, 20.0, 25.6)[i], -1.0, what, color=colour, fontsize=8.5, weight="bold")
    axes[0].text(32.5, -1.0, "value (relative error)", color=MUTED, fontsize=7.5)


def _draw_values(canvas: Canvas) -> None:
    from bitsmith.insight.report.style import FIRST, plain

    linear, logarithmic = canvas.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.05})
    for row, name in enumerate(LINES):
        number = formats[name]
        values = number.grid / number.max
        positive = values[values > 0]
        for axis, shown in ((linear, values), (logarithmic, positive)):
            # One path with gaps, which takes a tenth of the space of as many lines.
            x = [v for value in shown.tolist() for v in (value, value, math.nan)]
            y = [row - 0.36, row + 0.36, math.nan] * len(shown)
            axis.plot(x, y, color=FIRST, linewidth=0.7, solid_capstyle="butt")
    linear.set_yticks(range(len(LINES)), LINES, fontsize=8)
    linear.set_ylim(len(LINES) - 0.5, -0.5)
    linear.set_xlim(-1.16, 1.05)
    linear.set_xlabel("value / largest value")
    logarithmic.set_xscale("log", base=2)
    logarithmic.set_xlabel("positive values, logarithmic")
    plain(linear, logarithmic, grid="")
    for axis in (linear, logarithmic):
        axis.spines["left"].set_visible(False)
