"""Convolutions against the fused integer operator of ONNX Runtime, every code equal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.integer import (
    conv_accumulate,
    conv_accumulate_saturating,
    max_pair_sum,
    multiplier,
    requantize,
)
from emulate.machine import has_exact_products
from emulate.qdq import Graph
from emulate.sessions import Case, run_all


class Conv(NamedTuple):
    """Geometry of one tested convolution."""

    channels: int
    out: int
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    size: int = 9
    zero_point: int = 0
    bias: bool = True


CONVS = [
    Conv(3, 16, (3, 3), padding=1, zero_point=115),
    Conv(16, 16, (3, 3), padding=1),
    Conv(16, 32, (3, 3), stride=2, padding=1),
    Conv(16, 32, (1, 1), stride=2),
    Conv(32, 24, (1, 1), zero_point=7, bias=False),
    Conv(6, 20, (3, 3), padding=1, zero_point=131),
    Conv(5, 7, (3, 3), padding=2, dilation=2, zero_point=3),
    Conv(64, 64, (3, 3), padding=1, size=5),
    Conv(8, 12, (3, 3), padding=1, groups=2, zero_point=10),
    Conv(6, 12, (3, 3), padding=1, groups=2, zero_point=10),
    Conv(16, 16, (3, 3), padding=1, groups=16, zero_point=10),
    Conv(12, 12, (3, 3), stride=2, padding=1, groups=12),
    Conv(8, 16, (3, 3), padding=1, groups=8, zero_point=9),
    Conv(32, 32, (5, 5), padding=2, groups=32),
    Conv(4, 16, (5,), padding=2, zero_point=60),
    Conv(3, 6, (3,), stride=2, padding=1),
    Conv(16, 16, (3,), padding=1, groups=16, zero_point=3),
    Conv(1, 8, (5, 5), padding=2, size=12),
    Conv(1, 1, (3, 3), padding=1, size=12, zero_point=20),
]


class Prepared(NamedTuple):
    case: Case
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    ratio: torch.Tensor
    y: Encoding


def prepare(conv: Conv, seed: int, largest: int) -> Prepared:
    """A QDQ model of one convolution; weights up to ``largest`` in magnitude."""
    rng = np.random.default_rng(seed)
    shape = (conv.out, conv.channels // conv.groups, *conv.kernel)
    weight = rng.integers(-largest, largest + 1, shape, dtype=np.int8)
    x = rng.integers(0, 256, (2, conv.channels, *[conv.size] * len(conv.kernel)), dtype=np.uint8)
    ex = Encoding(float(rng.uniform(0.01, 0.1)), conv.zero_point, integer_format(8, False))
    w_scale = rng.uniform(0.001, 0.02, conv.out).astype(np.float32)
    spread = 150 * largest * 0.6 * np.sqrt(weight[0].size) * ex.scale * w_scale.mean()
    ey = Encoding(float(spread / 50), int(rng.integers(0, 256)), integer_format(8, False))
    bias = rng.integers(-20_000, 20_000, conv.out, dtype=np.int32) if conv.bias else None

    graph = Graph()
    codes = graph.input(x.shape)
    inputs = [graph.dq(codes, ex), graph.dq_weight(weight, w_scale)]
    if bias is not None:
        inputs.append(graph.dq_weight(bias, np.float32(ex.scale) * w_scale))
    y = graph.op(
        "Conv",
        *inputs,
        kernel_shape=conv.kernel,
        strides=[conv.stride] * len(conv.kernel),
        pads=[conv.padding] * 2 * len(conv.kernel),
        dilations=[conv.dilation] * len(conv.kernel),
        group=conv.groups,
    )
    graph.output(graph.q(y, ey))
    return Prepared(
        Case(graph.model(), {codes: x}),
        torch.from_numpy(x),
        torch.from_numpy(weight),
        None if bias is None else torch.from_numpy(bias),
        multiplier(ex.scale, torch.from_numpy(w_scale), ey.scale),
        ey,
    )


def geometry(conv: Conv) -> tuple[tuple[int], tuple[int], tuple[int], int]:
    return (conv.stride,), (conv.padding,), (conv.dilation,), conv.groups


def check(machine: str, largest: int) -> int:
    prepared = [prepare(conv, seed, largest) for seed, conv in enumerate(CONVS)]
    saturated = 0
    wrong = {}
    for conv, p, result in zip(
        CONVS, prepared, run_all(machine, [p.case for p in prepared]), strict=True
    ):
        assert "QLinearConv" in result.operators, (conv, result.operators)
        assert "Conv" not in result.operators
        arguments = (p.x, conv.zero_point, p.weight, p.bias, *geometry(conv))
        if has_exact_products(machine):
            acc = conv_accumulate(*arguments)
        else:
            acc, pairs = conv_accumulate_saturating(*arguments)
            saturated += pairs
        codes = requantize(acc, p.ratio, p.y, 1)
        assert codes.unique().numel() > 40, conv
        differing = int((codes.numpy() != result.outputs[0]).sum())
        if differing:
            wrong[conv] = differing
    assert not wrong
    return saturated


def test_every_code_with_full_width_weights(machine):
    saturated = check(machine, 127)
    assert (saturated == 0) == has_exact_products(machine)


def test_every_code_when_no_pair_can_saturate(machine):
    assert check(machine, 64) == 0


def test_worst_case_saturates_as_predicted(machine):
    """All codes 255, all weights 127, all shapes: the prediction holds at the extreme."""
    cases = []
    for conv in CONVS:
        graph = Graph()
        x = np.full((1, conv.channels, *[conv.size] * len(conv.kernel)), 255, np.uint8)
        weight = np.full((conv.out, conv.channels // conv.groups, *conv.kernel), 127, np.int8)
        ey = Encoding(float(255 * 127 * weight[0].size / 250), 0, integer_format(8, False))
        codes = graph.input(x.shape)
        y = graph.op(
            "Conv",
            graph.dq(codes, Encoding(1.0, conv.zero_point, integer_format(8, False))),
            graph.dq_weight(weight, np.ones(conv.out, np.float32)),
            strides=[conv.stride] * len(conv.kernel),
            pads=[conv.padding] * 2 * len(conv.kernel),
            dilations=[conv.dilation] * len(conv.kernel),
            group=conv.groups,
        )
        graph.output(graph.q(y, ey))
        cases.append((Case(graph.model(), {codes: x}), x, weight, ey))
    for conv, (_, x, weight, ey), result in zip(
        CONVS, cases, run_all(machine, [c[0] for c in cases]), strict=True
    ):
        w = torch.from_numpy(weight)
        arguments = (torch.from_numpy(x), conv.zero_point, w, None, *geometry(conv))
        acc = conv_accumulate(*arguments)
        if not has_exact_products(machine):
            acc, pairs = conv_accumulate_saturating(*arguments)
            depthwise = conv.groups == conv.channels == conv.out
            assert (pairs == 0) == depthwise, conv
            assert (max_pair_sum(w) > 128).all() or w[0].numel() == 1
        expected = requantize(acc, multiplier(1.0, torch.ones(conv.out), ey.scale), ey, 1)
        assert (expected.numpy() == result.outputs[0]).all(), conv
