"""Table operators, Concat, Softmax and plain quantization against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.integer import concat, leaky_relu, logistic, lookup, softmax
from emulate.qdq import Graph
from emulate.sessions import Case, run_all

U8 = integer_format(8, signed=False)
ALPHA = float(np.float32(0.1))


def encoding(rng: np.random.Generator, signed: bool = False, low: float = 0.005) -> Encoding:
    fmt = integer_format(8, signed)
    scale = float(np.exp(rng.uniform(np.log(low), np.log(0.2))))
    return Encoding(scale, int(rng.integers(fmt.code_min, fmt.code_max + 1)), fmt)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("op", "function", "attributes"),
    [("Sigmoid", logistic, {}), ("LeakyRelu", leaky_relu(ALPHA), {"alpha": ALPHA})],
)
def test_activation_tables(machine, op, function, attributes, signed):
    rng = np.random.default_rng(4)
    dtype = np.int8 if signed else np.uint8
    x = integer_format(8, signed).codes.numpy().astype(dtype)
    problems = []
    for _ in range(150):
        ex, ey = encoding(rng, signed), encoding(rng, signed, 0.001)
        graph = Graph()
        name = graph.input(x.shape, dtype)
        graph.output(graph.q(graph.op(op, graph.dq(name, ex), **attributes), ey), dtype)
        problems.append((ex, ey, Case(graph.model(), {name: x})))
    for (ex, ey, _), result in zip(
        problems, run_all(machine, [p[-1] for p in problems]), strict=True
    ):
        assert result.operators == [f"QLinear{op}"]
        ours = lookup(torch.from_numpy(x), ex, ey, function)
        assert (ours.numpy() == result.outputs[0]).all(), (ex, ey)


def test_logistic_is_bit_equal_to_the_float_operator(machine):
    x = np.concatenate([np.linspace(-30, 30, 20_001), [0.0, -0.0, 1e-30]]).astype(np.float32)
    graph = Graph()
    name = graph.input(x.shape, np.float32)
    graph.output(graph.op("Sigmoid", name), np.float32)
    found = run_all(machine, [Case(graph.model(), {name: x})])[0].outputs[0]
    assert (logistic(torch.from_numpy(x)).numpy() == found).all()
    assert np.abs(found - 1 / (1 + np.exp(-x.astype(np.float64)))).max() < 1e-6


@pytest.mark.parametrize("signed", [False, True])
def test_concat(machine, signed):
    rng = np.random.default_rng(6)
    dtype = np.int8 if signed else np.uint8
    problems = []
    for axis in [1, 1, 1, 2, -1, 0] * 5:
        ey = encoding(rng, signed)
        es = [encoding(rng, signed), ey, encoding(rng, signed)]
        shapes = [[2, 16, 5, 4] for _ in es]
        for i, shape in enumerate(shapes):
            shape[axis] = 8 * (i + 1)
        xs = [rng.integers(0, 256, s).astype(np.uint8).view(dtype) for s in shapes]
        graph = Graph()
        names = [graph.input(x.shape, dtype) for x in xs]
        real = [graph.dq(n, e) for n, e in zip(names, es, strict=True)]
        graph.output(graph.q(graph.op("Concat", *real, axis=axis), ey), dtype)
        feeds = dict(zip(names, xs, strict=True))
        problems.append((xs, es, ey, axis, Case(graph.model(), feeds)))
    results = run_all(machine, [p[-1] for p in problems])
    for (xs, es, ey, axis, _), result in zip(problems, results, strict=True):
        assert result.operators == ["QLinearConcat"]
        ours = concat([torch.from_numpy(x) for x in xs], es, ey, axis)
        assert (ours.numpy() == result.outputs[0]).all()


@pytest.mark.parametrize("opset", [13, 21])
def test_softmax(machine, opset):
    rng = np.random.default_rng(7)
    problems = []
    y_scales = [1 / 256, 1 / 255, 1 / 200, 0.002, 0.01]
    for i in range(60):
        ex = encoding(rng)
        ey = Encoding(y_scales[i % 5], 0 if i % 3 else int(rng.integers(0, 60)), U8)
        shape, axis = [((4, 10), -1), ((2, 3, 7, 128), -1), ((3, 50, 6), 1), ((2, 1000), 1)][i % 4]
        x = rng.integers(0, 256, shape, dtype=np.uint8)
        graph = Graph(opset)
        name = graph.input(shape)
        graph.output(graph.q(graph.op("Softmax", graph.dq(name, ex), axis=axis), ey))
        problems.append((x, ex, ey, axis, Case(graph.model(), {name: x})))
    results = run_all(machine, [p[-1] for p in problems])
    for (x, ex, ey, axis, _), result in zip(problems, results, strict=True):
        assert result.operators == ["QLinearSoftmax"]
        ours = softmax(torch.from_numpy(x), ex, ey, axis)
        assert (ours.numpy() == result.outputs[0]).all(), (ex, ey, x.shape)


def test_quantize_and_dequantize_linear(machine):
    """`Encoding` is the runtime's QuantizeLinear and DequantizeLinear, ties and ends included."""
    rng = np.random.default_rng(8)
    problems = []
    for i in range(40):
        e = encoding(rng, signed=i % 2 == 1)
        if i % 4 < 2:
            e = Encoding(
                2.0 ** -int(rng.integers(1, 8)) * int(rng.integers(1, 8)), e.zero_point, e.format
            )
        steps = rng.integers(-600, 600, 3001) / 2
        ties = (steps * e.scale).astype(np.float32)
        nudged = np.nextafter(ties, np.float32(np.inf), dtype=np.float32)
        wide = rng.normal(0, 60 * e.scale, 3001).astype(np.float32)
        far = np.array([0.0, -0.0, 1e30, -1e30, 3e9, -3e9, np.inf, -np.inf], np.float32)
        x = np.concatenate([ties, nudged, wide, far])
        graph = Graph()
        name = graph.input(x.shape, np.float32)
        codes = graph.q(name, e)
        dtype = np.int8 if e.format.signed else np.uint8
        graph.output(codes, dtype)
        graph.output(graph.dq(codes, e), np.float32)
        problems.append((x, e, Case(graph.model(), {name: x})))
    results = run_all(machine, [p[-1] for p in problems])
    for (x, e, _), result in zip(problems, results, strict=True):
        codes = e.quantize(torch.from_numpy(x))
        assert (codes.numpy() == result.outputs[0]).all(), e
        real = e.dequantize(codes).numpy()
        assert (real.view(np.int32) == result.outputs[1].view(np.int32)).all(), e


def test_unsuitable_arguments_are_refused():
    e, signed = Encoding(0.5, 0, U8), Encoding(0.5, 0, integer_format(8, signed=True))
    x = torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(DataError, match="2 tensors but 1 encodings"):
        concat([x, x], [e], e, 0)
    with pytest.raises(DataError, match="uint8 codes, not uint8 to int8"):
        softmax(x, e, signed)
