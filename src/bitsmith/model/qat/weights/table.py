"""Codes from a table whose entries train: clusters are preserved, their values move."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from torch import Tensor, nn

from bitsmith.model.convert import IntegerLayer
from bitsmith.model.qat.codes import FixedLevels, Start, is_binary, wide
from bitsmith.model.qat.straight_through import bounded

__all__ = ["TableCodes"]

_CELL = 0.2
"""Furthest that a weight begins from its entry, as a share of the way to the edge of its cell.

As in learned steps: an entry that was chosen for the output of the layer is often not the nearest.
"""


@final
class TableCodes(FixedLevels, name="table"):
    """Every code is the nearest entry of the layer's table, and entries, scales and weights train.

    ``codes = table[nearest(w / s)]``, ``table = round(limit · entries)``. The gradient of an entry
    is the sum of its members' (Deep Compression, arXiv 1510.00149, section 3.2); that of the
    weight passes straight through, so that it can move to another cluster, up to as far beyond the
    last entry as half the way to the one before it; that of a scale is that of learned steps. The
    number of entries never changes. It starts with the codes that rounding without training found:
    each weight is moved as little as gives its code.

    Attributes:
        entries: float32 ``[E]``, as shares of the largest code that the machine is exact on.
    """

    learns = frozenset({"lsq", "minmax"})

    def begin(self, start: Start) -> None:
        assert start.layer.table is not None
        self.limit = float(start.limit)
        self.place(start.weight, start.scales)
        self.entries = nn.Parameter(start.layer.table.to(torch.float32) / self.limit)
        self._settle(start.layer.weight.codes.float(), start.layer.table.float())

    @classmethod
    def fits(cls, layer: IntegerLayer) -> bool:
        return layer.table is not None and not is_binary(layer)

    @torch.no_grad()
    def _settle(self, codes: Tensor, table: Tensor) -> None:
        """Move weights of another entry than the nearest well into its cell; ``table`` ascends."""
        scale, half = wide(self.scale(), codes), table.diff() / 2
        if not len(half):  # one entry, whatever the weight
            return
        below, above = torch.cat([half[:1], half]), torch.cat([half, half[-1:]])
        own = torch.searchsorted(table, codes.contiguous())
        low, high = codes - _CELL * below[own], codes + _CELL * above[own]
        real = self.weight / scale
        nearest = torch.bucketize(real, table[:-1] + half, right=True)
        self.weight.copy_(torch.where(nearest == own, self.weight, real.clamp(low, high) * scale))

    @property
    def high(self) -> float:
        return self.limit

    def levels(self, weight: Tensor, scale: Tensor) -> Tensor:
        table = bounded(self.entries, -1.0, 1.0) * self.limit
        apply = cast(Any, _Nearest).apply
        return cast(Tensor, apply(weight, wide(scale, weight), table))


class _Nearest(torch.autograd.Function):
    """``(w, s, table)`` → the rounded entry that is nearest to ``w / s``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, table: Tensor) -> Tensor:
        v = weight / scale
        values, order = torch.sort(torch.round(table))
        middles = (values[1:] + values[:-1]) / 2
        place = torch.bucketize(v, middles, right=True)
        ctx.save_for_backward(v, scale, place, values, order)
        return values[place]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        v, scale, place, values, order = ctx.saved_tensors
        gradient = gradients[0]
        low, high = values[0], values[-1]
        if len(values) > 1:
            low = low - (values[1] - low) / 2
            high = high + (high - values[-2]) / 2
        inside = torch.where((v >= low) & (v <= high), gradient, 0.0)
        to_weight = inside / scale if ctx.needs_input_grad[0] else None
        to_scale = None
        if ctx.needs_input_grad[1]:
            to_scale = -(inside * v).sum_to_size(scale.shape) / scale
        to_table = torch.zeros_like(values)
        members = torch.bincount(place.flatten(), gradient.flatten().double(), len(values))
        to_table[order] = members.to(values.dtype)
        return to_weight, to_scale, to_table
