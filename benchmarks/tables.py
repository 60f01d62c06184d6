"""Put recorded results into the pages that show them: what is between the markers is replaced.

``--check`` changes nothing and fails where a page does not show what is recorded.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from low_bit import ALSO, TARGETS

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/how-it-works/below-eight-bits.md")
_SPACE = re.compile(
    r"(<!-- low_bit ([\w-]+)( short)? -->\n\n)(.*?)(\n<!-- /low_bit -->)", re.DOTALL
)

_EFFORTS = ("low", "medium", "adaround medium", "high")
_EFFORTS += ("zero-shot low", "zero-shot medium", "zero-shot high")


def _recorded() -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return the rows of ``low_bit.json`` by model, recipe and effort, in the order of seeds."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    rows = json.loads((ROOT / "benchmarks/results/low_bit.json").read_text())["rows"]
    for row in sorted(rows, key=lambda r: r["seed"]):
        found.setdefault((row["model"], row["recipe"], row["effort"]), []).append(row)
    return found


def _ordered(cells: list[tuple[str, str]]) -> list[tuple[str, str]]:
    recipes = list(dict.fromkeys(recipe for recipe, _ in cells))
    return sorted(cells, key=lambda e: (recipes.index(e[0]), _EFFORTS.index(e[1])))


def low_bit(model: str, short: bool) -> str:
    """Return the rows of ``low_bit.json`` for one model as a markdown table.

    A short one has the rows with a target, and not the memory.
    """
    recorded = _recorded()
    heads = ["recipe", "effort", "accuracy", "against float32, 95 %", "seconds (threads)"]
    heads += ["file, packed, KB"] if short else ["peak MB", "file, packed, KB"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for recipe, effort in _ordered([*TARGETS] if short else [*TARGETS, *ALSO]):
        if rows := recorded.get((model, recipe, effort)):
            lines.append("| " + " | ".join([f"`{recipe}`", effort, *_cells(rows, short)]) + " |")
    return "\n".join(lines) + "\n"


def beside() -> str:
    """Return what both networks lose, where both are recorded, as a markdown table."""
    recorded, names = _recorded(), {"cifar-resnet20": "ResNet-20", "cifar-resnet32": "ResNet-32"}
    heads = ["recipe", "effort", *(f"{n}, points lost (seeds)" for n in names.values())]
    heads += [f"{n}, nats" for n in names.values()]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for recipe, effort in _ordered([*TARGETS, *ALSO]):
        groups = [recorded.get((model, recipe, effort), []) for model in names]
        if not all(groups):
            continue
        lost = [statistics.median(r["float"] - r["accuracy"] for r in rows) for rows in groups]
        known = [[r.get("divergence from float") for r in rows] for rows in groups]
        far = [statistics.median(x for x in group if x is not None) for group in known]
        cells = [f"{x:.2f} ({len(rows)})" for x, rows in zip(lost, groups, strict=True)]
        cells += [f"{x:.4f}" for x in far]
        lines.append(
            "| " + " | ".join([f"`{recipe}`", effort, *cells]).replace("-0.", "−0.") + " |"
        )
    return "\n".join(lines) + "\n"


def _cells(rows: list[dict[str, Any]], short: bool) -> list[str]:
    """What the seeds of one recipe and effort gave: the interval is that of the median one."""
    middle = sorted(rows, key=lambda r: r["accuracy"])[(len(rows) - 1) // 2]
    threads = max(r["threads"] for r in rows)
    seconds = statistics.median(r["seconds"] for r in rows if r["threads"] == threads)
    cells = [
        ", ".join(f"{r['accuracy']:.2f}" for r in rows),
        middle["difference [95 %]"].replace("-", "−"),
        f"{seconds:.1f} ({threads})",
    ]
    peak = [] if short else [str(max(r["peak MB"] for r in rows))]
    return [*cells, *peak, f"{middle['bytes, packed weights'] / 1000:.0f}"]


def shown(page: str) -> str:
    """Return a page with its tables as they are recorded now."""

    def table(m: re.Match[str]) -> str:
        return m[1] + (beside() if m[2] == "both" else low_bit(m[2], bool(m[3]))) + m[5]

    return _SPACE.sub(table, page)


def main() -> None:
    """Write the pages, or check them."""
    stale = []
    for name in PAGES:
        file = ROOT / name
        text = file.read_text()
        new = shown(text)
        if new != text:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                file.write_text(new)
    if "--check" in sys.argv[1:] and stale:
        sys.exit(f"not what is recorded: {', '.join(stale)}; run benchmarks/tables.py")


if __name__ == "__main__":
    main()
