"""What the last rung of the ladder learns from: images, mixup, CutMix; ResNet-20 on CIFAR-10.

Each recipe is reconstructed block by block once for each seed, and distilled from there on each
kind of samples. Measured on the 10,000 test images: accuracy, and how far the integers are from the
float model, in nats and in predictions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import bitsmith as bs
from bitsmith.data import Dataset, load_dataset
from bitsmith.data.training import training_batches
from bitsmith.insight.measure import paired_difference
from bitsmith.model.evaluate import correct, predict
from bitsmith.model.qat.fit import distillation
from bitsmith.model.qat.ladder import Ladder
from bitsmith.model.qat.reconstruct import Reconstruction
from bitsmith.zoo import load_model
from record import arguments, save

RECIPES = ("W4A4-edge8", "W4A4", "W3A3-edge8")
#: What it learns from → (parameter of mixup, CutMix).
SAMPLES = {"images": (0.0, False), "mixup": (1.0, False), "CutMix": (0.0, True)}
QUICK = Ladder(blocks=Reconstruction(steps=4), epochs=(1, 1))


def main() -> None:
    """Print and record a row for each recipe, seed and kind of samples."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_dataset("cifar10")
    rows: list[dict[str, Any]] = []
    for recipe in options.recipes[:1] if options.quick else options.recipes:
        for seed in options.seeds:
            rows += _rows(data, recipe, seed, options.quick)
            save("mixtures", rows, options.quick, threads=options.threads)


def _rows(data: Dataset, recipe: str, seed: int, quick: bool) -> list[dict[str, Any]]:
    module = load_model("cifar-resnet20").module
    limit = 96 if quick else None
    test = data.split("test").batches(250, limit=limit)
    logits, labels = predict(module, test)
    kinds = {"": (0.0, False)} | (SAMPLES if not quick else {"CutMix": SAMPLES["CutMix"]})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (mixup, cutmix) in kinds.items():
            (Path(folder) / "distillation.pt").unlink(missing_ok=True)
            quantized = bs.ptq(
                module,
                recipe,
                data.split("train").batches(64, limit=limit or 2048, seed=seed),
                effort="high" if name else "medium",
                training=training_batches(
                    data, 64, seed=seed, labelled=False, blend=mixup, limit=limit
                ),
                ladder=Ladder(QUICK.blocks, epochs=QUICK.epochs, mix=cutmix)
                if quick
                else Ladder(mix=cutmix),
                seed=seed,
                checkpoint=folder,
                progress=False,
            )
            found, _ = predict(quantized, test)
            delta, low, high = paired_difference(correct(found, labels), correct(logits, labels))
            last = quantized.provenance["rungs"][-1]
            rows.append(
                {
                    "recipe": recipe,
                    "seed": seed,
                    "distilled on": name or "not distilled",
                    "accuracy": round(100 * float(correct(found, labels).double().mean()), 2),
                    "difference [95 %]": f"{delta:+.2f} [{low:+.2f}, {high:+.2f}]",
                    "divergence": round(float(distillation(found, logits, 1.0)), 4),
                    "agreement": round(
                        100 * float((found.argmax(1) == logits.argmax(1)).double().mean()), 2
                    ),
                    "kept": last["kept"],
                    "seconds": round(last["seconds"], 1),
                }
            )
    return rows


if __name__ == "__main__":
    main()
