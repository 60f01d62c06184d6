"""The error of a weight quantized with one scale, one a row, one a group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.insight.storage import granularity_name
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.granularity import Granularity, PerChannel, PerGroup, PerTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["BITS", "SIZES", "Layers", "Outcome", "outcomes", "unlike_rows"]

BITS = (8, 4)
#: Sizes of 64 rows, from 0.01 to 1 in equal ratios.
SIZES = tuple(torch.logspace(-2, 0, 64).tolist())


@final
@dataclass(frozen=True)
class Outcome:
    """One weight in one granularity.

    Attributes:
        mae: mean ``|ŵ − w|``.
        relative: the same divided by mean ``|w|``.
        row_relative: the mean over rows of each row's own relative error.
        bits_per_weight: with scales.
        rows: relative error of each row.
    """

    granularity: str
    bits: int
    mae: float
    relative: float
    row_relative: float
    bits_per_weight: float
    n: int
    rows: tuple[float, ...]


#: Layer → what becomes of its weight.
Layers = dict[str, list[Outcome]]


def outcomes(weight: Tensor, groups: Iterable[int]) -> list[Outcome]:
    """Return what each granularity makes of a weight ``[row, column, …]``, at 8 and 4 bits.

    Args:
        weight: its rows are output channels.
        groups: sizes of groups along axis 1; those that do not divide it are left out.
    """
    cuts: list[Granularity] = [PerTensor(), PerChannel(0)]
    cuts += [PerGroup(size, axis=1) for size in groups if weight.shape[1] % size == 0]
    return [_outcome(weight, cut, bits) for bits in BITS for cut in cuts]


def _outcome(weight: Tensor, granularity: Granularity, bits: int) -> Outcome:
    q = quantize(weight, Scheme(integer_format(bits, signed=True), granularity=granularity))
    error = (q.dequantize().double() - weight.double()).abs()
    size = weight.double().abs()
    rows = error.flatten(1).mean(1) / size.flatten(1).mean(1)
    return Outcome(
        granularity_name(granularity),
        bits,
        float(error.mean()),
        float(error.mean() / size.mean()),
        float(rows.mean()),
        q.bits_per_weight,
        weight.numel(),
        tuple(rows.tolist()),
    )


def unlike_rows(columns: int, seed: int) -> Tensor:
    """Return normal weights ``[row, column]`` whose rows have the standard deviations `SIZES`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(SIZES).unsqueeze(1) * torch.randn(len(SIZES), columns, generator=generator)
