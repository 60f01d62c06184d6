"""Emit linear layers: MatMulNBits, Gemm on a dequantized weight, or integer products."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from bitsmith.deploy.export.onnx_weights.graph import GraphBuilder
from bitsmith.deploy.export.onnx_weights.places import Place
from bitsmith.deploy.export.onnx_weights.storage import Storage
from bitsmith.deploy.export.onnx_weights.survey import Activations
from bitsmith.deploy.export.onnx_weights.weight import emit_scale, emit_weight

__all__ = ["emit_linear"]

_ACCURACY = {"float": 0, "int8": 4}
_FLOAT32 = np.finfo(np.float32)
_MIDDLE = 128


def emit_linear(
    graph: GraphBuilder,
    x: str,
    output: str,
    name: str,
    storage: Storage,
    place: Place,
    activations: Activations,
) -> None:
    """Emit ``output = x · Wᵀ + b``, ``x`` ``[..., K]``."""
    bias = []
    if place.bias is not None:
        content = place.bias.detach().cpu().float().contiguous().numpy()
        bias = [graph.hold(f"{place.name.removesuffix('weight')}bias", content)]
    if place.activation is not None:
        _integers(graph, x, output, name, storage, bias)
    elif storage.kind == "blocks":
        _blocks(graph, x, output, name, storage, place, bias, _ACCURACY[activations])
    else:
        weight = emit_weight(graph, name, storage, place.packed.shape[1])
        if storage.kind == "columns":
            products = f"{output}.products" if bias else output
            graph.add("MatMul", [x, weight], products)
            if bias:
                graph.add("Add", [products, *bias], output)
        else:
            _gemm(graph, x, output, weight, place.packed.shape, bias)


def _blocks(
    graph: GraphBuilder,
    x: str,
    output: str,
    name: str,
    storage: Storage,
    place: Place,
    bias: list[str],
    accuracy: int,
) -> None:
    points = ""
    if not storage.scheme.symmetric:
        points = f"{name}.zero_point"
    elif not storage.scheme.integer.signed:  # without zero points they are in the middle
        shape = (storage.shape[0], -(-storage.blocks * storage.bits // 8))
        points = graph.hold(f"{name}.zero_point.none", np.zeros(shape, np.uint8))
    inputs = [x, f"{name}.codes", emit_scale(graph, name, storage, storage.blocks), points]
    inputs += ["", *bias] if bias else []
    while not inputs[-1]:
        inputs.pop()
    graph.add(
        "MatMulNBits",
        inputs,
        output,
        K=place.packed.shape[1],
        N=place.packed.shape[0],
        bits=storage.bits,
        block_size=storage.block,
        accuracy_level=accuracy,
    )


def _gemm(
    graph: GraphBuilder, x: str, output: str, weight: str, shape: tuple[int, ...], bias: list[str]
) -> None:
    """Emit Gemm, which takes two axes: the others are folded into the first.

    ONNX Runtime replaces DequantizeLinear + MatMul by MatMulNBits on 8-bit activations, whose
    outputs are off by 0.3 to 1.4 percent; it leaves Gemm alone.
    """
    if graph.rank(x) == 2:
        graph.add("Gemm", [x, weight, *bias], output, transB=1)
        return
    lead = graph.add("Shape", [x], f"{x}.lead", start=0, end=-1)
    width = graph.constant([shape[0]], np.int64)
    target = graph.add("Concat", [lead, width], f"{x}.times.{shape[0]}", axis=0)
    rows = graph.reshape(x, f"{x}.rows", [-1, shape[1]])
    graph.add("Gemm", [rows, weight, *bias], f"{output}.rows", transB=1)
    graph.add("Reshape", [f"{output}.rows", target], output)


def _integers(
    graph: GraphBuilder, x: str, output: str, name: str, storage: Storage, bias: list[str]
) -> None:
    """Emit codes of each token, exact int32 sums, and ``sums · s_x · s_w + b`` in that order.

    Codes of tokens are the symmetric int8 ones + 128. Both zero points are 128, so the sums are
    those of the symmetric codes; products of two uint8 are exact in every kernel, and the
    quickest exact ones where there are no dot-product instructions.
    """
    codes, scale = _tokens(graph, x)
    weight = f"{name}.codes"
    if storage.kind != "columns":
        weight = graph.add("Transpose", [weight], f"{name}.codes.turned", perm=[1, 0])
    middle = graph.constant(_MIDDLE, np.uint8)
    sums = graph.add("MatMulInteger", [codes, weight, middle, middle], f"{output}.sums")
    real = graph.add("Cast", [sums], f"{output}.sums.float", to=TensorProto.FLOAT)
    steps = graph.reshape(emit_scale(graph, name, storage), f"{name}.scale.flat", [-1])
    once = graph.add("Mul", [real, scale], f"{output}.once")
    twice = graph.add("Mul", [once, steps], f"{output}.twice" if bias else output)
    if bias:
        graph.add("Add", [twice, *bias], output)


def _tokens(graph: GraphBuilder, x: str) -> tuple[str, str]:
    """Emit the codes and scales of the tokens of ``x``, once for all layers that read it."""
    size = graph.add("Abs", [x], f"{x}.tokens.size")
    last = graph.constant([-1], np.int64)
    largest = graph.add("ReduceMax", [size, last], f"{x}.tokens.largest", keepdims=1)
    exact = graph.add("Div", [largest, graph.constant(127, np.float32)], f"{x}.tokens.scale.exact")
    # The bounds of bitsmith.numbers.scales: normal numbers, and 127 scales do not overflow.
    most = np.nextafter(_FLOAT32.max / np.float32(127), np.float32(0))
    ends = [graph.constant(v, np.float32) for v in (_FLOAT32.tiny, most)]
    scale = graph.add("Clip", [exact, *ends], f"{x}.tokens.scale")
    steps = graph.add("Div", [x, scale], f"{x}.tokens.steps")
    rounded = graph.add("Round", [steps], f"{x}.tokens.rounded")
    shifted = graph.add(
        "Add", [rounded, graph.constant(_MIDDLE, np.float32)], f"{x}.tokens.shifted"
    )
    codes = graph.add("Cast", [shifted], f"{x}.tokens.codes", to=TensorProto.UINT8)
    return codes, scale
