"""The kind of algorithm that runs after rounding: only parameters that are left in float change.

Here the bias of a layer. Rounding a weight shifts the mean of the layer's output by a little in
each channel; a bias takes any constant, so that shift can be taken back for nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.registry import Registry

__all__ = ["BIAS_STEPS", "Corrected", "Correction"]

#: A bias in steps stays below this, so that bias plus products stay inside int32.
BIAS_STEPS = float(1 << 30)


@final
@dataclass(frozen=True)
class Corrected:
    """What a correction returns.

    Attributes:
        bias: float32 ``[O]``; where it is stored in steps, what the steps stand for.
        error: mean over channels of the squared mean error of the layer's output, with ``bias``.
        error_before: the same with the bias that was given.
        changed: how many channels have another bias.
    """

    bias: Tensor
    error: float
    error_before: float
    changed: int

    @property
    def kept(self) -> bool:
        """Whether nothing was better: ``bias`` is what was given."""
        return self.changed == 0


class Correction(ABC):
    """bias → bias, from evidence about how far rounding has moved the mean of the output.

    Contract, checked on every call: the bias keeps its shape and is finite; in every channel its
    squared mean error, of the bias as it will be stored, is below what it was, or the channel
    keeps its bias. So the stated error never rises.

    Attributes:
        needs: the type of the evidence.
    """

    registry: ClassVar[Registry[type[Correction]]] = Registry(
        "correction", "bitsmith.algorithms.corrections"
    )
    name: ClassVar[str]
    needs: ClassVar[type]

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Correction.registry.add(name, cls)

    @abstractmethod
    def shift(self, evidence: Any) -> Tensor:
        """Return the mean of the quantized output less that of the float one, float64 ``[O]``.

        Args:
            evidence: a :attr:`needs`.
        """

    def __call__(self, bias: Tensor, evidence: Any, *, step: Tensor | None = None) -> Corrected:
        """Return the bias less the shift that ``evidence`` shows.

        Args:
            bias: ``[O]``, that of the quantized layer.
            evidence: as the class declares.
            step: float32 ``[O]`` or ``[1]``: the bias is stored as a whole number of steps, of
                magnitude below 2^30; None: in float32.

        Raises:
            DataError: evidence of another type; a bias or step that is not finite, a step that is
                not positive, evidence for another number of channels.
        """
        if not isinstance(evidence, self.needs):
            raise DataError(
                f"{self.name} reads {self.needs.__name__}, not {type(evidence).__name__}"
            )
        _check(bias, step)
        before = bias.to(torch.float64)
        shift = self.shift(evidence).to(torch.float64)
        if shift.shape != bias.shape or not bool(torch.isfinite(shift).all()):
            raise DataError(
                f"{self.name}: a bias of shape {tuple(bias.shape)} needs one finite shift for each "
                f"channel; the evidence gives shape {tuple(shift.shape)}, "
                f"{int((~torch.isfinite(shift)).sum())} of them NaN or infinite"
            )
        proposed = _stored(before - shift, before, step)
        old, new = shift.square(), (shift + proposed - before).square()
        better = (new < old) & (proposed.to(torch.float32) != bias)
        result = torch.where(better, proposed, before).to(torch.float32)
        error, plain = float(torch.where(better, new, old).mean()), float(old.mean())
        assert error <= plain
        return Corrected(result, error, plain, int(better.sum()))


def _check(bias: Tensor, step: Tensor | None) -> None:
    faults = []
    if bias.dim() != 1 or not bias.numel() or not bool(torch.isfinite(bias).all()):
        faults.append(
            f"a bias is finite and of shape [channels], not {tuple(bias.shape)} with "
            f"{int((~torch.isfinite(bias)).sum())} values that are NaN or infinite"
        )
    if step is not None:
        if step.shape not in (bias.shape, (1,)):
            faults.append(f"steps of shape {tuple(step.shape)} for {bias.numel()} channels")
        if not bool((torch.isfinite(step) & (step > 0)).all()):
            faults.append("steps are positive and finite")
    if faults:
        raise DataError("; ".join(faults))


def _stored(proposed: Tensor, before: Tensor, step: Tensor | None) -> Tensor:
    """Return what a proposal becomes in storage; ``before`` where it does not fit."""
    if step is None:
        found = proposed.to(torch.float32).to(torch.float64)
        return torch.where(torch.isfinite(found), found, before)
    unit = step.to(torch.float64)
    steps = torch.round(proposed / unit)
    value = (steps * unit).to(torch.float32).to(torch.float64)
    moved = (steps.abs() < BIAS_STEPS) & (steps != torch.round(before / unit))
    return torch.where(moved, value, before)
