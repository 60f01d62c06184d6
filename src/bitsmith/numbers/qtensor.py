"""A quantized tensor: codes and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import SchemeError
from bitsmith.numbers.packing import packed_bytes
from bitsmith.numbers.scheme import Scheme

__all__ = ["QTensor", "dequantize"]


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return ``scale · (codes − zero_point)``, float32 of the shape of ``codes``.

    As ONNX DequantizeLinear: the difference is exact in int32, one float32 product rounds.

    >>> one = torch.tensor(1, dtype=torch.int32)
    >>> dequantize(torch.tensor([3, 1], dtype=torch.int8), torch.tensor(0.5), one).tolist()
    [1.0, 0.0]
    """
    return (codes.to(torch.int32) - zero_point).to(torch.float32) * scale


@final
@dataclass(frozen=True, eq=False)
class QTensor:
    """Codes with their scale, zero point and scheme; a plain record, not a tensor subclass.

    Codes are held one a byte; packing happens where they are stored.

    Attributes:
        codes: ``scheme.format.dtype``, the shape of the tensor it stands for.
        scale: float32, positive, of shape ``scheme.granularity.scale_shape(codes.shape)``.
        zero_point: int32, the shape of ``scale``; all 0 when the scheme is symmetric.
        codebook: None for integer formats.
        scheme: how it was quantized.

    Raises:
        SchemeError: the parts do not fit together; the message lists every misfit.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    codebook: Tensor | None
    scheme: Scheme

    def __post_init__(self) -> None:
        if misfits := _misfits(self):
            raise SchemeError("the parts of a QTensor do not fit: " + "; ".join(misfits))

    @property
    def shape(self) -> torch.Size:
        """The shape of the tensor it stands for."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes when packed: codes, float32 scales, and zero points at the codes' width.

        A symmetric scheme stores no zero points: they are all 0.
        """
        bits = self.scheme.format.bits
        points = 0 if self.scheme.symmetric else self.zero_point.numel()
        table = 0 if self.codebook is None else self.codebook.nbytes
        codes, zero_points = packed_bytes(self.codes.numel(), bits), packed_bytes(points, bits)
        return codes + zero_points + self.scale.nbytes + table

    @property
    def bits_per_weight(self) -> float:
        """``8 · nbytes / values``: everything that is stored; 0 for a tensor without values."""
        return 8 * self.nbytes / self.codes.numel() if self.codes.numel() else 0.0

    def dequantize(self) -> Tensor:
        """Return ``scale · (codes − zero_point)``, float32 of ``shape``."""
        return dequantize(self.codes, self.scale, self.zero_point)


def _misfits(q: QTensor) -> list[str]:
    """Return every way in which the parts contradict each other."""
    scheme, misfits = q.scheme, []
    expected = scheme.granularity.scale_shape(q.codes.shape)
    for name, part, dtype in (
        ("scale", q.scale, torch.float32),
        ("zero_point", q.zero_point, torch.int32),
    ):
        if part.dtype != dtype or tuple(part.shape) != expected:
            misfits.append(
                f"{name} is {part.dtype} of shape {tuple(part.shape)} and must be {dtype} of "
                f"shape {expected} for {scheme.granularity} on {tuple(q.codes.shape)}"
            )
    if q.codes.dtype != scheme.integer.dtype:
        misfits.append(f"codes of {scheme.format} are {scheme.integer.dtype}, not {q.codes.dtype}")
    elif q.codes.numel():
        low, high = (int(v) for v in torch.aminmax(q.codes))
        if low < scheme.code_min or high > scheme.code_max:
            misfits.append(
                f"codes run from {low} to {high}, the scheme's from {scheme.code_min} to "
                f"{scheme.code_max}"
            )
    if q.codebook is not None:
        misfits.append(f"{scheme.format} has no codebook")
    return misfits
