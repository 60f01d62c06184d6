"""``torch.ops.bitsmith.linear`` and ``embedding``: the kernels as PyTorch sees them.

Both have a meta implementation, so ``torch.compile`` and ``torch.export`` trace them. They have no
gradient of their own: :func:`linear` has that of its inputs and bias, the weight is a constant.

A weight is its packed bytes and the text of a
:class:`~bitsmith.model.kernels.form.MachineForm`.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeGuard, cast

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError
from bitsmith.model.kernels.form import MachineForm, structure
from bitsmith.model.kernels.library import (
    NOT_FINITE,
    ROWS,
    TYPES,
    Kernels,
    fail,
    kernels,
    why_not,
)
from bitsmith.model.kernels.weight import ALIGNMENT, checked
from bitsmith.numbers.ranges import refuse_not_finite

__all__ = ["embedding", "linear", "takes"]


_operators: Any = cast(Any, torch.library.Library)("bitsmith", "FRAGMENT")
# Defined and implemented apart: torch.library.custom_op takes 20 µs a call more.
_operators.define(
    "linear(Tensor x, Tensor packed, str weight, Tensor? bias, int rows) -> Tensor",
    tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag),
)
_operators.define(
    "embedding(Tensor packed, str weight, Tensor index, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag),
)


def linear(
    x: Tensor, packed: Tensor, weight: str, bias: Tensor | None, rows: str = "float"
) -> Tensor:
    """Return ``x · Wᵀ + bias`` in the type of ``x``, ``[..., n]``.

    Args:
        x: float32, float16 or bfloat16 ``[..., k]`` on the CPU, of any strides.
        packed: of :func:`bitsmith.model.kernels.weight.pack_weight`.
        weight: the text of its form.
        bias: float32 ``[n]``, or None.
        rows: ``float``: products and sums in float32. ``int8``: each row of ``x`` becomes symmetric
            int8 codes with a scale of its own, sums of products are exact integers, and there is
            no gradient for ``x``.

    Raises:
        InputError: ``x`` or ``bias`` has another type, device or shape.
        DataError: of ``int8`` rows: ``x`` has NaN or infinite values.
        WeightsError: ``packed`` has another length, or is of another weight or machine.
    """
    number = ROWS[rows]
    if torch.is_grad_enabled():
        if number and x.requires_grad:
            x = x.detach()
        if x.requires_grad or (bias is not None and bias.requires_grad):
            return cast(Tensor, cast(Any, _Linear).apply(x, packed, weight, bias, number))
    plain = x.is_cpu and type(x) in _PLAIN and type(packed) is Tensor and type(bias) in _PLAIN
    run: Any = _linear if plain and not _watched() else _linear_of
    found: Tensor = run(x, packed, weight, bias, number)
    return found


def takes(x: object) -> TypeGuard[Tensor]:
    """Whether ``x`` is a plain tensor that :func:`linear` takes, outside ``torch.compile``.

    A layer asks that can also decode its weight, where that is compiled or counted better.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return False
    return x.is_cpu and x.dtype in TYPES


_PLAIN = (Tensor, nn.Parameter, type(None))


def _watched() -> bool:
    """Return whether somebody traces, counts or profiles: PyTorch's dispatcher has to know.

    Otherwise it has no part. Between two large layers its code has left the cache, and to pass
    through it takes 30 to 50 µs, a tenth of a 4096×4096 layer at 4 bits.
    """
    return bool(
        torch.compiler.is_compiling()
        or _dispatch_modes()
        or _function_modes()
        or _transform() is not None
        or _traced()
        or torch.autograd.profiler._is_profiler_enabled
    )


# Each name that is looked up on the way is memory that is not in the cache.
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_transform = torch._C._functorch.maybe_current_level
_traced = torch._C._is_tracing


def embedding(packed: Tensor, weight: str, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows of the weight in ``dtype``, ``[*index.shape, k]``.

    Args:
        packed, weight: as of :func:`linear`.
        index: integers ``[...]``, 0 to n − 1.
        dtype: float32, float16 or bfloat16.

    Raises:
        IndexError: an index is no row.
        InputError, WeightsError: as of :func:`linear`.
    """
    found: Tensor = _embedding_of(packed, weight, index, dtype)
    return found


class _Linear(torch.autograd.Function):
    """The product, and the gradient of its inputs and bias; the weight is decoded for it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, packed: Tensor, weight: str, bias: Tensor | None, rows: int
    ) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.weight, ctx.dtype = weight, x.dtype
        found: Tensor = _linear_of(x, packed, weight, bias, rows)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        gradient: Tensor = gradients[0]
        for_x = for_bias = None
        if ctx.needs_input_grad[0]:
            every = torch.arange(MachineForm.parse(ctx.weight).n)
            decoded = embedding(packed, ctx.weight, every, torch.float32)
            for_x = (gradient.float() @ decoded).to(ctx.dtype)
        if ctx.needs_input_grad[3]:
            for_bias = gradient.float().flatten(0, -2).sum(0)
        return for_x, None, None, for_bias, None


