"""W8A8 ResNets in ONNX Runtime against its own float32 of the same network, alternating runs."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bitsmith.data import load_dataset
from bitsmith.deploy.export import export
from bitsmith.deploy.export.onnx import write_float
from bitsmith.deploy.runtimes import Session, open_session
from bitsmith.model.graph import capture, simplify
from bitsmith.model.ptq import ptq
from bitsmith.zoo import load_model
from peers import onnxruntime_quantizer
from record import arguments, on_machine, save


def measure(name: str, rounds: int, threads: int, machine: str) -> list[dict[str, Any]]:
    """Median milliseconds of float, bitsmith's file and the peer's, batch 1 and 128."""
    train = load_dataset("cifar10").split("train")
    model = load_model(name).module
    with tempfile.TemporaryDirectory() as folder:
        float_file = Path(folder) / "float.onnx"
        write_float(simplify(capture(model, torch.zeros(2, 3, 32, 32))), float_file)
        ours = export(
            ptq(model, "W8A8", train.batches(64, limit=256, seed=0)), Path(folder) / "w8a8.onnx"
        )
        peer = onnxruntime_quantizer(float_file, train.batches(64, limit=256, seed=0), folder)
        files = {"float32": float_file, "bitsmith W8A8": ours, "ONNX Runtime quantizer": peer}
        sessions = {k: open_session(p, threads=threads) for k, p in files.items()}
        sizes = {k: p.stat().st_size for k, p in files.items()}
    rows = []
    for batch in (1, 128):
        times = _alternate(
            sessions, torch.randn(batch, 3, 32, 32), rounds * (10 if batch == 1 else 1)
        )
        base = statistics.median(times["float32"])
        for file, seconds in times.items():
            median = statistics.median(seconds)
            low, _, high = statistics.quantiles(seconds, n=4)
            rows.append(
                {
                    "machine": machine,
                    "model": name,
                    "batch": batch,
                    "file": file,
                    "median ms": 1e3 * median,
                    "quartiles ms": f"{1e3 * low:.3g}–{1e3 * high:.3g}",
                    "times faster than float32": base / median,
                    "bytes / float bytes": sizes[file] / sizes["float32"],
                }
            )
    return rows


def _alternate(
    sessions: dict[str, Session], x: torch.Tensor, rounds: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {k: [] for k in sessions}
    for turn in range(rounds + 5):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(x)
            if turn >= 5:
                times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    """Run and record."""
    options = arguments(__doc__ or "").parse_args()
    suffix = on_machine(options)
    models = ["cifar-resnet20"] if options.quick else ["cifar-resnet20", "cifar-resnet32"]
    rounds = 5 if options.quick else 60
    rows = [r for m in models for r in measure(m, rounds, options.threads, options.machine)]
    save(f"speed_w8a8{suffix}", rows, options.quick, threads=options.threads)


if __name__ == "__main__":
    main()
