"""Weights rounded and put back: everything else stays float."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from bitsmith.numbers.affine import fake_quantize, scale_zero_point
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.scheme import Scheme
from bitsmith.studies.cnn.networks import Against, Judged, Subject

__all__ = ["BITS", "FORMS", "Error", "Simulated", "simulations"]

BITS = (8, 4, 2)
FORMS = ("symmetric", "asymmetric")


@final
@dataclass(frozen=True)
class Error:
    """What rounding does to the weight of one layer.

    Attributes:
        layer: its name.
        scale, zero_point: one for the whole weight.
        mae: mean ``|ŵ − w|``.
        relative: the same divided by mean ``|w|``.
        n: weights.
    """

    layer: str
    scale: float
    zero_point: int
    mae: float
    relative: float
    n: int


@final
@dataclass(frozen=True, eq=False)
class Simulated:
    """The network with every weight rounded.

    Attributes:
        form: one of :data:`FORMS`.
        bits: of the weights.
        errors: layer by layer.
        judged: what it gives on the test images.
        against: the same less float.
    """

    form: str
    bits: int
    errors: tuple[Error, ...]
    judged: Judged
    against: Against


def simulations(subject: Subject, plain: Judged) -> Iterator[Simulated]:
    """Yield the network with rounded weights, one scale a tensor, in each form and width."""
    for bits in BITS:
        for form in FORMS:
            mirrored = form == FORMS[0]
            scheme = Scheme(integer_format(bits, signed=True), symmetric=mirrored)
            module = copy.deepcopy(subject.module)
            errors = tuple(
                _round(name, layer, scheme)
                for name, layer in module.named_modules()
                if isinstance(layer, nn.Conv2d | nn.Linear)
            )
            judged = subject.judge(f"{form} {bits}", module)
            yield Simulated(form, bits, errors, judged, subject.against(judged, plain))


@torch.no_grad()
def _round(name: str, layer: nn.Conv2d | nn.Linear, scheme: Scheme) -> Error:
    """Round the weight of a layer in place."""
    weight = layer.weight.detach()
    scale, zero = scale_zero_point(weight.min(), weight.max(), scheme)
    rounded = fake_quantize(weight, scheme, scale, zero)
    mae = float((rounded.double() - weight.double()).abs().mean())
    size = max(float(weight.double().abs().mean()), 1e-300)
    layer.weight.copy_(rounded)
    return Error(name, float(scale), int(zero), mae, mae / size, weight.numel())
