"""Whole layers, random and worst-case: every predicted value is ONNX Runtime's.

Worst-case codes of a channel are 255 under every weight of one sign and 0 under the others: they
give the largest sums there are, and saturate every pair that can. Weights use the whole int8 range.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import int8, uint8
from bitsmith.numbers.integer import IntegerOperator
from emulate.machine import has_exact_products
from emulate.qdq import Graph
from emulate.sessions import Case, run_all


class Conv(NamedTuple):
    """Geometry of one tested convolution; ``size`` per spatial axis."""

    channels: int
    out: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...] = (1,)
    padding: tuple[int, ...] = (0,)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1
    zero_point: int = 0


CONVS = {
    "plain": Conv(16, 8, (3, 3), (9, 9)),
    "padded": Conv(5, 8, (3, 3), (9, 7), padding=(1,), zero_point=128),
    "uneven": Conv(8, 6, (3, 5), (11, 12), (2, 3), (1, 2), zero_point=9),
    "dilated": Conv(6, 7, (3, 2), (11, 9), (1,), (2, 1), (2, 3), zero_point=255),
    "pointwise": Conv(33, 9, (1, 1), (6, 6), stride=(2,), zero_point=3),
    "groups": Conv(12, 8, (3, 3), (8, 8), padding=(1,), groups=4, zero_point=40),
    "depthwise": Conv(12, 12, (3, 3), (8, 8), padding=(1,), groups=12, zero_point=17),
    "multiplier": Conv(4, 8, (3, 3), (8, 8), groups=4, zero_point=17),
    "1-D": Conv(7, 8, (5,), (23,), (2,), (2,), zero_point=60),
    "1-D groups": Conv(8, 6, (3,), (19,), (1,), (2,), (2,), 2, 5),
    "1-D depthwise": Conv(8, 8, (3,), (19,), padding=(1,), groups=8, zero_point=5),
}
LINEAR = {"even": (24, 6), "odd": (127, 9), "long": (1030, 5), "single": (1, 3)}


def worst(weight: np.ndarray) -> np.ndarray:
    """uint8 patterns ``[2·O + 3, *weight.shape[1:]]`` of every channel, and 255, 0 and noise."""
    rng = np.random.default_rng(1)
    flat = [np.full(weight[:1].shape, v, np.uint8) for v in (255, 0)]
    noise = rng.integers(0, 256, weight[:1].shape).astype(np.uint8)
    signs = [(sign * 255).astype(np.uint8) for sign in (weight > 0, weight < 0)]
    return np.concatenate([*signs, *flat, noise])


def layer(weight: np.ndarray, codes: np.ndarray, x: Encoding, **geometry: Any) -> IntegerOperator:
    """The layer whose output encoding just spans all its exact outputs for ``codes``."""
    rng = np.random.default_rng(2)
    outputs = len(weight)
    given = {
        "weight": torch.from_numpy(weight),
        "weight_scale": torch.from_numpy(rng.uniform(0.002, 0.02, outputs).astype(np.float32)),
        "x": x,
        "bias": torch.from_numpy(rng.integers(-9999, 9999, outputs, np.int32)),
        **geometry,
    }
    real = IntegerOperator(**given).predict(torch.from_numpy(codes)).output
    low, high = min(float(real.min()), 0.0), max(float(real.max()), 0.0)
    scale, low_code = (high - low) / 250, x.format.code_min
    y = Encoding(scale, round(-low / scale) + low_code, x.format)
    return IntegerOperator(**given, y=y)


def case(op: IntegerOperator, codes: np.ndarray) -> Case:
    """The same layer in QuantizeLinear / DequantizeLinear form; of int8 codes a QLinearConv."""
    graph = Graph()
    name = graph.input(codes.shape, codes.dtype)
    attributes, scale = steps(op), op.weight_scale.numpy()
    if op.x.format.signed:
        outer = [graph.constant(e.scale, np.float32) for e in (op.x, op.y)]
        zero = [graph.constant(e.zero_point, np.int8) for e in (op.x, op.y)]
        weight = [
            graph.constant(v) for v in (op.weight.numpy(), scale, np.zeros(len(scale), np.int8))
        ]
        bias = graph.constant(op.bias.numpy())
        inputs = (name, outer[0], zero[0], *weight, outer[1], zero[1], bias)
        graph.output(graph.op("QLinearConv", *inputs, **attributes), np.int8)
        return Case(graph.model(), {name: codes})
    bias_scale = np.float32(op.x.scale) * scale
    weights = (
        graph.dq_weight(op.weight.numpy(), scale),
        graph.dq_weight(op.bias.numpy(), bias_scale),
    )
    y = graph.op("Gemm" if op.linear else "Conv", graph.dq(name, op.x), *weights, **attributes)
    if op.y is None:
        graph.output(y, np.float32)
    else:
        graph.output(graph.q(y, op.y))
    return Case(graph.model(), {name: codes})


def steps(op: IntegerOperator) -> dict[str, Any]:
    """ONNX attributes of the layer."""
    if op.linear:
        return {"transB": 1}
    rank = op.weight.ndim - 2
    strides, pads, dilations = (
        list(v) * (rank if len(v) == 1 else 1) for v in (op.stride, op.padding, op.dilation)
    )
    return {"strides": strides, "pads": pads * 2, "dilations": dilations, "group": op.groups}


def check(machine: str, problems: dict[str, tuple[IntegerOperator, np.ndarray]]) -> None:
    """Every value equal; where pairs saturate, the exact sums are no prediction."""
    exact_machine = has_exact_products(machine)
    results = run_all(machine, [case(*problem) for problem in problems.values()])
    for (name, (op, codes)), result in zip(problems.items(), results, strict=True):
        assert set(result.operators) & {"QLinearConv", "QGemm"}, (name, result.operators)
        x = torch.from_numpy(codes)
        exact = op.predict(x)
        signed = op.x.format.signed
        found = exact if exact_machine or signed else op.predict(x, accumulator="int16_pairs")
        assert np.array_equal(found.output.numpy(), result.outputs[0]), name
        single_products = op.weight.shape[1] == 1 and (op.linear or op.groups == len(op.weight))
        assert (found.wrong_sums == 0) == (exact_machine or signed or single_products), name
        differs = not np.array_equal(exact.output.numpy(), result.outputs[0])
        assert differs == (found.wrong_sums > 0), name


def convolution(conv: Conv, signed: bool) -> tuple[IntegerOperator, np.ndarray]:
    rng = np.random.default_rng(3)
    shape = (conv.out, conv.channels // conv.groups, *conv.kernel)
    weight = rng.integers(-128, 128, shape).astype(np.int8)
    patterns = np.tile(worst(weight), (1, conv.groups, *[1] * len(conv.kernel)))
    dilation = conv.dilation * (len(conv.kernel) if len(conv.dilation) == 1 else 1)
    for axis, (d, size) in enumerate(zip(dilation, conv.size, strict=True), 2):
        patterns = patterns.repeat(d, axis)
        patterns = np.take(patterns, np.arange(size) % patterns.shape[axis], axis)
    codes = np.concatenate([patterns, rng.integers(0, 256, patterns[:2].shape).astype(np.uint8)])
    x = Encoding(0.03, conv.zero_point, uint8)
    if signed:
        codes = (codes.astype(np.int16) - 128).astype(np.int8)
        x = Encoding(0.03, conv.zero_point - 128, int8)
    geometry = {k: getattr(conv, k) for k in ("stride", "padding", "dilation", "groups")}
    return layer(weight, codes, x, **geometry), codes


@pytest.mark.parametrize("signed", [False, True], ids=["u8", "s8"])
def test_convolutions(machine: str, signed: bool) -> None:
    check(machine, {name: convolution(conv, signed) for name, conv in CONVS.items()})


@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("quantized", [True, False], ids=["codes", "float"])
def test_linear_layers(machine: str, zero_point: int, quantized: bool) -> None:
    rng = np.random.default_rng(4)
    problems = {}
    for name, (inputs, outputs) in LINEAR.items():
        weight = rng.integers(-128, 128, (outputs, inputs)).astype(np.int8)
        codes = np.concatenate([worst(weight), rng.integers(0, 256, (20, inputs), np.uint8)])
        op = layer(weight, codes, Encoding(0.03, zero_point, uint8))
        if not quantized:
            op = IntegerOperator(op.weight, op.weight_scale, op.x, None, op.bias)
        problems[name] = op, codes
    check(machine, problems)


def test_the_trap_of_255_times_127(machine: str) -> None:
    """255 · 127 · 256 terms: 4,194,176 instead of 8,290,560 where pairs saturate."""
    weight, codes = np.full((3, 256), 127, np.int8), np.full((2, 256), 255, np.uint8)
    one = Encoding(1.0, 0, uint8)
    op = IntegerOperator(torch.from_numpy(weight), torch.ones(3), one)
    graph = Graph()
    name = graph.input(codes.shape)
    graph.output(graph.op("MatMulInteger", name, graph.constant(weight.T.copy())), np.int32)
    sums = run_all(machine, [Case(graph.model(), {name: codes})])[0].outputs[0]
    accumulator = "int32" if has_exact_products(machine) else "int16_pairs"
    found = op.predict(torch.from_numpy(codes), accumulator)
    assert np.array_equal(found.sums.numpy(), sums)
    assert np.unique(sums).item() == (8_290_560 if accumulator == "int32" else 4_194_176)
    assert found.saturated_pairs == (0 if accumulator == "int32" else 6 * 128)
