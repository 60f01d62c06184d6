"""How the file holds one weight: the kinds of storage.

Of a weight ``[N, K]`` with scales ``[R, C]`` the file holds ``<name>.codes``, and as the scheme
has them ``.scale``, ``.zero_point`` and ``.codebook``. Stored codes are ``code + offset``.

===========  ============================================================================
``codes``    ``[N, K]``, an ONNX integer type of 2, 4 or 8 bits
``columns``  the same, transposed: ``[K, N]``
``blocks``   uint8 ``[N, B, block·bits/8]``, B = ⌈K/block⌉, lowest bits first, as MatMulNBits
             reads it; zero points uint8 ``[N, ⌈B·bits/8⌉]``, one for each block
``bytes``    uint8 ``[N, ⌈K·bits/8⌉]``, lowest bits first
===========  ============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import onnx
import torch
from onnx import TensorProto
from torch import Tensor

from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.scheme import Scheme

__all__ = ["FLOATS", "INTEGERS", "Kind", "Part", "Storage", "scale_type", "table_of"]

Kind = Literal["codes", "columns", "blocks", "bytes"]

INTEGERS = {
    (2, False): TensorProto.UINT2,
    (2, True): TensorProto.INT2,
    (4, False): TensorProto.UINT4,
    (4, True): TensorProto.INT4,
    (8, False): TensorProto.UINT8,
    (8, True): TensorProto.INT8,
}
FLOATS: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
_NAMED = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@final
@dataclass(frozen=True)
class Storage:
    """How one weight is held.

    Attributes:
        kind: see the table of this module.
        bits: that a code takes, 2, 4 or 8.
        signed: whether the stored codes have a sign.
        offset: what is added to a code before it is stored.
        block: of ``blocks``, the values in one; else 0.
        scheme: how the weight is quantized.
        shape: ``[N, K]``, with the columns that were padded.
    """

    kind: Kind
    bits: int
    signed: bool
    offset: int
    block: int
    scheme: Scheme
    shape: tuple[int, int]

    @property
    def groups(self) -> tuple[int, int]:
        """``R, C``: the shape of the scales, 1 × 1 per tensor."""
        found = self.scheme.granularity.scale_shape(self.shape)
        return (found[0], found[1]) if found else (1, 1)

    @property
    def dimension(self) -> int:
        """Weights in one entry of a learned table, 1 of everything else."""
        number = self.scheme.format
        return number.dimension if isinstance(number, LearnedFormat) else 1

    @property
    def element(self) -> int:
        """ONNX type of the stored codes."""
        return INTEGERS[8, False] if self.packs else INTEGERS[self.bits, self.signed]

    @property
    def packs(self) -> bool:
        """Whether bytes hold several codes that the file's type does not know of."""
        return self.kind in ("blocks", "bytes")

    @property
    def blocks(self) -> int:
        """Blocks of a row; the last may be padded."""
        return -(-self.shape[1] // self.block)

    @property
    def places(self) -> tuple[int, int]:
        """Rows and columns of the codes."""
        return self.shape[0], self.shape[1] // self.dimension

    def to_json(self) -> dict[str, Any]:
        """Return everything but the scheme, which many weights share."""
        keys = ("kind", "bits", "signed", "offset", "block")
        return {key: getattr(self, key) for key in keys} | {"shape": list(self.shape)}


@final
@dataclass(frozen=True)
class Part:
    """A tensor of the file, as bytes: torch and numpy lack some of the types."""

    element: int
    shape: tuple[int, ...]
    content: bytes

    def proto(self, name: str) -> onnx.TensorProto:
        """Return it as an initializer."""
        return onnx.TensorProto(
            name=name, data_type=self.element, dims=self.shape, raw_data=self.content
        )

    @classmethod
    def from_proto(cls, proto: onnx.TensorProto) -> Part:
        """Return what :meth:`proto` made."""
        return cls(proto.data_type, tuple(proto.dims), proto.raw_data)


def scale_type(scheme: Scheme) -> int | None:
    """Return the ONNX type of the stored scales; UINT8: codes of a format of 8 bits; None: none."""
    inner = scheme.scale_format
    if inner is None:
        return int(TensorProto.FLOAT)
    if isinstance(inner, Scheme):
        return None
    if inner.name in _NAMED:
        return int(_NAMED[inner.name])
    return int(TensorProto.UINT8) if inner.bits <= 8 and inner.dtype == torch.uint8 else None


def table_of(number: NumberFormat) -> tuple[int, Tensor]:
    """Return the lowest code of a format and the float32 values of all codes from it on."""
    low, high = int(number.codes.min()), int(number.codes.max())
    return low, number.decode(torch.arange(low, high + 1).to(number.dtype)).to(torch.float32)
