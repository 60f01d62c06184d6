"""Run every benchmark; ``--quick`` runs one small cell of each and records nothing."""

from __future__ import annotations

import subprocess
import sys
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
    "mlp_lstm",
    "low_bit",
    "depthwise",
]


def main() -> None:
    """Run all, one after the other: they measure time."""
    failed = []
    for name in SCRIPTS:
        script = Path(__file__).with_name(f"{name}.py")
        if subprocess.run([sys.executable, str(script), *sys.argv[1:]], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
