"""Activations below 8 bits: the runtime computes what the simulation computes, code by code.

The small networks of ``tests/networks`` again, each with one of the recipes: sums, products,
concatenations, pools, tables, softmax, padding, moves, several inputs and outputs, float islands.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import bitsmith
from networks.convolutional import BETWEEN, CONVOLUTIONS
from networks.harness import batches, compare, integer_operators, islands, planned, quantized
from networks.structured import STRUCTURED

ALL = {**CONVOLUTIONS, **BETWEEN, **STRUCTURED}
RECIPES = ["W4A4", "W3A3", "W2A2", "W8A4", "CODEBOOK3A4"]
NAMES = [
    "depthwise, relu6", "leaky relu", "silu", "max pool, padding", "avg pool, relu",
    "adaptive pool to 1", "nearest upsample", "residual", "a layer in float",
    "squeeze and excite", "dense", "shared convolution", "attention by hand", "class token",
    "parameter", "two inputs", "two outputs", "mlp, sigmoid", "mlp on tokens",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_runtime_computes_what_the_simulation_computes(name):
    specimen, recipe = ALL[name], RECIPES[NAMES.index(name) % len(RECIPES)]
    if isinstance(specimen.recipe, str):
        specimen = replace(specimen, recipe=recipe)
    else:  # a recipe with a layer in float
        four = bitsmith.make_recipe("W4A4").activation
        specimen = replace(specimen, recipe=replace(specimen.recipe, activation=four))
    model = quantized(specimen)
    floats = islands(model)
    assert {model.program.graph.node(n).op for n in floats} == specimen.floats
    assert min(e.format.bits for e in model.program.encodings.values()) < 8
    for found in compare(model, batches(specimen.shapes, (5, 1), seed=7)):
        assert integer_operators(found) == planned(model)
        assert {t for t, lsb in found.isolated.items() if lsb} <= floats
        if not floats:
            assert not any(found.cumulative.values())
            assert all(torch.equal(ours, theirs) for ours, theirs in found.outputs)


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_codes_stay_in_their_range(bits, tmp_path):
    """Inputs far outside what calibration saw: the Clip in the file holds them."""
    specimen = replace(STRUCTURED["residual"], recipe=f"W8A{bits}")
    model = quantized(specimen)
    assert any(n.op == "requantize" for n in model.program.graph)
    path = bitsmith.export(model, tmp_path / "m.onnx")
    (x,) = batches(specimen.shapes, (16,), seed=5)[0]
    found = bitsmith.verify(model, path, [x * 50], threads=1)
    assert found.passed, found.failures
    assert sum(t.differing + t.isolated_differing for t in found.tensors) == 0
    values = model.trace(x * 50)
    narrow = {k: e for k, e in model.program.encodings.items() if e.format.bits == bits}
    assert narrow
    tops = [int(values.code(name).max()) for name in narrow]
    assert max(tops) == (1 << bits) - 1
    requantized = {t.tensor: t for t in found.tensors if t.op == "requantize"}
    assert {t.outcome for t in requantized.values()} == {"codes"}
    assert {t.kernel for t in requantized.values()} == {"DequantizeLinear, QuantizeLinear"}


def test_worst_cases_use_the_codes_there_are(tmp_path):
    model = quantized(replace(STRUCTURED["residual"], recipe="W8A4"))
    path = bitsmith.export(model, tmp_path / "m.onnx")
    data = batches(STRUCTURED["residual"].shapes, (8,))
    found = bitsmith.verify(model, path, data, threads=1)
    assert {w.layer for w in found.worst_cases} == set(model.program.layers)
    assert all((w.differing, w.saturated) == (0, 0) for w in found.worst_cases)


def test_openvino_runs_them(tmp_path):
    pytest.importorskip("openvino")
    model = quantized(replace(STRUCTURED["residual"], recipe="W4A4"))
    path = bitsmith.export(model, tmp_path / "m.onnx")
    data = batches(STRUCTURED["residual"].shapes, (16,))
    found = bitsmith.verify(model, path, data, runtime="openvino", threads=1)
    assert found.passed, found.failures


def test_a_constant_with_two_widths(tmp_path):
    """A tensor of the model's own that a product reads in 4 bits and a sum in 8."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.own = torch.nn.Parameter(torch.randn(8, 8))
            self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.b(x @ self.own + self.own)

    data = [torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(0))]
    model = bitsmith.ptq(Net(), "W4A4", data)
    assert "own.a4" in model.program.encodings
    path = bitsmith.export(model, tmp_path / "m.onnx")
    found = bitsmith.verify(model, path, data, threads=1)
    assert found.passed, found.failures
    assert found.output_max_difference == 0
