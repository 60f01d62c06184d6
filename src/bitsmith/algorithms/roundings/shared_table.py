"""Integer codes from a small table that all channels of a layer share, with a scale for each.

A layer whose int8 codes take ``2^b`` distinct values is stored as b-bit indices and a table of
``2^b`` bytes, and executed by the kernels of int8 weights. Two steps take turns, and neither
raises the squared error but for the rounding of the table's entries: the best table for the
weights divided by their channel's scale (exact k-means in one dimension, a channel counting as
the square of its scale, :func:`bitsmith.numbers.clustering.kmeans_exact`), and each channel's
best scale for the codes it then has, ``⟨w, c⟩ / ⟨c, c⟩``. Where the inputs' Gram matrix is given,
the codes then descend on the error of the layer's output (:mod:`bitsmith.algorithms.descent`), and
the table stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.descent import (
    check_turns,
    descend_with_scales,
    hessian,
    nearest_level,
)
from bitsmith.algorithms.rounding import Rounding
from bitsmith.errors import InputError, SchemeError
from bitsmith.numbers.clustering import kmeans_exact
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerChannel, Scheme
from bitsmith.numbers.statistics import Gram, Statistic

__all__ = ["SharedTable"]

_TURNS = 8
#: A turn that lowers the error by less than this share is the last.
_GAIN = 1e-3


@final
@dataclass(frozen=True)
class SharedTable(Rounding, name="shared-table"):
    """At most ``2^bits`` distinct codes in a layer, none beyond ``limit``.

    Attributes:
        bits: of an index into the table, 1 to 7.
        limit: largest ``|code|``. Runtimes that add products in pairs of 16 bits need 64.
        sweeps, refits, gain, damping: of the descent with data, as
            :class:`~bitsmith.algorithms.roundings.coordinate.Coordinate` has them.

    >>> from bitsmith.numbers.formats.integer import int8
    >>> w = torch.tensor([[1.0, 0.9, -0.5, 0.1], [0.01, 0.02, -0.01, 0.0]])
    >>> q = SharedTable(bits=2, limit=64)(w, Scheme(int8, granularity=PerChannel(0))).qtensor
    >>> len(q.codes.unique()), int(q.codes.abs().max())
    (4, 64)
    """

    takes = Gram
    lowers_error = False

    bits: int = 4
    limit: int = 127
    sweeps: int = 20
    refits: int = 4
    gain: float = 1e-3
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 7:
            raise InputError(f"a table has indices of 1 to 7 bits, not {self.bits}")
        if not 1 <= self.limit <= 127:
            raise InputError(f"the largest code of a table is from 1 to 127, not {self.limit}")
        check_turns(self.sweeps, self.refits, self.gain)

    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        fits = scheme.affine and scheme.symmetric and scheme.granularity == PerChannel(0)
        if not fits or scheme.scale_format is not None or scheme.rounding != "half_even":
            raise SchemeError(
                f"shared-table rounds symmetric integers per channel of axis 0, not {scheme}"
            )
        rows, least = weight.double().flatten(1), min_scale.double().reshape(-1, 1)
        limit = min(self.limit, scheme.code_max)
        scale = torch.maximum(rows.abs().amax(1, keepdim=True) / limit, least)
        scale = torch.where(scale > 0, scale, 1.0)
        best, error = None, torch.inf
        for _ in range(_TURNS):
            table, scale = self._table(rows, scale, least, limit)
            codes = nearest_level(rows / scale, table)
            scale = torch.maximum(_fitted(rows, codes, scale), least).float().double()
            found = float(_unit(rows - scale * codes, rows).square().sum())
            gained = error - found
            if gained > 0:
                best, error = (codes, scale), found
            if not gained > _GAIN * found:
                break
        assert best is not None
        codes, scale = best
        stored = scale.float().reshape(min_scale.shape)
        zero = torch.zeros_like(stored, dtype=torch.int32)
        codes = codes.to(scheme.integer.dtype).reshape(weight.shape)
        q = QTensor(codes, stored, zero, None, scheme)
        if statistic is None:
            return q
        return descend_with_scales(
            weight,
            q,
            hessian(statistic, weight, self.damping),
            min_scale,
            sweeps=self.sweeps,
            refits=self.refits,
            gain=self.gain,
            levels=torch.unique(codes),
        )

    def _table(
        self, rows: Tensor, scale: Tensor, least: Tensor, limit: int
    ) -> tuple[Tensor, Tensor]:
        """The best entries, whole numbers that use the whole range, and the scales for them."""
        importance = (scale / scale.max()).square().expand_as(rows)
        units = (rows / scale).clamp(-4.0 * limit, 4.0 * limit)
        entries = kmeans_exact(units.flatten(), 1 << self.bits, importance.flatten()).codebook
        widest = float(entries.abs().max())
        stretch = limit / widest if widest > 0 else 1.0
        table = torch.unique((entries.double() * stretch).round().clamp(-limit, limit))
        return table, torch.maximum(scale / stretch, least).float().double()


def _fitted(rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """The scales of least squared error for ``codes``; where there is none, ``scale``."""
    unit = rows / scale
    ratio = (unit * codes).sum(1, keepdim=True) / codes.square().sum(1, keepdim=True)
    return torch.where(ratio > 0, ratio * scale, scale)  # NaN for a row of zeros


def _unit(error: Tensor, rows: Tensor) -> Tensor:
    """In units of the largest weight: squares of tiny weights would vanish."""
    return error / rows.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
