"""The ONNX form of each word of the vocabulary.

An emitter writes the nodes that compute one tensor from named inputs. It does not know whether
those names stand for reals or, for a move, for codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from bitsmith.deploy.export.onnx.foreign import element_type, untranslatable_calls
from bitsmith.deploy.export.onnx.graph_writer import ELEMENT_TYPES, GraphWriter
from bitsmith.model.graph.ir import Graph, Node

__all__ = ["EMITTERS", "Emission", "untranslatable"]


@final
@dataclass(frozen=True)
class Emission:
    """One node to write: input names, own weights by role, output name.

    ``fill`` is the value a pad puts in and ``bounds`` those of a clamp, of the same type as the
    tensor: float for reals, the code's dtype for codes.
    """

    node: Node
    inputs: list[str]
    params: dict[str, str]
    output: str
    fill: Any = None
    bounds: tuple[Any, Any] = (None, None)

    def attr(self, name: str) -> Any:
        """Return an attribute of the node."""
        return self.node.attrs[name]

    def optional(self, *roles: str) -> list[str]:
        """Return inputs and weights in order, without trailing absent ones."""
        names = self.inputs + [self.params.get(role, "") for role in roles]
        while names and not names[-1]:
            names.pop()
        return names


Emitter = Callable[[GraphWriter, Emission], object]


def _int64(w: GraphWriter, e: Emission, role: str, values: Any) -> str:
    return w.constant(f"{e.output}.{role}", list(values), np.int64)


def _window(e: Emission) -> dict[str, Any]:
    """Stride and symmetric padding of a convolution or pool."""
    return {"strides": e.attr("stride"), "pads": e.attr("padding") * 2}


def _conv(w: GraphWriter, e: Emission, kind: str = "Conv", **more: Any) -> None:
    own = {"dilations": e.attr("dilation"), "group": e.attr("groups")}
    w.add(kind, e.optional("weight", "bias"), e.output, **_window(e), **own, **more)


def _conv_transpose(w: GraphWriter, e: Emission) -> None:
    _conv(w, e, "ConvTranspose", output_padding=e.attr("output_padding"))


def _linear(w: GraphWriter, e: Emission) -> None:
    w.add("Gemm", e.optional("weight", "bias"), e.output, transB=1)


def _batch_norm(w: GraphWriter, e: Emission) -> None:
    roles = [e.params[r] for r in ("weight", "bias", "mean", "var")]
    w.add("BatchNormalization", e.inputs + roles, e.output, epsilon=e.attr("eps"))


def _layer_norm(w: GraphWriter, e: Emission) -> None:
    shape = e.attr("normalized_shape")
    weight = e.params.get("weight") or w.constant(f"{e.output}.ones", np.ones(shape), np.float32)
    inputs = [*e.inputs, weight, *([e.params["bias"]] if "bias" in e.params else [])]
    w.add("LayerNormalization", inputs, e.output, axis=-len(shape), epsilon=e.attr("eps"))


def _silu(w: GraphWriter, e: Emission) -> None:
    gate = w.add("Sigmoid", e.inputs, f"{e.output}.gate")
    w.add("Mul", [*e.inputs, gate], e.output)


def _clamp(w: GraphWriter, e: Emission) -> None:
    names = []
    for role, bound in zip(("low", "high"), e.bounds, strict=True):
        names.append("" if bound is None else w.constant(f"{e.output}.{role}", bound, bound.dtype))
    while names and not names[-1]:
        names.pop()
    w.add("Clip", e.inputs + names, e.output)


def _relu(w: GraphWriter, e: Emission) -> None:
    if e.bounds == (None, None):
        w.add("Relu", e.inputs, e.output)
    else:
        _clamp(w, e)


def _pool(w: GraphWriter, e: Emission, kind: str, **more: Any) -> None:
    own = {"kernel_shape": e.attr("kernel"), "ceil_mode": int(e.attr("ceil_mode"))}
    w.add(kind, e.inputs, e.output, **_window(e), **own, **more)


def _max_pool(w: GraphWriter, e: Emission) -> None:
    _pool(w, e, "MaxPool", dilations=e.attr("dilation"))


def _avg_pool(w: GraphWriter, e: Emission) -> None:
    _pool(w, e, "AveragePool", count_include_pad=int(e.attr("count_include_pad")))


def _embedding(w: GraphWriter, e: Emission) -> None:
    """Rows of the table; of a table of codes, times their scales."""
    if "scale" not in e.params:
        w.add("Gather", [e.params["weight"], *e.inputs], e.output, axis=0)
        return
    codes = w.add("Gather", [e.params["weight"], *e.inputs], f"{e.output}.rows", axis=0)
    real = w.add("Cast", [codes], f"{e.output}.row_codes", to=TensorProto.FLOAT)
    scale = w.add("Gather", [e.params["scale"], *e.inputs], f"{e.output}.row_scales", axis=0)
    w.add("Mul", [real, scale], e.output)


def _arange(w: GraphWriter, e: Emission) -> None:
    axis = e.attr("axis")
    size = w.add("Shape", e.inputs, f"{e.output}.size", start=axis, end=axis + 1)
    end = w.add("Squeeze", [size], f"{e.output}.end")
    first, step = (w.constant(f"{e.output}.from_{v}", v, np.int64) for v in (0, 1))
    w.add("Range", [first, end, step], e.output)


def _slice_to(w: GraphWriter, e: Emission) -> None:
    size = e.attr("size_of")
    end = w.add("Shape", e.inputs[1:], f"{e.output}.end", start=size, end=size + 1)
    first, axis = (_int64(w, e, r, [v]) for r, v in (("first", 0), ("axis", e.attr("axis"))))
    w.add("Slice", [e.inputs[0], first, end, axis], e.output)


def _expand_as(w: GraphWriter, e: Emission) -> None:
    shape = w.add("Shape", e.inputs[1:], f"{e.output}.shape")
    w.add("Expand", [e.inputs[0], shape], e.output)


def _full_like(w: GraphWriter, e: Emission) -> None:
    shape = w.add("Shape", e.inputs, f"{e.output}.shape")
    kind = helper.tensor_dtype_to_np_dtype(ELEMENT_TYPES[e.attr("dtype")])
    value = numpy_helper.from_array(np.asarray([e.attr("value")], kind))
    w.add("ConstantOfShape", [shape], e.output, value=value)


def _cast(w: GraphWriter, e: Emission) -> None:
    w.add("Cast", e.inputs, e.output, to=ELEMENT_TYPES[e.attr("dtype")])


def _ne(w: GraphWriter, e: Emission) -> None:
    kind = helper.tensor_dtype_to_np_dtype(element_type(w.program.graph, e.node.inputs[0]))
    other = w.constant(f"{e.output}.other", e.attr("value"), kind)
    equal = w.add("Equal", [*e.inputs, other], f"{e.output}.equal")
    w.add("Not", [equal], e.output)


def _reduction(kind: str) -> Emitter:
    def emit(w: GraphWriter, e: Emission) -> None:
        axes = _int64(w, e, "axes", e.attr("axes"))
        w.add(kind, [*e.inputs, axes], e.output, keepdims=int(e.attr("keepdim")))

    return emit


def _reshape(w: GraphWriter, e: Emission) -> None:
    w.add("Reshape", [*e.inputs, _int64(w, e, "shape", e.attr("shape"))], e.output)


def _slice(w: GraphWriter, e: Emission) -> None:
    roles = [("starts", "start"), ("ends", "end"), ("axes", "axis"), ("steps", "step")]
    names = [_int64(w, e, role, [e.attr(attr)]) for role, attr in roles]
    w.add("Slice", [*e.inputs, *names], e.output)


def _pad(w: GraphWriter, e: Emission) -> None:
    rank, pads = len(e.node.shape), e.attr("pads")
    before, after = [0] * rank, [0] * rank
    for position in range(len(pads) // 2):  # torch: last axis first
        axis = rank - 1 - position
        before[axis], after[axis] = pads[2 * position], pads[2 * position + 1]
    amounts = _int64(w, e, "pads", before + after)
    fill = w.constant(f"{e.output}.fill", e.fill, e.fill.dtype)
    w.add("Pad", [*e.inputs, amounts, fill], e.output)


def _upsample(w: GraphWriter, e: Emission) -> None:
    scales = w.constant(f"{e.output}.scales", [1.0, 1.0, *map(float, e.attr("scale"))], np.float32)
    w.add(
        "Resize",
        [*e.inputs, "", scales],
        e.output,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _batch_constant(w: GraphWriter, e: Emission) -> None:
    """Expand to [batch, 1, …]: Expand broadcasts the rest."""
    batch = w.add("Shape", e.inputs, f"{e.output}.batch", start=0, end=1)
    ones = _int64(w, e, "ones", [1] * (len(e.node.shape) - 1))
    shape = w.add("Concat", [batch, ones], f"{e.output}.shape", axis=0)
    w.add("Expand", [e.params["value"], shape], e.output)


def _plain(kind: str, **attributes: Any) -> Emitter:
    return lambda w, e: w.add(kind, e.inputs, e.output, **attributes)


def _renamed(kind: str, **attributes: str) -> Emitter:
    return lambda w, e: w.add(
        kind, e.inputs, e.output, **{k: e.attr(v) for k, v in attributes.items()}
    )


EMITTERS: dict[str, Emitter] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "batch_constant": _batch_constant,
    "layer_norm": _layer_norm,
    "matmul": _plain("MatMul"),
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "div": _plain("Div"),
    "concat": _renamed("Concat", axis="axis"),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "global_avg_pool": _plain("GlobalAveragePool"),
    "mean": _reduction("ReduceMean"),
    "sum": _reduction("ReduceSum"),
    "norm": _reduction("ReduceL2"),
    "embedding": _embedding,
    "arange": _arange,
    "slice_to": _slice_to,
    "expand_as": _expand_as,
    "full_like": _full_like,
    "cast": _cast,
    "ne": _ne,
    "relu": _relu,
    "clamp": _clamp,
    "leaky_relu": _renamed("LeakyRelu", alpha="slope"),
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "silu": _silu,
    "hardswish": _plain("HardSwish"),
    "hardsigmoid": _plain("HardSigmoid", alpha=1.0 / 6.0, beta=0.5),
    "gelu": _renamed("Gelu", approximate="approximate"),
    "softmax": _renamed("Softmax", axis="axis"),
    "requantize": _plain("Identity"),
    "reshape": _reshape,
    "transpose": _renamed("Transpose", perm="perm"),
    "slice": _slice,
    "pad": _pad,
    "upsample_nearest": _upsample,
}


def untranslatable(graph: Graph) -> list[str]:
    """Return a line for every node without an ONNX form here."""
    lines = untranslatable_calls(graph)
    for node in graph:
        if node.op not in EMITTERS and node.op not in ("constant", "aten"):
            lines.append(f"{node.name}: {node.op} at {node.source} has no ONNX form in bitsmith")
        elif node.op == "batch_norm" and not {"weight", "bias"} <= set(node.params):
            lines.append(f"{node.name}: batch norm without weight and bias at {node.source}")
    return lines
