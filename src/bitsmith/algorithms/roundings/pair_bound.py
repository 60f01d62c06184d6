"""8-bit weights that cannot saturate the 16-bit pair sums of x86 machines without VNNI.

There, two neighbouring products u8·s8 are added in int16 with saturation, so a file is exact
only if ``|w_i + w_j| ≤ 128`` for every pair of neighbours of one sign (255·128 = 32640 fits
int16, 255·129 does not; see :mod:`bitsmith.numbers.integer.saturate`). Halving the range of
every weight does it and costs a whole bit. Here each output channel keeps the largest range
that pays: for every scale between the full range and the one where no pair is too large, the
pairs that are too large are brought back to the bound in the cheapest way, and the scale with the
least squared error wins; the half ranges are among the candidates, so it is never worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.algorithms.baseline import weight_range
from bitsmith.algorithms.rounding import Rounding
from bitsmith.errors import SchemeError
from bitsmith.numbers.integer.saturate import max_pair_sum
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerChannel, PerTensor, Scheme
from bitsmith.numbers.statistics import Statistic

__all__ = ["PAIR_LIMIT", "PairBound"]

#: Largest |w_i + w_j| whose product with 255 still fits int16 on both sides.
PAIR_LIMIT = 128
_CANDIDATES = 32
#: Weights searched at a time.
_CHUNK = 1 << 17


@final
@dataclass(frozen=True)
class PairBound(Rounding, name="pair-bound"):
    """Nearest rounding under ``|w_i + w_j| ≤ 128`` for same-sign neighbours of a channel.

    The scale is one for each output channel, or one for all.

    Attributes:
        order: which weights are neighbours: ``channels_last`` (ONNX Runtime's convolution),
            ``channels_first``, or ``any`` (whatever the layout).

    >>> from bitsmith.numbers.formats.integer import int8
    >>> w = torch.tensor([[1.0, 0.9, -0.2, 0.1]])
    >>> q = PairBound()(w, Scheme(int8, granularity=PerChannel(0))).qtensor
    >>> int(max_pair_sum(q.codes)) <= 128
    True
    """

    lowers_error = False

    order: Literal["channels_last", "channels_first", "any"] = "channels_last"

    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        if scheme.granularity not in (PerChannel(0), PerTensor()) or not scheme.symmetric:
            raise SchemeError(
                f"pair-bound rounds symmetric weights per channel of axis 0 or per tensor, "
                f"not {scheme}"
            )
        full, zero_point = weight_range(weight, scheme)
        full = torch.maximum(full, min_scale)
        rows, start = self._in_pair_order(weight), full.reshape(-1, 1)  # [O, K], [O, 1] or [1, 1]
        codes = torch.empty(rows.shape, dtype=scheme.integer.dtype)
        scale = torch.empty_like(start)
        step = max(1, _CHUNK // max(1, rows.shape[1]))
        if len(start) < len(rows):
            step = len(rows)  # one scale: all rows at once
        for at in range(0, len(rows), step):  # pieces that stay in the cache
            piece = slice(at, at + step)
            best, scale[piece] = self._search(rows[piece], start[piece], scheme)
            codes[piece] = best.to(codes.dtype)
        codes = self._from_pair_order(codes, weight.shape)
        assert int(max_pair_sum(codes, self.order).amax()) <= PAIR_LIMIT
        return QTensor(codes, scale.reshape(full.shape), zero_point, None, scheme)

    def _search(self, rows: Tensor, start: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """The bounded codes and the scale of least squared error, for each of some rows or all."""
        limit = min(PAIR_LIMIT, 2 * scheme.code_max)
        # The scale at which the largest pair is at the bound without help.
        pair = _largest_pair(rows, self.order)
        one = len(start) < len(rows)
        safe = torch.maximum(start, (pair.amax() if one else pair) / (limit - 1))
        unit = rows / start  # squares of tiny weights would vanish
        best_codes, best_scale = self._codes(rows, safe, scheme), safe
        best_error = _error(unit, best_codes, safe / start)
        for scale in _scales(rows, start, safe):
            codes = self._codes(rows, scale, scheme)
            error = _error(unit, codes, scale / start)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_codes = torch.where(better, codes, best_codes)
            best_scale = torch.where(better, scale, best_scale)
        return best_codes, best_scale

    def _codes(self, rows: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
        real = rows / scale
        codes = real.round().clamp_(scheme.code_min, scheme.code_max)
        return _bound_any(codes) if self.order == "any" else _bound_neighbours(codes, real, scheme)

    def _in_pair_order(self, weight: Tensor) -> Tensor:
        if self.order == "channels_last" and weight.dim() > 2:
            weight = weight.movedim(1, -1)
        return weight.flatten(1)

    def _from_pair_order(self, rows: Tensor, shape: torch.Size) -> Tensor:
        if self.order == "channels_last" and len(shape) > 2:
            moved = rows.reshape(shape[0], *shape[2:], shape[1])
            return moved.movedim(-1, 1).contiguous()
        return rows.reshape(shape)


def _scales(rows: Tensor, start: Tensor, safe: Tensor) -> Iterator[Tensor]:
    """The scales to try: from the full range to where no pair is too large, and the half ranges.

    The half ranges, ±64 and ±63, are tried so that the result is never worse than they are.
    """
    for step in range(_CANDIDATES):
        yield start * (safe / start) ** (step / _CANDIDATES)
    largest = rows.abs().amax(1, keepdim=True) if len(start) == len(rows) else rows.abs().amax()
    for top in (PAIR_LIMIT // 2, PAIR_LIMIT // 2 - 1):
        yield torch.maximum(start, largest / top)


def _even(rows: Tensor) -> Tensor:
    return functional.pad(rows, (0, rows.shape[1] % 2))


def _largest_pair(rows: Tensor, order: str) -> Tensor:
    """The largest |w_i + w_j| of one sign that the order allows, ``[O, 1]``, in weight units."""
    if order == "any":
        padded = functional.pad(rows, (0, max(2 - rows.shape[1], 0)))
        signs = torch.stack([padded.clamp(min=0), (-padded).clamp(min=0)])
        return signs.topk(2, dim=-1).values.sum(-1).amax(0).unsqueeze(1)
    even = _even(rows)
    first, second = even[:, 0::2], even[:, 1::2]
    same = first * second > 0
    return torch.where(same, (first + second).abs(), 0.0).amax(1, keepdim=True)


def _bound_neighbours(codes: Tensor, real: Tensor, scheme: Scheme) -> Tensor:
    """Bring every same-sign pair that is too large to the bound, splitting it best."""
    pairs = _even(codes).reshape(len(codes), -1, 2)
    # A sum beyond 128 has two addends of one sign: none alone is beyond it.
    row, pair = (pairs.sum(-1).abs_() > PAIR_LIMIT).nonzero(as_tuple=True)
    if not len(row):
        return codes
    wanted = _even(real).reshape(len(codes), -1, 2)[row, pair].abs()
    # argmin (ra − a)² + (rb − b)² with a + b = 128: a = (128 + ra − rb) / 2.
    top = float(scheme.code_max)
    split = ((PAIR_LIMIT + wanted[:, 0] - wanted[:, 1]) / 2).round()
    split = split.clamp(PAIR_LIMIT - top, top)
    sign = torch.sign(pairs[row, pair])
    pairs[row, pair] = torch.stack([split, PAIR_LIMIT - split], -1) * sign
    return pairs.reshape(len(codes), -1)[:, : codes.shape[1]]


def _bound_any(codes: Tensor) -> Tensor:
    """Per sign: all but the largest at most 64, or the largest at most 128 minus the second."""
    half = PAIR_LIMIT // 2
    result = codes
    for sign in (1.0, -1.0):
        side = (result * sign).clamp(min=0)
        if side.shape[1] < 2:
            continue
        top, at = side.max(1, keepdim=True)
        rest = side.scatter(1, at, 0.0).clamp(max=half)
        top = torch.minimum(top, PAIR_LIMIT - rest.amax(1, keepdim=True))
        bounded = rest.scatter(1, at, top)
        result = torch.where(result * sign > 0, bounded * sign, result)
    return result


def _error(rows: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """Squared error of each row, or of all where they share a scale."""
    error = (rows - codes * scale).square().sum(1, keepdim=True)
    return error if len(scale) == len(rows) else error.sum(0, keepdim=True)
