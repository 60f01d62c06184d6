"""Linear layers with packed weights: ratios to float32, ONNX Runtime and llama.cpp, with targets.

4096×4096, weights beyond the last-level cache, all by turns in one run. A target holds where the
paired ratio, the median over the turns, reaches it; its 95 % interval is beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsmith.insight.bench.bandwidth import read_bandwidth
from bitsmith.insight.bench.formats import RECIPES, heats
from bitsmith.insight.bench.ggml import ggml_folder
from bitsmith.insight.bench.kernels import Cell, KernelSpeeds, kernel_speeds
from bitsmith.insight.bench.onnxruntime_operators import DYNAMIC, nbits_name
from bitsmith.model.speed.memory import last_level_cache
from bitsmith.model.speed.race import Ratio, faster
from record import arguments, save, show

ROWS = (1, 8, 128)


@dataclass(frozen=True)
class Target:
    """What a line of the table must show.

    Attributes:
        line: its name.
        recipes: that it speaks of; each has to reach it.
        against: row it is compared with; None: float32. ``{group}`` is the recipe's.
        least: for each number of rows; None: no target.
    """

    line: str
    recipes: tuple[str, ...]
    against: str | None
    least: tuple[float | None, float | None, float | None]


_INT4 = ("W4G32A8-dynamic", "W4G64A8-dynamic", "W4G128A8-dynamic")
_FLOAT4 = ("W4G32", "W4G64", "W4G128")
_LEVEL4, _LEVEL0 = (nbits_name(4, 32, level).replace("32", "{group}") for level in (4, 0))
TARGETS = [
    Target("8-bit, int8 rows", ("W8A8-dynamic",), None, (5, 5, 2)),
    Target("8-bit, int8 rows", ("W8A8-dynamic",), DYNAMIC, (1, 1.2, 1)),
    Target("8-bit, float rows", ("W8",), None, (3.5, 2, 0.9)),
    Target("4-bit, int8 rows", _INT4, None, (8, 5, 1.5)),
    Target("4-bit, int8 rows", _INT4, _LEVEL4, (1.15, 1.2, 1)),
    Target("4-bit, float rows", _FLOAT4, None, (5, 2.5, 0.9)),
    Target("4-bit, float rows", _FLOAT4, _LEVEL0, (3, None, None)),
    Target("3-bit group 64, int8 rows", ("W3G64A8-dynamic",), None, (9, 4.5, 1)),
    Target("3-bit group 64, float rows", ("W3G64",), None, (9, 4.5, 1)),
    Target("2-bit group 64, int8 rows", ("W2G64A8-dynamic",), None, (11, 5, 1)),
    Target("2-bit group 64, int8 rows", ("W2G64A8-dynamic",), nbits_name(2, 64, 4),
           (1.3, None, None)),
    Target("2-bit group 64, float rows", ("W2G64",), None, (11, 5, 1)),
    Target("2-bit group 64, float rows", ("W2G64",), nbits_name(2, 64, 0), (1.3, None, None)),
    Target("16-entry table, group 64", ("NF4",), None, (7, 3.5, 1)),
    Target("16-entry table, learned", ("CODEBOOK4",), None, (7, 3.5, 1)),
    Target("llama.cpp Q4_0", ("W4G32A8-dynamic",), "llama.cpp Q4_0", (1, 1, None)),
    Target("llama.cpp Q8_0", ("W8A8-dynamic",), "llama.cpp Q8_0", (1, 1, None)),
]  # fmt: skip
BANDWIDTH = 0.7
"""Of the read bandwidth, at one row and 4 bits."""


def main() -> None:
    """Measure, print both tables, record."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each cell")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument(
        "--ggml", type=Path, default=ggml_folder(), metavar="DIR",
        help="folder of llama.cpp's libggml-base and libggml-cpu; default: llama-cpp-python's",
    )  # fmt: skip
    options = parser.parse_args()
    quick = options.quick
    shape, rows = ((256, 512), (1,)) if quick else ((4096, 4096), ROWS)
    recipes = ("W4G64A8-dynamic", "W4G64") if quick else RECIPES
    limit = read_bandwidth(
        options.threads, size=1 << 26 if quick else None, seconds=0.2 if quick else 10.0
    )
    found = kernel_speeds(
        shape, rows, heats(recipes, options.ggml), thread_count=options.threads,
        seconds=0.05 if quick else options.seconds, turns=5 if quick else options.turns,
        memory=1 << 26 if quick else None, bandwidth=limit,
    )  # fmt: skip
    show("layers", [_row(c) for c in found.cells])
    show("not there", [vars(a) for a in found.absent])
    save(
        "kernels",
        targets(found),
        quick,
        threads=found.threads,
        shape=[found.n, found.k],
        last_level_cache_mib=last_level_cache() >> 20,
        read_bandwidth={n: round(b / 1e9, 2) for n, b in found.bandwidth.others.items()},
        in_cache=list(found.cached),
        absent=[vars(a) for a in found.absent],
        layers=[_row(c) for c in found.cells],
    )


def targets(found: KernelSpeeds) -> list[dict[str, Any]]:
    """Return a row for each recipe and comparison: the ratios, and what they must be."""
    cells = {(c.heat, c.name, c.rows): c for c in found.cells}
    heat = {c.name: c.heat for c in found.cells if c.family != "float32"}
    rows = []
    for target in TARGETS:
        for recipe in target.recipes:
            if recipe not in heat:
                continue
            group = recipe.partition("G")[2].partition("A")[0]
            against = None if target.against is None else target.against.format(group=group)
            row: dict[str, Any] = {"weights, activations": target.line, "recipe": recipe}
            row["against"] = against or "float32"
            for m, least in zip(ROWS, target.least, strict=True):
                own = cells.get((heat[recipe], recipe, m))
                other = cells.get((heat[recipe], against or "float32", m))
                row[f"M={m}"] = _judged(own, other, least)
            rows.append(row)
    return rows + _bandwidth(found.cells)


def _judged(own: Cell | None, other: Cell | None, least: float | None) -> str:
    if own is None:
        return ""
    return "not there" if other is None else _said(faster(own.times, other.times), least)


def _said(ratio: Ratio, least: float | None) -> str:
    text = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    if least is None:
        return text
    return f"{text} {'≥' if ratio.value >= least else 'NOT'} {least:g}"


def _bandwidth(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    rows = []
    for c in cells:
        if c.name in _INT4 + _FLOAT4 and c.rows == 1:
            share = c.bandwidth_share
            said = f"{share:.2f} {'≥' if share >= BANDWIDTH else 'NOT'} {BANDWIDTH}"
            rows.append(
                {"weights, activations": "4-bit", "recipe": c.name, "against": "read bandwidth"}
                | {"M=1": said}
            )
    return rows


def _row(c: Cell) -> dict[str, Any]:
    low, high = c.times.quartiles_ms
    return {
        "heat": c.heat,
        "recipe or operator": c.name,
        "M": c.rows,
        "ms": round(c.times.median_ms, 4),
        "quartiles": f"{low:.4g}–{high:.4g}",
        "turns": c.times.n,
        "times float32": _said(c.to_float, None),
        "times ONNX Runtime": "" if c.to_rival is None else _said(c.to_rival, None),
        "MB": round(c.bytes / 1e6, 2),
        "GB/s": round(c.gigabytes_per_second, 1),
        "of bandwidth": round(c.bandwidth_share, 2),
    }


if __name__ == "__main__":
    main()
