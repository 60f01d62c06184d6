"""Training that knows is better than rounding afterwards: an MLP and an LSTM on 8×8 digits."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from bitsmith.data import load_dataset
from bitsmith.model.module_qat import convert, prepare
from bitsmith.model.recipe import Recipe, Rule
from bitsmith.model.train import fit
from bitsmith.model.weights import quantize_weights
from bitsmith.numbers.formats.integer import int1, ternary
from bitsmith.numbers.scheme import PerChannel, Scheme
from bitsmith.zoo.models.mlp import Mlp


class Rows(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x[:, 0])[0][:, -1])


def tensors(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    part = load_dataset("digits").split(split)
    return torch.as_tensor(part.x), torch.as_tensor(part.y)


def batches(epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = tensors("train")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
    return [(x[i], y[i]) for i in order.split(32)]


@cache
def trained(name: str) -> tuple[nn.Module, float]:
    torch.manual_seed(0)
    model: nn.Module = Mlp(64, (32, 32)) if name == "mlp" else Rows()
    fit(model, batches, epochs=10, lr=5e-3, optimizer="adamw", progress=False)
    return model, accuracy(model)


def accuracy(model: nn.Module) -> float:
    x, y = tensors("test")
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())


RECIPES = {
    "W4": "W4",
    "W3": "W3",
    "W2": "W2",
    "CODEBOOK2": "CODEBOOK2",
    "BINARY": Recipe("BINARY", (Rule("*", Scheme(int1, granularity=PerChannel(0))),), None),
    "TERNARY": Recipe("TERNARY", (Rule("*", Scheme(ternary, granularity=PerChannel(0))),), None),
}


@pytest.mark.parametrize(
    ("recipe", "learn", "loss"),
    [
        ("W4", "lsq", 1.0),
        ("W3", "lsq", 1.5),
        ("W2", "lsq", 2.5),
        ("W2", "minmax", 4.0),
        ("CODEBOOK2", "lsq", 3.0),
        ("TERNARY", "lsq", 4.0),
        ("TERNARY", "minmax", 4.0),
        ("BINARY", "lsq", 7.0),
        ("BINARY", "minmax", 12.0),
    ],
)
@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_training_wins_back_what_nearest_rounding_loses(name, recipe, learn, loss):
    model, float32 = trained(name)
    chosen = RECIPES[recipe]
    nearest = accuracy(quantize_weights(model, chosen, rounding="nearest", ragged="float"))
    ready = prepare(model, chosen, learn=learn, ragged="float")
    fit(ready, batches, epochs=4, lr=2e-3, optimizer="adamw", progress=False)
    found = accuracy(convert(ready))
    assert found > float32 - loss
    assert found >= nearest
    if recipe not in ("W4", "W3"):
        assert found > nearest + 1


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_rounding_with_data_is_nearer_to_float_than_nearest_rounding(name, bits):
    model, _ = trained(name)
    calibration = [x for x, _ in batches(0)[:8]]
    x, _ = tensors("test")
    with torch.no_grad():
        expected = model(x)
        nearest = quantize_weights(model, f"W{bits}", rounding="nearest")
        better = quantize_weights(model, f"W{bits}", calibration)
        errors = [float((q(x) - expected).square().mean()) for q in (better, nearest)]
    assert errors[0] < 0.9 * errors[1]
