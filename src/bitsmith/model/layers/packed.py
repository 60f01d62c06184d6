"""One weight in its packed form, as the buffers of a module."""

from __future__ import annotations

import copy
import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from bitsmith.errors import WeightsError
from bitsmith.model.kernels import operators
from bitsmith.model.kernels.form import MachineForm, form_of
from bitsmith.model.kernels.library import VARIABLE, instructions, kernels, why_not
from bitsmith.model.kernels.weight import (
    in_large_pages,
    kept_parts,
    pack_weight,
    refusal,
    stored_parts,
)
from bitsmith.model.layers.decoded import check_rows, decoded
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.stored import from_stored, to_stored

__all__ = ["PackedWeight"]

_MACHINE = "machine"
_repacking = threading.Lock()


@final
class PackedWeight(nn.Module):
    """A quantized tensor that takes the memory of its bits, and unpacks when it is asked.

    The buffers are the canonical packed form (:mod:`bitsmith.numbers.stored`), so a state dict
    holds it as it is. Moving the module to a float type leaves codes and scales alone; only
    the type that :meth:`dequantize` gives follows.

    Where native kernels run it, :meth:`ready` repacks it for this machine and frees what the new
    form can give back: :meth:`parts`, a state dict, a pickle and another device have the canonical
    form again, bit for bit.

    Attributes:
        scheme: how the weight was quantized.
        stored_shape: of the tensor that the codes stand for, ``[rows, columns]``.
        shape: of the weight, as its layer has it; a last axis that was padded is shorter here.
        machine: its form for this machine, uint8; None as long as it is canonical.
        form: of ``machine``, as operators take it.
        use: what it is mostly used for, which decides the machine's form: rows are looked up, or
            it is multiplied with ``float`` or ``int8`` ones.
    """

    machine: Tensor | None

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
        self.use = "lookup"
        self._form = form_of(scheme, self.stored_shape)
        self.form = ""
        self._scheme_text = json.dumps(scheme.to_json())
        self._freed_bytes = 0
        self.register_buffer(_MACHINE, None, persistent=False)

    def parts(self) -> dict[str, Tensor]:
        """Return name → tensor of the packed form."""
        held = {n.replace("/", "."): b for n, b in self._buffers.items() if n != _MACHINE}
        if self.machine is not None:
            given = stored_parts(self.machine, self._machine_form(), self.scheme)
            held = {name: given[name] if part is None else part for name, part in held.items()}
        return {name: part for name, part in held.items() if part is not None}

    def qtensor(self) -> QTensor:
        """Return the quantized tensor, of ``stored_shape``."""
        return from_stored(self.parts(), self.scheme, self.stored_shape)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight in ``dtype``, of ``shape``."""
        if self.machine is not None:
            every = torch.arange(self.stored_shape[0])
            flat = operators.embedding(self.machine, self.form, every, torch.float32)
        else:
            flat = decoded(self.parts(), self._scheme_text, list(self.stored_shape))
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
        rows, columns = self.stored_shape
        if self.machine is not None and self.shape[1:] == (columns,):
            return operators.embedding(self.machine, self.form, index, torch.float32)
        check_rows(index, rows)
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
        return decoded(chosen, self._scheme_text, q_shape).reshape(*index.shape, columns)

    def ready(self) -> bool:
        """Repack the weight for this machine; return whether native kernels run it.

        Done once, when a layer runs; an exported program keeps the form that it finds. The same
        parts of the canonical form that the machine's gives back are freed.

        Raises:
            WeightsError: the packed form is damaged.
        """
        return self._buffers[_MACHINE] is not None or self._repack()

    def _repack(self) -> bool:
        parts = [part for part in self._buffers.values() if part is not None]
        if any(part.device.type != "cpu" for part in parts) or is_in_torch_dispatch_mode():
            return False
        if torch.compiler.is_exporting() or self.refusal():
            return False
        with _repacking, torch.inference_mode(False), torch.no_grad():
            if self._buffers[_MACHINE] is not None:  # another thread was first
                return True
            form = self._machine_form()
            try:
                packed = pack_weight(self.qtensor(), form)
            except ValueError as error:
                raise WeightsError(f"a packed weight is damaged: {error}") from error
            self._freed_bytes = 0
            for name in kept_parts(self.scheme):
                part = self._buffers[name]
                assert part is not None
                self._freed_bytes += part.nbytes
                self._buffers[name] = None
            self.form = form.text
            self._buffers[_MACHINE] = packed
        return True

    def refusal(self) -> str:
        """Return why no native kernel runs it, on the CPU of this machine; empty when one does."""
        if isinstance(self._form, str):
            return self._form
        if kernels() is None:
            _warn_once(why_not())
        return refusal(self._machine_form())

    def kernel(self, does: str) -> str:
        """Return what runs it on the CPU of this machine: ``native avx2, …`` or ``torch: why``.

        Args:
            does: what is done with it, as the answer says it.
        """
        why = self.refusal()
        return f"torch: {why}" if why else f"native {instructions()}, {does}"

    def _machine_form(self) -> MachineForm:
        assert isinstance(self._form, MachineForm)
        return self._form.for_rows(self.use)

    def used_for(self, rows: str) -> None:
        """Say that a layer multiplies it with ``float`` or ``int8`` rows."""
        if self.use != "int8" and self.use != rows:
            self.release()
            self.use = rows

    def release(self) -> None:
        """Go back to the canonical form, until the weight is used again."""
        if self.machine is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            for name, part in self.parts().items():
                self._buffers[name.replace(".", "/")] = part
        self._buffers[_MACHINE], self._freed_bytes = None, 0

    @property
    def nbytes(self) -> int:
        """Bytes of the canonical packed form."""
        held = (b for n, b in self._buffers.items() if n != _MACHINE and b is not None)
        return self._freed_bytes + sum(part.nbytes for part in held)

    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        shape = "×".join(map(str, self.shape))
        return f"{self.scheme.format.name}, {self.scheme.granularity}, {shape}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to a device, but never to another type: the bits are what they are."""
        if self.machine is not None and not _stays(self.machine, fn):
            self.release()
        for name, part in list(self._buffers.items()):
            if part is None:
                continue
            moved = fn(part)
            if moved.dtype != part.dtype:
                moved = part.to(moved.device)
            self._buffers[name] = moved
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, part in self.parts().items():
            destination[prefix + name.replace(".", "/")] = part

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.release()
        super()._load_from_state_dict(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        twin = memo[id(self)] = type(self).__new__(type(self))
        if self.machine is not None and id(self.machine) not in memo:
            memo[id(self.machine)] = in_large_pages(self.machine)
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: the canonical form."""
        state = self.__dict__.copy()
        parts = {name.replace(".", "/"): part for name, part in self.parts().items()}
        return state | {"_buffers": {_MACHINE: None, **parts}, "_freed_bytes": 0, "form": ""}


def _stays(machine: Tensor, fn: Callable[[Tensor], Tensor]) -> bool:
    """Whether the machine's form is still one after ``fn``: on the CPU, and not emptied."""
    if fn(machine.new_empty(0)).device.type != "cpu":
        return False
    head = machine[:64]
    return torch.equal(fn(head.clone()), head)


# torch.compile calls it while it traces, and takes what it returns for constant. This is what
# torch.compiler.assume_constant_result does, without the seconds that importing the compiler takes.
PackedWeight.ready._dynamo_marked_constant = True  # type: ignore[attr-defined]  # PyTorch's


@lru_cache(maxsize=1)
def _warn_once(why: str) -> None:
    if why != f"{VARIABLE}=off":
        warnings.warn(
            f"layers with packed weights run without native kernels, and more slowly: {why}",
            stacklevel=2,
        )
