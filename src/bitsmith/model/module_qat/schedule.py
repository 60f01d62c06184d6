"""What changes while a model trains: its bits, its scales, the share that is quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

from torch import nn

from bitsmith.errors import InputError
from bitsmith.model.module_qat.check import inside
from bitsmith.model.module_qat.quantizer import WeightQuantizer, weight_quantizers
from bitsmith.numbers.formats.integer import IntegerFormat, integer_format
from bitsmith.numbers.scheme import Scheme

__all__ = ["bit_schedule", "freeze_scales", "quant_noise", "set_bits"]


def set_bits(model: nn.Module, bits: int | None) -> list[str]:
    """Train integer weights with ``bits`` bits from now on, where their recipe has fewer.

    Each starts anew with the scales of least squared error for its weight as it is. Optimizers
    keep the parameters they have. Returns the names of the weights that changed.

    Args:
        model: of ``prepare``, also wrapped.
        bits: 2 to 8; None: those of the recipe.

    Raises:
        InputError: not 2 to 8, or no weight of the model has integers that can be widened.
    """
    if bits is not None and bits not in range(2, 9):
        raise InputError(f"weights train with 2 to 8 bits, not {bits}")
    able = [(w, q) for _, w, q in weight_quantizers(inside(model)) if _widens(q)]
    if not able:
        raise InputError("no weight of the model has integer codes whose bits can change")
    changed = []
    for weight, quantizer in able:
        scheme = _with_bits(quantizer.scheme, bits)
        if scheme != quantizer.current:
            quantizer.restart(weight, scheme)
            changed.append(quantizer.label)
    return changed


def bit_schedule(stages: Mapping[int, int | None]) -> Callable[[int, nn.Module], None]:
    """Return ``(epoch, model)`` → None that lowers the bits as ``stages`` says.

    What :func:`bitsmith.model.train.fit` takes as ``on_epoch``; or call it yourself before each
    epoch.

    Args:
        stages: first epoch → bits; None for those of the recipe. The last stage is None, or
            conversion is refused. Epoch 0 needs an entry.

    Raises:
        InputError: no entry for epoch 0, or bits that go up.

    >>> schedule = bit_schedule({0: 8, 2: 4, 4: None})
    """
    order = sorted(stages)
    if not order or order[0] != 0:
        raise InputError(f"a schedule of bits says what epoch 0 trains with; it has {order}")
    widths = [stages[epoch] or 0 for epoch in order]
    if any(a < b for a, b in pairwise(widths)):
        raise InputError(f"a schedule lowers the bits, never raises them: {dict(stages)}")

    def at_epoch(epoch: int, model: nn.Module) -> None:
        set_bits(model, stages[max(first for first in order if first <= epoch)])

    return at_epoch


def freeze_scales(model: nn.Module, frozen: bool = True) -> None:
    """Keep scales, offsets and tables as they are while the weights train on; or let them go.

    Parameters that are frozen do not require a gradient any more: do it before the model is
    wrapped in ``DistributedDataParallel``, which expects one of every parameter it was given.

    Raises:
        SchemeError: scales in two levels that follow the weight (``learn="minmax"``).
    """
    for _, weight, quantizer in weight_quantizers(inside(model)):
        quantizer.freeze(weight, frozen)


def quant_noise(model: nn.Module, share: float, block: int = 1) -> None:
    """Quantize a random share of each weight in every training step (arXiv:2004.07320).

    The rest is used as it is, and gets an exact gradient. In evaluation all of it is quantized.

    Args:
        model: of ``prepare``, also wrapped.
        share: of the blocks, 0 to 1; 1 is training without noise.
        block: neighbours along the rows that are drawn together.

    Raises:
        InputError: a share or block out of range.
    """
    if not 0 <= share <= 1 or block < 1:
        raise InputError(f"a share is 0 to 1 and a block at least 1, not {share} and {block}")
    for _, _, quantizer in weight_quantizers(inside(model)):
        quantizer.share, quantizer.block = float(share), int(block)


def _widens(quantizer: WeightQuantizer) -> bool:
    return quantizer.gradual and isinstance(quantizer.scheme.format, IntegerFormat)


def _with_bits(scheme: Scheme, bits: int | None) -> Scheme:
    """Return the scheme with more bits; itself where it has as many already."""
    number = scheme.format
    if bits is None or bits <= number.bits:
        return scheme
    return replace(scheme, format=integer_format(bits, number.signed), narrow_range=None)
