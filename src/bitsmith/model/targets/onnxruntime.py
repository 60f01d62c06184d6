"""ONNX Runtime on CPUs: u8 activations, s8 weights per channel, int32 bias, float32 requantization.

Verified against ONNX Runtime 1.31.1 by ``tests/deploy/test_fusions.py``, which pins what fuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from torch import Tensor

from bitsmith.algorithms.rounding import Rounding
from bitsmith.algorithms.roundings.nearest import Nearest
from bitsmith.algorithms.roundings.pair_bound import PAIR_LIMIT, PairBound
from bitsmith.model.graph.ir import Graph, Node
from bitsmith.model.targets import Target
from bitsmith.numbers.scheme import Scheme

__all__ = ["OnnxRuntime"]

_FLOAT_REASONS: Mapping[str, str] = {
    "conv_transpose": "ONNX Runtime has no integer transposed convolution",
    "mean": "ONNX Runtime has no integer ReduceMean (a mean over all of H and W becomes a pool)",
    "batch_norm": "no layer to fold it into, and ONNX Runtime has no integer batch norm",
    "sub": "ONNX Runtime has no integer Sub",
    "div": "ONNX Runtime has no integer Div",
    "silu": "ONNX Runtime has no integer SiLU",
    "hardswish": "ONNX Runtime has no integer HardSwish",
    "hardsigmoid": "ONNX Runtime has no integer HardSigmoid",
    "gelu": "ONNX Runtime has no integer Gelu",
    "tanh": "ONNX Runtime has no integer Tanh",
    "sum": "ONNX Runtime has no integer ReduceSum",
    "norm": "ONNX Runtime has no integer ReduceL2",
    "embedding": "a table in float",
    "arange": "positions",
    "slice_to": "a cut to the length of an input",
    "expand_as": "a repetition to the shape of a tensor",
    "full_like": "a constant of the shape of its input",
    "cast": "a change of type",
    "ne": "a comparison",
    "layer_norm": "ONNX Runtime has no integer LayerNormalization",
    "requantize": "codes of codes: placement puts it where it is needed",
    "constant": "a constant",
    "batch_constant": "a constant, repeated for the batch",
}


@final
class OnnxRuntime(Target, name="onnxruntime"):
    """ONNX Runtime's CPU provider."""

    integer: ClassVar[Mapping[str, str]] = {
        "conv": "QLinearConv",
        "linear": "QGemm",
        "matmul": "QLinearMatMul",
        "avg_pool": "QLinearAveragePool",
        "global_avg_pool": "QLinearGlobalAveragePool",
    }
    joining: ClassVar[Mapping[str, str]] = {
        "add": "QLinearAdd",
        "mul": "QLinearMul",
        "concat": "QLinearConcat",
        "softmax": "QLinearSoftmax",
        "sigmoid": "QLinearSigmoid",
        "leaky_relu": "QLinearLeakyRelu",
    }
    moves: ClassVar[Mapping[str, str]] = {
        "reshape": "Reshape",
        "transpose": "Transpose",
        "slice": "Slice",
        "pad": "Pad",
        "max_pool": "MaxPool",
        "upsample_nearest": "Resize",
        "relu": "Clip",
        "clamp": "Clip",
    }
    requantizes: ClassVar[str] = "DequantizeLinear, QuantizeLinear"
    machines: ClassVar[Mapping[str, str]] = {
        "any": "ONNX Runtime on every x86 and ARM: no pair of neighbouring products (kernel, input "
        "channel order) can saturate 16 bits",
        "vnni": "CPUs with exact u8·s8 products (VNNI, AMX, ARM dot product); may saturate "
        "elsewhere",
        "any-order": "any runtime that adds u8·s8 products in pairs, in whatever layout",
    }

    def refuses(self, graph: Graph, node: Node) -> str | None:
        if node.op == "aten":
            owner = node.attrs["target"].split(".")[1]
            if owner in ("conv1d", "conv2d", "linear") and len(node.inputs) > 1:
                return "its weight is computed (remove the parametrization before quantizing)"
            return f"{node.attrs['target']} has no integer form"
        if node.op in _FLOAT_REASONS:
            return _FLOAT_REASONS[node.op]
        if node.op in ("add", "mul", "matmul") and all(_is_constant(graph, i) for i in node.inputs):
            return "both inputs are constants"
        if node.op == "add" and any(_holds_mask(graph, i) for i in node.inputs):
            return "adds a mask: one range for it and the scores would leave no codes to the scores"
        if node.op == "softmax" and _holds_mask(graph, node.inputs[0]):
            return "reads masked scores, which have no range"
        return None

    def float_output(self, node: Node) -> bool:
        return node.op in ("linear", "matmul")

    def rounding(self, node: Node, weight: Tensor, scheme: Scheme, input_bits: int = 8) -> Rounding:
        # Below 8 bits no pair of codes exceeds 128 (−64 − 64), and no pair of products with
        # inputs below 8 bits leaves 16 bits (127 · 254).
        if self.machine == "vnni" or scheme.format.bits < 8 or input_bits < 8:
            return Nearest()
        if self.machine == "any-order":
            return PairBound("any")
        # ONNX Runtime's depthwise kernels widen to 16 bits before multiplying: exact.
        return Nearest() if _is_depthwise(node, weight) else PairBound("channels_last")

    def entry_limit(self, node: Node, weight: Tensor, input_bits: int) -> int:
        exact = self.machine == "vnni" or input_bits < 8
        if exact or (self.machine == "any" and _is_depthwise(node, weight)):
            return 127
        return PAIR_LIMIT // 2

    def fixed_range(self, node: Node) -> tuple[float, float] | None:
        # QLinearSoftmax multiplies by floor(1 / scale): 1/256 is exact, 1/255 becomes 254.
        return (0.0, 255.0 / 256.0) if node.op == "softmax" else None


def _is_depthwise(node: Node, weight: Tensor) -> bool:
    """One input and one output channel per group."""
    groups: int = node.attrs.get("groups", 1)
    return groups > 1 and len(weight) == groups and weight.shape[1] == 1


def _is_constant(graph: Graph, name: str) -> bool:
    node = graph.node(name)
    return node is not None and node.op == "constant"


#: A constant of this size added to scores, or multiplied to be added, is a mask (BERT: -10000).
_MASK = 1e4
#: Operators that hand a mask on.
_MASK_PASSES = ("add", "sub", "mul", "reshape", "transpose", "slice", "expand_as", "cast")


def _holds_mask(graph: Graph, name: str) -> bool:
    """Whether ``name`` comes from a constant too large to be anything but a mask."""
    waiting, seen = [name], {name}
    while waiting:
        node = graph.node(waiting.pop())
        if node is None:
            continue
        if _is_mask(graph, node):
            return True
        if node.op in _MASK_PASSES:
            waiting += [i for i in node.inputs if i not in seen]
            seen.update(node.inputs)
    return False


def _is_mask(graph: Graph, node: Node) -> bool:
    if node.op == "constant":
        value = graph.params[node.params["value"]]
        return value.is_floating_point() and bool((value.abs() >= _MASK).any())
    numbers = node.attrs["args"] if node.op == "aten" else []  # where, masked_fill
    return any(isinstance(a, float) and abs(a) >= _MASK for a in numbers)
