"""Which parameters of a model are weights to quantize, and of which layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["Owner", "weight_owners"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_RECURRENT = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn"}
_CELLS = {nn.LSTMCell: "lstm", nn.GRUCell: "gru", nn.RNNCell: "rnn"}


@final
@dataclass(frozen=True)
class Owner:
    """A layer with weights.

    Attributes:
        name: of the module, as ``named_modules`` gives it.
        module: the layer.
        op: ``linear``, ``conv``, ``embedding``, ``attention``, ``lstm``, ``gru``, ``rnn``, or the
            name of its class.
        weights: names of the weights in the module; the output channels are their first axis.
        refusal: why it cannot be quantized; empty when it can.
    """

    name: str
    module: nn.Module
    op: str
    weights: tuple[str, ...]
    refusal: str = ""


def weight_owners(model: nn.Module) -> list[Owner]:
    """Return every layer that holds a parameter with at least two axes, in module order.

    A module that is shared appears once, under its first name.

    >>> [(o.name, o.op) for o in weight_owners(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))]
    [('0', 'linear')]
    """
    return list(_walk(model, "", set()))


def _walk(module: nn.Module, name: str, seen: set[int]) -> Iterator[Owner]:
    if id(module) in seen:
        return
    seen.add(id(module))
    owner = _owner(module, name)
    if owner is not None:
        yield owner
        if owner.op == "attention" or parametrize.is_parametrized(module):
            return  # what is below belongs to it
    for child_name, child in module.named_children():
        yield from _walk(child, f"{name}.{child_name}" if name else child_name, seen)


def _owner(module: nn.Module, name: str) -> Owner | None:
    """Return the layer, if ``module`` itself holds weights."""
    if parametrize.is_parametrized(module):
        parts = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        own = tuple(n for n in _matrices(module, recurse=True) if n.startswith("parametrizations."))
        reason = f"its {parts} is parametrized: remove the parametrization first"
        return Owner(name, module, _kind(module), own, reason)
    if isinstance(module, nn.MultiheadAttention):
        return Owner(name, module, "attention", _matrices(module, recurse=True))
    own = _matrices(module, recurse=False)
    if not own:
        return None
    kind = _kind(module)
    if kind in ("linear", "conv", "embedding", "lstm", "gru", "rnn"):
        return Owner(name, module, kind, own)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return Owner(name, module, kind, own, "transposed convolution: its channels are axis 1")
    return Owner(name, module, kind, own, f"{kind} has parameters of its own: {', '.join(own)}")


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _CONVOLUTIONS):
        return "conv"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    for kinds in (_RECURRENT, _CELLS):
        for cls, kind in kinds.items():
            if isinstance(module, cls):
                return kind
    return type(module).__name__


def _matrices(module: nn.Module, recurse: bool) -> tuple[str, ...]:
    return tuple(n for n, p in module.named_parameters(recurse=recurse) if p.dim() >= 2)
