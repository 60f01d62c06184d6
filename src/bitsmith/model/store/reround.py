"""Round a weight to the nearest codes of scales, zero points and tables that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bitsmith.model.store.parts import part_specs
from bitsmith.numbers.codebooks import nearest_entries
from bitsmith.numbers.coding import encode
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
        return replace(like, codes=nearest_entries(weight, like.codebook, like.scheme))
    codes, _ = encode(weight, like.scale, like.zero_point, like.scheme)
    return replace(like, codes=codes)
