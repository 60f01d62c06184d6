"""Learned tables: a tensor clustered to few values, or few short vectors, and what that takes."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers.clustering import (
    assign,
    assign_vectors,
    kmeans_exact,
    kmeans_lloyd,
    kmeans_vectors,
)
from bitsmith.numbers.entropy_coding import huffman_encode
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.granularity import blocked
from bitsmith.numbers.packing import packed_bytes
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.ranges import as_float32, value_range
from bitsmith.numbers.scheme import Scheme

__all__ = ["Method", "cluster", "huffman_bytes", "nearest_entries"]

Method = Literal["auto", "exact", "lloyd"]

_EXACT_WORK = {True: 1 << 26, False: 1 << 22}
"""Values times entries up to which ``auto`` is exact, for one group and for many: seconds."""


def cluster(
    x: Tensor,
    scheme: Scheme,
    importance: Tensor | None = None,
    *,
    method: Method = "auto",
    seed: int = 0,
) -> QTensor:
    """Return ``x`` as indices into tables that minimise ``Σ_i h_i·(x_i − table[code_i])²``.

    Every group of the scheme's granularity gets a table of ``2^bits`` entries of its own, by
    k-means (Deep Compression, arXiv 1510.00149, section 3; with sensitivities h: SqueezeLLM,
    arXiv 2306.07629, eq. 5). A format with vectors (``LearnedFormat(8, dimension=4)``) cuts the
    last axis into them: product quantization (arXiv 1907.05686).

    Args:
        x: floating-point values, any shape.
        scheme: its format is a learned table. The entries are rounded to ``scale_format`` where
            one is given, and the codes are those of the rounded entries.
        importance: h, not negative, broadcast to ``x``: the diagonal of the Fisher information,
            or the second moment of the activation that meets the weight. None: all alike.
        method: ``exact``: the global optimum; ``lloyd``: the best of 8 starts; ``auto``: exact
            where values times entries is at most 2^26 in one group, or 2^22 in many. Vectors are
            always Lloyd's.
        seed: of the starts.

    Raises:
        SchemeError: the format is no learned table, or its vectors do not divide a group.
        DataError: ``x`` is empty or has values that are not finite; ``importance`` is negative,
            not finite or of another shape.

    >>> from bitsmith.numbers.formats.codebook import codebook1
    >>> q = cluster(torch.tensor([0.1, 0.9, 1.1, 0.1]), Scheme(codebook1))
    >>> q.codes.tolist(), [round(v, 3) for v in q.dequantize().tolist()]
    ([0, 1, 1, 0], [0.1, 1.0, 1.0, 0.1])
    """
    number = scheme.format
    if not isinstance(number, LearnedFormat):
        raise SchemeError(f"{number.name} has a table of its own: use quantize(x, scheme)")
    if method not in ("auto", "exact", "lloyd"):
        raise InputError(f"method is auto, exact or lloyd, not {method!r}")
    x = as_float32(x)
    value_range(x)  # refuses what is empty or not finite
    shape = scheme.granularity.scale_shape(x.shape)
    given = None if importance is None else _broadcast(importance, x)
    layout = _Layout(x.shape, shape, number.dimension)
    rows, own = layout.groups(x), None if given is None else layout.groups(given)
    if number.dimension > 1:
        codes, codebook = _cluster_vectors(rows, own, scheme, seed)
    else:
        codes, codebook = _cluster_values(rows, own, scheme, method, seed)
    ones = torch.ones(shape, device=x.device)
    return QTensor(
        layout.restored(codes),
        ones,
        torch.zeros_like(ones, dtype=torch.int32),
        codebook.reshape(*shape, *codebook.shape[1:]),
        scheme,
    )


def nearest_entries(x: Tensor, codebook: Tensor, scheme: Scheme) -> Tensor:
    """Return the codes of ``x`` in known tables: the nearest entry of each value or vector.

    Args:
        x: floating-point values, any shape.
        codebook: one table for every group, ``[*groups, 2^bits]``, ascending, or
            ``[*groups, 2^bits, dimension]``.
        scheme: its format is a learned table.

    Raises:
        SchemeError: the format is no learned table, or its vectors do not divide a group.
        DataError: ``x`` is empty or has values that are not finite; tables of another shape.

    >>> from bitsmith.numbers.formats.codebook import codebook1
    >>> nearest_entries(torch.tensor([0.2, 7.0]), torch.tensor([0.0, 1.0]), Scheme(codebook1))
    tensor([0, 1], dtype=torch.uint8)
    """
    number = scheme.format
    if not isinstance(number, LearnedFormat):
        raise SchemeError(f"{number.name} has a table of its own: use quantize(x, scheme)")
    x = as_float32(x)
    value_range(x)  # refuses what is empty or not finite
    shape = scheme.granularity.scale_shape(x.shape)
    vectors = (number.dimension,) if number.dimension > 1 else ()
    expected = (*shape, 1 << number.bits, *vectors)
    if tuple(codebook.shape) != expected:
        raise DataError(f"tables are {list(expected)}, not {list(codebook.shape)}")
    layout = _Layout(x.shape, shape, number.dimension)
    rows = layout.groups(x)
    tables = codebook.reshape(len(rows), -1, *vectors)
    if not vectors:
        return layout.restored(assign(rows, tables))
    found = [assign_vectors(r, t) for r, t in zip(rows, tables, strict=True)]  # few: large tables
    return layout.restored(torch.stack(found))


def huffman_bytes(q: QTensor) -> int:
    """Return the bytes of ``q`` with its codes Huffman coded instead of packed.

    Everything that is needed to read it counts: the stream, its code lengths and offsets, scales,
    zero points and tables. Entries that are used unequally often make it smaller than
    ``q.nbytes``; entries used alike make it larger, by the code lengths and offsets.

    Raises:
        SchemeError: codes of more than 8 bits.
    """
    bits = q.scheme.format.bits
    if bits > 8:
        raise SchemeError(f"codes of 1 to 8 bits are Huffman coded, not {bits}")
    unsigned = q.codes.to(torch.int16) & ((1 << bits) - 1)
    stream = huffman_encode(unsigned.to(torch.uint8), 1 << bits)
    return q.nbytes - packed_bytes(q.codes.numel(), bits) + stream.nbytes


def _broadcast(importance: Tensor, x: Tensor) -> Tensor:
    try:
        return importance.detach().to(x.device, torch.float32).expand(x.shape)
    except RuntimeError:
        raise DataError(
            f"importance of shape {tuple(importance.shape)} does not broadcast to {tuple(x.shape)}"
        ) from None


@final
class _Layout:
    """Where the codes of each group lie: groups come first, and back to their places."""

    def __init__(self, shape: torch.Size, scale_shape: tuple[int, ...], dimension: int) -> None:
        axes = [*shape]
        if dimension > 1:
            axes = [*shape[:-1], shape[-1] // dimension] if len(shape) else [0]
        whole = len(shape) and shape[-1] % dimension == 0
        if not whole or any(n % s for n, s in zip(axes, scale_shape, strict=bool(scale_shape))):
            raise SchemeError(
                f"vectors of {dimension} weights must divide the last axis of shape {tuple(shape)} "
                f"and each of its {torch.Size(scale_shape).numel()} groups"
            )
        wide, narrow = blocked(axes, scale_shape)
        narrow = narrow or (1,) * len(wide)
        apart = [i for i, n in enumerate(narrow) if n > 1]
        self._order = apart + [i for i in range(len(wide)) if i not in apart]
        self._wide, self._codes = wide, axes
        self._dimension, self._count = dimension, torch.Size(scale_shape).numel()

    def groups(self, x: Tensor) -> Tensor:
        """Return ``[groups, values]``, or ``[groups, vectors, dimension]``."""
        tail = [self._dimension] if self._dimension > 1 else []
        order = [*self._order, *([len(self._wide)] if tail else [])]
        return x.reshape(*self._wide, *tail).permute(order).reshape(self._count, -1, *tail)

    def restored(self, codes: Tensor) -> Tensor:
        """Return codes ``[groups, values]`` in the shape and order of the tensor."""
        moved = codes.reshape([self._wide[i] for i in self._order])
        back = sorted(range(len(self._order)), key=self._order.__getitem__)
        return moved.permute(back).reshape(self._codes).contiguous()


def _cluster_values(
    rows: Tensor, importance: Tensor | None, scheme: Scheme, method: Method, seed: int
) -> tuple[Tensor, Tensor]:
    """Return codes ``[groups, values]`` and tables ``[groups, entries]``."""
    entries = 1 << scheme.format.bits
    small = rows.numel() * entries <= _EXACT_WORK[len(rows) == 1]
    if method == "exact" or (method == "auto" and small):
        found = kmeans_exact(rows, entries, importance)
    else:
        found = kmeans_lloyd(rows, entries, importance, seed=seed)
    if (stored := _stored(found.codebook, scheme)) is None:
        return found.codes, found.codebook
    return assign(rows, stored), stored


def _cluster_vectors(
    groups: Tensor, importance: Tensor | None, scheme: Scheme, seed: int
) -> tuple[Tensor, Tensor]:
    """Return codes ``[groups, vectors]`` and tables ``[groups, entries, dimension]``."""
    codes, tables = [], []
    for i, vectors in enumerate(groups):  # few: a table of vectors is large
        own = None if importance is None else importance[i]
        found = kmeans_vectors(vectors, 1 << scheme.format.bits, own, seed)
        stored = _stored(found.codebook, scheme)
        codes.append(found.codes if stored is None else assign_vectors(vectors, stored, own))
        tables.append(found.codebook if stored is None else stored)
    return torch.stack(codes), torch.stack(tables)


def _stored(codebook: Tensor, scheme: Scheme) -> Tensor | None:
    """Return the entries rounded to the format they are stored in; None where that is float32."""
    inner = scheme.scale_format
    return inner.decode(inner.encode(codebook)) if isinstance(inner, NumberFormat) else None
