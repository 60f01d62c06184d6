"""Roundings that need gradients, in the module lane: those of the float model's predictions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from bitsmith.errors import DataError
from bitsmith.model.fisher import squared_gradients
from bitsmith.model.recipe import Recipe, Rule
from bitsmith.model.weights import coverage_of, quantize_weights
from bitsmith.numbers import PerGroup, Scheme
from bitsmith.numbers.codebooks import cluster
from bitsmith.numbers.formats.codebook import codebook2

ROWS = Recipe("rows", (Rule("*", Scheme(codebook2, granularity=PerGroup(24))),), None)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Other sums of the same numbers; another table would differ by hundredths."""
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)


class Net(nn.Module):
    """A convolution, an odd input size, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 8, 3)
        self.head = nn.Linear(40, 5)
        self.idle = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor, gain: torch.Tensor | None = None) -> torch.Tensor:
        x = torch.relu(self.conv(x)).flatten(1)[:, :40]
        return self.head(x if gain is None else x * gain[:, None])


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


X = [torch.randn(n, 8, 9, generator=torch.Generator().manual_seed(n)) for n in (6, 4)]


def test_tables_are_fitted_to_the_squared_gradients(net: Net) -> None:
    done = quantize_weights(net, ROWS, X, rounding="fisher-kmeans", ragged="pad")
    rows = {r.layer: r for r in coverage_of(done)}
    felt = squared_gradients(net, ["conv.weight", "head.weight"], X)
    importance = felt["conv.weight"].mean_square.flatten(1).float()
    weight = net.conv.weight.detach().flatten(1)
    expected = cluster(weight, ROWS.rules[0].weight, importance).dequantize()
    close(done.conv.weight.flatten(1), expected)
    assert rows["conv.weight"].algorithm == "fisher-kmeans"
    assert rows["conv.weight"].objective < rows["conv.weight"].nearest_objective

    wide = functional.pad(net.head.weight.detach(), (0, 8))
    importance = functional.pad(felt["head.weight"].mean_square.float(), (0, 8))
    expected = cluster(wide, ROWS.rules[0].weight, importance).dequantize()[:, :40]
    close(done.head.packed.dequantize()[:, :40], expected)

    assert rows["idle.weight"].algorithm == "kmeans"
    assert rows["idle.weight"].reason == (
        "fisher-kmeans needs statistics of its gradients: the loss does not depend on it"
    )


def test_a_transform_changes_the_gradients_with_the_weights(net: Net) -> None:
    done = quantize_weights(
        net, ROWS, X, rounding="fisher-kmeans", transform="smoothquant", ragged="pad"
    )
    row = {r.layer: r for r in coverage_of(done)}["head.weight"]
    assert row.algorithm == "smoothquant+fisher-kmeans"
    scales = done.head.input_scale
    seen = squared_gradients(net, ["head.weight"], X)["head.weight"].mean_square / scales**2
    importance = functional.pad(seen.float(), (0, 8))
    wide = functional.pad(net.head.weight.detach() * scales, (0, 8))
    expected = cluster(wide, ROWS.rules[0].weight, importance).dequantize()[:, :40]
    close(done.head.packed.dequantize()[:, :40], expected)


def test_batches_of_several_arguments_and_one_pass(net: Net) -> None:
    """A second argument is an argument, not a label; an iterator is gone through once."""
    pairs = [(x, torch.full((len(x),), 2.0)) for x in X]
    asked = {"rounding": "fisher-kmeans", "ragged": "pad"}
    once = quantize_weights(net, ROWS, iter(pairs), **asked)
    named = quantize_weights(net, ROWS, [{"x": x, "gain": g} for x, g in pairs], **asked)
    assert torch.equal(once.head.packed.dequantize(), named.head.packed.dequantize())
    with pytest.raises(DataError, match="is no input of Net: too many positional arguments"):
        quantize_weights(net, ROWS, [(*pairs[0], X[0])], **asked)
    with pytest.raises(DataError, match="rounding 'fisher-kmeans' needs calibration data"):
        quantize_weights(net, ROWS, **asked)
