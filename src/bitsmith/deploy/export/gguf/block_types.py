"""The tensor types of GGUF: their numbers in the file, and the schemes of the block types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from bitsmith.errors import UnknownNameError
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.granularity import PerGroup
from bitsmith.numbers.named_schemes import GGUF_SCHEMES
from bitsmith.numbers.scheme import Scheme

__all__ = ["BLOCK_TYPES", "PLAIN_TYPES", "BlockType", "block_type", "misfit"]

PLAIN_TYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.int8: 24,
    torch.int16: 25,
    torch.int32: 26,
    torch.int64: 27,
    torch.float64: 28,
    torch.bfloat16: 30,
}
"""Type of a tensor that is stored as it is → its number (``enum ggml_type``)."""

_NUMBERS = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
}  # fmt: skip


@final
@dataclass(frozen=True)
class BlockType:
    """A block type.

    Attributes:
        name: ``Q4_K`` …
        number: in the file.
        scheme: what its values are.
    """

    name: str
    number: int
    scheme: Scheme

    @property
    def values(self) -> int:
        """Values in a block: 32, or 256 of those with two levels."""
        return self._size * self.levels

    @property
    def levels(self) -> int:
        """Scales in a block."""
        inner = self.scheme.scale_format
        grain = inner.granularity if isinstance(inner, Scheme) else None
        return grain.size if isinstance(grain, PerGroup) else 1

    @property
    def nbytes(self) -> int:
        """Bytes of a block.

        >>> {name: kind.nbytes for name, kind in BLOCK_TYPES.items()} == {
        ...     "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34,
        ...     "Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
        True
        """
        bits = self.values * self.scheme.format.bits
        for level in (self.scheme.scale_format, self.scheme.offset_format):
            if isinstance(level, Scheme):
                bits += self.levels * level.format.bits + 16
            elif isinstance(level, NumberFormat):
                bits += 16
        return bits // 8

    @property
    def _size(self) -> int:
        grain = self.scheme.granularity
        assert isinstance(grain, PerGroup)
        return grain.size


BLOCK_TYPES = {
    name: BlockType(name, number, GGUF_SCHEMES[name]) for name, number in _NUMBERS.items()
}


def block_type(scheme: Scheme, rank: int) -> BlockType | None:
    """Return the block type that holds tensors of ``rank`` axes in ``scheme``; None: there is none.

    How values were rounded, and whether the lowest code is left out, makes no difference.
    """
    plain = _plain(scheme, rank)
    return next((kind for kind in BLOCK_TYPES.values() if _plain(kind.scheme, rank) == plain), None)


def misfit(shape: Sequence[int], name: str) -> str | None:
    """Return why a tensor of ``shape`` has no place in the blocks of type ``name``; None: it has.

    >>> reason, _, remedy = misfit((512, 288), "Q4_K").partition("; ")
    >>> reason
    'rows of 288 values are not whole blocks of 256 (Q4_K)'
    >>> remedy
    'blocks of 32 fit: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0'

    Raises:
        UnknownNameError: there is no such type.
    """
    if name not in BLOCK_TYPES:
        raise UnknownNameError("GGUF type", name, BLOCK_TYPES)
    need = BLOCK_TYPES[name].values
    row = shape[-1] if shape else 1
    if row % need == 0:
        return None
    found = f"rows of {row} values are not whole blocks of {need} ({name})"
    if row % 32 == 0:
        small = ", ".join(k for k, kind in BLOCK_TYPES.items() if kind.values == 32)
        return f"{found}; blocks of 32 fit: {small}"
    return f"{found}, nor of 32: leave the tensor float, such as float16"


def _plain(scheme: Scheme, rank: int) -> Scheme:
    """Return the scheme without what the stored form does not depend on."""
    grain = scheme.granularity
    if isinstance(grain, PerGroup) and grain.axis == rank - 1:
        grain = replace(grain, axis=-1)
    scales, offsets = scheme.scale_format, scheme.offset_format
    return replace(
        scheme,
        granularity=grain,
        narrow_range=False,
        rounding="half_even",
        seed=0,
        scale_format=_plain(scales, rank) if isinstance(scales, Scheme) else scales,
        offset_format=_plain(offsets, rank) if isinstance(offsets, Scheme) else offsets,
    )
