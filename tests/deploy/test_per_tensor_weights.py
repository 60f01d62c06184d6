"""One scale for a whole weight: the runtime computes what the simulation computes, code by code."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch

import bitsmith
from bitsmith.deploy.export.onnx import Onnx
from bitsmith.numbers.scheme import PerTensor
from networks.convolutional import BETWEEN, CONVOLUTIONS
from networks.harness import batches, compare, integer_operators, islands, planned, quantized
from networks.structured import STRUCTURED

ALL = {**CONVOLUTIONS, **BETWEEN, **STRUCTURED}
RECIPES = ["W8A8-pertensor", "W4A4-pertensor", "W3A8-pertensor-edge8"]
NAMES = [
    "depthwise, relu6", "silu", "avg pool, relu", "adaptive pool to 1", "nearest upsample",
    "residual", "squeeze and excite", "dense", "shared convolution", "class token", "two outputs",
    "mlp, sigmoid", "mlp on tokens",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_runtime_computes_what_the_simulation_computes(name):
    model = quantized(replace(ALL[name], recipe=RECIPES[NAMES.index(name) % len(RECIPES)]))
    floats = islands(model)
    layers = model.program.layers.values()
    assert {q.weight.scheme.granularity for q in layers} == {PerTensor()}
    assert all(q.weight.scale.shape == () for q in layers)
    for found in compare(model, batches(ALL[name].shapes, (5, 1), seed=7)):
        assert integer_operators(found) == planned(model)
        assert {t for t, lsb in found.isolated.items() if lsb} <= floats
        if not floats:
            assert not any(found.cumulative.values())
            assert all(torch.equal(ours, theirs) for ours, theirs in found.outputs)


@pytest.mark.parametrize("machine", ["any", "any-order", "vnni"])
@pytest.mark.parametrize("weights", ["int8", "packed"])
def test_verified_in_every_form(machine, weights, tmp_path):
    specimen = replace(CONVOLUTIONS["depthwise, relu6"], recipe="W4A8-pertensor-edge8")
    model = quantized(specimen, machine)
    path = bitsmith.export(model, tmp_path / "m.onnx", weights=weights)
    (data,) = batches(specimen.shapes, (16,))
    found = bitsmith.verify(model, path, data, threads=1)
    assert found.passed, found.failures
    assert sum(t.differing + t.isolated_differing for t in found.tensors) == 0
    assert all(w.differing == 0 for w in found.worst_cases)
    assert found.output_max_difference == 0


def test_the_file_has_scalar_scales(tmp_path):
    model = quantized(replace(STRUCTURED["mlp, sigmoid"], recipe="W8A8-pertensor"))
    path = bitsmith.export(model, tmp_path / "m.onnx")
    values = {v.name: v for v in onnx.load(path).graph.initializer}
    for name, layer in model.program.layers.items():
        assert list(values[f"{name}.weight_scale"].dims) == []
        assert list(values[f"{name}.weight_zero_point"].dims) == []
        found = Onnx().read(path)[name]
        assert torch.equal(found.dequantize(), layer.weight.dequantize())
        assert found.scheme == layer.weight.scheme


def test_openvino_runs_them(tmp_path):
    pytest.importorskip("openvino")
    specimen = replace(STRUCTURED["residual"], recipe="W8A8-pertensor")
    model = quantized(specimen)
    path = bitsmith.export(model, tmp_path / "m.onnx")
    data = batches(specimen.shapes, (16,))
    found = bitsmith.verify(model, path, data, runtime="openvino", threads=1)
    assert found.passed, found.failures


def test_an_embedding_of_one_scale(tmp_path):
    """Rows of a table that share their scale are looked up as the others."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(11, 8), torch.nn.Linear(8, 4)).eval()
    base = bitsmith.make_recipe("W8A8-pertensor")
    recipe = replace(base, name="all", rules=base.rules[-1:])
    ids = torch.randint(0, 11, (16, 5), generator=torch.Generator().manual_seed(0))
    model = bitsmith.ptq(net, recipe, [ids])
    assert {q.weight.scale.dim() for q in model.program.layers.values()} == {0}
    path = bitsmith.export(model, tmp_path / "m.onnx")
    found = bitsmith.verify(model, path, [ids], threads=1)
    assert found.passed, found.failures
    assert found.output_max_difference == 0
