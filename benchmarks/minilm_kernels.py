"""all-MiniLM-L6-v2 with packed weights in eager PyTorch, against its own float32 by turns.

One sentence and 32, of STS-B; then the same through ``torch.compile``. Spearman on STS-B dev with
the native kernels, and with PyTorch's operators alone (``BITSMITH_KERNELS=off``, in a process of
its own): a paired bootstrap of the difference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bitsmith as bs
from bitsmith.data.texts import load_text
from bitsmith.insight.bootstrap import spearman, spearman_difference
from bitsmith.insight.language import sentence_scores
from bitsmith.model.speed.race import Contestant, Times, faster, race
from record import arguments, save

RECIPES = ("W4G64", "W8A8-dynamic", "W4G64A8-dynamic")
TARGETS = {1: 0.75, 32: 0.8}
"""Sentences → the most that a quantized model may take of the float32 time."""
KERNELS = "BITSMITH_KERNELS"


def main() -> None:
    """Print and record a row for each recipe, batch and way to run it."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--scores", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = bs.load_model("minilm").module
    recipes = RECIPES[:1] if options.quick else RECIPES
    models = {"float32": model} | {r: bs.ptq(model, r) for r in recipes}
    if options.scores is not None:
        found = {name: _scores(one, options.quick).tolist() for name, one in models.items()}
        options.scores.write_text(json.dumps(found))
        return
    rows = [row for count in (1, 32) for row in _speed(models, count, options.quick)]
    rows += _quality(models, options)
    save("minilm_kernels", rows, options.quick, threads=options.threads)


def _speed(models: dict[str, nn.Module], count: int, quick: bool) -> list[dict[str, Any]]:
    texts = load_text("stsb").split("dev").first
    batch = texts.sample(count, seed=0).padded(range(count))
    turns, seconds = (5, 0.05) if quick else (40, 4.0)

    def calls(ways: dict[str, nn.Module]) -> dict[str, Times]:
        made = [Contestant(n, [lambda m=m: m(*batch)]) for n, m in ways.items()]
        return race(made, seconds=seconds, turns=turns)

    found = {("eager", n): t for n, t in calls(models).items()}
    if not quick:
        compiled: dict[str, Any] = {n: torch.compile(m) for n, m in models.items()}
        both = calls({f"{n} compiled": m for n, m in compiled.items()} | models)
        found |= {("compiled", n): both[f"{n} compiled"] for n in models}
        eager = {n: both[n] for n in models}
    rows = []
    for (way, name), times in found.items():
        low, high = times.quartiles_ms
        row: dict[str, Any] = {"recipe": name, "sentences": count, "tokens": batch[0].shape[1]}
        row |= {"run": way, "ms": round(times.median_ms, 3), "quartiles": f"{low:.4g}–{high:.4g}"}
        if name != "float32":
            reference = found["eager", "float32"] if way == "eager" else eager["float32"]
            ratio = faster(times, reference)
            share, most = 1 / ratio.value, TARGETS[count]
            row["of float32 eager"] = f"{share:.3f} [{1 / ratio.high:.3f}, {1 / ratio.low:.3f}]"
            row["target"] = f"{'≤' if share <= most else 'NOT'} {most}"
        if way == "compiled":
            row["of its own eager"] = round(1 / faster(times, eager[name]).value, 3)
        rows.append(row)
    return rows


def _scores(model: nn.Module, quick: bool) -> torch.Tensor:
    pairs = load_text("stsb").split("dev")
    with torch.no_grad():
        return torch.as_tensor(sentence_scores(model, pairs.take(range(8)) if quick else pairs))


def _quality(models: dict[str, nn.Module], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return Spearman of each model here, and how it differs without native kernels."""
    pairs = load_text("stsb").split("dev")
    truth = torch.as_tensor((pairs.take(range(8)) if options.quick else pairs).scores)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scores.json"
        command = [sys.executable, __file__, "--scores", str(file)]
        command += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
        subprocess.run(command, check=True, env={**os.environ, KERNELS: "off"})
        simulated = {n: torch.tensor(v) for n, v in json.loads(file.read_text()).items()}
    rows = []
    for name, model in models.items():
        native = _scores(model, options.quick)
        delta = spearman_difference(native, simulated[name], truth)
        rows.append(
            {
                "recipe": name,
                "run": "STS-B dev",
                "spearman x 100": round(spearman(native, truth), 4),
                "without kernels": round(spearman(simulated[name], truth), 4),
                "difference": "{:+.4f} [{:+.4f}, {:+.4f}]".format(*delta),
            }
        )
    return rows


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        main()
