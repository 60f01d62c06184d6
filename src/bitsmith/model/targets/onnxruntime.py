"""ONNX Runtime on CPUs: u8 activations, s8 weights per channel, int32 bias, float32 requantization.

Verified against ONNX Runtime 1.31.1 by ``tests/deploy/test_fusions.py``, which pins what fuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from torch import Tensor

from bitsmith.algorithms.rounding import Rounding
from bitsmith.algorithms.roundings.nearest import Nearest
from bitsmith.algorithms.roundings.pair_bound import PairBound
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
    "layer_norm": "ONNX Runtime has no integer LayerNormalization",
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
        return None

    def float_output(self, node: Node) -> bool:
        return node.op in ("linear", "matmul")

    def rounding(self, node: Node, weight: Tensor, scheme: Scheme) -> Rounding:
        # Below 8 bits no pair of codes exceeds 128: −64 − 64.
        if self.machine == "vnni" or scheme.format.bits < 8:
            return Nearest()
        if self.machine == "any-order":
            return PairBound("any")
        # ONNX Runtime's depthwise kernels widen to 16 bits before multiplying: exact.
        return Nearest() if _is_depthwise(node, weight) else PairBound("channels_last")

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
