"""The kind of algorithm that turns a float weight into codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.affine import quantize, scale_zero_point
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.registry import Registry

__all__ = ["Rounded", "Rounding", "weight_range"]


@final
@dataclass(frozen=True)
class Rounded:
    """What a rounding returns.

    Attributes:
        qtensor: the quantized weight.
        error: mean squared error against the float weight.
        nearest_error: that of rounding to nearest in the full min–max range.
    """

    qtensor: QTensor
    error: float
    nearest_error: float


class Rounding(ABC):
    """weight → codes.

    Contract, checked on every call: the weight is finite, the result has its shape and the scheme
    that was asked for, and every scale is at least ``min_scale``.
    """

    registry: ClassVar[Registry[type[Rounding]]] = Registry(
        "rounding", "bitsmith.algorithms.roundings"
    )
    name: ClassVar[str]

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Rounding.registry.add(name, cls)

    @abstractmethod
    def round(self, weight: Tensor, scheme: Scheme, min_scale: Tensor) -> QTensor:
        """Return the quantized weight; ``min_scale`` has the scale's shape."""

    def __call__(
        self, weight: Tensor, scheme: Scheme, *, min_scale: Tensor | None = None
    ) -> Rounded:
        """Return the quantized ``weight`` and its error beside that of nearest rounding.

        Args:
            weight: float32, any shape the scheme's granularity accepts.
            scheme: format, symmetry and granularity of the codes.
            min_scale: no scale may be smaller; float32 of the scale's shape. (An int32 bias of a
                large value needs a scale that is not too small.)

        Raises:
            DataError: the weight has NaN or infinite values.
        """
        bad = int((~torch.isfinite(weight)).sum())
        if bad:
            raise DataError(f"{bad} of {weight.numel()} weights are NaN or infinite")
        weight = weight.detach().to(torch.float32)
        if min_scale is None:
            min_scale = torch.zeros(scheme.granularity.scale_shape(weight.shape))
        result = self.round(weight, scheme, min_scale)
        assert result.shape == weight.shape
        assert result.scheme == scheme
        assert bool((result.scale >= min_scale).all())
        plain = quantize(weight, scheme)
        return Rounded(result, _error(weight, result), _error(weight, plain))


def weight_range(weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return ``(scale, zero_point)`` of the min–max range, of the scale's shape."""
    shape = scheme.granularity.scale_shape(weight.shape)
    if not shape:
        low, high = weight.aminmax()
    else:
        axes = [i for i, n in enumerate(shape) if n == 1]
        low, high = weight.amin(axes, keepdim=True), weight.amax(axes, keepdim=True)
    return scale_zero_point(low, high, scheme)


def _error(weight: Tensor, q: QTensor) -> float:
    return float((weight - q.dequantize()).square().mean()) if weight.numel() else 0.0
