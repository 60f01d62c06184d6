"""Is what trains still in order: numbers that are finite, and scales that are not nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError
from bitsmith.model import module_qat
from bitsmith.model.qat.codes import COLLAPSE
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.qat.unwrap import trained_graph

__all__ = ["check_finite", "collapsed"]


def check_finite(model: nn.Module, *, collapsed: bool = True) -> None:
    """Refuse a model in training some of whose numbers are NaN, infinite, or a scale of nothing.

    Args:
        model: of ``prepare``, also wrapped.
        collapsed: also refuse weights all of whose scales fell to 1/1024 of where they started, and
            activations whose scale did.

    Raises:
        InputError: names every layer or tensor with the quantity (weight, scale, bias, entries, or
            the gradient of one) and how many of its values; or the model was not prepared.
    """
    graph = trained_graph(model)
    if graph is None:
        module_qat.check_finite(model, collapsed=collapsed)
        return
    bad = [*_not_finite(graph)]
    if collapsed:
        bad += _collapsed(graph)
    if bad:
        raise InputError(
            "\n  ".join(["training has gone wrong:", *bad])
            + "\ngo back to the last good checkpoint and lower the learning rate, or freeze the "
            "scales (freeze_scales)"
        )


def _not_finite(graph: TrainableModel) -> Iterator[str]:
    for name in graph.layer_names():
        rule = graph.codes_of(name)
        found = [*_offences(f"layer {name}", rule)]
        with torch.no_grad():
            scale = rule.quantized(rule.own)[1]
        yield from found or _offence(f"layer {name}", "scale", scale)
        if (norm := graph.norm_of(name)) is not None:
            yield from _offences(f"batch norm of {name}", norm)
        if (bias := graph.bias_of(name)) is not None:
            yield from _offence(f"layer {name}", "bias", bias)
    for name, found_range in graph.own_ranges().items():
        listed = [*_offences(f"activations of {name}", found_range)]
        scale = found_range.scale().detach()
        yield from listed or _offence(f"activations of {name}", "scale", scale)


def collapsed(graph: TrainableModel) -> list[str]:
    """Return the layers and tensors whose scale fell to 1/1024 of where it started, in words."""
    return list(_collapsed(graph))


def _collapsed(graph: TrainableModel) -> Iterator[str]:
    for name in graph.layer_names():
        rule = graph.codes_of(name)
        if (count := rule.collapsed()) and count == len(rule.own):
            yield f"layer {name}: its scale has collapsed to 0"
    for name, found in graph.own_ranges().items():
        steps = getattr(found, "log_scale", None)
        if isinstance(steps, Tensor) and bool(steps < COLLAPSE):
            yield f"activations of {name}: their scale has collapsed to 0"


def _offences(owner: str, part: nn.Module) -> Iterator[str]:
    for what, values in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
        yield from _offence(owner, what.replace("log_scale", "scale"), values)


def _offence(owner: str, what: str, values: Tensor) -> Iterator[str]:
    for kind, found in ((what, values), (f"gradient of the {what}", values.grad)):
        if found is None or not found.is_floating_point():
            continue
        count = int((~torch.isfinite(found.detach())).sum())
        if count:
            yield f"{owner}: {kind}: {count} of {found.numel()} are NaN or infinite"
