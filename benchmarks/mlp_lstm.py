"""Below eight bits without convolutions: an MLP and an LSTM, rounded afterwards and trained.

An MLP on Fashion-MNIST and an LSTM that reads MNIST row by row, three seeds each. The weights of
every recipe are rounded to nearest, by the other roundings, and trained as codes; differences to
nearest rounding and to float are paired on the test images of all seeds together, with 95 %
intervals. Training that knows takes steps that float did not: ``trained on`` is the float network
after as many. Training and calibration draw from the training images only.
"""

from __future__ import annotations

import copy
import sys
import time
from statistics import median
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
from bitsmith.model.recipe import Recipe
from bitsmith.model.train import fit
from bitsmith.model.weights import quantize_weights
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


NETWORKS = {"mlp": ("fashion-mnist", 0.002), "lstm": ("mnist", 0.005)}
RECIPES = [
    make_recipe("W4"),
    make_recipe("W3"),
    make_recipe("W2"),
    make_recipe("CODEBOOK2"),
    make_recipe("TERNARY"),
    make_recipe("W1"),
]
ROUNDINGS = ["nearest", "searched", "hqq", "gptq", "kmeans"]
#: Rules by which weights train; tables and signs have one.
LEARNS = {"W4": ["lsq", "minmax"], "W3": ["lsq", "minmax"], "W2": ["lsq", "minmax"]}
IMAGES, FLOAT_EPOCHS, EPOCHS = 5_000, 6, 2


def main() -> None:
    """Print and record the table."""
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in ["mlp"] if options.quick else NETWORKS:
        judge = _Judge(name, 500 if options.quick else None)
        for seed in range(1 if options.quick else 3):
            _network(judge, seed, options.quick)
        rows += judge.rows()
    save("mlp_lstm", rows, options.quick, threads=options.threads)


def _network(judge: _Judge, seed: int, quick: bool) -> None:
    lr, train = NETWORKS[judge.name][1], judge.data.split("train")
    images, epochs = (1000, 1) if quick else (IMAGES, EPOCHS)

    def fit_to(model: nn.Module, epochs: int, lr: float, seed: int) -> None:
        _fit(model, train, images, epochs, lr, seed)

    torch.manual_seed(seed)
    model: nn.Module = Mlp(784, (128, 64)) if judge.name == "mlp" else Rows()
    fit_to(model, 1 if quick else FLOAT_EPOCHS, lr, seed)
    judge.see("float32", "", model)
    further = copy.deepcopy(model)
    fit_to(further, epochs, lr / 2, seed + 1)
    judge.see("float32", "trained on", further)
    for recipe in [RECIPES[2]] if quick else RECIPES:
        for rounding in ROUNDINGS:
            if not _suits(rounding, recipe):
                continue
            needs = Rounding.registry[rounding].needs is not None
            batches = [x for x, _ in train.batches(64, limit=256, seed=seed)] if needs else None
            start = time.perf_counter()
            packed = quantize_weights(model, recipe, batches, rounding=rounding, ragged="float")
            judge.see(recipe.name, rounding, packed, time.perf_counter() - start)
        for learn in LEARNS.get(recipe.name, ["lsq"]):
            start = time.perf_counter()
            ready = prepare(model, recipe, learn=learn, ragged="float")
            fit_to(ready, epochs, lr / 2, seed + 1)
            packed = convert(ready)
            judge.see(recipe.name, f"trained, {learn}", packed, time.perf_counter() - start)


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
    """Which test images every variant of a network gets right, seed after seed."""

    def __init__(self, name: str, limit: int | None) -> None:
        self.name = name
        self.data = load_dataset(NETWORKS[name][0])
        self._batches = self.data.split("test").batches(500, limit=limit)
        self._right: dict[tuple[str, str], list[Tensor]] = {}
        self._seconds: dict[tuple[str, str], list[float]] = {}

    def see(self, recipe: str, method: str, model: nn.Module, seconds: float | None = None) -> None:
        """Keep what a model of the next seed gets right, and how long it took to make."""
        logits, labels = predict(model, self._batches)
        assert labels is not None
        right = correct(logits, labels)
        self._right.setdefault((recipe, method), []).append(right)
        share = 100 * float(right.double().mean())
        print(f"{self.name}: {recipe} {method}: {share:.2f}", file=sys.stderr, flush=True)
        if seconds is not None:
            self._seconds.setdefault((recipe, method), []).append(seconds)

    def rows(self) -> list[dict[str, Any]]:
        """Medians over the seeds, and differences over the images of all of them."""
        rows = []
        for (recipe, method), right in self._right.items():
            shares = [100 * float(r.double().mean()) for r in right]
            row: dict[str, Any] = {"network": self.name, "recipe": recipe, "method": method}
            row |= {"accuracy": round(median(shares), 2), "of seeds": [round(s, 2) for s in shares]}
            for title, other in (("nearest", (recipe, "nearest")), ("float", ("float32", ""))):
                if other in self._right and other != (recipe, method):
                    pairs = torch.cat(right), torch.cat(self._right[other])
                    delta, low, high = paired_difference(*pairs)
                    row[f"to {title} [95 %]"] = f"{delta:+.2f} [{low:+.2f}, {high:+.2f}]"
            if (recipe, method) in self._seconds:
                row["seconds"] = round(median(self._seconds[recipe, method]), 1)
            rows.append(row | {"n": len(right[0])})
        return rows


if __name__ == "__main__":
    main()
