"""The values of a weight in the canonical packed form, and the rule for rows that are looked up."""

from __future__ import annotations

import json
from functools import lru_cache

import torch
from torch import Tensor

from bitsmith.errors import WeightsError
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.stored import from_stored

__all__ = ["check_rows", "decoded"]


def decoded(parts: dict[str, Tensor], scheme: str, shape: list[int]) -> Tensor:
    """Return the float32 values of packed parts; one opaque operator where the model is traced.

    Args:
        parts: name → tensor of :mod:`bitsmith.numbers.stored`.
        scheme: as JSON.
        shape: of the tensor they stand for.

    Raises:
        WeightsError: the parts do not fit together.
    """
    tensors, names = list(parts.values()), ",".join(parts)
    if torch.compiler.is_compiling():
        traced: Tensor = torch.ops.bitsmith.dequantize(tensors, names, scheme, shape)
        return traced
    return _values(tensors, names, scheme, shape)


def check_rows(index: Tensor, rows: int) -> None:
    """Refuse indices that no row has, as ``nn.Embedding`` does: -1 is not the last row.

    Not on an accelerator, which would have to be waited for, nor in a trace, which has no values:
    there the kernel that looks the rows up has bounds of its own.

    Raises:
        IndexError: an index is negative or too large.

    >>> check_rows(torch.tensor([0, 3]), 3)
    Traceback (most recent call last):
    IndexError: index 3 is not a row of a table of 3: 0 to 2
    """
    if torch.compiler.is_compiling() or index.device.type != "cpu" or not index.numel():
        return
    for found in (int(index.min()), int(index.max())):
        if not 0 <= found < rows:
            raise IndexError(f"index {found} is not a row of a table of {rows}: 0 to {rows - 1}")


@lru_cache(maxsize=256)
def _scheme(text: str) -> Scheme:
    return Scheme.from_json(json.loads(text))


def _values(parts: list[Tensor], names: str, scheme: str, shape: list[int]) -> Tensor:
    try:
        q = from_stored(dict(zip(names.split(","), parts, strict=True)), _scheme(scheme), shape)
    except ValueError as error:
        raise WeightsError(f"a packed weight is damaged: {error}") from error
    return q.dequantize()


@torch.library.custom_op("bitsmith::dequantize", mutates_args=())
def _dequantize(parts: list[Tensor], names: str, scheme: str, shape: list[int]) -> Tensor:
    return _values(parts, names, scheme, shape)


@_dequantize.register_fake
def _(parts: list[Tensor], names: str, scheme: str, shape: list[int]) -> Tensor:
    return parts[0].new_empty(shape, dtype=torch.float32)
