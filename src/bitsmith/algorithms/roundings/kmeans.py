"""Learn a table of values for each group of weights: k-means, weighted where data is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from bitsmith.algorithms.objective import input_importance
from bitsmith.algorithms.rounding import Rounding
from bitsmith.numbers.codebooks import Method, cluster
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Gram, Statistic

__all__ = ["KMeans"]


@final
@dataclass(frozen=True)
class KMeans(Rounding, name="kmeans"):
    """Codes into learned tables of least squared error (arXiv 1510.00149, section 3).

    With a Gram statistic an error counts as much as the mean square of the input that it meets
    (the objective of SqueezeLLM, arXiv 2306.07629, eq. 5, with that in the place of the Fisher
    information). Nearest rounding, which it is compared with, has evenly spaced tables.

    Attributes:
        method: as :func:`bitsmith.numbers.codebooks.cluster`.
        seed: of Lloyd's starts.

    >>> import torch
    >>> from bitsmith.numbers.formats.codebook import codebook1
    >>> rounded = KMeans()(torch.tensor([0.0, 0.1, 0.9, 1.0, 1.1]), Scheme(codebook1))
    >>> [round(v, 3) for v in rounded.qtensor.dequantize().tolist()]
    [0.05, 0.05, 1.0, 1.0, 1.0]
    """

    takes = Gram
    diagonal = True

    method: Method = "auto"
    seed: int = 0

    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        importance = input_importance(statistic, weight)
        return cluster(weight, scheme, importance, method=self.method, seed=self.seed)
