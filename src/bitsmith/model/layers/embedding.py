"""An embedding with a packed table."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.model.layers.packed import PackedWeight

__all__ = ["QuantEmbedding"]

_INDICES = (torch.int64, torch.int32)


@final
class QuantEmbedding(nn.Module):
    """Rows of a packed table; only the rows that are asked for are decoded.

    Attributes:
        packed: the table ``[rows, features]``.
        padding_idx: kept for those who read it; inference does not need it.
        dtype: of what is returned.
    """

    def __init__(self, packed: PackedWeight, padding_idx: int | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed = packed
        self.padding_idx = padding_idx
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = packed.shape

    @property
    def weight(self) -> Tensor:
        """The dequantized table; computed anew at every look."""
        return self.packed.dequantize(self.dtype)

    @property
    def kernel(self) -> str:
        """What runs it on the CPU of this machine."""
        return self.packed.kernel("rows decoded")

    def forward(self, index: Tensor) -> Tensor:
        """Return rows ``[*index.shape, features]``.

        Raises:
            IndexError: an index is negative or not below the number of rows.
        """
        if index.device.type == "cpu" and index.dtype in _INDICES:
            self.packed.ready()
        rows = self.packed.rows(index)
        if rows is None:
            rows = functional.embedding(index, self.packed.dequantize())
        return rows.to(self.dtype)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        return f"{self.num_embeddings} × {self.embedding_dim}"
