"""The range of a tensor at hand, searched for each group of values that shares a scale.

Calibrators read statistics of streams; a weight is there as a whole, so its own error can be
measured for every candidate, with every group at once.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from bitsmith.errors import InputError
from bitsmith.numbers.affine import fake_quantize, scale_zero_point
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.pieces import in_blocks, pieces
from bitsmith.numbers.ranges import as_float32, relative_importance, value_range
from bitsmith.numbers.scheme import Scheme

__all__ = ["search_range"]

_SLAB = 1 << 18  # values searched at a time, where groups are independent: they stay in the cache

_KNEE = 0.2
"""Below this share of the range only outliers send the best range."""

_Bounds = tuple[Tensor, Tensor]


def search_range(
    x: Tensor,
    scheme: Scheme,
    importance: Tensor | None = None,
    *,
    steps: int = 64,
    smallest: float = 0.01,
    norm: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point, per group, that lose the least of those tried.

    Minimised in each group is ``Σ importance · |x − Q(x)|^norm``. The candidates are the group's
    min–max range, widened to contain 0, times 1 and times ``steps`` factors: three in four
    evenly spaced from ``top`` to 0.2, where the best range of ordinary weights lies, the rest
    from there to ``smallest`` in equal ratios, for outliers. ``top`` is 1, or (2^b − 1)/(2^b − 2)
    for the symmetric full range, whose largest code stands for less than its end otherwise.
    Asymmetric: first both ends times the same factor, then the lower end times each factor with
    the upper one as it is best, then the upper end likewise. Scales that are powers of two
    (``e8m0``) change by halves and doubles only, so there the factors are 1, 2, ½, ¼ … down to
    ``smallest``.

    Min–max itself comes first and wins ties, so the result is never worse. Two-level scales are
    rounded together, which the search of one group cannot foresee: if min–max is better over
    the whole tensor in the end, it is returned.

    Beside ``x``, memory takes a few pieces where scales differ along the first axis, and two
    copies of ``x`` where they do not.

    Args:
        x: floating-point values, any shape, not empty.
        scheme: any but one with a learned table.
        importance: how much an error counts, not negative; broadcasts to ``x``. For a weight
            ``[out, in]`` the second moments ``[in]`` of its input make the squared error that
            of the layer's output, for uncorrelated features.
        steps: number of factors.
        smallest: the last factor, above 0 and at most 1.
        norm: exponent of the error; 2 is squared error.

    Returns:
        scale (float32) and zero point (int32), of the shape of the scheme's granularity.

    Raises:
        DataError: ``x`` is empty or not finite, or importance is negative, not finite or does not
            broadcast.
        InputError: steps, smallest or norm out of range.
        SchemeError: the scheme does not fit the tensor.

    >>> from bitsmith.numbers.formats.integer import int2
    >>> x = torch.tensor([-1.0, -0.5, 0.5, 0.5, 0.6, 3.0])
    >>> wide, _ = search_range(x, Scheme(int2))
    >>> ignored = torch.tensor([1.0, 1, 1, 1, 1, 0])
    >>> narrow, _ = search_range(x, Scheme(int2), importance=ignored)
    >>> bool(narrow < wide)
    True
    """
    _check_options(steps, smallest, norm)
    x = as_float32(x)
    shape = scheme.granularity.scale_shape(x.shape)
    low, high = value_range(x, shape)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    weight = None if importance is None else relative_importance(importance, x)
    factors = _factors(scheme, steps, smallest)
    whole = isinstance(scheme.scale_format, Scheme) or scheme.rounding == "stochastic"
    if whole or not shape or shape[0] == 1:
        return _search(x, scheme, weight, (low, high), factors, norm)
    block = x.shape[0] // shape[0]
    groups = max(1, _SLAB * shape[0] // x.numel())
    found = [
        _search(
            x[start * block : (start + groups) * block],
            scheme,
            None if weight is None else weight[start * block : (start + groups) * block],
            (low[start : start + groups], high[start : start + groups]),
            factors,
            norm,
        )
        for start in range(0, shape[0], groups)
    ]
    return torch.cat([scale for scale, _ in found]), torch.cat([point for _, point in found])


def _search(
    x: Tensor,
    scheme: Scheme,
    weight: Tensor | None,
    whole: _Bounds,
    factors: list[float],
    norm: float,
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of the best candidate of each group."""
    unit, _ = scale_zero_point(*whole, scheme)

    quick = _Quick(x, unit, weight, scheme) if _is_plain(x, unit, scheme, norm) else None

    def loss(bounds: _Bounds) -> Tensor:
        scale, point = scale_zero_point(*bounds, scheme)
        if quick is not None:
            return quick.losses(scale, point)
        back = fake_quantize(x, scheme, scale, point)
        return _losses(x, back, weight, unit, norm)

    best, least = whole, loss(whole)

    def improve(one: _Bounds) -> None:
        nonlocal best, least
        found = loss(one)
        better = found < least
        least = torch.where(better, found, least)
        best = torch.where(better, one[0], best[0]), torch.where(better, one[1], best[1])

    for f in factors[1:]:
        improve((_times(whole[0], f), _times(whole[1], f)))
    if not scheme.symmetric:
        other = best[1]
        for f in factors:
            improve((_times(whole[0], f), other))
        other = best[0]
        for f in factors:
            improve((other, _times(whole[1], f)))
    if isinstance(scheme.scale_format, Scheme):
        worth = unit.to(torch.float64) ** norm
        if (loss(best) * worth).sum() > (loss(whole) * worth).sum():
            best = whole
    return scale_zero_point(*best, scheme)


def _is_plain(x: Tensor, unit: Tensor, scheme: Scheme, norm: float) -> bool:
    """Whether :class:`_Quick` does it: integers, squares, and groups that float32 can sum."""
    plain = scheme.affine and scheme.rounding == "half_even" and norm == 2
    return plain and x.numel() <= _SLAB and x.numel() <= unit.numel() << 16


@final
class _Quick:
    """Squared errors of integer formats, candidate after candidate, without leaving the cache."""

    def __init__(self, x: Tensor, unit: Tensor, weight: Tensor | None, scheme: Scheme) -> None:
        parts = [x, unit] if weight is None else [x, unit, weight]
        self._x, self._unit, *rest = in_blocks(x.shape, *parts, scale_shape=unit.shape)
        self._weight = rest[0] if rest else None
        self._scheme, self._shape = scheme, unit.shape
        self._steps, self._codes = torch.empty_like(self._x), torch.empty_like(self._x)
        wide = self._unit.dim() > 0
        self._shared = [i for i, n in enumerate(self._unit.shape) if n == 1] if wide else None

    def losses(self, scale: Tensor, point: Tensor) -> Tensor:
        """Return ``Σ weight · ((x − Q(x)) / unit)²`` of each group, float64, the shape of unit."""
        scheme, step = self._scheme, scale.reshape(self._unit.shape)
        zero = point.reshape(self._unit.shape).to(torch.float32)
        steps, codes = torch.div(self._x, step, out=self._steps), self._codes
        low, high = scheme.code_min - zero, scheme.code_max - zero
        torch.round(steps, out=codes)
        torch.maximum(torch.minimum(codes, high, out=codes), low, out=codes)
        error = codes.sub_(steps).square_()
        if self._weight is not None:
            error.mul_(self._weight)
        total = error if self._shared == [] else error.sum(self._shared, keepdim=step.dim() > 0)
        ratio = (step / self._unit).to(torch.float64)
        return (total * ratio.square()).reshape(self._shape)


def _losses(x: Tensor, back: Tensor, weight: Tensor | None, unit: Tensor, norm: float) -> Tensor:
    """Return ``Σ weight · (|x − back| / unit)^norm`` of each group, float64, the shape of unit.

    In units of the min–max scale, so that neither large nor small values leave float32.
    """
    total = torch.zeros_like(unit, dtype=torch.float64)
    parts = [x, back, unit, total] if weight is None else [x, back, unit, total, weight]
    for values, found, one, out, *weights in pieces(
        *in_blocks(x.shape, *parts, scale_shape=unit.shape)
    ):
        error = ((values - found) / one).abs_().pow_(norm)
        for w in weights:
            error *= w
        shared = [i for i, n in enumerate(out.shape) if n == 1] if out.dim() else None
        out += error if shared == [] else error.sum(shared, keepdim=out.dim() > 0, dtype=out.dtype)
    return total


def _factors(scheme: Scheme, steps: int, smallest: float) -> list[float]:
    """Return the factors that ranges are multiplied by, 1 first."""
    inner = scheme.scale_format
    if isinstance(inner, NumberFormat) and inner.min > 0:  # powers of two
        halves = [2.0**-k for k in range(1, steps) if 2.0**-k >= smallest]
        return [1.0, 2.0, *halves]
    top = 1.0
    if scheme.affine and scheme.symmetric:
        top = (scheme.code_max - scheme.code_min) / (2 * scheme.code_max)
    knee = max(_KNEE, smallest)
    near = steps if knee == smallest else max(1, 3 * steps // 4)
    even = torch.linspace(top, knee, near, dtype=torch.float64).tolist()
    ratio = (smallest / knee) ** (1 / max(1, steps - near))
    tail = [knee * ratio**k for k in range(1, steps - near + 1)]
    return [1.0, *(f for f in even + tail if f != 1.0)]


def _times(bound: Tensor, factor: float) -> Tensor:
    limit = torch.finfo(torch.float32).max
    return (bound * factor).clamp(-limit, limit)


def _check_options(steps: int, smallest: float, norm: float) -> None:
    reasons = []
    if steps < 1:
        reasons.append(f"steps is at least 1, not {steps}")
    if not 0 < smallest <= 1:
        reasons.append(f"smallest is above 0 and at most 1, not {smallest}")
    if not 0 < norm <= 8:
        reasons.append(f"norm is above 0 and at most 8, not {norm}")
    if reasons:
        raise InputError("; ".join(reasons))
