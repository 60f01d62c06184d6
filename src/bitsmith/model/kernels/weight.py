"""Quantized weights into the form for this machine, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import WeightsError
from bitsmith.model.kernels.form import TABLE, MachineForm, structure
from bitsmith.model.kernels.library import Kernels, fail, kernels, why_not
from bitsmith.numbers.packing import pack
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = [
    "ALIGNMENT",
    "Unpacked",
    "checked",
    "in_large_pages",
    "kept_parts",
    "pack_weight",
    "refusal",
    "stored_parts",
    "unpack_weight",
]

_HEADER = ALIGNMENT = 64


@final
@dataclass(frozen=True)
class Unpacked:
    """What a packed weight was made of.

    Attributes:
        codes: uint8 ``[n, k]``.
        scale: float32 ``[n, k / group]``.
        zero: int32, the shape of ``scale``.
        table: float32 ``[tables, entries]``; of integers None.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    table: Tensor | None


def refusal(form: MachineForm) -> str:
    """Return why the library takes no weight of this form, or that there is none; empty if it does.

    >>> refusal(MachineForm(0, 4, 8, 100, 64))  # 64 columns do not divide 100
    'the library has no kernel for it'
    """
    library = kernels()
    if library is None:
        return why_not()
    address, *_alive = structure(form.text)
    return "the library has no kernel for it" if library.packed_bytes(address) < 0 else ""


_LARGE_PAGE = 1 << 21


def pack_weight(q: QTensor, form: MachineForm) -> Tensor:
    """Return the bytes of ``q`` for this machine, uint8 ``[size]``.

    Args:
        q: of shape ``[n, k]``, on the CPU.
        form: of its scheme and shape.

    Raises:
        WeightsError: a scale is not finite.
        SchemeError: the library has no kernel for it, or there is no library.
    """
    library = _library()
    address, *_alive = structure(form.text)
    count = library.packed_bytes(address)
    if count < 0:
        fail(count, f"{q.scheme.format.name} {list(q.shape)}")
    codes, scale, zero, table = _arrays(q, form)
    packed = _room(library, count)
    status = library.pack(
        address,
        codes.data_ptr(),
        scale.data_ptr(),
        None if zero is None else zero.data_ptr(),
        _lowest(q.scheme),
        None if table is None else table.data_ptr(),
        packed.data_ptr(),
    )
    if status:
        fail(status, f"{q.scheme.format.name} {list(q.shape)}")
    used = library.packed_used(address, packed.data_ptr())
    return packed if used == count else in_large_pages(packed[:used])


def in_large_pages(packed: Tensor) -> Tensor:
    """Return a copy of packed bytes, in large pages where the system has them."""
    return _room(_library(), packed.numel()).copy_(packed)


def _room(library: Kernels, count: int) -> Tensor:
    """Return memory for a packed weight, not written yet.

    Where it takes several large pages it begins with one: what lies before is never touched.
    """
    spare = _LARGE_PAGE if count >= 2 * _LARGE_PAGE else 0
    room = torch.empty(count + spare, dtype=torch.uint8)
    first = -room.data_ptr() % _LARGE_PAGE if spare else 0
    found = room[first : first + count]
    library.large_pages(found.data_ptr(), count)
    return found


