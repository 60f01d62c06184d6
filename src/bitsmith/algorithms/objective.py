"""What a rounding is judged by: the error of the weight, of the layer's output, or of the loss.

A layer's weight is ``[out, in, *kernel]``; a row of it, flattened, meets K = in · kernel inputs:
those of a linear layer as they are, those of a convolution as ``torch.nn.functional.unfold`` lays
them out (channels outermost). All sums are float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.numbers.statistics import Fisher, Gram, Statistic

__all__ = [
    "gram_of",
    "input_importance",
    "loss_error",
    "loss_importance",
    "output_error",
    "second_moments",
    "weight_error",
]

_PIECE = 1 << 20  # values taken to float64 at a time


def weight_error(weight: Tensor, found: Tensor, norm: float = 2.0) -> float:
    """Return the mean of ``|weight − found|^norm``.

    >>> weight_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    0.125
    """
    total = 0.0
    pairs = zip(
        torch.split(weight.reshape(-1), _PIECE), torch.split(found.reshape(-1), _PIECE), strict=True
    )
    for one, other in pairs:
        total += float((one.double() - other.double()).abs_().pow_(norm).sum())
    return total / max(1, weight.numel())


def output_error(weight: Tensor, found: Tensor, gram: Gram) -> float:
    """Return the mean squared error of the layer's output over the rows that ``gram`` has seen.

    ``tr(D · XᵀX · Dᵀ) / (out · rows)`` with ``D = weight − found``; of a diagonal Gram the sum
    over k of ``D_k² · Σ x_k²``, which is the same for uncorrelated inputs.

    Args:
        weight, found: ``[out, in, *kernel]``.
        gram: of the layer's inputs, K × K or its diagonal.

    Raises:
        DataError: ``gram`` is not a Gram matrix of this layer's inputs.

    >>> g = Gram()
    >>> g.update(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> output_error(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.5]]), g)
    0.5
    """
    sums = gram_of(gram, weight)
    step = max(1, _PIECE // max(1, len(sums)))
    rows = zip(
        torch.split(weight.flatten(1), step), torch.split(found.flatten(1), step), strict=True
    )
    total = 0.0
    for one, other in rows:
        d = one.double() - other.double()
        total += float((d.square() @ sums if gram.diagonal else (d @ sums).mul_(d)).sum())
    return max(0.0, total) / (len(weight) * gram.rows)


def loss_error(weight: Tensor, found: Tensor, fisher: Fisher) -> float:
    """Return ``Σ F·(weight − found)²``, F the mean squared gradient of the loss per weight.

    Half of it is the rise of the loss, to second order and with the diagonal alone (SqueezeLLM,
    arXiv 2306.07629, eq. 4).

    Raises:
        DataError: ``fisher`` is not of a weight of this shape.

    >>> f = Fisher()
    >>> f.update(torch.tensor([[1.0, 2.0]]))
    >>> loss_error(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.5]), f)
    1.0
    """
    squares = _squared_gradients(fisher, weight)
    total = 0.0
    parts = (torch.split(x.reshape(-1), _PIECE) for x in (weight, found, squares))
    for one, other, square in zip(*parts, strict=True):
        total += float((one.double() - other.double()).square_().mul_(square).sum())
    return total


def loss_importance(statistic: Statistic | None, weight: Tensor) -> Tensor:
    """Return F in units of its largest value, 0 to 1: float32 of the shape of ``weight``.

    Raises:
        DataError: it is not a Fisher statistic of a weight of this shape.
    """
    squares = _squared_gradients(statistic, weight)
    largest = float(squares.max())
    return (squares / largest if largest else squares).to(torch.float32)


def _squared_gradients(statistic: Statistic | None, weight: Tensor) -> Tensor:
    if not isinstance(statistic, Fisher):
        raise DataError(f"squared gradients come in a Fisher statistic, not {statistic!r}")
    if statistic.sums.shape != weight.shape:
        raise DataError(
            f"a weight of shape {tuple(weight.shape)} needs the squared gradients of each of its "
            f"values, but the Fisher statistic is of shape {tuple(statistic.sums.shape)}"
        )
    squares = statistic.mean_square
    if bad := int((~(torch.isfinite(squares) & (squares >= 0))).sum()):
        raise DataError(
            f"{bad} of {squares.numel()} mean squared gradients are negative, NaN or infinite"
        )
    return squares


def second_moments(statistic: Statistic, weight: Tensor) -> Tensor:
    """Return the mean square of each input of ``weight``: float64 ``[K]``.

    Raises:
        DataError: it is not a Gram matrix of this layer's inputs.
    """
    sums = gram_of(statistic, weight)
    assert isinstance(statistic, Gram)
    return (sums if statistic.diagonal else sums.diagonal()) / statistic.rows


def input_importance(statistic: Statistic | None, weight: Tensor) -> Tensor | None:
    """Return the second moment of what meets each weight, ``[1, in, *kernel]``; None without data.

    Raises:
        DataError: it is not a Gram matrix of this layer's inputs.
    """
    if statistic is None:
        return None
    return second_moments(statistic, weight).to(torch.float32).reshape(1, *weight.shape[1:])


def gram_of(statistic: Statistic, weight: Tensor) -> Tensor:
    """Return the sums of products of the layer's inputs, checked: ``[K, K]``, or ``[K]``.

    Raises:
        DataError: another statistic, one that has seen nothing, of another number of inputs, with
            NaN, infinite or negative sums of squares, or not symmetric.
    """
    if not isinstance(statistic, Gram):
        raise DataError(f"the inputs are summed up in a Gram statistic, not {statistic!r}")
    if weight.dim() < 2:
        raise DataError(
            f"a weight that meets inputs is [out, in, *kernel], not of shape {tuple(weight.shape)}"
        )
    if statistic.empty or statistic.rows < 1:
        raise DataError("the Gram statistic has seen no input: run calibration data first")
    features, sums = weight[0].numel(), statistic.sums
    expected = (features,) if statistic.diagonal else (features, features)
    if tuple(sums.shape) != expected:
        raise DataError(
            f"a weight of shape {tuple(weight.shape)} meets {features} inputs (in · kernel, as "
            f"unfold lays them out), but the Gram statistic is of {len(sums)}"
        )
    if bad := int((~torch.isfinite(sums)).sum()):
        raise DataError(f"{bad} of {sums.numel()} sums of the Gram statistic are NaN or infinite")
    squares = sums if statistic.diagonal else sums.diagonal()
    if bad := int((squares < 0).sum()):
        raise DataError(f"{bad} of {features} sums of squares of the Gram statistic are negative")
    if not statistic.diagonal:
        off = float((sums - sums.T).abs().max())
        if off > 1e-6 * float(squares.max()):
            raise DataError(f"the Gram statistic is not symmetric: entries differ by {off:g}")
    return sums
