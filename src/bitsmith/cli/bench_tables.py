"""What ``bitsmith bench`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitsmith.cli.tables import amount

if TYPE_CHECKING:
    from bitsmith.cli.output import Output
    from bitsmith.insight.bench.bandwidth import Bandwidth
    from bitsmith.insight.bench.kernels import Cell, KernelSpeeds
    from bitsmith.insight.bench.network import NetworkSpeeds
    from bitsmith.model.speed.layers import LayerSpeed
    from bitsmith.model.speed.race import Ratio, Times

__all__ = ["kernel_tables", "network_tables"]

_RATIOS = [">times float32 [95 %]", ">times ONNX Runtime [95 %]"]


def kernel_tables(output: Output, found: KernelSpeeds) -> None:
    """Print a table for each heat and number of rows, and what is not there."""
    output.heading(f"A linear layer of {found.n}×{found.k}, {found.threads} threads")
    _limit(output, found.bandwidth)
    columns = ["recipe or operator", ">rows", ">ms [quartiles]", *_RATIOS]
    columns += [">bytes", ">GB/s", ">of bandwidth"]
    for heat in dict.fromkeys(c.heat for c in found.cells):
        output.heading(heat)
        output.table(columns, [_cell(c) for c in found.cells if c.heat == heat])
    if found.absent:
        output.heading("Not there")
        for one in found.absent:
            output.line(f"- {one.heat}: {one.name}: {one.reason}")
    if found.cached:
        output.line(
            "\nFor want of memory the copies do not exceed the last-level cache: "
            + ", ".join(found.cached)
        )


def network_tables(output: Output, found: NetworkSpeeds, name: str) -> None:
    """Print a table of the kinds of layers, what would be slower, and the whole model."""
    output.heading(f"{name}, {found.threads} threads")
    _limit(output, found.bandwidth)
    columns = ["layer", "operator", "weight", "input", "recipe", ">ms [quartiles]", _RATIOS[0]]
    output.table(columns, [row for kind in found.layers for row in _layer(kind)])
    output.heading("The whole model")
    output.table(
        ["recipe", ">ms [quartiles]", _RATIOS[0], ">size"],
        [(w.name, _ms(w.times), _ratio(w.to_float), amount(w.bytes)) for w in found.whole],
    )
    if slow := [w.name for w in found.whole if w.to_float.high < 1]:
        output.line(f"slower than float32 on this machine: {', '.join(slow)}")


def _limit(output: Output, found: Bandwidth) -> None:
    tried = ", ".join(f"{n} {v / 1e9:.1f}" for n, v in found.others.items())
    output.line(
        f"memory is read at {found.bytes_per_second / 1e9:.1f} GB/s ({found.method}; best of "
        f"several, GB/s: {tried})"
    )


def _cell(c: Cell) -> tuple[str, ...]:
    return (
        c.name,
        str(c.rows),
        _ms(c.times),
        _ratio(c.to_float),
        "" if c.to_rival is None else _ratio(c.to_rival),
        amount(c.bytes),
        f"{c.gigabytes_per_second:.1f}",
        f"{c.bandwidth_share:.2f}",
    )


def _layer(kind: LayerSpeed) -> list[tuple[str, ...]]:
    """Return a row for each recipe; the names of the layer are in the first."""
    from bitsmith.model.speed.race import faster

    rows: list[tuple[str, ...]] = []
    reference = next(iter(kind.times.values()))
    for name, times in kind.times.items():
        first = not rows
        more = f" and {len(kind.layers) - 1} like it" if len(kind.layers) > 1 else ""
        about = (
            kind.layers[0] + more,
            kind.op,
            ", ".join("×".join(map(str, w)) for w in kind.weights),
            "×".join(map(str, kind.inputs)),
        )
        ratio = "" if first else _ratio(faster(times, reference))
        rows.append((*(about if first else ("",) * 4), name, _ms(times), ratio))
    return rows


def _ms(times: Times) -> str:
    low, high = times.quartiles_ms
    return f"{times.median_ms:.3f} [{low:.3f}, {high:.3f}]"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
