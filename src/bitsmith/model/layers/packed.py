"""One weight in its packed form, as the buffers of a module."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Self, final

import torch
from torch import Tensor, nn

from bitsmith.errors import WeightsError
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.stored import from_stored, to_stored

__all__ = ["PackedWeight", "check_rows"]


@final
class PackedWeight(nn.Module):
    """A quantized tensor that takes the memory of its bits, and unpacks when it is asked.

    The buffers are the canonical packed form (:mod:`bitsmith.numbers.stored`), so a state dict
    holds it as it is. Moving the module to a float type leaves codes and scales alone; only
    the type that :meth:`dequantize` gives follows.

    Attributes:
        scheme: how the weight was quantized.
        stored_shape: of the tensor that the codes stand for, ``[rows, columns]``.
        shape: of the weight, as its layer has it; a last axis that was padded is shorter here.
    """

    def __init__(self, q: QTensor, shape: torch.Size) -> None:
        super().__init__()
        self._describe(q.scheme, q.shape, shape)
        for name, part in to_stored(q).items():
            self.register_buffer(name.replace(".", "/"), part)

    @classmethod
    def from_parts(
        cls,
        parts: Mapping[str, Tensor],
        scheme: Scheme,
        stored_shape: Sequence[int],
        shape: Sequence[int],
    ) -> PackedWeight:
        """Return the weight of parts that are known to fit; they are kept as they are, unread."""
        weight = cls.__new__(cls)
        nn.Module.__init__(weight)
        weight._describe(scheme, stored_shape, shape)
        for name, part in parts.items():
            weight.register_buffer(name.replace(".", "/"), part)
        return weight

    def _describe(self, scheme: Scheme, stored_shape: Sequence[int], shape: Sequence[int]) -> None:
        self.scheme, self.stored_shape = scheme, tuple(stored_shape)
        self.shape = torch.Size(shape)
        self._scheme_text = json.dumps(scheme.to_json())

    def parts(self) -> dict[str, Tensor]:
        """Return name → tensor of the packed form."""
        return {name.replace("/", "."): part for name, part in self.named_buffers(recurse=False)}

    def qtensor(self) -> QTensor:
        """Return the quantized tensor, of ``stored_shape``."""
        return from_stored(self.parts(), self.scheme, self.stored_shape)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight in ``dtype``, of ``shape``."""
        flat = self._decoded(self.parts(), list(self.stored_shape))
        columns = self.shape[1:].numel()
        if columns != self.stored_shape[1]:
            flat = flat[:, :columns]
        return flat.reshape(self.shape).to(dtype)

    def rows(self, index: Tensor) -> Tensor | None:
        """Return rows of the weight, float32 ``[*index.shape, columns]``, decoding only them.

        None where rows do not lie apart in the packed form: they share bytes, or scales.

        Raises:
            IndexError: an index below 0, or not below the number of rows; it and the rows are
                named. (A traced or accelerated index is checked by PyTorch's kernel, in its words.)
        """
        check_rows(index, self.stored_shape[0])
        rows, columns = self.stored_shape
        apart = self.scheme.granularity.scale_shape(self.stored_shape)[:1] == (rows,)
        row_bits = columns * self.scheme.format.bits
        if not apart or row_bits % 8 or self.scheme.learned or self.shape[1:] != (columns,):
            return None
        flat = index.reshape(-1)
        chosen = {}
        for name, part in self.parts().items():
            if part.numel() % rows or "." in name:
                return None
            wide = part.reshape(rows, -1)
            chosen[name] = wide.index_select(0, flat).reshape(-1)
        q_shape = [flat.numel(), columns]
        return self._decoded(chosen, q_shape).reshape(*index.shape, columns)

    def _decoded(self, parts: dict[str, Tensor], shape: list[int]) -> Tensor:
        """Return float32 values; one opaque operator where the model is traced."""
        tensors, names = list(parts.values()), ",".join(parts)
        if torch.compiler.is_compiling():
            traced: Tensor = torch.ops.bitsmith.dequantize(tensors, names, self._scheme_text, shape)
            return traced
        return _values(tensors, names, self._scheme_text, shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form."""
        return sum(part.nbytes for part in self.parts().values())

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        shape = "×".join(map(str, self.shape))
        return f"{self.scheme.format.name}, {self.scheme.granularity}, {shape}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to a device, but never to another type: the bits are what they are."""
        for name, part in list(self._buffers.items()):
            if part is None:
                continue
            moved = fn(part)
            if moved.dtype != part.dtype:
                moved = part.to(moved.device)
            self._buffers[name] = moved
        return self


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
