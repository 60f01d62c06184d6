"""What loading and saving a 4-bit model takes in memory, above the interpreter.

A stack of linear layers in ``W4G64``, of random codes (no float model of it is ever made), is
saved once; each row is a process of its own, whose peak (VmHWM) is reset after everything is
imported. Linux only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import record
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.presets import grouped_scheme
from bitsmith.model.store import load, save
from bitsmith.model.store.parts import part_specs, weight_of_parts

ALLOWED = 100e6
"""Bytes above the file's own size that loading may take."""


def skeleton(layers: int, width: int) -> nn.Module:
    """The float model."""
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def packed(layers: int, width: int) -> nn.Module:
    """The same in 4 bits, of random codes."""
    made = torch.Generator().manual_seed(0)
    scheme, shape = grouped_scheme(4, 64), (width, width)
    specs = part_specs(scheme, shape)
    stack = []
    for _ in range(layers):
        parts = {
            name: torch.randint(0, 256, spec[1], dtype=torch.uint8, generator=made)
            for name, spec in specs.items()
            if spec[0] == torch.uint8
        }
        parts["scale"] = scheme.scale_format.encode(torch.rand(specs["scale"][1], generator=made))
        bias = nn.Parameter(torch.zeros(width), requires_grad=False)
        stack.append(QuantLinear(weight_of_parts(parts, scheme, shape, shape), bias))
    return nn.Sequential(*stack)


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measured(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds of ``work``, and its peak above what was there before it."""
    Path("/proc/self/clear_refs").write_text("5")
    before, started = status("VmRSS"), time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    peak = status("VmHWM") - before
    del result
    return {"seconds": seconds, "before_mb": before / 1e6, "peak_above_mb": peak / 1e6}


def child(what: str, folder: Path, layers: int, width: int) -> dict[str, Any]:
    """One row, in a process of its own."""

    def make() -> nn.Module:
        return skeleton(layers, width)

    if what == "save":
        model = packed(layers, width)
        return measured(lambda: save(model, folder.with_name("again")))
    if what == "load":
        return measured(lambda: load(folder, make))
    if what == "load without verifying":
        return measured(lambda: load(folder, make, verify=False))
    assert what == "load and read every tensor"

    def read() -> nn.Module:
        model = load(folder, make)
        for tensor in model.state_dict().values():
            tensor.view(torch.uint8).amax()
        return model

    return measured(read)


ROWS = ("load", "load without verifying", "load and read every tensor", "save")


def main() -> None:
    """Save the model once, then measure each row in a child."""
    parser = record.arguments(__doc__ or "")
    parser.add_argument("--row", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.row:
        what, folder, layers, width = options.row
        print(json.dumps(child(what, Path(folder), int(layers), int(width))))
        return
    layers, width = (4, 512) if options.quick else (36, 4096)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = save(packed(layers, width), Path(place) / "model")
        size = sum(p.stat().st_size for p in folder.iterdir())
        float_size = 4 * layers * (width + 1) * width
        for what in ROWS:
            given = [sys.executable, __file__, "--threads", str(options.threads)]
            given += ["--row", what, str(folder), str(layers), str(width)]
            done = subprocess.run(given, capture_output=True, text=True, check=True)
            row = json.loads(done.stdout)
            limit = size + ALLOWED
            ok = row["peak_above_mb"] * 1e6 <= limit if what != "save" else ""
            rows.append({"what": what, "file_mb": size / 1e6, **row, "within": ok})
    record.save("load_memory", rows, options.quick, float_mb=float_size / 1e6)
    if bad := [r["what"] for r in rows if r["within"] is False]:
        sys.exit(f"above the file's size + {ALLOWED / 1e6:.0f} MB: {', '.join(bad)}")


if __name__ == "__main__":
    main()