def unpack_weight(packed: Tensor, form: MachineForm) -> Unpacked:
    """Return what :func:`pack_weight` packed, bit for bit.

    Raises:
        WeightsError: the bytes are of another weight or machine.
    """
    library = _library()
    address, *_alive = structure(form.text)
    packed = checked(library, packed, address)
    groups = (form.n, form.k // form.group)
    codes = torch.empty(form.n, form.k, dtype=torch.uint8)
    scale, zero = torch.empty(groups), torch.zeros(groups, dtype=torch.int32)
    table = torch.empty(form.tables, form.entries) if form.tables else None
    status = library.unpack(
        address,
        packed.data_ptr(),
        codes.data_ptr(),
        scale.data_ptr(),
        None if table is not None else zero.data_ptr(),
        None if table is None else table.data_ptr(),
    )
    if status:
        fail(status, "a packed weight")
    return Unpacked(codes, scale, zero, table)


def kept_parts(scheme: Scheme) -> tuple[str, ...]:
    """Return the parts of the canonical form that :func:`stored_parts` gives back."""
    names = ["codes"]
    if scheme.scaled and not isinstance(scheme.scale_format, Scheme):
        names.append("scale")
    return (*names, "zero_point") if not scheme.symmetric else tuple(names)


def stored_parts(packed: Tensor, form: MachineForm, scheme: Scheme) -> dict[str, Tensor]:
    """Return parts of the canonical packed form: codes, and scale and zero points of one level.

    Those that :mod:`bitsmith.numbers.stored` would write, bit for bit.

    Raises:
        WeightsError: the bytes are of another weight or machine.
    """
    found = unpack_weight(packed, form)
    low, number, inner = _lowest(scheme), scheme.format, scheme.scale_format
    # u − 2^(bits−1) in two's complement: the top bit is the other one
    parts = {"codes": pack(found.codes.bitwise_xor_(low), number.bits)}
    groups = scheme.granularity.scale_shape((form.n, form.k))
    shared = form.n // (groups or (1,))[0]
    kept = kept_parts(scheme)
    if "scale" in kept and not isinstance(inner, Scheme):
        scale = found.scale[::shared].reshape(groups)
        parts["scale"] = scale if inner is None else inner.encode(scale)
    if "zero_point" in kept:
        zero = found.zero[::shared].bitwise_xor(low)
        parts["zero_point"] = pack(zero, number.bits)
    return parts


def checked(library: Kernels, packed: Tensor, address: int) -> Tensor:
    """Return packed bytes that the library may read, on 64 bytes.

    Args:
        library: that will read them.
        packed: uint8 ``[size]``.
        address: of the ``bsk_weight`` that they are of.

    Raises:
        WeightsError: they are not on the CPU, too few or too many, or of another weight, machine
            or version.
    """
    held = packed.numel()
    whole = packed.dtype == torch.uint8 and packed.dim() == 1 and packed.is_contiguous()
    if not whole or not packed.is_cpu or held < _HEADER:
        raise WeightsError(
            f"a packed weight is uint8 bytes in a row on the CPU, {_HEADER} or more; this is "
            f"{packed.dtype} {list(packed.shape)} on {packed.device}"
        )
    if packed.data_ptr() % ALIGNMENT:
        packed = packed.clone()
    used = library.packed_used(address, packed.data_ptr())
    if used < 0:
        fail(used, f"a packed weight of {held} bytes")
    if used != held:
        raise WeightsError(f"a packed weight of {used} bytes is cut or damaged: {held} are there")
    return packed


def _library() -> Kernels:
    found = kernels()
    if found is None:
        fail(-8, "no native kernels")
    return found


def _lowest(scheme: Scheme) -> int:
    """Return what is added to a code: that of the lowest one of a signed format is 0 then."""
    signed = scheme.affine and scheme.integer.signed
    return 1 << (scheme.format.bits - 1) if signed else 0


def _arrays(q: QTensor, form: MachineForm) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return codes, scale, zero points (None: all the lowest) and tables as the library reads."""
    low = _lowest(q.scheme)
    codes = q.codes.contiguous().view(torch.uint8)
    if low:
        codes = codes + low  # modulo 256, which is what it takes
    scale = _spread(q.scale, form)
    if q.codebook is not None:
        entries = q.codebook.reshape(-1, form.entries)
        table = entries.repeat_interleave(form.tables // len(entries), 0)
        return codes, torch.ones(form.n, 1), None, table.contiguous()
    if form.kind == TABLE:
        return codes, scale, None, _values(q.scheme, form.entries)
    zero = None if q.scheme.symmetric else _spread(q.zero_point, form) + low
    return codes, scale, zero, None


def _values(scheme: Scheme, entries: int) -> Tensor:
    """Return the number that each code of a fixed format stands for; 0 where it is none."""
    listed = scheme.format.codes
    table = torch.zeros(1, entries)
    values = scheme.format.decode(listed.to(scheme.format.dtype))
    table[0, listed.long()] = torch.where(torch.isfinite(values), values, 0.0)
    return table


def _spread(values: Tensor, form: MachineForm) -> Tensor:
    """Return a value for each group of each row, where rows may share them."""
    wide = values.reshape(-1, form.k // form.group)
    return wide.repeat_interleave(form.n // len(wide), 0).contiguous()
