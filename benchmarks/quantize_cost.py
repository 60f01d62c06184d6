"""Seconds and peak memory of ``bitsmith quantize`` with 256 and 4,096 calibration images.

The whole command in a process of its own, as a user runs it; figures are its own JSON record and
the operating system's account of the process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import arguments, save


def command(samples: int, folder: Path) -> dict[str, Any]:
    """One run; returns what its JSON says."""
    argv = [sys.executable, "-m", "bitsmith", "quantize", "cifar-resnet20", "--data", "cifar10"]
    argv += ["--recipe", "W8A8", "--calibration-samples", str(samples), "--batch-size", "32"]
    argv += ["--out", str(folder / "m.onnx"), "--json", str(folder / "m.json")]
    subprocess.run(argv, check=True, capture_output=True)
    result: dict[str, Any] = json.loads((folder / "m.json").read_text())
    return result


def main() -> None:
    """Run and record."""
    options = arguments(__doc__ or "").parse_args()
    runs = 1 if options.quick else 5
    rows = []
    for samples in (256, 4096):
        with tempfile.TemporaryDirectory() as folder:
            results = [command(samples, Path(folder)) for _ in range(runs)]
        record = results[0]["records"][0]
        rows.append(
            {
                "calibration images": samples,
                "capture to converted model, s": statistics.median(
                    r["records"][0]["quantize_seconds"] for r in results
                ),
                "whole command, s": statistics.median(r["seconds"] for r in results),
                "peak MB": statistics.median(r["peak_rss_mb"] for r in results),
                "bytes": record["bytes"],
                "runs": runs,
            }
        )
    rows.append(
        {"calibration images": "growth", "peak MB": rows[1]["peak MB"] - rows[0]["peak MB"]}
    )
    save("quantize_cost", rows, options.quick)


if __name__ == "__main__":
    main()
