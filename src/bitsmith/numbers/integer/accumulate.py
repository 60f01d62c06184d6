"""Exact int32 accumulators of quantized products, computed by float matrix kernels.

A float32 holds every integer up to 2^24 in magnitude. When ``Σ|w| · max|x − zero point|`` of
every output stays at or below that, each product and each partial sum is such an integer in
whatever order a kernel adds them, so the float32 result is the integer result. Past that bound
the same is done in float64 (2^53). Algorithms that are not sums of products (Winograd, FFT)
are kept out.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.errors import DataError

__all__ = ["conv_accumulate", "linear_accumulate", "matmul_accumulate", "sums_of_products"]

_FLOAT32_INTEGERS = 1 << 24


def conv_accumulate(
    x: Tensor,
    x_zero_point: int,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """Return ``Σ (x − x_zero_point) · weight + bias`` of a convolution, exactly.

    Args:
        x: codes, uint8 or int8 ``[N, I, *in]`` with one or two spatial axes.
        x_zero_point: the code of real 0; padding stands for it.
        weight: int8 ``[O, I / groups, *kernel]``, symmetric (zero point 0).
        bias: int32 ``[O]`` in units of ``s_x · s_w``.
        stride, padding, dilation: one number, or one per spatial axis; padding on both sides.
        groups: the input channels are split into this many groups.

    Returns:
        int32 ``[N, O, *out]``. The bias is added as the runtime does, modulo 2^32.

    >>> x = torch.tensor([[[200, 7, 3]]], dtype=torch.uint8)
    >>> w = torch.tensor([[[2, -1]]], dtype=torch.int8)
    >>> conv_accumulate(x, 3, w, torch.tensor([10], dtype=torch.int32)).tolist()
    [[[400, 18]]]
    """
    _check("conv_accumulate", x, weight, bias)
    rank = weight.ndim - 2
    if rank not in (1, 2) or x.ndim != weight.ndim:
        raise DataError(
            f"conv_accumulate takes [N, I, *in] and [O, I, *kernel] with 1 or 2 spatial axes, "
            f"not {list(x.shape)} and {list(weight.shape)}"
        )
    dtype = _exact_dtype(x, x_zero_point, weight)
    conv = functional.conv1d if rank == 1 else functional.conv2d
    steps = (_per_axis(stride, rank), _per_axis(padding, rank), _per_axis(dilation, rank))
    with sums_of_products():
        sums = conv(_centred(x, x_zero_point, dtype), weight.to(dtype), None, *steps, groups)
    return _with_bias(sums, bias, (-1, *(1,) * rank))


def linear_accumulate(
    x: Tensor, x_zero_point: int, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return ``(x − x_zero_point) · weightᵀ + bias``, exactly.

    Args:
        x: codes, uint8 or int8 ``[..., K]``.
        x_zero_point: the code of real 0.
        weight: int8 ``[N, K]``, symmetric.
        bias: int32 ``[N]`` in units of ``s_x · s_w``.

    Returns:
        int32 ``[..., N]``.

    >>> x = torch.full((1, 256), 255, dtype=torch.uint8)
    >>> linear_accumulate(x, 0, torch.full((1, 256), 127, dtype=torch.int8)).item()
    8290560
    """
    _check("linear_accumulate", x, weight, bias)
    dtype = _exact_dtype(x, x_zero_point, weight)
    sums = functional.linear(_centred(x, x_zero_point, dtype), weight.to(dtype))
    return _with_bias(sums, bias, (-1,))


def matmul_accumulate(a: Tensor, a_zero_point: int, b: Tensor, b_zero_point: int) -> Tensor:
    """Return ``(a − a_zero_point) @ (b − b_zero_point)`` of two activations, exactly.

    Args:
        a: codes, uint8 or int8 ``[..., M, K]``.
        b: codes, uint8 or int8 ``[..., K, N]``; leading axes broadcast.

    Returns:
        int32 ``[..., M, N]``.

    >>> a = torch.tensor([[3, 5]], dtype=torch.uint8)
    >>> matmul_accumulate(a, 3, a.T, 4).item()
    2
    """
    bound = a.shape[-1] * _reach(a, a_zero_point) * _reach(b, b_zero_point)
    dtype = torch.float32 if bound <= _FLOAT32_INTEGERS else torch.float64
    sums = _centred(a, a_zero_point, dtype) @ _centred(b, b_zero_point, dtype)
    return _to_int32(sums)


@contextlib.contextmanager
def sums_of_products() -> Iterator[None]:
    """Within it convolutions multiply and add, and nothing else.

    Algorithms that transform (Winograd, FFT) leave the whole numbers: NNPACK is switched off, and
    where the machine is no x86 also oneDNN, which may choose Winograd on Arm.

    >>> with sums_of_products():
    ...     torch.nn.functional.conv1d(torch.ones(1, 1, 3), torch.ones(1, 1, 2)).tolist()
    [[[2.0, 2.0]]]
    """
    with torch.backends.nnpack.flags(enabled=False):
        if platform.machine().lower() in ("x86_64", "amd64"):
            yield
            return
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _check(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    wrong = []
    if x.dtype not in (torch.uint8, torch.int8):
        wrong.append(f"x holds uint8 or int8 codes, not {x.dtype}")
    if weight.dtype != torch.int8:
        wrong.append(f"weight holds int8 codes, not {weight.dtype}")
    if bias is not None and bias.dtype != torch.int32:
        wrong.append(f"bias is int32 in units of s_x·s_w, not {bias.dtype}")
    if wrong:
        raise DataError(f"{name}: {'; '.join(wrong)}")


def _exact_dtype(x: Tensor, zero_point: int, weight: Tensor) -> torch.dtype:
    """The narrowest float type in which every partial sum is exact."""
    magnitudes = weight.to(torch.int16).abs().flatten(1).sum(1, dtype=torch.int64)
    heaviest = int(magnitudes.max()) if weight.numel() else 0
    if heaviest * _format_reach(x, zero_point) <= _FLOAT32_INTEGERS:
        return torch.float32
    return torch.float32 if heaviest * _reach(x, zero_point) <= _FLOAT32_INTEGERS else torch.float64


def _format_reach(x: Tensor, zero_point: int) -> int:
    """Largest ``|x − zero_point|`` the type of ``x`` can hold."""
    info = torch.iinfo(x.dtype)
    return max(zero_point - info.min, info.max - zero_point)


def _reach(x: Tensor, zero_point: int) -> int:
    """Largest ``|x − zero_point|`` in ``x``."""
    if not x.numel():
        return 0
    low, high = (int(v) for v in torch.aminmax(x))
    return max(abs(low - zero_point), abs(high - zero_point))


def _centred(x: Tensor, zero_point: int, dtype: torch.dtype) -> Tensor:
    real = x.to(dtype)
    return real.sub_(zero_point) if zero_point else real


def _with_bias(sums: Tensor, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    total = _to_int32(sums)
    return total if bias is None else total.add_(bias.view(shape))


def _to_int32(sums: Tensor) -> Tensor:
    # float32 sums are at most 2^24; a float64 sum past 2^31 wraps like the runtime's int32.
    return sums.to(torch.int32) if sums.dtype == torch.float32 else sums.long().to(torch.int32)


def _per_axis(value: Sequence[int] | int, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values
