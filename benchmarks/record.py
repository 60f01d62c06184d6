"""Write a benchmark's table to the screen and its result, with machine and commit, to a file."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitsmith.insight.measure import machine

RESULTS = Path(__file__).with_name("results")


def arguments(description: str) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="one small cell, nothing recorded")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--as",
        dest="machine",
        choices=["native", "avx2", "avx512"],
        default="native",
        help="on the kernels of an x86 machine without VNNI (CPUID masked, full speed)",
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def on_machine(options: argparse.Namespace) -> str:
    """Start again as the machine asked for; returns the suffix of the result's name."""
    if options.machine == "native":
        return ""
    if not options.child:
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from emulate.machine import emulation_available, run_as

        if reason := emulation_available():
            sys.exit(f"cannot run as {options.machine}: {reason}")
        done = run_as(options.machine, [sys.executable, *sys.argv, "--child"])
        print(done.stdout, done.stderr, sep="\n")
        sys.exit(done.returncode)
    return f"_{options.machine}"


def commit() -> str:
    """The commit measured, with a + when the tree has changes."""

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    dirty = "+" if git("status", "--porcelain", "--untracked-files=no", "src") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + dirty


#: Taken at the start: what is measured is the code that was loaded.
COMMIT = commit()


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as a markdown table."""
    keys = list(dict.fromkeys(k for row in rows for k in row))
    print(f"\n{title}\n")
    print("| " + " | ".join(keys) + " |")
    print("|" + "---|" * len(keys))
    for row in rows:
        print("| " + " | ".join(_cell(row.get(k, "")) for k in keys) + " |")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def save(name: str, rows: Sequence[dict[str, Any]], quick: bool, **more: Any) -> None:
    """Record rows under ``results/NAME.json``; a quick run records nothing."""
    show(name, rows)
    if quick:
        return
    RESULTS.mkdir(exist_ok=True)
    result = {
        "benchmark": name,
        "commit": COMMIT,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        **more,
        "rows": list(rows),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
