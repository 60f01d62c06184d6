"""The kind of algorithm that gives a float function friendlier numbers, and leaves the function.

Here for weights that share an input: scales s, one per input, with ``(x / s)·(W·diag(s))ᵀ =
x·Wᵀ``. The caller folds ``1 / s`` into what produces x (the weight and bias of the layer norm or
linear layer before), or keeps it as a division.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.ranges import as_float32, value_range
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Gram, Statistic
from bitsmith.registry import Registry

__all__ = ["Transform", "Transformed", "sharing_inputs"]

_PROBES = 16


@final
@dataclass(frozen=True)
class Transformed:
    """What a transform returns.

    Attributes:
        scales: s, float32 ``[in]``, positive.
        weights: ``W·diag(s)`` of each weight, float32, of its shape.
        objective: what the transform minimises, with these scales; None for a closed formula.
        identity_objective: the same with all scales 1.
        kept_identity: no scales were better than 1, so all are 1.
    """

    scales: Tensor
    weights: tuple[Tensor, ...]
    objective: float | None
    identity_objective: float | None
    kept_identity: bool

    def gram(self, gram: Gram) -> Gram:
        """Return the Gram statistic of ``x / s``, from that of x; of [in · kernel] features too.

        >>> seen = Gram()
        >>> seen.update(torch.tensor([[1.0, 8.0]]))
        >>> done = Transformed(torch.tensor([1.0, 4.0]), (), None, None, False)
        >>> done.gram(seen).sums.tolist()
        [[1.0, 2.0], [2.0, 4.0]]
        """
        if gram.empty or len(gram.sums) % len(self.scales):
            raise DataError(
                f"{len(self.scales)} input scales do not apply to a Gram statistic of "
                f"{len(gram.sums)} features"
            )
        s = self.scales.double().repeat_interleave(len(gram.sums) // len(self.scales))
        state = gram.state_dict()
        state["sums"] = gram.sums / (s.square() if gram.diagonal else s[:, None] * s)
        return Gram.from_state(state)


class Transform(ABC):
    """Weights that share an input → scales of that input.

    Contract, checked on every call: the scales are positive and finite, every scaled weight is
    finite, and on random inputs ``(x / s)·(W·diag(s))ᵀ`` is ``x·Wᵀ`` within the rounding of
    float32 sums; an objective is not above that of scales of 1, which are kept if none is better.

    Attributes:
        needs: the statistic of the input that it reads.
        learned: it takes schemes whose table is learned from the weight. One that rounds with
            every candidate does not: a table would have to be found for each.
    """

    registry: ClassVar[Registry[type[Transform]]] = Registry(
        "transform", "bitsmith.algorithms.transforms"
    )
    name: ClassVar[str]
    needs: ClassVar[type[Statistic]]
    learned: ClassVar[bool] = True

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Transform.registry.add(name, cls)

    @abstractmethod
    def scales(
        self, weights: Sequence[Tensor], scheme: Scheme, statistic: Statistic
    ) -> tuple[Tensor, float | None, float | None]:
        """Return the scales ``[in]``, their objective, and that of scales of 1.

        Args:
            weights: float32, finite, ``[out, in, *kernel]`` with one ``in``.
            scheme: of the weights.
            statistic: of :attr:`needs`, not empty.
        """

    @classmethod
    @final
    def refusal(cls, what: object) -> str:
        """Return what is said of weights whose table is learned."""
        return (
            f"transform {cls.name!r} tries scales by rounding with each, and the table of {what} "
            "is learned from the weight; use another transform (smoothquant), a recipe of integers "
            "(W4G64), or none: clustering weighs each weight by its inputs already"
        )

    def __call__(
        self, weights: Sequence[Tensor], scheme: Scheme, statistic: Statistic
    ) -> Transformed:
        """Return the scales and the scaled weights.

        Args:
            weights: of the layers that read the same input: ``[out, in, *kernel]``, one ``in``.
            scheme: how the weights will be quantized.
            statistic: of the input, as the class declares.

        Raises:
            DataError: no weights, weights of several widths, empty or not finite; a statistic of
                another kind, empty, or of other inputs; scales with which a weight overflows or
                vanishes.
            SchemeError: the scheme does not fit a weight, or has a learned table, which this
                transform does not take.
        """
        if scheme.learned and not self.learned:
            raise SchemeError(self.refusal(scheme.format))
        weights = sharing_inputs(weights)
        if not isinstance(statistic, self.needs):
            raise DataError(
                f"{self.name} reads a {self.needs.name} statistic, not {type(statistic).__name__}"
            )
        if statistic.empty:
            raise DataError(
                f"the {statistic.name} statistic for {self.name} has seen no input: run "
                "calibration data first"
            )
        scales, found, plain = self.scales(weights, scheme, statistic)
        kept = found is not None and plain is not None and not found < plain
        if kept:
            scales, found = torch.ones_like(scales), plain
        scaled = tuple(w * _along_inputs(scales, w) for w in weights)
        _check_function(weights, scaled, scales)
        return Transformed(scales, scaled, found, plain, kept)


def _along_inputs(scales: Tensor, weight: Tensor) -> Tensor:
    return scales.reshape(1, -1, *[1] * (weight.dim() - 2))


def sharing_inputs(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights in float32.

    Raises:
        DataError: none, not ``[out, in, *kernel]`` with one ``in``, empty or not finite.
    """
    found = [as_float32(w) for w in weights]
    shapes = [tuple(w.shape) for w in found]
    if not found or any(len(s) < 2 for s in shapes) or len({s[1] for s in shapes}) != 1:
        raise DataError(
            f"a transform takes weights [out, in, *kernel] that share their in, not {shapes}"
        )
    for w in found:
        value_range(w)  # refuses what is empty or not finite
    return found


def _check_function(before: Sequence[Tensor], after: Sequence[Tensor], scales: Tensor) -> None:
    """Refuse scales that change the function by more than float32 rounds."""
    if bad := int((~(torch.isfinite(scales) & (scales > 0))).sum()):
        raise DataError(f"{bad} of {scales.numel()} input scales are not positive and finite")
    x = torch.randn(_PROBES, len(scales), generator=torch.Generator().manual_seed(0))
    for old, new in zip(before, after, strict=True):
        one, two = old.flatten(1), new.flatten(1)
        s = scales.repeat_interleave(one.shape[1] // len(scales))
        wide = x.repeat_interleave(one.shape[1] // len(scales), 1)
        y, size = wide @ one.T, wide.abs() @ one.abs().T
        # Three roundings per product and one per addition, on both sides.
        bound = size * (2 * one.shape[1] + 6) * torch.finfo(torch.float32).eps
        error = ((wide / s) @ two.T - y).abs()
        if not bool((error <= bound + torch.finfo(torch.float32).tiny).all()):
            raise DataError(
                f"input scales from {float(scales.min()):g} to {float(scales.max()):g} change the "
                f"function of a weight of shape {tuple(old.shape)}: scaled values overflow or "
                "vanish"
            )
