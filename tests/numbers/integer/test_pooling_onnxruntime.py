"""Integer pools against ONNX Runtime, alone and where the optimizer made them channels-last."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.integer import average_pool, global_average_pool
from emulate.qdq import Graph
from emulate.sessions import Case, run_all


def encodings(rng: np.random.Generator, signed: bool = False) -> tuple[Encoding, Encoding]:
    fmt = integer_format(8, signed)
    e = [
        Encoding(
            float(rng.uniform(0.01, 0.05)), int(rng.integers(fmt.code_min, fmt.code_max + 1)), fmt
        )
        for _ in range(2)
    ]
    return e[0], e[1]


def codes(rng: np.random.Generator, shape: tuple[int, ...], signed: bool = False) -> np.ndarray:
    return rng.integers(0, 256, shape).astype(np.uint8).view(np.int8 if signed else np.uint8)


@pytest.mark.parametrize("signed", [False, True])
def test_global_average_pool(machine, signed):
    rng = np.random.default_rng(1)
    shapes = [(3, 64, 8, 8), (2, 5, 7, 7), (1, 24, 3, 5), (2, 16, 31), (4, 1, 2, 2), (1, 70, 1, 1)]
    problems = []
    for shape in shapes * 8:
        x, (ex, ey) = codes(rng, shape, signed), encodings(rng, signed)
        graph = Graph()
        name = graph.input(shape, x.dtype)
        graph.output(graph.q(graph.op("GlobalAveragePool", graph.dq(name, ex)), ey), x.dtype)
        problems.append((x, ex, ey, Case(graph.model(), {name: x})))
    results = run_all(machine, [p[-1] for p in problems])
    for (x, ex, ey, _), result in zip(problems, results, strict=True):
        assert result.operators == ["QLinearGlobalAveragePool"]
        ours = global_average_pool(torch.from_numpy(x), ex, ey)
        assert (ours.numpy() == result.outputs[0]).all(), x.shape


def test_global_average_pool_behind_a_convolution_runs_channels_last(machine):
    """The fused convolution is channels-last, and the pool follows it: the same codes."""
    rng = np.random.default_rng(2)
    problems = []
    for _ in range(10):
        x, (ex, ey) = codes(rng, (2, 16, 7, 7)), encodings(rng)
        graph = Graph()
        name = graph.input(x.shape)
        identity = np.eye(16, dtype=np.int8).reshape(16, 16, 1, 1)
        weight = graph.dq_weight(identity, np.ones(16, np.float32))
        middle = graph.q(graph.op("Conv", graph.dq(name, ex), weight), ex)
        graph.output(graph.q(graph.op("GlobalAveragePool", graph.dq(middle, ex)), ey))
        graph.output(middle)
        problems.append((x, ex, ey, Case(graph.model(), {name: x})))
    results = run_all(machine, [p[-1] for p in problems])
    for (x, ex, ey, _), result in zip(problems, results, strict=True):
        assert {"QLinearConv", "QLinearGlobalAveragePool"} <= set(result.operators)
        assert (result.outputs[1] == x).all()
        ours = global_average_pool(torch.from_numpy(x), ex, ey)
        assert (ours.numpy() == result.outputs[0]).all()


WINDOWS = [
    {"kernel": (2, 2), "stride": (2, 2)},
    {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)},
    {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "count_include_pad": True},
    {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    {"kernel": (3, 3), "stride": (2, 2), "ceil_mode": True},
    {"kernel": (2, 2), "stride": (3, 3), "padding": (1, 1), "ceil_mode": True},
    {
        "kernel": (3, 3),
        "stride": (2, 2),
        "padding": (1, 1),
        "ceil_mode": True,
        "count_include_pad": True,
    },
    {"kernel": (4,), "stride": (3,), "padding": (2,)},
]


@pytest.mark.parametrize("channels_last", [False, True])
def test_average_pool(machine, channels_last):
    rng = np.random.default_rng(3)
    problems = []
    for window in WINDOWS * 3:
        rank = len(window["kernel"])
        x, (ex, ey) = codes(rng, (2, 16, *[10, 9][:rank])), encodings(rng)
        graph = Graph()
        name = graph.input(x.shape)
        start = name
        if channels_last:
            identity = np.eye(16, dtype=np.int8).reshape(16, 16, *[1] * rank)
            weight = graph.dq_weight(identity, np.ones(16, np.float32))
            start = graph.q(graph.op("Conv", graph.dq(name, ex), weight), ex)
        y = graph.op(
            "AveragePool",
            graph.dq(start, ex),
            kernel_shape=window["kernel"],
            strides=window["stride"],
            pads=list(window.get("padding", [0] * rank)) * 2,
            ceil_mode=int(window.get("ceil_mode", False)),
            count_include_pad=int(window.get("count_include_pad", False)),
        )
        graph.output(graph.q(y, ey))
        problems.append((window, x, ex, ey, Case(graph.model(), {name: x})))
    wrong = []
    for (window, x, ex, ey, _), result in zip(
        problems, run_all(machine, [p[-1] for p in problems]), strict=True
    ):
        assert "QLinearAveragePool" in result.operators
        ours = average_pool(torch.from_numpy(x), ex, ey, **window).numpy()
        if ours.shape != result.outputs[0].shape or (ours != result.outputs[0]).any():
            wrong.append((window, ours.shape, result.outputs[0].shape))
    assert not wrong


def extremes(signed: bool) -> list[tuple[np.ndarray, Encoding, Encoding]]:
    """The largest, smallest and most uneven codes of a 57 × 56 image, at extreme zero points."""
    rng = np.random.default_rng(4)
    fmt = integer_format(8, signed)
    ends = np.array([fmt.code_min, fmt.code_max], np.int8 if signed else np.uint8)
    images = [np.full((1, 3, 57, 56), end) for end in ends]
    images.append(ends[rng.integers(0, 2, (1, 3, 57, 56))])
    images.append(ends[np.indices((57, 56)).sum(0) % 2][None, None])
    points = [(zx, zy) for zx in ends.tolist() for zy in (*ends.tolist(), int(ends.mean()))]
    return [
        (x, Encoding(sx, zx, fmt), Encoding(sy, zy, fmt))
        for x in images
        for zx, zy in points
        for sx, sy in ((0.05, 0.05), (0.05, 0.0123), (1e-4, 2.0), (64.0, 0.25))
    ]


@pytest.mark.parametrize("signed", [False, True])
def test_global_average_pool_at_its_extremes(machine, signed):
    problems = []
    for x, ex, ey in extremes(signed):
        graph = Graph()
        name = graph.input(x.shape, x.dtype)
        graph.output(graph.q(graph.op("GlobalAveragePool", graph.dq(name, ex)), ey), x.dtype)
        problems.append((x, ex, ey, Case(graph.model(), {name: x})))
    results = run_all(machine, [p[-1] for p in problems])
    for (x, ex, ey, _), result in zip(problems, results, strict=True):
        assert result.operators == ["QLinearGlobalAveragePool"]
        ours = global_average_pool(torch.from_numpy(x), ex, ey)
        assert (ours.numpy() == result.outputs[0]).all(), (ex, ey)


def test_average_pool_at_its_extremes(machine):
    window = {"kernel": (5, 7), "stride": (3, 2), "padding": (2, 3)}
    problems = []
    for x, ex, ey in extremes(signed=False):
        graph = Graph()
        name = graph.input(x.shape)
        y = graph.op(
            "AveragePool",
            graph.dq(name, ex),
            kernel_shape=window["kernel"],
            strides=window["stride"],
            pads=window["padding"] * 2,
        )
        graph.output(graph.q(y, ey))
        problems.append((x, ex, ey, Case(graph.model(), {name: x})))
    results = run_all(machine, [p[-1] for p in problems])
    for (x, ex, ey, _), result in zip(problems, results, strict=True):
        assert result.operators == ["QLinearAveragePool"]
        ours = average_pool(torch.from_numpy(x), ex, ey, **window)
        assert (ours.numpy() == result.outputs[0]).all(), (ex, ey)


def test_global_average_pool_needs_a_spatial_axis():
    e = Encoding(0.5, 0, integer_format(8, signed=False))
    with pytest.raises(DataError, match=r"not \[2, 3\]"):
        global_average_pool(torch.zeros(2, 3, dtype=torch.uint8), e, e)
