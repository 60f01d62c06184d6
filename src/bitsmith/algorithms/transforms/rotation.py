"""Rotation: inputs mixed by an orthogonal matrix, which spreads what is large over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.linear_transform import LinearTransform, map_inputs
from bitsmith.errors import InputError
from bitsmith.numbers.scheme import Scheme

__all__ = ["Rotation", "orthogonal"]


@final
@dataclass(frozen=True)
class Rotation(LinearTransform, name="rotation"):
    """``x·R`` and ``W·R`` with a random orthogonal R (QuIP, arXiv 2307.13304, section 4; with
    Hadamard matrices QuaRot, arXiv 2404.00456, section 4).

    After it inputs and weights have about the values of a normal distribution, so that a range
    is used by all of them. That helps where there are outliers, and costs where there are none:
    its result is returned either way, with both errors.

    Attributes:
        seed: of the random matrix.

    >>> from bitsmith.numbers.formats.integer import int4
    >>> w = torch.ones(4, 64)
    >>> w[:, 3] = 40.0
    >>> done = Rotation()([w], Scheme(int4))
    >>> float(done.weights[0].abs().max()) < 15, done.objective < done.identity_objective
    (True, True)
    """

    lowers_error = False

    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"a seed is a whole number, 0 or more, not {self.seed!r}")

    def map(self, weights: Sequence[Tensor], scheme: Scheme) -> tuple[Tensor, list[Tensor]]:
        matrix = orthogonal(weights[0].shape[1], self.seed)
        return matrix.float(), [map_inputs(w, matrix) for w in weights]


def orthogonal(size: int, seed: int) -> Tensor:
    """Return a random orthogonal matrix, float64 ``[size, size]``.

    For a power of two ``diag(±1)·H / √size`` with Sylvester's Hadamard matrix H, all of whose
    entries are alike in size; else the Q of a normal random matrix.

    >>> r = orthogonal(8, 0)
    >>> torch.allclose(r @ r.T, torch.eye(8, dtype=r.dtype)), r.abs().unique().numel()
    (True, 1)
    """
    generator = torch.Generator().manual_seed(seed)
    if size & (size - 1):
        normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(normal)
        unique: Tensor = q * torch.sign(r.diagonal())
        return unique
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < size:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double(), hadamard)
    signs = torch.randint(2, (size, 1), generator=generator).double() * 2 - 1
    mixed: Tensor = signs * hadamard / size**0.5
    return mixed
