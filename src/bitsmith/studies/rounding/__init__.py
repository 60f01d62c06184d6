"""Half-even, half-away, floor and stochastic rounding: bias, spread, and long sums."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.numbers.affine import quantize_codes
from bitsmith.numbers.formats.integer import int4
from bitsmith.numbers.scheme import Scheme
from bitsmith.studies import Options, Study, StudyResult
from bitsmith.studies.rounding.spread import (
    MODES,
    QUARTERS,
    SMALL_BIAS,
    SMOOTH,
    Spread,
    draw_spreads,
    spread,
)
from bitsmith.studies.rounding.sums import (
    FLOATS,
    HUNDREDTH,
    SMALL,
    Paths,
    accumulate,
    draw_sums,
    float_sum,
)

__all__ = ["TEN", "Roundings"]

#: The ten weights that texts leave to the reader, for int4 with scale 0.2.
TEN = (
    *(-0.56372453, 1.39399302, 0.55357852, 0.54269608, -1.39940624),
    *(1.44327844, -0.48863919, 0.22549443, -0.90172897, 0.46398788),
)
SCALE = 0.2


@final
class Roundings(Study, name="rounding"):
    """What becomes of the half that is cut off."""

    title = "Half-even, half-away, floor and stochastic rounding"
    text = (
        "Rounding to the nearest code has two conventions for ties; floor goes down always; "
        "stochastic rounding goes up with the probability of the fraction, so that the "
        "expectation is exact. Shown: the ten weights of a well-known exercise, the bias and the "
        "spread of the error, and a long sum of small numbers in an accumulator of low precision."
    )
    figures = ("error", "accumulation")

    def measure(self, options: Options) -> StudyResult:
        repeats, n = (12, 4_000) if options.quick else (40, 20_000)
        spreads = [
            spread(mode, values, repeats, n, options.seed)
            for values in (SMOOTH, QUARTERS)
            for mode in MODES
        ]
        paths = accumulate(repeats, 1_000 if options.quick else 2_000, options.seed)
        floats = {name: float_sum(name, 2_000) for name in FLOATS}
        tables = [
            _ten_table(options.seed),
            _spread_table(spreads, repeats),
            _sum_table(paths, floats),
        ]
        figures = [
            Figure(
                "error",
                "Bias and spread of the error",
                f"In steps of the code, over {repeats} repeats of {n:,} values. The 95 % intervals "
                "of the bias are drawn, mostly narrower than the points.",
                lambda canvas: draw_spreads(canvas, spreads),
                size=(7.2, 2.6),
            ),
            Figure(
                "accumulation",
                "A long sum of small numbers",
                "Left: an integer accumulator, each addition rounded; the band holds the middle "
                f"95 % of {repeats} repeats. Right: {HUNDREDTH} added again and again in float "
                "formats, rounded to nearest.",
                lambda canvas: draw_sums(canvas, paths, floats),
                size=(7.4, 3.2),
            ),
        ]
        records = _records(spreads, paths, floats)
        return StudyResult(tables, figures, records, _findings(spreads, paths, floats))


def _ten_table(seed: int) -> Table:
    weights, scale = torch.tensor(TEN), torch.tensor(SCALE)
    zero = torch.tensor(0, dtype=torch.int32)
    columns = []
    for mode in MODES:
        scheme = Scheme(int4, rounding=mode, seed=seed if mode == "stochastic" else 0)
        columns.append(quantize_codes(weights, scale, zero, scheme))
    rows = [
        [f"{w:.8f}", f"{w / SCALE:.4f}", *(str(int(codes[i])) for codes in columns)]
        for i, w in enumerate(TEN)
    ]
    errors = [(SCALE * codes.double() - weights.double()).mean() for codes in columns]
    rows.append(["mean error", "", *(f"{float(e):+.4f}" for e in errors)])
    return Table(
        f"Ten weights in int4 with scale {SCALE}",
        [">weight", f">weight / {SCALE}", *(f">{mode}" for mode in MODES)],
        rows,
        "Texts leave these codes to the reader. None of the ten is a tie, so that both ways to "
        "nearest agree.",
    )


def _spread_table(spreads: Iterable[Spread], repeats: int) -> Table:
    rows = [
        [
            s.values,
            s.mode,
            f"{s.bias[0]:+.5f}",
            f"{s.bias[1]:+.5f} to {s.bias[2]:+.5f}",
            f"{s.rms:.4f}",
            f"{s.n * s.bias[0]:+,.0f} ± {s.sum_deviation:,.0f}",
        ]
        for s in spreads
    ]
    columns = ["values", "rounding", ">mean error", ">95 % interval", ">RMS error"]
    columns += [">error of the sum ± deviation"]
    note = (
        f"In steps. {QUARTERS}: positive multiples of a quarter, of which one in four is a tie. "
        f"Intervals over {repeats} repeats."
    )
    return Table("Bias and spread of one rounding", columns, rows, note)


def _sum_table(paths: Paths, floats: dict[str, Tensor]) -> Table:
    additions = paths.exact.shape[1]
    exact = float(paths.exact[:, -1].mean())
    rows = []
    for mode in MODES:
        mean, low, high = paths.final(mode)
        rows.append(
            ["integer", mode, f"{additions:,}", f"{exact:.2f}", f"{mean:.2f}",
             f"{low:.2f} to {high:.2f}"]
        )  # fmt: skip
    for name, path in floats.items():
        total = HUNDREDTH * len(path)
        rows.append(
            [name, "half_even", f"{len(path):,}", f"{total:.2f}", f"{float(path[-1]):.4g}", ""]
        )
    columns = ["accumulator", "rounding", ">additions", ">exact sum", ">sum", ">95 % interval"]
    note = (
        f"Integer: numbers from {SMALL[0]} to {SMALL[1]} of a step. Floats: {HUNDREDTH} each time."
    )
    return Table("Long sums of small numbers", columns, rows, note)


def _records(spreads: list[Spread], paths: Paths, floats: dict[str, Tensor]) -> list[Record]:
    records = []
    for s in spreads:
        own: dict[str, Any] = {"algorithm": s.mode, "op": s.values, "n": s.n}
        mean, low, high = s.bias
        records.append(
            Record(**own, metric="bias_lsb", value=mean, reference=0.0, delta=mean,
                   delta_low=low, delta_high=high)
        )  # fmt: skip
        records.append(Record(**own, metric="rms_lsb", value=s.rms))
    exact = float(paths.exact[:, -1].mean())
    for mode in MODES:
        mean, low, high = paths.final(mode)
        records.append(
            Record(algorithm=mode, op="accumulation", metric="sum", value=mean, reference=exact,
                   delta=mean - exact, delta_low=low - exact, delta_high=high - exact,
                   n=paths.exact.shape[1])
        )  # fmt: skip
    for name, path in floats.items():
        last, total = float(path[-1]), HUNDREDTH * len(path)
        records.append(
            Record(algorithm="half_even", op="accumulation", recipe=name, metric="sum", value=last,
                   reference=total, delta=last - total, n=len(path))
        )  # fmt: skip
    return records


def _findings(spreads: list[Spread], paths: Paths, floats: dict[str, Tensor]) -> list[str]:
    found = []
    for values in (SMOOTH, QUARTERS):
        group = [s for s in spreads if s.values == values]
        named = {
            answer: [f"{s.mode} ({s.bias[0]:+.4f})" for s in group if s.biased is answer]
            for answer in (False, True, None)
        }
        open_ = f"; the intervals leave open {', '.join(named[None])}" if named[None] else ""
        found.append(
            f"On {values} a bias of more than {SMALL_BIAS} steps is excluded for "
            f"{', '.join(named[False]) or 'no rounding'} and shown for "
            f"{', '.join(named[True]) or 'none'}{open_}."
        )
    rms = {s.mode: s.rms for s in spreads if s.values == SMOOTH}
    found.append(
        f"Stochastic rounding pays with spread: an RMS error of {rms['stochastic']:.3f} steps, "
        f"{rms['stochastic'] / rms['half_even']:.2f} times that of the nearest code."
    )
    exact = float(paths.exact[:, -1].mean())
    sums = []
    for mode in MODES:
        mean, low, high = paths.final(mode)
        sums.append(f"{mode} {mean:.1f}" + (f" [{low:.1f}, {high:.1f}]" if high > low else ""))
    found.append(
        f"After {paths.exact.shape[1]:,} additions below half a step the exact sum is {exact:.1f}, "
        f"and the accumulators hold: {', '.join(sums)}."
    )
    for name, path in floats.items():
        stuck = int((path != path[-1]).sum())
        if stuck < len(path) - 1:
            found.append(
                f"A {name} accumulator stands still at {float(path[-1]):g} after {stuck:,} "
                f"additions of {HUNDREDTH} (exact after {len(path):,}: "
                f"{HUNDREDTH * len(path):g}): half its step is more than what is added."
            )
    return found
