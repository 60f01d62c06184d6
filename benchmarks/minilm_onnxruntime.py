"""all-MiniLM-L6-v2 in ONNX Runtime: Spearman on STS-B dev, size of the file, latency.

Static W8A8 goes through the graph lane, the others are packed weights. Calibration: 128 sentences
of WikiText-2. ``--as avx2`` runs the same on the kernels of a machine without VNNI.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bitsmith as bs
from bitsmith.data.texts import load_text
from bitsmith.deploy.export.onnx import write_float
from bitsmith.deploy.runtimes import Session
from bitsmith.insight.bootstrap import spearman, spearman_difference
from bitsmith.insight.language import sentence_scores
from bitsmith.model.graph import capture, simplify
from record import arguments, on_machine, save

RECIPES = [
    ("W8A8", {}),
    ("W8A8-dynamic", {}),
    ("W8", {}),
    ("W4G64", {}),
    ("W4G64", {"activations": "int8"}),
]


def main() -> None:
    """Print and record one row for each file."""
    options = arguments(__doc__ or "").parse_args()
    suffix = on_machine(options)
    torch.set_num_threads(options.threads)
    model = bs.load_model("minilm").module
    dataset = load_text("stsb")
    pairs = dataset.split("dev")
    calibration = dataset.split("calibration").sample(16 if options.quick else 128, seed=0)
    data = [calibration.padded(group) for group in calibration.groups(16)]
    if options.quick:
        pairs = pairs.take(range(32))
    scores = torch.as_tensor(pairs.scores)

    def judge(session: Session) -> Tensor:
        def encode(ids: Tensor, mask: Tensor) -> Tensor:
            return session.run(ids, mask)[0]

        return torch.as_tensor(sentence_scores(encode, pairs))

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        write_float(simplify(capture(model, [x[:2] for x in data[0]])), path)
        session = bs.open_session(path, threads=options.threads)
        reference = judge(session)
        rows.append(_row("float32", {}, path, session, data) | _quality(reference, None, scores))
        for recipe, extra in RECIPES[1:2] if options.quick else RECIPES:
            path = Path(folder) / "quantized.onnx"
            start = time.perf_counter()
            static = recipe == "W8A8"
            quantized = bs.ptq(model, recipe, data if static else None)
            took = time.perf_counter() - start
            bs.export(quantized, path, **({} if static else {"example": data[0], **extra}))
            session = bs.open_session(path, threads=options.threads)
            row = _row(recipe, extra, path, session, data) | {"quantize s": round(took, 1)}
            rows.append(row | _quality(judge(session), reference, scores))
    save(f"minilm_onnxruntime{suffix}", rows, options.quick, threads=options.threads)


def _row(
    recipe: str, extra: dict[str, Any], path: Path, session: Session, data: list[Any]
) -> dict[str, Any]:
    ids, mask = data[0]
    one = (ids[:1, :16], mask[:1, :16])
    times = []
    for turn in range(60):
        start = time.perf_counter()
        session.run(*one)
        if turn >= 10:
            times.append(1e3 * (time.perf_counter() - start))
    size = path.stat().st_size
    row: dict[str, Any] = {
        "recipe": recipe,
        "options": ", ".join(f"{k}={v}" for k, v in extra.items()),
    }
    return row | {
        "bytes": size,
        "MiB": round(size / 2**20, 2),
        "ms, 16 tokens": statistics.median(times),
    }


def _quality(found: Tensor, reference: Tensor | None, scores: Tensor) -> dict[str, Any]:
    row: dict[str, Any] = {"spearman x 100": round(spearman(found, scores), 2)}
    if reference is not None:
        change, low, high = spearman_difference(found, reference, scores)
        row["to float"] = f"{change:+.2f} [{low:+.2f}, {high:+.2f}]"
    return row


if __name__ == "__main__":
    main()
