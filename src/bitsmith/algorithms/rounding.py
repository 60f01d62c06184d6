"""The kind of algorithm that turns a float weight into codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from bitsmith.algorithms.baseline import nearest
from bitsmith.algorithms.objective import loss_error, output_error, weight_error
from bitsmith.errors import DataError, SchemeError
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.ranges import as_float32
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Fisher, Gram, Statistic
from bitsmith.registry import Registry

__all__ = ["Rounded", "Rounding"]


@final
@dataclass(frozen=True)
class Rounded:
    """What a rounding returns.

    Attributes:
        qtensor: the quantized weight.
        error: mean squared error against the float weight.
        nearest_error: that of rounding to nearest in the full min–max range.
        objective: what the rounding minimises, of ``qtensor``: the mean squared error of the
            layer's output where it was given the inputs' Gram statistic, the sum of
            ``F·error²`` where it was given the Fisher statistic, else the mean of
            ``|error|^norm`` of the weight.
        nearest_objective: the same of rounding to nearest.
        kept_nearest: the rounding was not better than nearest, so ``qtensor`` is nearest.
    """

    qtensor: QTensor
    error: float
    nearest_error: float
    objective: float
    nearest_objective: float
    kept_nearest: bool


class Rounding(ABC):
    """weight → codes.

    Contract, checked on every call: the weight is finite, the result has its shape and the scheme
    that was asked for, every scale is at least ``min_scale``, and the objective is not above that
    of nearest rounding: where it is not below, nearest is returned, and the result says so.

    Attributes:
        needs: the statistic of the layer's inputs without which it refuses; None for none.
        takes: the statistic that it makes use of when it is given; None for none.
        diagonal: of a Gram statistic, it uses the diagonal only.
        norm: exponent of the weight error that is its objective without data.
        lowers_error: a lower objective is its purpose. False where it is not (codes that obey a
            bound, codes that are right on average): its result is returned whatever the objective.
    """

    registry: ClassVar[Registry[type[Rounding]]] = Registry(
        "rounding", "bitsmith.algorithms.roundings"
    )
    name: ClassVar[str]
    needs: ClassVar[type[Statistic] | None] = None
    takes: ClassVar[type[Statistic] | None] = None
    diagonal: ClassVar[bool] = False
    norm: ClassVar[float] = 2.0
    lowers_error: ClassVar[bool] = True

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Rounding.registry.add(name, cls)

    @abstractmethod
    def round(
        self, weight: Tensor, scheme: Scheme, min_scale: Tensor, statistic: Statistic | None
    ) -> QTensor:
        """Return the quantized weight.

        Args:
            weight: float32, finite, not empty.
            scheme: as asked for.
            min_scale: float32, the scale's shape.
            statistic: a :attr:`needs` or :attr:`takes`, not empty; None only where not needed.
        """

    def __call__(
        self,
        weight: Tensor,
        scheme: Scheme,
        *,
        min_scale: Tensor | None = None,
        statistic: Statistic | None = None,
    ) -> Rounded:
        """Return the quantized ``weight`` and its error beside that of nearest rounding.

        Args:
            weight: floating point, any shape the scheme's granularity accepts; with a statistic
                ``[out, in, *kernel]``.
            scheme: format, symmetry and granularity of the codes.
            min_scale: no scale may be smaller; float32 of the scale's shape. (An int32 bias of a
                large value needs a scale that is not too small.)
            statistic: of the layer's inputs, as the class declares. A Gram statistic is of rows
                of K = in · kernel features, a convolution's as ``unfold`` lays them out; a Fisher
                statistic of gradients of the weight's shape.

        Raises:
            DataError: the weight is empty or has NaN or infinite values; a statistic is missing,
                not made use of, empty, or not of this layer's inputs.
            SchemeError: the scheme does not fit the weight, or this rounding cannot follow it.
        """
        weight = _checked(weight)
        self._check_statistic(statistic)
        shape = scheme.granularity.scale_shape(weight.shape)
        if scheme.learned and min_scale is not None and bool((min_scale > 0).any()):
            raise SchemeError(f"{scheme.format.name} has no scale that a minimum could bound")
        min_scale = torch.zeros(shape) if min_scale is None else min_scale
        result = self.round(weight, scheme, min_scale, statistic)
        assert result.shape == weight.shape
        assert result.scheme == scheme
        assert bool((result.scale.abs() >= min_scale).all())
        plain = nearest(weight, scheme, min_scale)
        values, plain_values = result.dequantize(), plain.dequantize()
        error, plain_error = weight_error(weight, values), weight_error(weight, plain_values)
        found, plain_found = error, plain_error
        if isinstance(statistic, Gram):
            found = output_error(weight, values, statistic)
            plain_found = output_error(weight, plain_values, statistic)
        elif isinstance(statistic, Fisher):
            found = loss_error(weight, values, statistic)
            plain_found = loss_error(weight, plain_values, statistic)
        elif self.norm != 2:
            found = weight_error(weight, values, self.norm)
            plain_found = weight_error(weight, plain_values, self.norm)
        if self.lowers_error and not found < plain_found:
            return Rounded(plain, plain_error, plain_error, plain_found, plain_found, True)
        return Rounded(result, error, plain_error, found, plain_found, False)

    def _check_statistic(self, statistic: Statistic | None) -> None:
        wanted = self.needs or self.takes
        if statistic is None:
            if self.needs is not None:
                what = "gradients" if self.needs is Fisher else "inputs"
                raise DataError(
                    f"{self.name} needs data: the {self.needs.name} statistic of the layer's {what}"
                )
            return
        if wanted is None or not isinstance(statistic, wanted):
            makes = f"makes use of a {wanted.name} statistic" if wanted else "uses no statistic"
            raise DataError(f"{self.name} {makes}, and was given {type(statistic).__name__}")
        if statistic.empty:
            raise DataError(
                f"the {statistic.name} statistic for {self.name} has seen no input: run "
                "calibration data first"
            )
        if isinstance(statistic, Gram) and statistic.diagonal and not self.diagonal:
            raise DataError(f"{self.name} needs the whole Gram matrix, not its diagonal")


def _checked(weight: Tensor) -> Tensor:
    weight = as_float32(weight)
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise DataError(f"{bad} of {weight.numel()} weights are NaN or infinite")
    if not weight.numel():
        raise DataError(f"a weight of shape {tuple(weight.shape)} has no values to round")
    return weight
