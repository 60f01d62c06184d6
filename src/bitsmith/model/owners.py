"""Which parameters of a model are weights to quantize, of which layer, and which are one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bitsmith.errors import WeightsError

__all__ = ["Owner", "check_weights", "memory_key", "overlaps", "weight_owners"]

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


def check_weights(owners: Iterable[Owner]) -> None:
    """Refuse parameters of the layers that have no value, or one that float32 cannot hold.

    Raises:
        WeightsError: parameters on the meta device, or with NaN, infinite, or (of float64) larger
            values; all are listed.
    """
    bad = []
    for owner in owners:
        for leaf, parameter in owner.module.named_parameters(recurse=owner.op == "attention"):
            name = f"{owner.name}.{leaf}" if owner.name else leaf
            if parameter.is_meta:
                bad.append(f"{name} is on the meta device: load its values first")
            elif parameter.is_floating_point():
                count = int((~torch.isfinite(parameter.detach().to(torch.float32))).sum())
                where = " in float32" if parameter.dtype == torch.float64 else ""
                if count:
                    values = f"{parameter.numel()} values{where}"
                    bad.append(f"{name} has {count} NaN or infinite of {values}")
    if bad:
        raise WeightsError("weights that cannot be quantized:\n  " + "\n  ".join(bad))


def memory_key(tensor: Tensor) -> Hashable:
    """Return what is equal for two tensors that are one: same values at the same addresses.

    Tied parameters need not be one object: ``nn.Parameter(table.weight.data)`` is another that
    shares the storage. A tensor without memory of its own (empty, sparse, on the meta device) is
    only itself.

    >>> w = torch.zeros(2, 4)
    >>> memory_key(nn.Parameter(w)) == memory_key(w[:]), memory_key(w) == memory_key(w.T)
    (True, False)
    """
    if tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return id(tensor)
    place = (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
    return (*place, tensor.dtype, tensor.is_conj(), tensor.is_neg())


def overlaps(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name → name of an earlier weight that it shares a part of its memory with.

    Weights that are wholly one (equal :func:`memory_key`) are tied, not listed. Parts that lie
    between each other, as the columns of one table do, share nothing.

    >>> w = torch.zeros(4, 4)
    >>> overlaps({"table": w, "head": w.T, "low": w[2:], "left": w[:2, :2], "right": w[:2, 2:]})
    {'head': 'table', 'low': 'table', 'left': 'table', 'right': 'table'}
    >>> overlaps({"left": w[:, :2], "right": w[:, 2:]})
    {}
    """
    names = list(weights)
    placed = sorted(
        (str(t.device), *_extent(t), i)
        for i, t in enumerate(weights.values())
        if isinstance(memory_key(t), tuple)
    )
    found: dict[int, int] = {}
    near: list[tuple[str, int, int, int]] = []  # those that reach to where the next one begins
    for device, start, end, i in placed:
        near = [n for n in near if n[0] == device and n[2] > start]
        for *_, j in near:
            if _share(weights[names[i]], weights[names[j]]):
                first, later = sorted((i, j))
                found[later] = min(first, found.get(later, first))
        near.append((device, start, end, i))
    return {names[later]: names[found[later]] for later in sorted(found)}


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of the first byte and of that behind the last."""
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors whose extents meet have an address in common, and are not one."""
    if memory_key(one) == memory_key(other):
        return False
    size, (start, end), (first, last) = one.element_size(), _extent(one), _extent(other)
    if size != other.element_size() or (start - first) % size:
        return True  # read as other numbers: no layout of weights
    low = min(start, first)
    touched = torch.zeros((max(end, last) - low) // size, dtype=torch.bool)
    shape = [n if step else 1 for n, step in zip(one.shape, one.stride(), strict=True)]
    touched.as_strided(shape, one.stride(), (start - low) // size).fill_(True)
    return bool(touched.as_strided(other.shape, other.stride(), (first - low) // size).any())


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
        assert isinstance(module.parametrizations, nn.ModuleDict)
        parts = ", ".join(module.parametrizations.keys())
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
