"""Calibrators: from what was seen of a tensor to its scale and zero point.

One file per calibrator; each registers under its name. :func:`make_calibrator` reads the short
form that recipes and the command line use, ``name`` or ``name:argument``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar, cast

from torch import Tensor

from bitsmith.errors import DataError, InputError, SchemeError
from bitsmith.numbers.affine import scale_zero_point
from bitsmith.numbers.scheme import PerTensor, Scheme
from bitsmith.numbers.statistics import Histogram, Statistic
from bitsmith.registry import Registry

__all__ = ["Calibrator", "calibrators", "even_codes", "make_calibrator", "tensor_histogram"]


class Calibrator(ABC):
    """A pure function ``(statistic, scheme) → (scale, zero_point)``.

    Members are frozen dataclasses with at most one field, a number, which is the argument of
    the short form. Contract, tested for every registered calibrator: the same statistic gives
    the same result and is not changed.
    """

    registry: ClassVar[Registry[type[Calibrator]]] = Registry("calibrator", __name__)

    name: ClassVar[str]
    statistic: ClassVar[type[Statistic]]
    """What must be gathered of the tensor."""

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Calibrator.registry.add(name, cls)

    @abstractmethod
    def limits(self, statistic: Statistic, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """Return the range ``(low, high)`` to represent, float32, of the scale's shape.

        Args:
            statistic: of the class :attr:`statistic`, not empty.
            scheme: what the range is for; its granularity fits what the statistic kept apart.
        """

    def __call__(self, statistic: Statistic, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """Return ``(scale, zero_point)``, ``scale_zero_point(*limits(statistic, scheme))``.

        Raises:
            DataError: the statistic has seen nothing, or is of another class.
            SchemeError: the scheme's granularity is not what the statistic kept apart.
        """
        if not isinstance(statistic, self.statistic):
            raise DataError(
                f"calibrator {self.spec!r} reads {self.statistic.__name__}, "
                f"not {type(statistic).__name__}"
            )
        if statistic.empty:
            raise DataError(
                f"calibrator {self.spec!r} was given a statistic that has seen no values; run "
                "calibration data through the model first"
            )
        return scale_zero_point(*self.limits(statistic, scheme), scheme)

    @property
    def spec(self) -> str:
        """The short form, ``name`` or ``name:argument``, which :func:`make_calibrator` reads."""
        values = [getattr(self, f.name) for f in fields(cast(Any, self))]
        return ":".join([self.name, *(repr(float(v)).removesuffix(".0") for v in values)])


def make_calibrator(spec: str) -> Calibrator:
    """Return the calibrator of a short form, ``name`` or ``name:argument``.

    Raises:
        UnknownNameError: no calibrator has that name.
        InputError: the argument is not a number, out of range, or one too many.

    >>> make_calibrator("percentile:99.99")
    Percentile(percentile=99.99)
    >>> make_calibrator("mse").spec
    'mse'
    """
    name, colon, argument = spec.partition(":")
    calibrator = calibrators[name]
    if not colon:
        return calibrator()
    parameters = [f.name for f in fields(cast(Any, calibrator))]
    if not parameters:
        raise InputError(f"calibrator {name!r} takes no argument, but {spec!r} gives one")
    try:
        value = float(argument)
    except ValueError:
        raise InputError(
            f"calibrator {spec!r}: {parameters[0]} is a number, not {argument!r} "
            f"(for example {name}:99.99)"
        ) from None
    return calibrator(**{parameters[0]: value})


def tensor_histogram(statistic: Statistic, scheme: Scheme) -> Histogram:
    """Return the statistic, a histogram of a whole tensor, for a scheme with one scale.

    Raises:
        SchemeError: the scheme has more than one scale.
    """
    if scheme.granularity != PerTensor():
        raise SchemeError(f"a histogram of a tensor gives no scales {scheme.granularity}")
    return cast(Histogram, statistic)


def even_codes(scheme: Scheme) -> int:
    """Return the number of codes of a scheme whose codes are evenly spaced.

    Raises:
        SchemeError: they are not, which analysis of a uniform grid does not cover.
    """
    if not scheme.affine:
        raise SchemeError(
            f"this calibrator takes codes to be evenly spaced integers, which {scheme.format} "
            "does not have; use mse, percentile or minmax"
        )
    return scheme.code_max - scheme.code_min + 1


calibrators = Calibrator.registry
