"""Run every benchmark; ``--quick`` runs one small cell of each and records nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SCRIPTS = [
    "accuracy_w8a8",
    "other_networks",
    "float_simulation",
    "speed_w8a8",
    "quantize_cost",
    "numbers_speed",
    "weight_only",
    "load_memory",
    "minilm_onnxruntime",
    "kernels",
    "minilm_kernels",
    "convolutions",
    "mlp_lstm",
    "low_bit",
    "mixtures",
    "depthwise",
]


def main() -> None:
    """Run all: one after the other, because they measure time; quick ones two at once."""
    quick = "--quick" in sys.argv[1:]
    with ThreadPoolExecutor(2 if quick else 1) as pool:
        codes = pool.map(lambda name: _run(name, quick), SCRIPTS)
        failed = [name for name, code in zip(SCRIPTS, codes, strict=True) if code]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _run(name: str, quick: bool) -> int:
    """Return the exit code; what a quick one prints comes in one piece."""
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *sys.argv[1:]]
    if not quick:
        return subprocess.run(command, check=False).returncode
    # One thread each: two teams that spin for two cores take twenty times as long.
    command += ["--threads", "1"]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=own
    )
    print(done.stdout.decode(errors="replace"), flush=True)
    return done.returncode


if __name__ == "__main__":
    main()
