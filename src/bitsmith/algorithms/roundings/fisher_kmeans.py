"""Learn a table of values for each group of weights, fitted where the loss feels it most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from bitsmith.algorithms.objective import loss_importance
from bitsmith.algorithms.rounding import Rounding
from bitsmith.numbers.codebooks import Method, cluster
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Fisher, Statistic

__all__ = ["FisherKMeans"]


@final
@dataclass(frozen=True)
class FisherKMeans(Rounding, name="fisher-kmeans"):
    """Codes into learned tables of least ``Σ F_i·(w_i − table[code_i])²`` (SqueezeLLM, arXiv
    2306.07629, eq. 5), F the mean squared gradient of the loss with respect to each weight.

    To second order, around a minimum and with the Fisher information in the place of the Hessian
    matrix, of which the diagonal is kept (eqs. 3 and 4), half that sum is the rise of the loss.

    Attributes:
        method: as :func:`bitsmith.numbers.codebooks.cluster`.
        seed: of Lloyd's starts.

    >>> import torch
    >>> from bitsmith.numbers.formats.codebook import codebook1
    >>> seen = Fisher()
    >>> seen.update(torch.tensor([[[1.0, 0.0, 5.0, 0.0, 0.0]]]))
    >>> w = torch.tensor([[0.0, 0.1, 0.9, 1.0, 1.1]])
    >>> rounded = FisherKMeans()(w, Scheme(codebook1), statistic=seen)
    >>> [round(v, 3) for v in rounded.qtensor.dequantize()[0].tolist()]
    [0.0, 0.0, 0.9, 0.9, 0.9]
    """

    needs = Fisher

    method: Method = "auto"
    seed: int = 0

    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        importance = loss_importance(statistic, weight)
        return cluster(weight, scheme, importance, method=self.method, seed=self.seed)
