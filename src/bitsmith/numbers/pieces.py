"""Large tensors in pieces that stay in the processor's cache.

A chain of elementwise operations on a tensor larger than the cache moves it through memory once
per operation. On pieces it moves once in all, so that a chain costs little more than a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from bitsmith.numbers.granularity import blocked

__all__ = ["PIECE", "in_blocks", "pieces"]

PIECE = 1 << 18
"""Values in a piece: 1 MiB of float32, half of the second-level cache of a recent x86 core."""


def in_blocks(shape: Sequence[int], *parts: Tensor, scale_shape: Sequence[int]) -> list[Tensor]:
    """Return tensors of ``shape`` or of ``scale_shape`` as views that broadcast together.

    Axes that no scale tells apart are merged, so that a piece is few long rows.

    >>> import torch
    >>> x, s = torch.zeros(6, 8, 2), torch.ones(6, 4, 1)
    >>> [tuple(t.shape) for t in in_blocks(x.shape, x, s, scale_shape=s.shape)]
    [(24, 4), (24, 1)]
    """
    wide, narrow = _merged(*blocked(shape, scale_shape))
    return [
        part.reshape(wide if tuple(part.shape) == tuple(shape) else narrow)
        if len(scale_shape) or tuple(part.shape) == tuple(shape)
        else part
        for part in parts
    ]


def pieces(x: Tensor, *parts: Tensor, size: int = PIECE) -> Iterator[tuple[Tensor, ...]]:
    """Give ``x`` and ``parts``, which broadcast to it, cut alike into views of ``size`` values.

    >>> import torch
    >>> x, s = torch.zeros(5, 4), torch.ones(5, 1)
    >>> [(tuple(a.shape), tuple(b.shape)) for a, b in pieces(x, s, size=8)]
    [((2, 4), (2, 1)), ((2, 4), (2, 1)), ((1, 4), (1, 1))]
    """
    if x.numel() <= size:
        yield (x, *parts)
        return
    axis = next(i for i, n in enumerate(x.shape) if n > 1)
    step = max(1, size * x.shape[axis] // x.numel())
    for start in range(0, x.shape[axis], step):
        length = min(step, x.shape[axis] - start)
        cut = [
            p.narrow(axis, start, length) if p.dim() and p.shape[axis] > 1 else p
            for p in (x, *parts)
        ]
        yield from pieces(*cut, size=size)


def _merged(wide: Sequence[int], narrow: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Merge neighbouring axes that are both shared by a scale, or both kept apart."""
    if not narrow:
        return (_product(wide),), ()
    groups: list[list[int]] = []
    for n, s in zip(wide, narrow, strict=True):
        if n == 1:
            continue
        if groups and (groups[-1][1] == 1) == (s == 1):
            groups[-1] = [groups[-1][0] * n, groups[-1][1] * s]
        else:
            groups.append([n, s])
    groups = groups or [[1, 1]]
    return tuple(n for n, _ in groups), tuple(s for _, s in groups)


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
