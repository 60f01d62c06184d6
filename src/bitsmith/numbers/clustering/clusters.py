"""A codebook with the codes that point into it, and nearest-code assignment in one dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import DataError, InputError, SchemeError

__all__ = [
    "Clusters",
    "assign",
    "check_counts",
    "check_k",
    "check_values",
    "check_weights",
    "finish",
]

_PIECE = 1 << 20  # values looked up at a time


@final
@dataclass(frozen=True)
class Clusters:
    """What a clustering returns.

    Attributes:
        codebook: float32, ``[k]``, ``[rows, k]`` (ascending) or, for vectors, ``[k, dims]``.
            Where fewer than k distinct values need an entry, the last one is repeated, and no
            code points to a repetition.
        codes: uint8, the nearest entry of each value, ties to the lower index; the shape of the
            values (``[vectors]`` for vectors).
        objective: float64, ``Σ_i h_i·(x_i − codebook[code_i])²`` with the float32 codebook that
            is returned and h the sensitivities (1 without); a scalar, or ``[rows]``.
        restarts: the number of starts the best of which this is; 0 for an exact method.
        exact: whether the partition is globally optimal (see :func:`kmeans_exact`).
    """

    codebook: Tensor
    codes: Tensor
    objective: Tensor
    restarts: int
    exact: bool


def check_k(k: int) -> None:
    """Raise SchemeError unless 1 ≤ k ≤ 256: codes are stored in 8 bits."""
    if not 1 <= k <= 256:
        raise SchemeError(f"a codebook has 1 to 256 entries (8-bit codes), not {k}")


def check_counts(**counts: int) -> None:
    """Raise InputError for every count (restarts, iterations) that is not at least 1."""
    if bad := [f"{name}={count}" for name, count in counts.items() if count < 1]:
        raise InputError(f"{', '.join(bad)}: must be at least 1")


def check_values(values: Tensor, name: str = "values") -> None:
    """Raise DataError for values that are not floating, empty, not finite or beyond float32."""
    if not values.is_floating_point():
        raise DataError(f"{name} to cluster are floating-point, not {values.dtype}")
    if values.numel() == 0:
        raise DataError(f"{name} of shape {tuple(values.shape)} are empty: nothing to cluster")
    low, high = (v.item() for v in torch.aminmax(values))
    if not (torch.isfinite(values.sum()) or torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise DataError(f"{bad} of {values.numel()} {name} are NaN or infinite; clean them first")
    if max(-low, high) > torch.finfo(torch.float32).max:
        raise DataError(f"{name} from {low:g} to {high:g} do not fit in a float32 codebook")


def check_weights(weights: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Return the sensitivities broadcast to ``shape``, or None.

    Raises:
        DataError: not floating, not broadcastable over leading axes, negative, not finite or
            beyond float32.
    """
    if weights is None:
        return None
    if not weights.is_floating_point():
        raise DataError(f"sensitivities are floating-point, not {weights.dtype}")
    if weights.ndim > len(shape) or weights.shape != shape[len(shape) - weights.ndim :]:
        trailing = "the trailing axes of the values'"
        raise DataError(f"sensitivities of shape {tuple(weights.shape)}: {trailing} {tuple(shape)}")
    bad = int((~torch.isfinite(weights)).sum()), int((weights < 0).sum())
    if any(bad):
        raise DataError(
            f"of {weights.numel()} sensitivities {bad[0]} are NaN or infinite and {bad[1]} are "
            "negative; a Fisher diagonal or second moment is neither"
        )
    if weights.numel() and (top := float(weights.max())) > torch.finfo(torch.float32).max:
        raise DataError(f"sensitivities up to {top:g} exceed float32; divide them by their mean")
    return weights.expand(shape)


def assign(values: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest codebook entry, uint8, the shape of ``values``.

    Nearest in real numbers: midpoints ``(c_j + c_{j+1}) / 2`` are formed in float64, where they
    are exact for float32 entries less than 2²⁹ apart in magnitude. A tie goes to the lower
    index, also among equal entries.

    Args:
        values: floating, any shape for one codebook, or ``[rows, n]``.
        codebook: floating, ascending, ``[k]`` or one per row, ``[rows, k]``; 1 ≤ k ≤ 256.

    Raises:
        DataError: NaN or infinities, an unsorted codebook, or shapes that do not fit.
        SchemeError: more than 256 entries, or none.

    >>> assign(torch.tensor([0.2, 0.5, 0.6]), torch.tensor([0.0, 1.0])).tolist()
    [0, 0, 1]
    """
    if codebook.ndim == 0 or not codebook.is_floating_point():
        found = f"{codebook.dtype} of shape {tuple(codebook.shape)}"
        raise DataError(f"a codebook is floating-point [k] or [rows, k], not {found}")
    check_k(codebook.shape[-1])
    if not torch.isfinite(codebook).all() or (codebook.diff() < 0).any():
        raise DataError("a codebook to look up in is finite and ascending; sort it first")
    if values.numel():
        check_values(values)
    single = codebook.ndim == 1
    fits = single or (values.ndim == 2 == codebook.ndim and len(values) == len(codebook))
    if not fits:
        shapes = f"{tuple(codebook.shape)} for values of {tuple(values.shape)}"
        raise DataError(f"codebooks of shape {shapes}: one [k], or [rows, k] for [rows, n]")
    book = codebook.double().reshape(-1, codebook.shape[-1])  # [rows, k]
    rows = values.reshape(1, -1) if single else values
    codes = torch.empty(rows.shape, dtype=torch.uint8, device=values.device)
    middles = (book[:, :-1] + book[:, 1:]) / 2
    lowest = torch.searchsorted(book, book)  # [rows, k]: the first of equal entries
    repeats = bool((book.diff() == 0).any())
    width = max(1, _PIECE // max(1, len(rows)))
    for start in range(0, rows.shape[1], width):
        piece = rows[:, start : start + width].double().contiguous()
        index = torch.searchsorted(middles, piece)
        codes[:, start : start + width] = lowest.gather(1, index) if repeats else index
    return codes.reshape(values.shape)


def finish(
    values: Tensor, weights: Tensor | None, centres: Tensor, restarts: int, exact: bool
) -> Clusters:
    """Return the record of ``centres`` (float64 ``[rows, k]``) for ``values`` ``[rows, n]``.

    The entries are sorted, repetitions moved to the end, codes and objective computed with the
    rounded float32 entries.
    """
    book = centres.float().sort(1).values
    repeated = torch.nn.functional.pad(book.diff() == 0, (1, 0))
    book = torch.where(repeated, book[:, -1:], book).sort(1).values
    codes = assign(values, book)
    objective = torch.zeros(len(values), dtype=torch.float64, device=values.device)
    width = max(1, _PIECE // len(values))
    for start in range(0, values.shape[1], width):
        part = slice(start, start + width)
        error = values[:, part].double() - book.double().gather(1, codes[:, part].long())
        loss = error.square_() if weights is None else error.square_() * weights[:, part].double()
        objective += loss.sum(1)
    return Clusters(book, codes, objective, restarts, exact)
