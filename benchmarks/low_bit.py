"""Below eight bits on CIFAR-10: accuracy, seconds and memory of every effort, in ONNX Runtime.

Every cell is a process of its own: calibration and training on the 5,000 train images (no labels
used), the exported file run on all 10,000 test images, its logits compared with the simulation.
Cells that are recorded already are kept, so a stopped run goes on where it was; ``--again`` runs
them anew, ``--only W4A4-edge8:high`` picks some.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch

import bitsmith as bs
from bitsmith.data import load_dataset
from bitsmith.data.training import training_batches
from bitsmith.deploy.export.onnx import write_float
from bitsmith.deploy.runtimes import open_session
from bitsmith.insight.measure import machine, paired_difference, peak_rss_mb
from bitsmith.model.evaluate import correct, predict
from bitsmith.model.graph import capture, simplify
from bitsmith.model.qat.fit import distillation
from bitsmith.model.qat.ladder import Ladder
from bitsmith.model.qat.reconstruct import Reconstruction
from bitsmith.zoo import load_model
from record import COMMIT, RESULTS, arguments, save, show

#: (recipe, effort) → accuracy of ResNet-20 to reach, minutes.
TARGETS: dict[tuple[str, str], tuple[float, float]] = {
    ("W8A8", "low"): (91.68, 5 / 60),
    ("W4A8-edge8", "low"): (91.2, 0.25),
    ("W4A8-edge8", "medium"): (91.5, 3),
    ("W4A8-edge8", "adaround medium"): (91.5, 3),
    ("W4A4-edge8", "low"): (89.8, 0.25),
    ("W4A4-edge8", "medium"): (90.8, 4),
    ("W4A4-edge8", "high"): (91.5, 15),
    ("W3A8-edge8", "medium"): (90.6, 4),
    ("W3A8-edge8", "high"): (91.3, 15),
    ("W3A3-edge8", "high"): (90.6, 20),
    ("W2A8-edge8", "medium"): (82, 5),
    ("W2A8-edge8", "high"): (87.5, 20),
    ("W2A2-edge8", "high"): (82, 20),
    ("W4A4", "high"): (91.0, 15),
    ("CODEBOOK4A8-edge8", "high"): (91.5, 15),
    ("CODEBOOK2A8-edge8", "high"): (87.5, 15),
    ("W8A8", "zero-shot low"): (91.6, 10),
    ("W4A8-edge8", "zero-shot medium"): (90.9, 10),
    ("W4A4-edge8", "zero-shot high"): (87, 10),
}
#: Without training, where nobody set a target.
ALSO = [
    ("W3A8-edge8", "low"),
    ("W2A8-edge8", "low"),
    ("W8A4", "low"),
    ("W8A4-edge8", "low"),
    ("CODEBOOK4A8-edge8", "low"),
    ("CODEBOOK3A8-edge8", "low"),
    ("CODEBOOK2A8-edge8", "low"),
]
QUICK = [("W4A8-edge8", "low")]


def cell(name: str, recipe: str, effort: str, seed: int, threads: int, quick: bool) -> Any:
    """Quantize, export, run; one row.

    Beside the accuracy, of which one run differs from the next by 0.2 points, the file's distance
    from the float model on the test images: same predictions in percent, KL divergence in nats.
    """
    torch.set_num_threads(threads)
    data = load_dataset("cifar10")
    train, test = data.split("train"), data.split("test")
    batches = test.batches(250, limit=500 if quick else None)
    module = load_model(name).module
    called, zero_shot = effort, effort.startswith("zero-shot")
    adaround = effort.startswith("adaround")
    effort = effort.removeprefix("zero-shot ").removeprefix("adaround ")
    started = time.perf_counter()
    if zero_shot:
        from bitsmith.model.zero_shot import synthesize

        made = synthesize(module, (3, 32, 32), samples=512, seed=seed, progress=False)
        given: dict[str, Any] = {"data": made, "training": None}
    else:
        limit = 256 if effort == "low" else 2048
        given = {
            "data": train.batches(64, limit=limit, seed=seed),
            "training": training_batches(data, 64, seed=seed, labelled=False),
        }
    learn: Literal["weights", "rounding"] = "rounding" if adaround else "weights"
    further: dict[str, Any] = {
        "training": given["training"], "ladder": Ladder(blocks=Reconstruction(learn=learn)),
    }  # fmt: skip
    quantized = bs.ptq(
        module, recipe, given["data"], effort=effort, seed=seed, progress=False,
        **({} if effort == "low" else further),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    peak = peak_rss_mb()
    with tempfile.TemporaryDirectory() as folder:
        float_file = Path(folder) / "float.onnx"
        write_float(simplify(capture(module, torch.zeros(2, 3, 32, 32))), float_file)
        logits, labels = predict(open_session(float_file, threads=threads), batches)
        reference = correct(logits, labels)
        path = bs.export(quantized, Path(folder) / "quantized.onnx")
        theirs, _ = predict(open_session(path, threads=threads), batches)
        ours, _ = predict(quantized, batches)
        size = path.stat().st_size
        packed = bs.export(quantized, Path(folder) / "packed.onnx", weights="packed")
        packed_size = packed.stat().st_size
    right, same = correct(theirs, labels), theirs.argmax(1) == logits.argmax(1)
    delta, low, high = paired_difference(right, reference)
    rungs = quantized.provenance.get("rungs", [])
    return {
        "model": name,
        "recipe": recipe,
        "effort": called,
        "seed": seed,
        "accuracy": round(100 * float(right.double().mean()), 3),
        "float": round(100 * float(reference.double().mean()), 3),
        "n": len(right),
        "difference [95 %]": f"{delta:+.2f} [{low:+.2f}, {high:+.2f}]",
        "seconds": round(seconds, 1),
        "threads": threads,
        "peak MB": round(peak),
        "differing logits": int((theirs != ours).sum()),
        "changed predictions": int((theirs.argmax(1) != ours.argmax(1)).sum()),
        "agreement with float": round(100 * float(same.double().mean()), 2),
        "divergence from float": round(
            float(distillation(theirs.double(), logits.double(), 1.0)), 5
        ),
        "bytes": size,
        "bytes, packed weights": packed_size,
        "rungs": "; ".join(
            f"{r['name']} {r['distance']:.3g} {r.get('agreement', 0):.1f} % {r['seconds']:.0f} s"
            + ("" if r["kept"] else " not kept")
            for r in rungs
        ),
        "cpu": machine()["cpu"],
        "commit": COMMIT,
    }


def _in_process(options: argparse.Namespace, *of: str) -> dict[str, Any] | None:
    """Run one cell alone, so that its memory is its own."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        command = [sys.executable, __file__, "--cell", *of, "--into", file.name]
        command += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
        if subprocess.run(command, check=False).returncode:
            print("failed:", *of)
            return None
        row: dict[str, Any] = json.loads(Path(file.name).read_text())
        return row


