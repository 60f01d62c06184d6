"""Outlier channel splitting: an input with large weights becomes two, with a half of them each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.baseline import weight_range
from bitsmith.algorithms.linear_transform import LinearTransform
from bitsmith.errors import InputError, SchemeError
from bitsmith.numbers.granularity import PerChannel, PerTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["OutlierSplit"]


@final
@dataclass(frozen=True)
class OutlierSplit(LinearTransform, name="outlier-split"):
    """Outlier channel splitting (arXiv 1901.09504, sections 3.3 and 3.4).

    ``⌈expand · in⌉`` times, the input is split whose halving lowers the sum of the squared scales
    most; with one scale per tensor that is the published rule, the input of the largest weight.
    An input in n parts has weights ``w/n + Δ·(i − (n−1)/2)/n``, i = 0 … n−1, with Δ the scale:
    then the codes of the parts add up to the code of w (the published split for n = 2; Hermite's
    identity for more).

    Attributes:
        expand: share of inputs that are added.

    >>> from bitsmith.numbers.formats.integer import int4
    >>> done = OutlierSplit(0.5)([torch.tensor([[0.1, 8.0], [0.3, -5.0]])], Scheme(int4))
    >>> done.copies.tolist(), done.objective < done.identity_objective
    ([0, 1, 1], True)
    """

    expand: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.expand <= 1:
            raise InputError(f"expand is above 0 and at most 1, not {self.expand}")

    def map(self, weights: Sequence[Tensor], scheme: Scheme) -> tuple[Tensor, list[Tensor]]:
        if scheme.granularity not in (PerTensor(), PerChannel(0)):
            raise SchemeError(
                "outlier-split adds inputs, which weights quantized per tensor or per channel of "
                f"axis 0 allow, not {scheme.granularity}"
            )
        inputs = weights[0].shape[1]
        sizes = torch.cat([_sizes(w, scheme) for w in weights], 1)  # [in, groups]
        parts = _parts(sizes, math.ceil(self.expand * inputs))
        extra = torch.repeat_interleave(torch.arange(inputs), parts - 1)
        source = torch.cat([torch.arange(inputs), extra])
        first = torch.repeat_interleave(torch.cumsum(parts - 1, 0) - (parts - 1), parts - 1)
        index = torch.cat([torch.zeros(inputs), torch.arange(len(extra)) - first + 1])
        matrix = torch.zeros(inputs, len(source))
        matrix[source, torch.arange(len(source))] = 1.0
        return matrix, [_split(w, source, index, parts[source].double(), scheme) for w in weights]


def _sizes(weight: Tensor, scheme: Scheme) -> Tensor:
    """Return the largest |w| of each input in each group that has one scale, ``[in, groups]``."""
    size = weight.abs().flatten(2).amax(2) if weight.dim() > 2 else weight.abs()
    size = size.T  # [in, out]
    return size.amax(1, keepdim=True) if scheme.granularity == PerTensor() else size


def _parts(sizes: Tensor, splits: int) -> Tensor:
    """Return into how many parts each input is split, int64 ``[in]``."""
    parts = torch.ones(len(sizes), dtype=torch.int64)
    # Squares in units of the largest: tiny weights would vanish.
    sizes = sizes.double() / max(float(sizes.max()), 1e-45)
    padded = torch.cat([sizes, torch.zeros(1, sizes.shape[1], dtype=torch.float64)])
    for _ in range(splits):
        top, at = padded.topk(2, dim=0)  # [2, groups]
        largest, owner = top[0], at[0]
        now = parts[owner]
        halved = torch.maximum(top[1], largest * now / (now + 1))
        gain = torch.zeros(len(sizes), dtype=torch.float64)
        gain.index_add_(0, owner, largest.square() - halved.square())
        best = int(gain.argmax()) if bool(gain.max() > 0) else int(owner[largest.argmax()])
        parts[best] += 1
        padded[best] = sizes[best] / parts[best]
    return parts


def _split(weight: Tensor, source: Tensor, index: Tensor, parts: Tensor, scheme: Scheme) -> Tensor:
    tail = [1] * (weight.dim() - 2)
    n = parts.reshape(1, -1, *tail)
    shares = weight.double()[:, source] / n
    scale, _ = weight_range(shares.float(), scheme)
    step = scale.double().reshape(-1, 1, *tail)
    shift = (index.double() - (parts - 1) / 2).reshape(1, -1, *tail) / n
    # A weight of 0 has the code 0 in every part, and stays 0.
    moved = torch.where(shares != 0, shares + step * shift, 0.0)
    return moved.float()
