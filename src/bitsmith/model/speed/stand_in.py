"""Layers packed as a recipe would pack them, with weights that need no rounding of their own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.algorithms.rounding import Rounding
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.layers.replace import packed_layer
from bitsmith.model.owners import Owner
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.stored import to_stored

__all__ = ["packed_bytes", "stand_in", "stand_in_weight"]

_ROWS = 64
"""Rows that are rounded, and then repeated; a multiple of 8, so that they end on whole bytes."""


def stand_in(
    owner: Owner,
    schemes: Mapping[str, Scheme],
    activation: Scheme | None,
    columns: Mapping[str, int] | None = None,
) -> nn.Module:
    """Return a layer as fast as the one that a recipe makes of ``owner``, in memory of its own.

    What a layer computes does not change how long it takes: the first 64 rows of each weight are
    rounded to nearest, and repeated.

    Args:
        owner: a float layer; it is not changed.
        schemes: name of a weight in the layer → how it is packed.
        activation: of the inputs of linear layers; None: float.
        columns: name of a weight → columns its rows are padded to, where they are.

    Raises:
        SchemeError: a scheme does not fit the weight.
    """
    weights = {
        leaf: stand_in_weight(owner.module.get_parameter(leaf), scheme, (columns or {}).get(leaf))
        for leaf, scheme in schemes.items()
    }
    return packed_layer(replace(owner, module=copy.deepcopy(owner.module)), weights, activation)


def stand_in_weight(weight: Tensor, scheme: Scheme, columns: int | None = None) -> PackedWeight:
    """Return a packed weight of the shape of ``weight``; see :func:`stand_in`.

    >>> from bitsmith.numbers.formats.integer import int4
    >>> from bitsmith.numbers.scheme import PerGroup
    >>> found = stand_in_weight(torch.randn(128, 64), Scheme(int4, granularity=PerGroup(32)))
    >>> values = found.dequantize()
    >>> tuple(values.shape), torch.equal(values[:64], values[64:])
    ((128, 64), True)
    """
    flat = weight.detach().flatten(1)
    n, k = len(flat), max(flat.shape[1], columns or 0)
    part = n if n % _ROWS or not n else _ROWS
    rows = functional.pad(flat[:part].to(torch.float32), (0, k - flat.shape[1]))
    q = _rounded(rows, scheme)
    parts = to_stored(q)
    if part < n:
        apart = scheme.granularity.scale_shape((n, k)) != scheme.granularity.scale_shape((part, k))
        for name, own in parts.items():
            if own.dim() and (apart or name == "codes"):
                parts[name] = own.repeat(n // part, *[1] * (own.dim() - 1))
    return PackedWeight.from_parts(parts, scheme, (n, k), weight.shape)


def packed_bytes(layer: nn.Module) -> int:
    """Return the bytes of the packed weights of a layer."""
    return sum(m.nbytes for m in layer.modules() if isinstance(m, PackedWeight))


def _rounded(rows: Tensor, scheme: Scheme) -> QTensor:
    kind = Rounding.registry["kmeans" if scheme.learned else "nearest"]
    return kind()(rows, scheme).qtensor
