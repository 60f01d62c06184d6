"""Round to nearest in the range of each group that loses the least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from bitsmith.algorithms.objective import input_importance
from bitsmith.algorithms.rounding import Rounding
from bitsmith.errors import SchemeError
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.block_plan import block_plan
from bitsmith.numbers.block_search import search_blocks
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.range_search import search_range
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Gram, Statistic

__all__ = ["Searched"]


@final
@dataclass(frozen=True)
class Searched(Rounding, name="searched"):
    """Nearest code in the range, per group, of least squared error.

    With a Gram statistic each error counts as much as the mean square of the input that it meets,
    which makes the sum the squared error of the layer's output for uncorrelated inputs. See
    :func:`bitsmith.numbers.range_search.search_range` for the candidates.

    Attributes:
        steps: ranges tried per end.

    >>> from bitsmith.numbers.formats.integer import int2
    >>> rounded = Searched()(torch.tensor([-1.0, -0.9, 0.9, 1.0, 1.1, 3.0]), Scheme(int2))
    >>> rounded.objective < rounded.nearest_objective, rounded.kept_nearest
    (True, False)
    """

    takes = Gram
    diagonal = True

    steps: int = 64

    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        importance = input_importance(statistic, weight)
        if _in_blocks(scheme):
            if bool((min_scale > 0).any()):
                raise SchemeError("scales that are searched in blocks have no smallest value")
            return search_blocks(weight, scheme, importance)
        scale, zero_point = search_range(weight, scheme, importance, steps=self.steps)
        return quantize(weight, scheme, torch.maximum(scale, min_scale), zero_point)


def _in_blocks(scheme: Scheme) -> bool:
    """Whether codes, scales and offsets are fitted together: they depend on each other."""
    if not scheme.shifted and not isinstance(scheme.scale_format, Scheme):
        return False
    try:
        block_plan(scheme)
    except SchemeError:
        if scheme.shifted:
            raise
        return False
    return True
