"""Quality of packed weights: all-MiniLM-L6-v2 on STS-B dev, stories260k on TinyStories.

Paired differences to float with 95 % bootstrap intervals; sizes are those of the saved folder.
Calibration is never the evaluated data: WikiText sentences for MiniLM, text that stories260k
writes itself.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import bitsmith as bs
from bitsmith.data.texts import load_text
from bitsmith.insight.bootstrap import loss_difference, spearman, spearman_difference
from bitsmith.insight.language import chunk_losses, sentence_scores
from bitsmith.zoo.models.stories260k import Llama, generate
from record import arguments, save

MINILM = [
    ("W8", False, None),
    ("W4G64", False, None),
    ("W4G64", False, "nearest"),
    ("W4G64", True, None),
    ("W3G64", False, None),
    ("W3G64", True, None),
    ("W2G64", False, None),
    ("W2G64", False, "nearest"),
    ("W2G64", False, "hqq"),
    ("W2G64", True, None),
    ("NF4", False, None),
    ("MXFP4", False, None),
    ("CODEBOOK4", False, None),
    ("W8A8-dynamic", False, None),
]
STORIES = [
    ("W8", False, None),
    ("W4G32", False, "nearest"),
    ("W4G32", False, "hqq"),
    ("W4G32", False, None),
    ("W4G32", True, None),
    ("W3G32", False, "nearest"),
    ("W3G32", False, "hqq"),
    ("W3G32", False, None),
    ("W3G32", True, None),
]


def main() -> None:
    """Print and record both tables."""
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    rows = _minilm(options.quick) + _stories(options.quick)
    save("weight_only", rows, options.quick, threads=options.threads)


def _minilm(quick: bool) -> list[dict[str, Any]]:
    try:
        model = bs.load_model("minilm").module
    except bs.BitsmithError as error:
        print(f"minilm left out: {error}")
        return []
    dataset = load_text("stsb")
    pairs = dataset.split("dev")
    if quick:
        pairs = pairs.take(range(64))
    calibration = dataset.split("calibration").sample(8 if quick else 128, seed=0)
    data = [calibration.padded(group) for group in calibration.groups(32)]
    scores = torch.as_tensor(pairs.scores)

    def judge(encode: nn.Module) -> Any:
        with torch.no_grad():
            found = sentence_scores(encode, pairs)
        return torch.as_tensor(found)

    float32 = judge(model)
    rows = [_row("minilm", "float32", False, None, spearman(float32, scores))]
    for recipe, with_data, rounding in MINILM[1:2] if quick else MINILM:
        row, quantized = _quantized("minilm", model, recipe, data if with_data else None, rounding)
        found = judge(quantized)
        delta = spearman_difference(found, float32, scores)
        rows.append(row | _figures(spearman(found, scores), delta, 2))
    return rows


def _stories(quick: bool) -> list[dict[str, Any]]:
    model = bs.load_model("stories260k").module
    assert isinstance(model, Llama)
    texts = load_text("tinystories").split("validation")
    if quick:
        texts = texts.take(range(8))
    data = list(generate(model, 8 if quick else 64, seed=0).split(16))

    def judge(network: nn.Module) -> Any:
        with torch.no_grad():
            return chunk_losses(network, texts)

    float32 = judge(model)
    rows = [_row("stories260k", "float32", False, None, float32.mean)]
    for recipe, with_data, rounding in STORIES[3:4] if quick else STORIES:
        row, quantized = _quantized(
            "stories260k", model, recipe, data if with_data else None, rounding
        )
        found = judge(quantized)
        delta = loss_difference(found.sums, float32.sums, found.counts)
        rows.append(row | _figures(found.mean, delta, 4))
    return rows


def _quantized(
    name: str, model: nn.Module, recipe: str, data: Any, rounding: str | None
) -> tuple[dict[str, Any], nn.Module]:
    start = time.perf_counter()
    quantized = bs.ptq(model, recipe, data, rounding=rounding, ragged="pad")
    seconds = time.perf_counter() - start
    row = _row(name, recipe, data is not None, rounding, None)
    row["quantize s"] = round(seconds, 1)
    row["MB"] = round(_size(quantized) / 1e6, 3)
    packed = [r for r in quantized.coverage if r.outcome == "packed" and r.op != "embedding"]
    values = sum(r.values for r in packed)
    row["bits per weight"] = round(sum(r.values * r.bits_per_weight for r in packed) / values, 2)
    row["peak MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
    return row, quantized


def _size(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        saved: Path = bs.save(model, Path(folder) / "model")
        return sum(f.stat().st_size for f in saved.iterdir())


def _row(
    model: str, recipe: str, data: bool, rounding: str | None, value: float | None
) -> dict[str, Any]:
    metric = "spearman x 100" if model == "minilm" else "loss, nats per token"
    row: dict[str, Any] = {"model": model, "recipe": recipe, "data": "yes" if data else ""}
    row |= {"rounding": rounding or "", "metric": metric}
    return row | ({} if value is None else {"value": round(value, 4)})


def _figures(value: float, delta: tuple[float, float, float], digits: int) -> dict[str, Any]:
    change, low, high = (f"{d:+.{digits}f}" for d in delta)
    return {"value": round(value, 4), "to float": f"{change} [{low}, {high}]"}


if __name__ == "__main__":
    main()
