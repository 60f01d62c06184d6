"""Below eight bits without convolutions: an MLP and an LSTM, rounded afterwards and trained.

An MLP on Fashion-MNIST and an LSTM that reads MNIST row by row. Every recipe is rounded to
nearest, by the other roundings, and trained with its own weights quantized; differences to nearest
rounding and to float are paired, with 95 % intervals. Training and calibration draw from the
training images only.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from bitsmith.algorithms.rounding import Rounding
from bitsmith.data import load_dataset
from bitsmith.data.split import Split
from bitsmith.insight.measure import paired_difference
from bitsmith.model.evaluate import correct, predict
from bitsmith.model.module_qat import convert, prepare
from bitsmith.model.presets import make_recipe
from bitsmith.model.recipe import Recipe, Rule
from bitsmith.model.train import fit
from bitsmith.model.weights import quantize_weights
from bitsmith.numbers.formats.integer import int1, ternary
from bitsmith.numbers.scheme import PerChannel, Scheme
from bitsmith.zoo.models.mlp import Mlp
from record import arguments, save


class Rows(nn.Module):
    """An LSTM over the rows of an image, and a linear layer on its last state."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.lstm(x[:, 0])[0][:, -1])


def _everywhere(name: str, scheme: Scheme) -> Recipe:
    return Recipe(name, (Rule("*", scheme),), None)


NETWORKS = {"mlp": ("fashion-mnist", 0.002), "lstm": ("mnist", 0.005)}
RECIPES = [
    make_recipe("W4"),
    make_recipe("W3"),
    make_recipe("W2"),
    _everywhere("W1 binary", Scheme(int1, granularity=PerChannel(0))),
    _everywhere("ternary", Scheme(ternary, granularity=PerChannel(0))),
    make_recipe("CODEBOOK2"),
]
ROUNDINGS = ["searched", "hqq", "gptq", "kmeans"]
LEARNS = ["lsq", "minmax"]


def main() -> None:
    """Print and record the table."""
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in ["mlp"] if options.quick else NETWORKS:
        for seed in range(1 if options.quick else 3):
            rows += _network(name, seed, options.quick)
    save("mlp_lstm", rows, options.quick, threads=options.threads)


def _network(name: str, seed: int, quick: bool) -> list[dict[str, Any]]:
    dataset, lr = NETWORKS[name]
    data = load_dataset(dataset)
    train, test = data.split("train"), data.split("test")
    images = 1000 if quick else 20_000
    torch.manual_seed(seed)
    model: nn.Module = Mlp(784, (128, 64)) if name == "mlp" else Rows()
    _fit(model, train, images, 1 if quick else 4, lr, seed)
    judge = _Judge(name, seed, test, 500 if quick else None)
    rows = [judge.row("float32", "", 0.0, model)]
    for recipe in [RECIPES[2]] if quick else RECIPES:
        judge.nearest = None
        for rounding in ["nearest", *ROUNDINGS]:
            if not _suits(rounding, recipe):
                continue
            needs = Rounding.registry[rounding].needs is not None
            batches = [x for x, _ in train.batches(64, limit=256, seed=seed)] if needs else None
            start = time.perf_counter()
            packed = quantize_weights(model, recipe, batches, rounding=rounding, ragged="float")
            rows.append(judge.row(recipe.name, rounding, time.perf_counter() - start, packed))
        for learn in LEARNS:
            if learn == "minmax" and recipe.rules[-1].weight.learned:
                continue
            start = time.perf_counter()
            ready = prepare(model, recipe, learn=learn, ragged="float")
            _fit(ready, train, images, 1 if quick else 3, lr / 2, seed + 1)
            packed = convert(ready)
            took = time.perf_counter() - start
            rows.append(judge.row(recipe.name, f"trained, {learn}", took, packed))
    return rows


def _fit(model: nn.Module, train: Split, images: int, epochs: int, lr: float, seed: int) -> None:
    def batches(epoch: int) -> Any:
        return train.batches(64, limit=images, seed=1000 * seed + epoch)

    fit(model, batches, epochs=epochs, lr=lr, optimizer="adamw", seed=seed, progress=False)


def _suits(rounding: str, recipe: Recipe) -> bool:
    scheme = recipe.rules[-1].weight
    if scheme is None or rounding == "nearest":
        return True
    if scheme.learned or rounding == "kmeans":
        return scheme.learned and rounding == "kmeans"
    return rounding == "searched" or scheme.affine


class _Judge:
    """Accuracy on the test images beside that of float and of nearest rounding."""

    def __init__(self, name: str, seed: int, test: Split, limit: int | None) -> None:
        self._name, self._seed = name, seed
        self._batches = test.batches(500, limit=limit)
        self._float: Tensor | None = None
        self.nearest: Tensor | None = None

    def row(self, recipe: str, method: str, seconds: float, model: nn.Module) -> dict[str, Any]:
        """What was measured of one model."""
        logits, labels = predict(model, self._batches)
        assert labels is not None
        right = correct(logits, labels)
        row: dict[str, Any] = {"network": self._name, "seed": self._seed, "recipe": recipe}
        row |= {"method": method, "accuracy": 100 * float(right.double().mean()), "n": len(right)}
        if self._float is None:
            self._float = right
            return row
        if self.nearest is None:
            self.nearest = right
        for title, other in (("to nearest", self.nearest), ("to float", self._float)):
            delta, low, high = paired_difference(right, other)
            row[f"{title} [95 %]"] = f"{delta:+.2f} [{low:+.2f}, {high:+.2f}]"
        return row | {"seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
