"""Collects ONNX nodes and initializers; knows which tensors exist as codes and which as reals."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bitsmith.model.simulate import Program
from bitsmith.numbers.encoding import Encoding

__all__ = ["GraphWriter", "code_name"]


def code_name(tensor: str) -> str:
    """Return the name of a quantized tensor's codes in the file."""
    return f"{tensor}.codes"


@final
class GraphWriter:
    """An ONNX graph under construction.

    Every tensor of the program may be wanted as codes or as real values; the conversion is
    emitted once, when it is first asked for.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._codes: dict[str, str] = {}
        self._reals: dict[str, str] = {}
        self._rounded: dict[str, str] = {}
        self._undetected: set[str] = set()
        self._sizes: set[str] = set()
        self._parameters: dict[Encoding, tuple[str, str]] = {}

    def put_real(self, tensor: str) -> None:
        """Say that ``tensor`` is computed in float, under its own name."""
        self._reals[tensor] = tensor

    def put_codes(self, tensor: str) -> None:
        """Say that ``tensor`` is computed as codes."""
        self._codes[tensor] = code_name(tensor)

    def codes(self, tensor: str) -> str:
        """Return the name of the codes of ``tensor``, quantizing it where needed."""
        if tensor not in self._codes:
            self._codes[tensor] = code_name(tensor)
            self.quantize(self._reals[tensor], tensor)
        return self._codes[tensor]

    def real(self, tensor: str) -> str:
        """Return the name of the real values of ``tensor``, dequantizing it where needed."""
        return self._reals[tensor] if tensor in self._reals else self.rounded(tensor)

    def real_undetected(self, tensor: str) -> str:
        """Return the name of the real values of ``tensor``, never made by a DequantizeLinear.

        ONNX Runtime (WeightBiasQuantization, on by default) rounds the weight of a Conv,
        ConvTranspose or Gemm between a DequantizeLinear and a QuantizeLinear to 8 bits, one scale
        for the whole tensor. A layer that is to stay float therefore reads codes that were made
        real by Cast, Sub and Mul, which give the same values.
        """
        if tensor in self._reals:
            return self._reals[tensor]
        name = f"{tensor}.real_values"
        if name not in self._undetected:
            encoding = self.program.encodings[tensor]
            real = self.add("Cast", [self.codes(tensor)], f"{name}.codes", to=TensorProto.FLOAT)
            if encoding.zero_point:
                zero = self.constant(f"{name}.zero", encoding.zero_point, np.float32)
                real = self.add("Sub", [real, zero], f"{name}.centred")
            step = self.constant(f"{name}.scale", encoding.scale, np.float32)
            self._undetected.add(self.add("Mul", [real, step], name))
        return name

    def is_real(self, tensor: str) -> bool:
        """Whether ``tensor`` is computed in float."""
        return tensor in self._reals

    def rounded(self, tensor: str) -> str:
        """Return the name of the real values that the codes of ``tensor`` stand for."""
        if tensor not in self._rounded:
            self._rounded[tensor] = f"{tensor}.dequantized"
            self.dequantize(self.codes(tensor), self._rounded[tensor], tensor)
        return self._rounded[tensor]

    def quantize(self, real: str, tensor: str, output: str | None = None) -> None:
        """Emit QuantizeLinear from ``real`` to codes encoded like ``tensor`` (its own, mostly).

        Codes of fewer than 8 bits live in 8; a Clip behind the rounding keeps them in their range.
        Rounding and clipping to integers commute, so it is the saturation of the narrow type.
        """
        codes, number = output or code_name(tensor), self.program.encodings[tensor].format
        made = codes if number.bits == 8 else f"{codes}.unclipped"
        self.add("QuantizeLinear", [real, *self._encoding(tensor)], made)
        if number.bits < 8:
            kind = np.int8 if number.signed else np.uint8
            low = self.constant(f"{number}.code_min", number.code_min, kind)
            high = self.constant(f"{number}.code_max", number.code_max, kind)
            self.add("Clip", [made, low, high], codes)

    def dequantize(self, codes: str, output: str, tensor: str) -> None:
        """Emit DequantizeLinear of ``codes``, encoded like ``tensor``."""
        self.add("DequantizeLinear", [codes, *self._encoding(tensor)], output)

    def bias(self, layer: str, bias: Tensor, scale: Tensor) -> str:
        """Emit an int32 bias with its scales ``[O]`` or ``[]``; return the name of its values."""
        codes = self.constant(f"{layer}.bias_codes", bias)
        steps = self.constant(f"{layer}.bias_scale", scale)
        axis = 0 if scale.dim() else None
        return self.add("DequantizeLinear", [codes, steps], f"{layer}.bias", axis=axis)

    def free_axes(self, tensor: str, count: int) -> str:
        """Return the name of the first ``count`` sizes of ``tensor``, int64."""
        name = f"{tensor}.first_{count}_sizes"
        if name not in self._sizes:
            holder = self._codes.get(tensor) or self.real(tensor)
            self._sizes.add(self.add("Shape", [holder], name, start=0, end=count))
        return name

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        """Add an initializer; a torch tensor keeps its type."""
        raw = value.detach().cpu().contiguous().numpy() if isinstance(value, Tensor) else value
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(raw, dtype), name)
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Emit one node; returns the name of its output."""
        given = {k: v for k, v in attributes.items() if v is not None}
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=f"{kind}:{output}", **given)
        )
        return output

    def _encoding(self, tensor: str) -> tuple[str, str]:
        encoding = self.program.encodings[tensor]
        if encoding not in self._parameters:
            scale = self.constant(f"{tensor}.scale", encoding.scale, np.float32)
            kind = np.int8 if encoding.format.signed else np.uint8
            self._parameters[encoding] = (
                scale,
                self.constant(f"{tensor}.zero_point", encoding.zero_point, kind),
            )
        return self._parameters[encoding]


#: torch dtype name → ONNX element type of a graph input.
ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}
