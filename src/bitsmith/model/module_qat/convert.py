"""From a model in training to the packed one."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from bitsmith.errors import InputError
from bitsmith.model.module_qat.attach import DENSE, detach, fused_layers
from bitsmith.model.module_qat.check import check_finite, forget_recipe, inside
from bitsmith.model.module_qat.quantizer import WeightQuantizer
from bitsmith.model.owners import weight_owners
from bitsmith.model.swap import Plan, RoundedWeight, Swap
from bitsmith.model.weight_rows import with_kernels
from bitsmith.numbers.scheme import Scheme

__all__ = ["convert"]


def convert(model: nn.Module) -> nn.Module:
    """Return the packed model that ``model`` has been trained to be, in evaluation mode.

    What :func:`bitsmith.model.weights.quantize_weights` gives: packed layers, ``coverage`` and
    ``recipe``; it can be saved and exported. Its weights are those of ``model.eval()``, bit for
    bit, and so are its outputs where PyTorch multiplies them or the inputs are int8; sums of float
    products by native kernels are as near as those of any two kernels. It shares no memory with
    ``model``, which can go on training.

    Args:
        model: of :func:`bitsmith.model.module_qat.prepare`, also compiled or wrapped in
            ``DistributedDataParallel`` or ``AveragedModel``.

    Raises:
        InputError: it was not prepared here, has weights or scales that are NaN or infinite, or
            still trains with more bits than its recipe's; all layers are listed.
    """
    trained: Any = inside(model)
    check_finite(trained, collapsed=False)
    stripped: Any = copy.deepcopy(trained)
    quantizers = _strip(stripped)
    late = [q for q in quantizers.values() if q.current != q.scheme]
    if late:
        listed = ", ".join(f"{q.label} ({_bits(q.current)} of {_bits(q.scheme)})" for q in late)
        raise InputError(
            f"weights still train with other bits than the recipe's: {listed}; call "
            "set_bits(model, None) and train on"
        )
    notes = {
        row.layer: row.reason.removesuffix(DENSE).removesuffix("; ")
        for row in trained.coverage
        if row.outcome != "tied"
    }
    plan = Plan(
        tuple(weight_owners(stripped)),
        {name: q.scheme for name, q in quantizers.items()},
        {name: q.columns for name, q in quantizers.items()},
        notes,
    )
    swap = Swap(stripped, plan, trained.recipe.activation)

    def rounder(name: str, weight: Tensor, scheme: Scheme) -> RoundedWeight:
        quantizer = quantizers[name]
        count = quantizer.collapsed()
        reason = f"{count} scales are at their floor" if count else ""
        return RoundedWeight(quantizer.qtensor(weight), quantizer.name, reason=reason)

    for owner in swap.owners:
        swap.swap(owner, rounder)
    result: Any = swap.model
    result.coverage = with_kernels(swap.rows, result)
    result.recipe = trained.recipe
    packed: nn.Module = result.eval()
    return packed


def _strip(model: nn.Module) -> dict[str, WeightQuantizer]:
    """Turn a copy into the float model it was; returns weight name → quantizer."""
    forget_recipe(model)
    model.__dict__.pop("source_identity", None)
    fused_layers(model, True)
    for parameter in model.parameters():
        parameter.grad = None
    found: dict[str, WeightQuantizer] = {}
    for _, module in list(model.named_modules()):
        for quantizer in detach(module).values():
            found[quantizer.label] = quantizer
    return found


def _bits(scheme: Scheme) -> int:
    return scheme.format.bits
