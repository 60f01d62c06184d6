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


def low_bit(model: str, short: bool) -> str:
    """Return the rows of ``low_bit.json`` for one model as a markdown table.

    A short one has the rows with a target, and not the memory.
    """
    recorded = json.loads((ROOT / "benchmarks/results/low_bit.json").read_text())
    heads = ["recipe", "effort", "accuracy", "against float32, 95 %", "seconds (threads)"]
    heads += ["file, packed, KB"] if short else ["peak MB", "file, packed, KB"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    every = [*TARGETS] if short else [*TARGETS, *ALSO]
    recipes = list(dict.fromkeys(recipe for recipe, _ in every))
    for recipe, effort in sorted(every, key=lambda e: (recipes.index(e[0]), _EFFORTS.index(e[1]))):
        key = (model, recipe, effort)
        rows = [r for r in recorded["rows"] if (r["model"], r["recipe"], r["effort"]) == key]
        if rows:
            cells = _cells(sorted(rows, key=lambda r: r["seed"]), short)
            lines.append("| " + " | ".join([f"`{recipe}`", effort, *cells]) + " |")
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
    return _SPACE.sub(lambda m: m[1] + low_bit(m[2], bool(m[3])) + m[5], page)


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
