"""One width and one combination of schemes, and what it gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from bitsmith.insight.evaluation import Difference, Evaluation
from bitsmith.studies.mixing.terms import Cost, LayerTerms

__all__ = ["BITS", "COMBINATIONS", "Outcome"]

BITS = (8, 4)
#: Of inputs and of weights.
COMBINATIONS = (
    ("symmetric", "symmetric"),
    ("symmetric", "asymmetric"),
    ("asymmetric", "symmetric"),
    ("asymmetric", "asymmetric"),
)


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """A rounded network.

    Attributes:
        bits: of inputs and weights.
        inputs, weights: ``symmetric`` or ``asymmetric``.
        evaluation: what it got right.
        against: the same less float, paired.
        terms: the integer sums of each layer.
        cost: of those beside the products.
    """

    bits: int
    inputs: str
    weights: str
    evaluation: Evaluation
    against: Difference
    terms: Sequence[LayerTerms]
    cost: Cost

    @property
    def label(self) -> str:
        """The combination in two short lines."""
        return f"inputs {self.inputs}\nweights {self.weights}"
