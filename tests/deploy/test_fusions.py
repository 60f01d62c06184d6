"""What ONNX Runtime makes of a quantized pattern on a CPU: the table that export relies on.

Each row builds a small graph, optimizes it fully, runs it, and names the operators that remain.
A row that changes with a new runtime means that a rule of export must change with it.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import integer_format
from emulate.qdq import Graph
from emulate.sessions import Case, run_here

F = np.float32
U8, S8 = integer_format(8, signed=False), integer_format(8, signed=True)
A, B = Encoding(0.05, 10, U8), Encoding(0.03, 20, U8)
ZERO = Encoding(0.05, 0, U8)
SIX = Encoding(6 / 255, 0, U8)
SIGNED = Encoding(0.05, 3, S8)
RNG = np.random.default_rng(0)
IMAGE, ROWS, TOKENS = (2, 16, 8, 8), (4, 16), (2, 5, 16)
BIAS = np.arange(12, dtype=np.int32)
LAYOUT = {"Transpose", "ReorderInput", "ReorderOutput", "Reshape"}

Build = Callable[[Graph], str]


def weight(*shape: int) -> np.ndarray:
    return RNG.integers(-60, 61, shape).astype(np.int8)


def scales(n: int) -> np.ndarray:
    return np.linspace(0.01, 0.02, n).astype(F)


def remaining(build: Callable[[Graph], str], out: type = np.uint8, opset: int = 21) -> list[str]:
    """Operators of the optimized graph without layout changes; the model is run as well."""
    graph = Graph(opset)
    graph.output(build(graph), out)
    kinds = {TensorProto.UINT8: np.uint8, TensorProto.INT8: np.int8}
    feeds = {}
    for value in graph.inputs:
        tensor = value.type.tensor_type
        codes = RNG.integers(0, 100, [d.dim_value for d in tensor.shape.dim])
        feeds[value.name] = codes.astype(kinds[tensor.elem_type])
    result = run_here(Case(graph.model(), feeds))
    return [op for op in result.operators if op not in LAYOUT]


def conv(
    g: Graph, x: str, ex: Encoding = A, *, kernel: tuple[int, ...] = (3, 3), bias: str = "int32",
    groups: int = 1, factor: float = 1.0,
) -> str:  # fmt: skip
    inputs = [g.dq(x, ex), g.dq_weight(weight(16, 16 // groups, *kernel), scales(16))]
    if bias == "int32":
        bias_scale = F(ex.scale * factor) * scales(16)
        inputs.append(g.dq_weight(RNG.integers(-500, 500, 16).astype(np.int32), bias_scale))
    if bias == "float":
        inputs.append(g.constant(np.linspace(-1, 1, 16), F))
    pads = [k // 2 for k in kernel] * 2
    return g.op("Conv", *inputs, pads=pads, group=groups)


def gemm(
    g: Graph, *, trans_b: bool = True, axis: int = 0, bias: str = "int32", **more: float
) -> str:
    w = weight(12, 16) if trans_b else weight(16, 12)
    inputs = [g.dq(g.input(ROWS), A), g.dq_weight(w, scales(w.shape[axis]), axis)]
    if bias == "int32":
        codes = RNG.integers(-500, 500, 12).astype(np.int32)
        inputs.append(g.dq_weight(codes, F(A.scale) * scales(12)))
    if bias == "float":
        inputs.append(g.constant(np.linspace(-1, 1, 12), F))
    return g.op("Gemm", *inputs, transB=int(trans_b), **more)


def matmul(g: Graph, shape: tuple[int, ...] = TOKENS) -> str:
    return g.op("MatMul", g.dq(g.input(shape), A), g.dq_weight(weight(16, 12), scales(12), 1))


def unary(
    op: str, ex: Encoding = A, ey: Encoding = B, extra: tuple[object, ...] = (), **more: object
) -> Build:
    """DQ → op → Q on an image."""

    def build(g: Graph) -> str:
        kind = np.int8 if ex.format.signed else np.uint8
        constants = [g.constant(v) for v in extra]
        return g.q(g.op(op, g.dq(g.input(IMAGE, kind), ex), *constants, **more), ey)

    return build


def binary(op: str, b_shape: tuple[int, ...] = IMAGE, after: str = "", ey: Encoding = B) -> Build:
    """Two DQ → op (→ after) → Q."""

    def build(g: Graph) -> str:
        y = g.op(op, g.dq(g.input(IMAGE), A), g.dq(g.input(b_shape), B))
        return g.q(g.op(after, y) if after else y, ey)

    return build


def clip6(g: Graph, x: str) -> str:
    return g.op("Clip", x, g.constant(0, F), g.constant(6, F))


def packed_conv(g: Graph, unpacked_by: str) -> str:
    """A convolution whose weight is a constant of 4 bits."""
    codes = RNG.integers(-8, 8, (16, 16, 3, 3)).astype(np.int8)
    if unpacked_by == "Gather":
        indices = g.op(
            "Cast", g.constant((codes + 8).astype(ml_dtypes.uint4)), to=TensorProto.INT32
        )
        w = g.op("Gather", g.constant(weight(16)), indices)
    else:
        w = g.constant(codes.astype(ml_dtypes.int4))
        w = g.op("Cast", w, to=TensorProto.INT8) if unpacked_by else w
    real = g.op("DequantizeLinear", w, g.constant(scales(16)), axis=0)
    bias = g.dq_weight(RNG.integers(-500, 500, 16).astype(np.int32), F(A.scale) * scales(16))
    return g.op("Conv", g.dq(g.input(IMAGE), A), real, bias, pads=[1] * 4)


def clip15(g: Graph, codes: str) -> str:
    return g.op("Clip", codes, g.constant(0, np.uint8), g.constant(15, np.uint8))


def narrowed(g: Graph, codes: str) -> str:
    """8-bit codes of ``ZERO`` as 4-bit codes of ``A``."""
    return clip15(g, g.q(g.dq(codes, ZERO), A))


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


ON_IMAGE: dict[str, tuple[Build, list[str]]] = {
    "conv": (lambda g: g.q(conv(g, g.input(IMAGE)), B), ["QLinearConv"]),
    "conv 1d": (lambda g: g.q(conv(g, g.input((2, 16, 9)), kernel=(3,)), B), ["QLinearConv"]),
    "conv 1×1": (lambda g: g.q(conv(g, g.input(IMAGE), kernel=(1, 1)), B), ["QLinearConv"]),
    "conv grouped": (lambda g: g.q(conv(g, g.input(IMAGE), groups=4), B), ["QLinearConv"]),
    "conv depthwise": (lambda g: g.q(conv(g, g.input(IMAGE), groups=16), B), ["QLinearConv"]),
    "conv, no bias": (lambda g: g.q(conv(g, g.input(IMAGE), bias=""), B), ["QLinearConv"]),
    # The optimizer rounds a float bias to int32 itself, out of the exporter's sight.
    "conv, float bias": (lambda g: g.q(conv(g, g.input(IMAGE), bias="float"), B), ["QLinearConv"]),
    "conv, bias of another scale": (
        lambda g: g.q(conv(g, g.input(IMAGE), factor=2.0), B),
        ["DequantizeLinear"] * 3 + ["Conv", "QuantizeLinear"],
    ),
    "conv → relu, output zero point 0": (
        lambda g: g.q(g.op("Relu", conv(g, g.input(IMAGE))), ZERO), ["QLinearConv"],
    ),
    "conv → relu, output zero point not 0": (
        lambda g: g.q(g.op("Relu", conv(g, g.input(IMAGE))), B),
        ["DequantizeLinear"] * 3 + ["FusedConv", "QuantizeLinear"],
    ),
    "conv → relu6, range ends at 6": (
        lambda g: g.q(clip6(g, conv(g, g.input(IMAGE))), SIX), ["QLinearConv"],
    ),
    "conv → relu6, range ends above 6": (
        lambda g: g.q(clip6(g, conv(g, g.input(IMAGE))), ZERO),
        ["DequantizeLinear"] * 3 + ["FusedConv", "QuantizeLinear"],
    ),
    # What packed weights have to be written as: see deploy/export/onnx/weights.py.
    "conv, int4 weights behind a Cast": (
        lambda g: g.q(packed_conv(g, "Cast"), B), ["QLinearConv"],
    ),
    "conv, weights from a table": (
        lambda g: g.q(packed_conv(g, "Gather"), B), ["QLinearConv"],
    ),
    "conv, int4 weights": (
        lambda g: g.q(packed_conv(g, ""), B), ["DequantizeLinear"] * 3 + ["Conv", "QuantizeLinear"],
    ),
    # The optimizer leaves a change of encoding alone, wherever a Clip follows it.
    "conv → 8 bits → 4 bits → conv": (
        lambda g: g.q(conv(g, narrowed(g, g.q(conv(g, g.input(IMAGE)), ZERO))), B),
        ["QLinearConv", "DequantizeLinear", "QuantizeLinear", "Clip", "QLinearConv"],
    ),
    "conv → 4 bits → conv": (
        lambda g: g.q(conv(g, clip15(g, g.q(conv(g, g.input(IMAGE)), A))), B),
        ["QLinearConv", "Clip", "QLinearConv"],
    ),
    "conv, int8 activations": (
        lambda g: g.q(conv(g, g.input(IMAGE, np.int8), SIGNED), SIGNED),
        ["DequantizeLinear"] * 3 + ["Conv", "QuantizeLinear"],
    ),
    "gemm": (lambda g: g.q(gemm(g), B), ["QGemm"]),
    "gemm, no transB, scales along axis 1": (
        lambda g: g.q(gemm(g, trans_b=False, axis=1), B), ["QGemm"],
    ),
    "gemm, scales along the inputs": (
        lambda g: g.q(gemm(g, axis=1, bias=""), B),
        ["DequantizeLinear"] * 2 + ["Gemm", "QuantizeLinear"],
    ),
    "gemm, float bias": (lambda g: g.q(gemm(g, bias="float"), B), ["QGemm"]),
    "gemm → relu, output zero point 0": (lambda g: g.q(g.op("Relu", gemm(g)), ZERO), ["QGemm"]),
    "gemm, alpha": (
        lambda g: g.q(gemm(g, alpha=2.0), B),
        ["DequantizeLinear"] * 3 + ["Gemm", "QuantizeLinear"],
    ),
    "matmul": (lambda g: g.q(matmul(g), B), ["QLinearMatMul"]),
    "matmul of two activations": (binary("MatMul"), ["QLinearMatMul"]),
    "add": (binary("Add"), ["QLinearAdd"]),
    "add → relu, output zero point 0": (binary("Add", after="Relu", ey=ZERO), ["QLinearAdd"]),
    "add → relu, output zero point not 0": (
        binary("Add", after="Relu"),
        ["DequantizeLinear"] * 2 + ["Add", "Relu", "QuantizeLinear"],
    ),
    "mul": (binary("Mul"), ["QLinearMul"]),
    "mul by a channel gate": (binary("Mul", (2, 16, 1, 1)), ["QLinearMul"]),
    "sub": (binary("Sub"), ["DequantizeLinear"] * 2 + ["Sub", "QuantizeLinear"]),
    "concat": (
        lambda g: g.q(g.op("Concat", g.dq(g.input(IMAGE), A), g.dq(g.input(IMAGE), B), axis=1), B),
        ["QLinearConcat"],
    ),
    "average pool": (unary("AveragePool", kernel_shape=[2, 2]), ["QLinearAveragePool"]),
    "global average pool": (unary("GlobalAveragePool"), ["QLinearGlobalAveragePool"]),
    "softmax": (unary("Softmax"), ["QLinearSoftmax"]),
    "sigmoid": (unary("Sigmoid"), ["QLinearSigmoid"]),
    "leaky relu": (unary("LeakyRelu"), ["QLinearLeakyRelu"]),
    # These drop DQ and Q when both have the same encoding, and only then.
    "max pool": (unary("MaxPool", ey=A, kernel_shape=[2, 2]), ["MaxPool"]),
    "max pool, other encoding": (
        unary("MaxPool", kernel_shape=[2, 2]), ["DequantizeLinear", "MaxPool", "QuantizeLinear"],
    ),
    "slice": (unary("Slice", ey=A, extra=(i64(0), i64(4), i64(1))), ["Slice"]),
    "flatten": (unary("Flatten", ey=A), ["Flatten"]),
    "resize, nearest": (
        unary("Resize", ey=A, extra=(F([]), F([1, 1, 2, 2])), mode="nearest"), ["Resize"],
    ),
    "resize, linear": (
        unary("Resize", ey=A, extra=(F([]), F([1, 1, 2, 2])), mode="linear"),
        ["DequantizeLinear", "Resize", "QuantizeLinear"],
    ),
    "pad": (
        unary("Pad", ey=A, extra=(i64(0, 0, 1, 1, 0, 0, 1, 1), F(0))),
        ["DequantizeLinear", "Pad", "QuantizeLinear"],
    ),
    "relu of codes with zero point 0 is nothing": (unary("Relu", ZERO, ZERO), ["Identity"]),
    "relu": (unary("Relu"), ["DequantizeLinear", "Relu", "QuantizeLinear"]),
    "mean": (unary("ReduceMean"), ["DequantizeLinear", "ReduceMean", "QuantizeLinear"]),
    "hard swish": (
        unary("HardSwish"), ["DequantizeLinear", "HardSigmoid", "Mul", "QuantizeLinear"],
    ),
    "gelu": (unary("Gelu"), ["DequantizeLinear", "Gelu", "QuantizeLinear"]),
    "transposed conv": (
        lambda g: g.q(
            g.op(
                "ConvTranspose",
                g.dq(g.input(IMAGE), A),
                g.dq_weight(weight(16, 8, 2, 2), scales(8), 1),
            ),
            B,
        ),
        ["DequantizeLinear"] * 2 + ["ConvTranspose", "QuantizeLinear"],
    ),
    "layer norm": (
        lambda g: g.q(
            g.op("LayerNormalization", g.dq(g.input(TOKENS), A), g.constant(np.ones(16), F)), B
        ),
        ["DequantizeLinear", "LayerNormalization", "QuantizeLinear"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_IMAGE)
def test_with_quantized_output(name):
    build, expected = ON_IMAGE[name]
    out = np.int8 if "int8" in name else np.uint8
    assert remaining(build, out) == expected


FLOAT_OUTPUT: dict[str, tuple[Build, list[str]]] = {
    "gemm": (gemm, ["QGemm"]),
    "gemm, float bias": (lambda g: gemm(g, bias="float"), ["DequantizeLinear"] * 2 + ["Gemm"]),
    "matmul": (matmul, ["MatMulIntegerToFloat"]),
    "matmul + int32 bias": (
        lambda g: g.op("Add", matmul(g), g.dq_weight(BIAS, F(A.scale) * scales(12))),
        ["QGemm"],
    ),
    "conv": (lambda g: conv(g, g.input(IMAGE)), ["DequantizeLinear"] * 3 + ["Conv"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOAT_OUTPUT)
def test_with_float_output(name):
    build, expected = FLOAT_OUTPUT[name]
    assert remaining(build, F) == expected


ON_CODES: dict[str, tuple[tuple[object, ...], dict[str, object]]] = {
    "MaxPool": ((), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "Slice": ((i64(0), i64(4), i64(1)), {}),
    "Pad": ((i64(0, 0, 1, 1, 0, 0, 1, 1), "like 7"), {}),
    "Transpose": ((), {"perm": [0, 2, 3, 1]}),
    "Reshape": ((i64(2, -1),), {}),
    "Flatten": ((), {}),
    "Unsqueeze": ((i64(0),), {}),
    "Clip": (("like 3", "like 40"), {}),
    "Resize": ((F([]), F([1, 1, 2, 2])), {"mode": "nearest"}),
    "Gather": ((i64(0),), {"axis": 1}),
    "Concat": ((), {"axis": 1}),
    "DepthToSpace": ((), {"blocksize": 2}),
    "ReduceMax": ((), {}),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("op", ON_CODES)
def test_runs_on_codes_themselves(op, opset, dtype):
    """Written without any DQ and Q around them, these operators take codes as they are."""
    extra, attributes = ON_CODES[op]

    def build(g: Graph) -> str:
        constants = [
            g.constant(int(v[5:]), dtype) if isinstance(v, str) else g.constant(v) for v in extra
        ]
        return g.op(op, g.input(IMAGE, dtype), *constants, **attributes)

    expected = [] if op in LAYOUT else [op]
    assert remaining(build, dtype, opset) == expected


def test_codes_stay_integers_through_a_residual_network():
    """One shared DequantizeLinear serves two consumers, and code outputs break no fusion."""

    def build(g: Graph) -> str:
        first = g.q(g.op("Relu", conv(g, g.input(IMAGE))), ZERO)
        real = g.dq(first, ZERO)
        w = g.dq_weight(weight(16, 16, 3, 3), scales(16))
        second = g.q(g.op("Conv", real, w, pads=[1, 1, 1, 1]), B)
        y = g.q(g.op("Relu", g.op("Add", g.dq(second, B), real)), ZERO)
        g.output(first)
        g.output(second)
        pooled = g.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
        mean = g.q(g.op("GlobalAveragePool", g.dq(pooled, ZERO)), A)
        gate = g.dq_weight(weight(12, 16), scales(12))
        bias = g.dq_weight(BIAS, F(A.scale) * scales(12))
        return g.q(g.op("Gemm", g.dq(g.op("Flatten", mean), A), gate, bias, transB=1), B)

    found = [op.removeprefix("Nhwc") for op in remaining(build)]
    integer = ["QLinearConv"] * 2 + ["QLinearAdd", "MaxPool", "QLinearGlobalAveragePool"]
    assert sorted(found) == sorted([*integer, "Flatten", "QGemm"])


def test_float_uses_of_a_convolution_keep_it_float():
    """A second QuantizeLinear, or a graph output of the real value, undoes the fusion."""

    def two_quantizers(g: Graph) -> str:
        y = conv(g, g.input(IMAGE))
        g.output(g.q(y, ZERO))
        return g.q(y, B)

    def also_output(g: Graph) -> str:
        y = conv(g, g.input(IMAGE))
        g.output(y, F)
        return g.q(y, B)

    assert "QLinearConv" not in remaining(two_quantizers)
    assert "QLinearConv" not in remaining(also_output)


def test_trap_weight_scales_without_an_axis_are_read_along_the_outputs():
    """DequantizeLinear's axis is 1 by default; the fused convolution ignores it."""

    def build(axis: dict[str, int]) -> np.ndarray:
        g = Graph()
        rng = np.random.default_rng(3)
        x = g.input(IMAGE)
        w = rng.integers(-60, 61, (16, 16, 3, 3)).astype(np.int8)
        scale = np.geomspace(0.001, 0.01, 16).astype(F)
        real = g.op("DequantizeLinear", g.constant(w), g.constant(scale), **axis)
        g.output(g.q(g.op("Conv", g.dq(x, A), real), B))
        feeds = {x: rng.integers(0, 256, IMAGE).astype(np.uint8)}
        return run_here(Case(g.model(), feeds)).outputs[0]

    assert (build({"axis": 0}) == build({})).all()