def _library() -> Kernels:
    library = kernels()
    if library is None:
        fail(-8, f"no native kernels ({why_not()})")
    return library


def _linear(x: Tensor, packed: Tensor, weight: str, bias: Tensor | None, rows: int) -> Tensor:
    library = kernels() or _library()
    address, n, k, _alive = structure(weight)
    kind, shape = TYPES.get(x.dtype), x.shape
    if kind is None or not shape or shape[-1] != k or rows not in (0, 1):
        _refuse(f"rows are float32, float16 or bfloat16 [..., {k}]", x)
    if bias is not None and not (
        bias.is_cpu and bias.dtype == torch.float32 and bias.shape == (n,) and bias.is_contiguous()
    ):
        _refuse(f"the bias is float32 [{n}]", bias)
    size = packed.nbytes
    bytes_in_a_row = packed.dtype == torch.uint8 and packed.dim() == 1 and packed.is_contiguous()
    if not bytes_in_a_row or not packed.is_cpu or n < 1 or n * k > 8 * size:
        packed = checked(library, packed, address)
    flat = x if len(shape) == 2 else x.reshape(-1, k)
    stride, step = flat.stride()
    if step != 1 or stride < k:  # rows that overlap, or are one row
        flat, stride = flat.contiguous(), k  # of one row the stride may be anything
    y = x.new_empty((*shape[:-1], n))
    status = library.linear(
        address,
        packed.data_ptr(),
        size,
        kind,
        flat.data_ptr(),
        flat.shape[0],
        stride,
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        n,
        rows,
        torch.get_num_threads(),
    )
    if status:
        if packed.data_ptr() % ALIGNMENT:
            return _linear(x, checked(library, packed, address), weight, bias, rows)
        if status == NOT_FINITE:
            refuse_not_finite(x)
        checked(library, packed, address)
        fail(status, f"rows {list(x.shape)} times a packed weight [{n}, {k}]")
    return y


def _embedding(packed: Tensor, weight: str, index: Tensor, dtype: torch.dtype) -> Tensor:
    library = _library()
    address, n, k, _alive = structure(weight)
    kind = TYPES.get(dtype)
    if kind is None:
        _refuse(f"rows are float32, float16 or bfloat16, not {dtype}", packed)
    if index.dtype not in (torch.int64, torch.int32) or not index.is_cpu:
        _refuse("indices are int64 or int32", index)
    packed = checked(library, packed, address)
    flat = index.to(torch.int64).contiguous()
    y = packed.new_empty((*index.shape, k), dtype=dtype)
    status = library.embedding(
        address,
        packed.data_ptr(),
        flat.data_ptr(),
        flat.numel(),
        kind,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    if status:
        outside = flat[(flat < 0) | (flat >= n)]
        if len(outside):
            first = int(outside[0])
            raise IndexError(f"index {first} is not a row of a table of {n}: 0 to {n - 1}")
        fail(status, f"rows {list(index.shape)} of a packed table [{n}, {k}]")
    return y


def _refuse(rule: str, found: Tensor) -> NoReturn:
    raise InputError(
        f"a packed layer on the CPU: {rule}; given {found.dtype} {list(found.shape)} on "
        f"{found.device}"
    )


def _like_linear(x: Tensor, packed: Tensor, weight: str, bias: Tensor | None, rows: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], MachineForm.parse(weight).n))


def _like_embedding(packed: Tensor, weight: str, index: Tensor, dtype: torch.dtype) -> Tensor:
    return packed.new_empty((*index.shape, MachineForm.parse(weight).k), dtype=dtype)


_operators.impl("linear", _linear, "CPU")
_operators.impl("embedding", _embedding, "CPU")
torch.library.register_fake("bitsmith::linear", _like_linear, lib=_operators)
torch.library.register_fake("bitsmith::embedding", _like_embedding, lib=_operators)

_linear_of: Any = torch.ops.bitsmith.linear.default
_embedding_of: Any = torch.ops.bitsmith.embedding.default
