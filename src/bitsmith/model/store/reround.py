"""Round a weight to the nearest codes of scales, zero points and tables that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bitsmith.model.store.parts import part_specs
from bitsmith.numbers.clustering import assign, assign_vectors
from bitsmith.numbers.coding import encode
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.granularity import blocked
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["filler_codes", "reround"]


def filler_codes(scheme: Scheme, shape: Sequence[int]) -> Tensor:
    """Return packed codes 0, which every format has, for a tensor whose codes are not known."""
    dtype, stored = part_specs(scheme, shape)["codes"]
    return torch.zeros(stored, dtype=dtype)


def reround(weight: Tensor, like: QTensor) -> QTensor:
    """Return ``weight`` at its nearest codes in the scales or tables of ``like``.

    Args:
        weight: float32, finite, of the shape of ``like``.
        like: whose codes do not matter.

    >>> from bitsmith.numbers.affine import quantize
    >>> from bitsmith.numbers.formats.integer import int8
    >>> q = quantize(torch.tensor([-1.0, 0.2]), Scheme(int8))
    >>> reround(torch.tensor([0.5, 0.2]), q).codes.tolist()
    [64, 25]
    """
    if like.codebook is not None:
        return replace(like, codes=_entries(weight, like, like.codebook))
    codes, _ = encode(weight, like.scale, like.zero_point, like.scheme)
    return replace(like, codes=codes)


def _entries(weight: Tensor, like: QTensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest entry in the table of each group."""
    number = like.scheme.format
    dimension = number.dimension if isinstance(number, LearnedFormat) else 1
    vectors = [dimension] if dimension > 1 else []
    wide, narrow = blocked(like.codes.shape, like.scale.shape)
    narrow = narrow or (1,) * len(wide)
    apart = [i for i, n in enumerate(narrow) if n > 1]
    order = apart + [i for i in range(len(wide)) if i not in apart]
    moved = weight.reshape(*wide, *vectors).permute([*order, *([len(wide)] if vectors else [])])
    tables = codebook.reshape(like.scale.numel(), -1, *vectors)
    rows = moved.reshape(len(tables), -1, *vectors)
    if vectors:
        codes = torch.stack([assign_vectors(r, t) for r, t in zip(rows, tables, strict=True)])
    else:
        codes = assign(rows, tables)
    back = sorted(range(len(order)), key=order.__getitem__)
    found = codes.reshape([wide[i] for i in order]).permute(back)
    return found.reshape(like.codes.shape).contiguous()
