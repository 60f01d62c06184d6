"""How one activation tensor is quantized: the frozen numbers on an edge of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.integer import IntegerFormat

__all__ = ["Encoding"]


@final
@dataclass(frozen=True)
class Encoding:
    """A per-tensor affine integer encoding, ``real = scale · (code − zero_point)``.

    Attributes:
        scale: positive; a Python float that is exactly a float32 value.
        zero_point: an integer code of ``format``; code ``zero_point`` stands for exactly 0.
        format: the integer format of the codes.

    >>> from bitsmith.numbers.formats.integer import integer_format
    >>> e = Encoding(0.5, 3, integer_format(8, signed=False))
    >>> e.quantize(torch.tensor([0.0, 1.2, -9.0])).tolist()
    [3, 5, 0]
    """

    scale: float
    zero_point: int
    format: IntegerFormat

    def __post_init__(self) -> None:
        scale = float(np.float32(self.scale))
        object.__setattr__(self, "scale", scale)
        if not (np.isfinite(scale) and scale > 0):
            raise SchemeError(f"a scale is positive and finite in float32, not {self.scale}")
        if not self.format.code_min <= self.zero_point <= self.format.code_max:
            raise SchemeError(f"zero_point {self.zero_point} is not a code of {self.format}")

    @property
    def low(self) -> float:
        """Smallest real value of the range."""
        return self.scale * (self.format.code_min - self.zero_point)

    @property
    def high(self) -> float:
        """Largest real value of the range."""
        return self.scale * (self.format.code_max - self.zero_point)

    def quantize(self, x: Tensor) -> Tensor:
        """Return codes ``clamp(round_half_even(x / scale) + zero_point)``, as ONNX QuantizeLinear.

        The division is in float32 (not a product with 1/scale, which differs at ties).
        """
        # The divisor lives where x does: CUDA turns division by a CPU scalar into that product.
        scale = torch.tensor(self.scale, dtype=torch.float32, device=x.device)
        y = torch.round(x / scale) + self.zero_point
        return y.clamp(self.format.code_min, self.format.code_max).to(self.format.dtype)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return ``scale · (codes − zero_point)`` in float32, as ONNX DequantizeLinear."""
        return (codes.to(torch.int32) - self.zero_point).to(torch.float32) * self.scale

    def to_json(self) -> dict[str, Any]:
        """Return ``{"scale", "zero_point", "format"}``."""
        return {"scale": self.scale, "zero_point": self.zero_point, "format": self.format.name}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Encoding:
        """Return the encoding that :meth:`to_json` wrote.

        >>> from bitsmith.numbers.formats.integer import uint8
        >>> e = Encoding(0.1, 7, uint8)
        >>> Encoding.from_json(e.to_json()) == e
        True
        """
        missing = sorted({"scale", "zero_point", "format"} - set(data))
        if missing:
            raise SchemeError(f"an encoding needs {', '.join(missing)}; it has {sorted(data)}")
        number = formats[data["format"]]
        if not isinstance(number, IntegerFormat):
            raise SchemeError(f"an encoding needs an integer format such as uint8, not {number!r}")
        return cls(float(data["scale"]), int(data["zero_point"]), number)
