"""The kind of transform that maps a layer's inputs linearly, and its weights against it.

A scale per input (:class:`~bitsmith.algorithms.transform.Transform`) is the diagonal case. Here
the inputs x ``[…, in]`` become ``x' = x·A`` with A ``[in, new]``, and weights W' with ``W'·Aᵀ = W``
give what W gave: ``x'·W'ᵀ = x·(W'·Aᵀ)ᵀ = x·Wᵀ``, for all x. That one equation is the whole
contract: rotations have ``A = R`` and ``W' = W·R``; a split has copies of inputs in A, and any
shares in W' that add up. The caller folds A into what produces x: ``Aᵀ·W`` and ``Aᵀ·b`` of the
layer before, with an activation between only where A copies (:attr:`Mapped.copies`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from bitsmith.algorithms.baseline import nearest
from bitsmith.algorithms.objective import output_error, weight_error
from bitsmith.algorithms.transform import sharing_inputs
from bitsmith.errors import DataError
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Gram
from bitsmith.registry import Registry

__all__ = ["LinearTransform", "Mapped", "map_inputs"]


@final
@dataclass(frozen=True)
class Mapped:
    """What a linear transform returns.

    Attributes:
        matrix: A, float32 ``[in, new]``: the inputs become ``x·A``.
        weights: W' of each weight, float32 ``[out, new, *kernel]``.
        objective: mean squared error of nearest rounding of W', as an error of the weights
            ``Q(W')·Aᵀ − W``, or of the outputs where inputs were given; summed over the weights.
        identity_objective: the same of W.
        kept_identity: the map was not better than none: A is the identity.
    """

    matrix: Tensor
    weights: tuple[Tensor, ...]
    objective: float
    identity_objective: float
    kept_identity: bool

    @property
    def copies(self) -> Tensor | None:
        """Which input each new one is a copy of, int64 ``[new]``; None where inputs are mixed."""
        single = (self.matrix != 0).sum(0) == 1
        ones = self.matrix.sum(0) == 1
        return self.matrix.argmax(0) if bool((single & ones).all()) else None


class LinearTransform(ABC):
    """Weights that share an input → a linear map of that input, and the weights that undo it.

    Contract, checked on every call: everything is finite, and ``W'·Aᵀ`` is W within the rounding
    of float32 sums; where the purpose is a lower error of the rounded weights
    (:attr:`lowers_error`), the identity is kept if the map does not lower it.
    """

    registry: ClassVar[Registry[type[LinearTransform]]] = Registry(
        "linear transform", "bitsmith.algorithms.transforms"
    )
    name: ClassVar[str]
    lowers_error: ClassVar[bool] = True

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        LinearTransform.registry.add(name, cls)

    @abstractmethod
    def map(self, weights: Sequence[Tensor], scheme: Scheme) -> tuple[Tensor, list[Tensor]]:
        """Return A ``[in, new]`` and the new weights ``[out, new, *kernel]``.

        Args:
            weights: float32, finite, ``[out, in, *kernel]`` with one ``in``.
            scheme: of the weights.
        """

    def __call__(
        self, weights: Sequence[Tensor], scheme: Scheme, *, gram: Gram | None = None
    ) -> Mapped:
        """Return the map of the inputs and the new weights.

        Args:
            weights: of the layers that read the same input: ``[out, in, *kernel]``, one ``in``.
            scheme: how the weights will be quantized.
            gram: of the inputs as they are, for an objective of the outputs.

        Raises:
            DataError: no weights, weights of several widths, empty or not finite; a map that
                changes the function.
            SchemeError: the scheme fits a weight, or this transform, not.
        """
        weights = sharing_inputs(weights)
        matrix, found = self.map(weights, scheme)
        _check_function(self.name, weights, found, matrix)
        plain = torch.eye(len(matrix))
        before = sum(_error(w, w, plain, scheme, gram) for w in weights)
        after = sum(
            _error(w, new, matrix, scheme, gram) for w, new in zip(weights, found, strict=True)
        )
        if self.lowers_error and not after < before:
            return Mapped(plain, tuple(weights), before, before, True)
        return Mapped(matrix, tuple(found), after, before, False)


def map_inputs(weight: Tensor, matrix: Tensor) -> Tensor:
    """Return ``Σ_i W[:, i]·M[i, j]``, float32 ``[out, new, *kernel]``; summed in float64.

    >>> map_inputs(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    tensor([[1., 2., 1.]])
    """
    return (weight.double().movedim(1, -1) @ matrix.double()).movedim(-1, 1).float().contiguous()


def _error(
    weight: Tensor, mapped: Tensor, matrix: Tensor, scheme: Scheme, gram: Gram | None
) -> float:
    least = torch.zeros(scheme.granularity.scale_shape(mapped.shape))
    back = map_inputs(nearest(mapped, scheme, least).dequantize(), matrix.T)
    return weight_error(weight, back) if gram is None else output_error(weight, back, gram)


def _check_function(
    name: str, before: Sequence[Tensor], after: Sequence[Tensor], matrix: Tensor
) -> None:
    """Refuse weights whose ``W'·Aᵀ`` is not W within what float32 rounds."""
    for old, new in zip(before, after, strict=True):
        assert new.shape == (len(old), matrix.shape[1], *old.shape[2:])
        size = map_inputs(new.abs(), matrix.T.abs())
        # One rounding of each new weight and entry of A, and one of the result.
        bound = 4 * torch.finfo(torch.float32).eps * size + torch.finfo(torch.float32).tiny
        error = (map_inputs(new, matrix.T) - old).abs()
        if not bool((error <= bound).all()):
            raise DataError(
                f"{name} changes the function of a weight of shape {tuple(old.shape)} with values "
                f"up to {float(old.abs().max()):g}: new values overflow or vanish"
            )
