"""What became of each weight of a model of the module lane."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, final

from torch import nn

from bitsmith.model.layers.replace import kernels_of

__all__ = ["WeightRow", "with_kernels"]


@final
@dataclass(frozen=True)
class WeightRow:
    """What became of one weight: the line of the coverage table.

    Attributes:
        layer: name of the weight, as ``named_parameters`` gives it.
        op: of the layer it belongs to.
        outcome: ``packed``, ``tied`` (to a weight that is packed already) or ``float``.
        reason: why it is float, to which weight it is tied, what was padded, and why another
            rounding than the one asked for was used, or no transform.
        values: numbers in the weight.
        bits_per_weight: everything that is stored, per number.
        algorithm: the rounding that was really used, behind the transform where there is one
            (``awq+gptq``); empty where nothing was rounded.
        objective: what the rounding minimises, of the codes that are stored: the mean squared
            error of the layer's output where statistics of its inputs were gathered, else that of
            the weight, or what the rounding has instead.
        nearest_objective: the same of rounding to nearest in the min–max range.
        kernel: what runs it on the CPU of this machine, ``native avx512, int8 rows`` or ``torch: ``
            and why; not stored in files.
    """

    layer: str
    op: str
    outcome: str
    reason: str
    values: int
    bits_per_weight: float
    algorithm: str = ""
    objective: float | None = None
    nearest_objective: float | None = None
    kernel: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what does not depend on the machine, without objectives that there are none of."""
        known = {key: value for key, value in vars(self).items() if value is not None}
        return {key: value for key, value in known.items() if key != "kernel"}


def with_kernels(rows: Iterable[WeightRow], model: nn.Module) -> list[WeightRow]:
    """Return the rows with what runs each weight of ``model`` on this machine."""
    kernels = kernels_of(model)
    return [replace(row, kernel=kernels.get(row.layer, "")) for row in rows]