def _summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each model, recipe and effort: medians over the seeds beside the targets."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["model"], row["recipe"], row["effort"]), []).append(row)
    summary = []
    for (model, recipe, effort), group in found.items():
        accuracy = statistics.median(r["accuracy"] for r in group)
        target, minutes = TARGETS.get((recipe, effort), (None, None))
        if target is not None and model != "cifar-resnet20":
            target = None  # stated relative to ResNet-20's loss
        summary.append(
            {
                "model": model,
                "recipe": recipe,
                "effort": effort,
                "seeds": len(group),
                "accuracy, median": accuracy,
                "loss": round(group[0]["float"] - accuracy, 3),
                "target": target,
                "seconds, median": statistics.median(r["seconds"] for r in group),
                "target seconds": None if minutes is None else round(60 * minutes),
                "peak MB": max(r["peak MB"] for r in group),
                "differing logits": sum(r["differing logits"] for r in group),
            }
        )
    return summary


def main() -> None:
    """Run what is not recorded yet; record after every cell."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--models", nargs="+", default=["cifar-resnet20", "cifar-resnet32"])
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--only", nargs="+", help="recipe:effort")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--into", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        name, recipe, effort, seed = options.cell
        row = cell(name, recipe, effort, int(seed), options.threads, options.quick)
        Path(options.into).write_text(json.dumps(row))
        return
    file = RESULTS / "low_bit.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() and not options.quick else []
    wanted = QUICK if options.quick else [*TARGETS, *ALSO]
    if options.only:
        wanted = [tuple(text.split(":")) for text in options.only]
    models, seeds = options.models, options.seeds
    if options.quick:
        models, seeds = models[:1], seeds[:1]
    for model in models:
        for seed in seeds:
            for recipe, effort in wanted:
                key = (model, recipe, effort, int(seed))
                same = [r for r in rows if tuple(r[k] for k in _KEY) == key]
                if same and not options.again:
                    continue
                row = _in_process(options, model, recipe, effort, seed)
                if row is not None:
                    rows = [r for r in rows if r not in same] + [row]
                    save("low_bit", rows, options.quick, threads=options.threads)
    show("medians", _summary(rows))


_KEY = ("model", "recipe", "effort", "seed")

if __name__ == "__main__":
    main()
