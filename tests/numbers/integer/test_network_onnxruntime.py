"""A residual network, every intermediate code: the operators also agree when they are chained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.integer import (
    add,
    conv_accumulate,
    conv_accumulate_saturating,
    dequantize_accumulator,
    global_average_pool,
    linear_accumulate,
    linear_accumulate_saturating,
    multiplier,
    requantize,
)
from emulate.machine import has_exact_products
from emulate.qdq import Graph
from emulate.sessions import Case, run_all

F = np.float32
U8 = integer_format(8, signed=False)
Value = tuple[str, Encoding]


class Network:
    """Builds the ONNX graph and computes the reference's codes of every step as it goes."""

    def __init__(self, x: np.ndarray, ex: Encoding, largest: int, exact: bool) -> None:
        self.graph = Graph()
        self.input = (self.graph.input(x.shape), ex)
        self.values = {self.input[0]: torch.from_numpy(x)}
        self.saturated = 0
        self._largest, self._exact = largest, exact
        self._rng = np.random.default_rng(1)

    def _parameters(self, *shape: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight = self._rng.integers(-self._largest, self._largest + 1, shape).astype(np.int8)
        scale = self._rng.uniform(0.002, 0.02, shape[0]).astype(F)
        return weight, scale, self._rng.integers(-3000, 3000, shape[0]).astype(np.int32)

    def _done(self, name: str, value: Tensor) -> str:
        self.graph.output(name, F if value.dtype == torch.float32 else np.uint8)
        self.values[name] = value
        return name

    def _accumulate(self, kind: str, *arguments: object) -> Tensor:
        if self._exact:
            return {"conv": conv_accumulate, "linear": linear_accumulate}[kind](*arguments)
        saturating = {"conv": conv_accumulate_saturating, "linear": linear_accumulate_saturating}
        acc, pairs = saturating[kind](*arguments)
        self.saturated += pairs
        return acc

    def conv(
        self, x: Value, shape: tuple[int, ...], stride: int = 1, groups: int = 1, relu: bool = True
    ) -> Value:
        name, ex = x
        weight, w_scale, bias = self._parameters(*shape)
        g, pad = self.graph, shape[-1] // 2
        inputs = (g.dq_weight(weight, w_scale), g.dq_weight(bias, F(ex.scale) * w_scale))
        steps = {"pads": [pad] * 4, "strides": [stride] * 2, "group": groups}
        y = g.op("Conv", g.dq(name, ex), *inputs, **steps)

        tensors = torch.from_numpy(weight), torch.from_numpy(bias)
        geometry = (stride,), (pad,), (1,), groups
        acc = self._accumulate("conv", self.values[name], ex.zero_point, *tensors, *geometry)
        real = dequantize_accumulator(acc, ex.scale * torch.from_numpy(w_scale), 1)
        ey = Encoding(float(real.abs().max() / (240 if relu else 120)), 0 if relu else 120, U8)
        codes = requantize(acc, multiplier(ex.scale, torch.from_numpy(w_scale), ey.scale), ey, 1)
        return self._done(g.q(g.op("Relu", y) if relu else y, ey), codes), ey

    def add(self, a: Value, b: Value) -> Value:
        ey = Encoding(a[1].scale * 0.7, 0, U8)
        y = self.graph.op("Relu", self.graph.op("Add", self.graph.dq(*a), self.graph.dq(*b)))
        codes = add(self.values[a[0]], a[1], self.values[b[0]], b[1], ey)
        return self._done(self.graph.q(y, ey), codes), ey

    def classify(self, x: Value) -> None:
        ey = Encoding(x[1].scale * 0.5, 3, U8)
        g = self.graph
        mean = g.q(g.op("GlobalAveragePool", g.dq(*x)), ey)
        self._done(mean, global_average_pool(self.values[x[0]], x[1], ey))
        weight, w_scale, bias = self._parameters(10, 64)
        scale = F(ey.scale) * w_scale
        inputs = (g.dq_weight(weight, w_scale), g.dq_weight(bias, scale))
        logits = g.op("Gemm", g.dq(g.op("Flatten", mean), ey), *inputs, transB=1)
        tensors = torch.from_numpy(weight), torch.from_numpy(bias)
        acc = self._accumulate("linear", self.values[mean].flatten(1), ey.zero_point, *tensors)
        self._done(logits, dequantize_accumulator(acc, torch.from_numpy(scale)))


@pytest.mark.parametrize("largest", [127, 64])
def test_every_intermediate_code(machine, largest):
    x = np.random.default_rng(2).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    net = Network(x, Encoding(0.017, 114, U8), largest, has_exact_products(machine))
    y, channels = net.conv(net.input, (16, 3, 3, 3)), 16
    for out, stride in [(16, 1), (32, 2), (64, 2)]:
        h = net.conv(y, (out, channels, 3, 3), stride)
        h = net.conv(h, (out, 1, 3, 3), groups=out)
        h = net.conv(h, (out, out, 1, 1), relu=False)
        if stride == 2:
            y = net.conv(y, (out, channels, 1, 1), stride, relu=False)
        y, channels = net.add(h, y), out
    net.classify(y)

    result = run_all(machine, [Case(net.graph.model(), {net.input[0]: x})])[0]
    assert set(result.operators) - {"Transpose"} == {
        "QLinearConv",
        "QLinearAdd",
        "QLinearGlobalAveragePool",
        "Flatten",
        "QGemm",
    }
    names = list(net.values)[1:]
    for name, found in zip(names, result.outputs, strict=True):
        assert len(np.unique(found)) > 15, name
        assert (net.values[name].numpy() == found).all(), name
    assert (net.saturated > 0) == (largest == 127 and not has_exact_products(machine))
