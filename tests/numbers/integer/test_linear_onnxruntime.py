"""Gemm, MatMul and batched MatMul against ONNX Runtime's integer operators."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.integer import (
    dequantize_accumulator,
    linear_accumulate,
    linear_accumulate_saturating,
    matmul_accumulate,
    multiplier,
    requantize,
)
from emulate.machine import has_exact_products
from emulate.qdq import Graph
from emulate.sessions import Case, run_all

U8 = integer_format(8, signed=False)
SHAPES = [(1, 64, 10), (5, 256, 33), (17, 127, 16), (3, 6, 5), (1, 33, 7), (40, 1030, 24)]
"""Rows, inputs, outputs."""


class Linear(NamedTuple):
    x: np.ndarray
    ex: Encoding
    weight: np.ndarray
    w_scale: np.ndarray
    bias: np.ndarray
    ey: Encoding


def linear(shape: tuple[int, int, int], seed: int, zero_point: int) -> Linear:
    rows, inputs, outputs = shape
    rng = np.random.default_rng(seed)
    ex = Encoding(float(rng.uniform(0.01, 0.1)), zero_point, U8)
    w_scale = rng.uniform(0.001, 0.02, outputs).astype(np.float32)
    spread = 150 * 75 * np.sqrt(inputs) * ex.scale * w_scale.mean()
    return Linear(
        rng.integers(0, 256, (rows, inputs), dtype=np.uint8),
        ex,
        rng.integers(-127, 128, (outputs, inputs), dtype=np.int8),
        w_scale,
        rng.integers(-30_000, 30_000, outputs, dtype=np.int32),
        Encoding(float(spread / 50), int(rng.integers(0, 256)), U8),
    )


def accumulate(machine: str, p: Linear, bias: bool = True) -> torch.Tensor:
    b = torch.from_numpy(p.bias) if bias else None
    arguments = (torch.from_numpy(p.x), p.ex.zero_point, torch.from_numpy(p.weight), b)
    if has_exact_products(machine):
        return linear_accumulate(*arguments)
    return linear_accumulate_saturating(*arguments)[0]


def gemm(p: Linear, *, quantized_output: bool) -> Case:
    graph = Graph()
    codes = graph.input(p.x.shape)
    bias_scale = np.float32(p.ex.scale) * p.w_scale
    inputs = (
        graph.dq(codes, p.ex),
        graph.dq_weight(p.weight, p.w_scale),
        graph.dq_weight(p.bias, bias_scale),
    )
    y = graph.op("Gemm", *inputs, transB=1)
    graph.output(
        graph.q(y, p.ey) if quantized_output else y, np.uint8 if quantized_output else np.float32
    )
    return Case(graph.model(), {codes: p.x})


def matmul(p: Linear, *, quantized_output: bool, per_channel: bool) -> Case:
    graph = Graph()
    codes = graph.input(p.x.shape)
    scale = p.w_scale if per_channel else p.w_scale[0]
    weight = graph.dq_weight(np.ascontiguousarray(p.weight.T), scale, axis=1)
    y = graph.op("MatMul", graph.dq(codes, p.ex), weight)
    graph.output(
        graph.q(y, p.ey) if quantized_output else y, np.uint8 if quantized_output else np.float32
    )
    return Case(graph.model(), {codes: p.x})


PROBLEMS = [
    linear(s, i, z) for i, (s, z) in enumerate(zip(SHAPES, (0, 3, 128, 255, 0, 77), strict=True))
]


def test_gemm_with_quantized_output(machine):
    results = run_all(machine, [gemm(p, quantized_output=True) for p in PROBLEMS])
    for p, result in zip(PROBLEMS, results, strict=True):
        assert result.operators == ["QGemm"]
        ratio = multiplier(p.ex.scale, torch.from_numpy(p.w_scale), p.ey.scale)
        codes = requantize(accumulate(machine, p), ratio, p.ey, 1)
        assert (codes.numpy() == result.outputs[0]).all()


def test_gemm_with_float_output_is_equal_bit_for_bit(machine):
    results = run_all(machine, [gemm(p, quantized_output=False) for p in PROBLEMS])
    for p, result in zip(PROBLEMS, results, strict=True):
        assert result.operators == ["QGemm"]
        scale = torch.tensor(p.ex.scale) * torch.from_numpy(p.w_scale)
        logits = dequantize_accumulator(accumulate(machine, p), scale)
        assert (logits.numpy().view(np.int32) == result.outputs[0].view(np.int32)).all()


@pytest.mark.parametrize("per_channel", [False, True])
def test_matmul_with_quantized_output(machine, per_channel):
    cases = [matmul(p, quantized_output=True, per_channel=per_channel) for p in PROBLEMS]
    for p, result in zip(PROBLEMS, run_all(machine, cases), strict=True):
        assert result.operators == ["QLinearMatMul"]
        w_scale = torch.from_numpy(p.w_scale if per_channel else p.w_scale[:1])
        ratio = multiplier(p.ex.scale, w_scale, p.ey.scale)
        codes = requantize(accumulate(machine, p, bias=False), ratio, p.ey, 1)
        assert (codes.numpy() == result.outputs[0]).all()


@pytest.mark.parametrize("per_channel", [False, True])
def test_matmul_with_float_output_is_equal_bit_for_bit(machine, per_channel):
    cases = [matmul(p, quantized_output=False, per_channel=per_channel) for p in PROBLEMS]
    for p, result in zip(PROBLEMS, run_all(machine, cases), strict=True):
        assert result.operators == ["MatMulIntegerToFloat"]
        w_scale = torch.from_numpy(p.w_scale if per_channel else p.w_scale[:1])
        scale = torch.tensor(p.ex.scale) * w_scale
        real = dequantize_accumulator(accumulate(machine, p, bias=False), scale)
        assert (real.numpy().view(np.int32) == result.outputs[0].view(np.int32)).all()


def test_product_of_two_activations_is_exact_on_every_machine(machine):
    rng = np.random.default_rng(5)
    ea, eb = Encoding(0.02, 100, U8), Encoding(0.003, 0, U8)
    ey = Encoding(0.03, 120, U8)
    problems = []
    for shape_a, shape_b in [((2, 3, 7, 40), (2, 3, 40, 9)), ((4, 300), (300, 5))]:
        a = rng.integers(0, 256, shape_a, dtype=np.uint8)
        b = rng.integers(0, 256, shape_b, dtype=np.uint8)
        graph = Graph()
        left, right = graph.input(a.shape), graph.input(b.shape)
        y = graph.op("MatMul", graph.dq(left, ea), graph.dq(right, eb))
        graph.output(graph.q(y, ey))
        problems.append((a, b, Case(graph.model(), {left: a, right: b})))
    results = run_all(machine, [case for *_, case in problems])
    for (a, b, _), result in zip(problems, results, strict=True):
        assert result.operators == ["QLinearMatMul"]
        acc = matmul_accumulate(torch.from_numpy(a), 100, torch.from_numpy(b), 0)
        codes = requantize(acc, multiplier(ea.scale, torch.tensor(eb.scale), ey.scale), ey, -1)
        assert (codes.numpy() == result.outputs[0]).all()
