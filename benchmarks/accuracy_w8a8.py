"""W8A8 ResNets on CIFAR-10: accuracy of the file in ONNX Runtime, equality with the simulation.

Five calibration seeds of 256 training images each; all 10,000 test images; every code of the
first seed's file is compared with the simulation on all of them. ONNX Runtime's own quantizer
runs on the same calibration images as a peer.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from bitsmith.data import load_dataset
from bitsmith.deploy.export import export
from bitsmith.deploy.export.onnx import write_float
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify import verify
from bitsmith.insight.measure import paired_difference
from bitsmith.model.evaluate import correct, predict
from bitsmith.model.graph import capture, simplify
from bitsmith.model.ptq import ptq
from bitsmith.zoo import load_model
from peers import onnxruntime_quantizer
from record import arguments, on_machine, save


def measure(name: str, seeds: int, limit: int | None, threads: int) -> list[dict[str, Any]]:
    """One row per file: float, bitsmith by seed, peer."""
    data = load_dataset("cifar10")
    train, test = data.split("train"), data.split("test")
    batches = test.batches(250, limit=limit)
    model = load_model(name).module
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        float_file = Path(folder) / "float.onnx"
        write_float(simplify(capture(model, torch.zeros(2, 3, 32, 32))), float_file)
        logits, labels = predict(open_session(float_file, threads=threads), batches)
        reference = correct(logits, labels)
        rows.append(_row(name, "float32, ONNX Runtime", reference, reference, float_file))
        for seed in range(seeds):
            calibration = train.batches(64, limit=256, seed=seed)
            quantized = ptq(model, "W8A8", calibration)
            path = export(quantized, Path(folder) / f"seed{seed}.onnx")
            theirs, _ = predict(open_session(path, threads=threads), batches)
            ours, _ = predict(quantized, batches)
            row = _row(
                name, f"bitsmith W8A8, seed {seed}", correct(theirs, labels), reference, path
            )
            row["differing logits"] = int((theirs != ours).sum())
            row["changed predictions"] = int((theirs.argmax(1) != ours.argmax(1)).sum())
            if seed == 0:
                found = verify(quantized, path, batches, samples=len(labels), threads=threads)
                row["codes compared"] = sum(t.n for t in found.tensors)
                row["differing codes"] = sum(t.differing for t in found.tensors)
                row["integer operators"] = f"{found.executed_integer}/{found.planned_integer}"
            rows.append(row)
        peer = onnxruntime_quantizer(float_file, train.batches(64, limit=256, seed=0), folder)
        theirs, _ = predict(open_session(peer, threads=threads), batches)
        rows.append(
            _row(
                name,
                "ONNX Runtime quantizer (u8·s8, default), seed 0",
                correct(theirs, labels),
                reference,
                peer,
            )
        )
    ours_all = [r["accuracy"] for r in rows if r["file"].startswith("bitsmith")]
    rows.append(
        {"model": name, "file": "bitsmith, median", "accuracy": statistics.median(ours_all)}
    )
    return rows


def _row(
    name: str, file: str, right: torch.Tensor, reference: torch.Tensor, path: Path
) -> dict[str, Any]:
    delta, low, high = paired_difference(right, reference)
    return {
        "model": name,
        "file": file,
        "accuracy": round(100 * float(right.double().mean()), 3),
        "n": len(right),
        "difference [95 %]": f"{delta:+.2f} [{low:+.2f}, {high:+.2f}]",
        "bytes": path.stat().st_size,
    }


def main() -> None:
    """Run and record."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--models", nargs="+", default=["cifar-resnet20", "cifar-resnet32"])
    options = parser.parse_args()
    suffix = on_machine(options)
    models = options.models[:1] if options.quick else options.models
    seeds, limit = (1, 500) if options.quick else (5, None)
    rows = [r for m in models for r in measure(m, seeds, limit, options.threads)]
    save(f"accuracy_w8a8{suffix}", rows, options.quick)


if __name__ == "__main__":
    main()
