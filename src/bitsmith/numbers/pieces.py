"""Large tensors in pieces that stay in the processor's cache.

A chain of elementwise operations on a tensor larger than the cache moves it through memory once
per operation. On pieces it moves once in all, so that a chain costs little more than a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bitsmith.numbers.granularity import blocked

__all__ = ["PIECE", "fresh", "in_blocks", "pieces"]

PIECE = 1 << 19
"""Values in a piece: 2 MiB of float32, which two cores hold in their second-level caches."""


_NUMPY = {
    torch.float32: np.float32,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.bool: np.bool_,
}
_LARGE, _TOO_LARGE = 1 << 22, 1 << 27


def fresh(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory for a tensor, its values undefined.

    Large ones on the CPU come from NumPy, which asks the kernel for huge pages: first touching
    memory 4 KiB at a time takes as long as quantizing what is put there. Not those beyond
    128 MiB: for so many huge pages the kernel may have to move memory first, which takes longer.

    >>> import torch
    >>> fresh((2, 3), torch.int8, torch.device("cpu")).shape
    torch.Size([2, 3])
    """
    worthwhile = _LARGE <= torch.Size(shape).numel() * dtype.itemsize < _TOO_LARGE
    if (
        not worthwhile
        or device.type != "cpu"
        or dtype not in _NUMPY
        or torch.compiler.is_compiling()
    ):
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return torch.from_numpy(np.empty(tuple(shape), _NUMPY[dtype]))


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
        # Not one comparison of two truths: sizes are symbols where a compiler traces.
        if groups and (groups[-1][1] == 1 if s == 1 else groups[-1][1] != 1):
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
