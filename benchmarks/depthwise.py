"""Depthwise convolutions after training: what one scale a weight loses, and what wins it back.

The zoo's mobilenet-small, trained here on Fashion-MNIST by bitsmith's own loop. Its weights are
kept in the user's cache, and a stopped training goes on; delete the file to train anew. Every row
is a process of its own: quantized on 1,024 training images without labels, the exported file run in
ONNX Runtime on all 10,000 test images, paired with the float file, its logits compared with the
simulation.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bitsmith as bs
from bitsmith.data import load_dataset
from bitsmith.data.training import training_batches
from bitsmith.deploy.export.onnx import write_float
from bitsmith.deploy.runtimes import open_session
from bitsmith.insight.measure import paired_difference, peak_rss_mb
from bitsmith.model.evaluate import correct, predict
from bitsmith.model.graph import capture, simplify
from bitsmith.model.train import fit
from bitsmith.zoo import load_model
from bitsmith.zoo.published import cache_folder
from record import COMMIT, arguments, save

NETWORK, DATA = "mobilenet-small", "fashion-mnist"
#: Weight decay is that of all parameters, batch norms too, as ImageNet's MobileNets are trained: it
#: is what spreads their channels. So few steps show it only with more of it than theirs (4e-5).
TRAINING = {"images": 20_000, "batch size": 16, "epochs": 3, "lr": 0.1, "weight decay": 3e-3}
QUICK_TRAINING = {**TRAINING, "images": 512, "epochs": 1}
#: Row → recipe, equalize, correct biases, effort.
ROWS: dict[str, tuple[str, bool, bool, str]] = {
    "W8A8 per tensor, plain": ("W8A8-pertensor", False, False, "low"),
    "+ bias correction alone": ("W8A8-pertensor", False, True, "low"),
    "+ equalization": ("W8A8-pertensor", True, False, "low"),
    "+ equalization + bias correction": ("W8A8-pertensor", True, True, "low"),
    "W8A8 per channel": ("W8A8", False, False, "low"),
    "W4A8 per channel, learned rounding": ("W4A8", False, True, "medium"),
}
QUICK = ["W8A8 per tensor, plain", "+ equalization + bias correction"]


def trained(quick: bool) -> nn.Module:
    """The float network, trained, or from the cache."""
    torch.manual_seed(0)
    module = load_model(NETWORK, pretrained=False).module
    how = QUICK_TRAINING if quick else TRAINING
    images, epochs = int(how["images"]), int(how["epochs"])
    rates = f"{how['batch size']}-{how['lr']}-{how['weight decay']}"
    file = cache_folder() / f"{NETWORK}-{DATA}-{images}x{epochs}-{rates}.safetensors"
    if file.is_file():
        module.load_state_dict(load_file(file))
        return module.eval()
    file.parent.mkdir(parents=True, exist_ok=True)
    module.to(memory_format=torch.channels_last)
    rate, decay = float(how["lr"]), float(how["weight decay"])
    descent = torch.optim.SGD(module.parameters(), rate, momentum=0.9, weight_decay=decay)
    run = fit(
        module,
        training_batches(load_dataset(DATA), int(how["batch size"]), limit=images),
        epochs=epochs,
        lr=rate,
        optimizer=descent,
        checkpoint=file.with_name(f"{file.stem}.checkpoint"),
    )
    print("loss of each epoch:", [round(e.loss, 3) for e in run.history], flush=True)
    module.to(memory_format=torch.contiguous_format)
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, file)
    return module


def cell(name: str, threads: int, quick: bool) -> dict[str, Any]:
    """Quantize, export, run; one row."""
    torch.set_num_threads(threads)
    spec, equalize, correct_bias, effort = ROWS[name]
    recipe = replace(bs.make_recipe(spec), equalize=equalize, correct_bias=correct_bias)
    module, data = trained(quick), load_dataset(DATA)
    batches = data.split("test").batches(250, limit=500 if quick else None)
    calibration = data.split("train").batches(64, limit=1024, seed=0)
    started = time.perf_counter()
    quantized = bs.ptq(module, recipe, calibration, effort=effort, progress=False)
    seconds, peak = time.perf_counter() - started, peak_rss_mb()
    with tempfile.TemporaryDirectory() as folder:
        float_file = Path(folder) / "float.onnx"
        write_float(simplify(capture(module, torch.zeros(2, 1, 28, 28))), float_file)
        logits, labels = predict(open_session(float_file, threads=threads), batches)
        reference = correct(logits, labels)
        path = bs.export(quantized, Path(folder) / "quantized.onnx")
        theirs, _ = predict(open_session(path, threads=threads), batches)
    ours, _ = predict(quantized, batches)
    right = correct(theirs, labels)
    delta, low, high = paired_difference(right, reference)
    pairs = quantized.provenance.get("equalization", [])
    return {
        "row": name,
        "float": round(100 * float(reference.double().mean()), 2),
        "accuracy": round(100 * float(right.double().mean()), 2),
        "n": len(right),
        "difference [95 %]": f"{delta:+.2f} [{low:+.2f}, {high:+.2f}]",
        "distance of logits": round(float((theirs - logits).norm() / logits.norm()), 4),
        "pairs equalized": sum(p["outcome"] == "equalized" for p in pairs),
        "seconds": round(seconds, 1),
        "peak MB": round(peak),
        "differing logits": int((theirs != ours).sum()),
        "commit": COMMIT,
    }


def _in_process(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Run one row alone, so that its memory is its own."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        command = [sys.executable, __file__, "--cell", name, "--into", file.name]
        command += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
        subprocess.run(command, check=True)
        row: dict[str, Any] = json.loads(Path(file.name).read_text())
        return row


def main() -> None:
    """Train once, then run every row and record."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--into", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        row = cell(options.cell, options.threads, options.quick)
        Path(options.into).write_text(json.dumps(row))
        return
    torch.set_num_threads(options.threads)
    trained(options.quick)
    rows = [_in_process(options, name) for name in (QUICK if options.quick else ROWS)]
    training = {"network": NETWORK, "data": DATA, "training": TRAINING}
    save("depthwise", rows, options.quick, threads=options.threads, **training)


if __name__ == "__main__":
    main()
