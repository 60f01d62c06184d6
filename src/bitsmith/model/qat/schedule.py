"""What changes while a model trains, in both lanes: bits, scales, the share that is quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from bitsmith.errors import InputError
from bitsmith.model import module_qat
from bitsmith.model.qat.unwrap import trained_graph

__all__ = ["bit_schedule", "freeze_scales", "quant_noise", "set_bits"]


def set_bits(model: nn.Module, bits: int | None) -> list[str]:
    """Train with ``bits`` bits from now on, where the recipe has fewer.

    Of a graph the weights and the activations; of a module the weights. Weights start anew with the
    scales of least squared error for what they are, activations keep their range. Optimizers keep
    the parameters they have. Returns the names of what changed.

    Args:
        model: of ``prepare``, also wrapped.
        bits: 2 to 8; None: those of the recipe.

    Raises:
        InputError: not 2 to 8, or nothing in the model has integers that can be widened.
    """
    graph = trained_graph(model)
    if graph is None:
        return module_qat.set_bits(model, bits)
    if bits is not None and bits not in range(2, 9):
        raise InputError(f"a model trains with 2 to 8 bits, not {bits}")
    changed, able = [], 0
    for name in graph.layer_names():
        rule = graph.codes_of(name)
        if rule.widens:
            able += 1
            wanted = max(bits or 0, rule.given.format.bits)
            if wanted != int(rule.bits):
                rule.set_bits(wanted, graph.effective_weight(name))
                changed.append(name)
    for name, found in graph.own_ranges().items():
        able += 1
        wanted = max(bits or 0, found.given.encoding.format.bits)
        if wanted != int(found.bits):
            found.set_bits(wanted)
            changed.append(name)
    if not able:
        raise InputError("nothing in the model has integer codes whose bits can change")
    return changed


def bit_schedule(stages: Mapping[int, int | None]) -> Callable[[int, nn.Module], None]:
    """Return ``(epoch, model)`` → None that lowers the bits as ``stages`` says.

    What ``fit`` takes as ``on_epoch``; or call it yourself before each epoch.

    Args:
        stages: first epoch → bits; None for those of the recipe. The last stage is None, or
            conversion is refused. Epoch 0 needs an entry.

    Raises:
        InputError: no entry for epoch 0, or bits that go up.

    >>> schedule = bit_schedule({0: 8, 2: 4, 4: None})
    """
    of_modules = module_qat.bit_schedule(stages)
    given = dict(stages)

    def at_epoch(epoch: int, model: nn.Module) -> None:
        if trained_graph(model) is None:
            of_modules(epoch, model)
        else:
            set_bits(model, given[max(first for first in given if first <= epoch)])

    return at_epoch


def freeze_scales(model: nn.Module, frozen: bool = True) -> None:
    """Keep scales, zero points and tables while the weights train on; or let them go.

    Parameters that are frozen do not require a gradient any more: do it before the model is
    wrapped in ``DistributedDataParallel``, which expects one of every parameter it was given.

    Raises:
        InputError: scales that follow the weight (``weights="minmax"``) in a graph.
        SchemeError: as of :func:`bitsmith.model.module_qat.freeze_scales`.
    """
    graph = trained_graph(model)
    if graph is None:
        module_qat.freeze_scales(model, frozen)
        return
    following = [n for n in graph.layer_names() if graph.codes_of(n).name == "minmax"]
    if following:
        raise InputError(
            f"the scales of {', '.join(following)} follow the weight and cannot be frozen: prepare "
            "with weights='lsq'"
        )
    graph.hold_scales(frozen)


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
    graph = trained_graph(model)
    if graph is None:
        module_qat.quant_noise(model, share, block)
        return
    if not 0 <= share <= 1 or block < 1:
        raise InputError(f"a share is 0 to 1 and a block at least 1, not {share} and {block}")
    for name in graph.layer_names():
        rule = graph.codes_of(name)
        rule.share.fill_(share)
        rule.block.fill_(block)
