"""A weight with a mirrored range and with its own, and what rounding does to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import final

import torch
from torch import Tensor

from bitsmith.insight.storage import granularity_name
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.granularity import Granularity, PerChannel, PerTensor
from bitsmith.numbers.scheme import Scheme

__all__ = [
    "FORMS",
    "FULL",
    "NARROW",
    "OWN",
    "Outcome",
    "change",
    "of",
    "outcome",
    "outcomes",
    "scheme_of",
]

FULL, NARROW, OWN = "symmetric", "symmetric, narrow", "asymmetric"
FORMS = (FULL, NARROW, OWN)
_Z95 = NormalDist().inv_cdf(0.975)
CUTS: tuple[Granularity, ...] = (PerTensor(), PerChannel(0))


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """One weight in one form.

    Attributes:
        form: one of :data:`FORMS`.
        granularity: ``per-tensor`` or ``per-channel``.
        scale, zero_point: one number, or one a channel.
        error: ``ŵ − w`` of every weight, float64 ``[n]``.
        unused: codes at the ends that no weight has, on average over channels.
        codes: how many there are.
    """

    form: str
    granularity: str
    scale: Tensor
    zero_point: Tensor
    error: Tensor
    unused: float
    codes: int

    @property
    def mae(self) -> float:
        """Mean absolute error."""
        return float(self.error.abs().mean())

    @property
    def largest(self) -> float:
        """Largest absolute error."""
        return float(self.error.abs().max())

    @property
    def step(self) -> float:
        """The scale, on average over channels."""
        return float(self.scale.double().mean())


def scheme_of(form: str, bits: int, granularity: Granularity = CUTS[0]) -> Scheme:
    """Return signed integers in one of the forms.

    >>> scheme_of(NARROW, 8).code_min, scheme_of(FULL, 8).code_min
    (-127, -128)
    """
    return Scheme(integer_format(bits, signed=True), form != OWN, granularity, form == NARROW)


def outcomes(weight: Tensor, bits: int) -> list[Outcome]:
    """Return every form of a weight ``[out, …]``: one scale, then one an output channel."""
    return [outcome(weight, form, bits, cut) for cut in CUTS for form in FORMS]


def outcome(weight: Tensor, form: str, bits: int, cut: Granularity) -> Outcome:
    """Return one form of a weight ``[out, …]``."""
    scheme = scheme_of(form, bits, cut)
    q = quantize(weight, scheme)
    rows = q.codes.reshape(q.scale.numel(), -1).to(torch.int32)
    used = rows.amax(1) - rows.amin(1)
    span = scheme.code_max - scheme.code_min
    return Outcome(
        form=form,
        granularity=granularity_name(cut),
        scale=q.scale.reshape(-1),
        zero_point=q.zero_point.reshape(-1),
        error=(q.dequantize().double() - weight.double()).reshape(-1),
        unused=float((span - used).double().mean()),
        codes=span + 1,
    )


def change(one: Outcome, base: Outcome) -> tuple[float, float, float]:
    """Return by what share of ``base.mae`` the mean error of ``one`` is larger, and its interval.

    ``(change, low, high)`` in per cent: the mean of the difference, weight by weight, ± 1.96
    standard errors. The weights at hand are all there are; the interval says what is due to where
    they happen to lie between two codes.
    """
    difference = one.error.abs() - base.error.abs()
    mean, base_mae = float(difference.mean()), max(base.mae, 1e-300)
    half = _Z95 * float(difference.std(correction=1)) / math.sqrt(difference.numel())
    return 100 * mean / base_mae, 100 * (mean - half) / base_mae, 100 * (mean + half) / base_mae


def of(found: Sequence[Outcome], form: str, granularity: str = "per-tensor") -> Outcome:
    """Return the outcome of a form."""
    return next(o for o in found if (o.form, o.granularity) == (form, granularity))
