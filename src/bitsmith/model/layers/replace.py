"""Which layer with packed weights takes the place of a float one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from bitsmith.model.layers.embedding import QuantEmbedding
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.owners import Owner
from bitsmith.numbers.scheme import Scheme

__all__ = ["is_linear", "kernels_of", "packed_layer"]


def packed_layer(
    owner: Owner, weights: Mapping[str, PackedWeight], activation: Scheme | None
) -> nn.Module:
    """Return the layer that computes as ``owner`` does, with packed weights.

    A subclass with a ``forward`` of its own, and an embedding that changes its table
    (``max_norm``), are called as they are: :class:`WeightOnly`.

    Args:
        owner: a float layer.
        weights: name in the layer → packed weight; not all of its weights need be there.
        activation: scheme of the inputs of linear layers.
    """
    module = owner.module
    layer: nn.Module
    if is_linear(owner) and set(weights) == {"weight"}:
        assert isinstance(module, nn.Linear)
        layer = QuantLinear(weights["weight"], module.bias, activation)
    elif owner.op == "embedding" and _only_looks_up(module):
        assert isinstance(module, nn.Embedding)
        layer = QuantEmbedding(weights["weight"], module.padding_idx, module.weight.dtype)
    else:
        layer = WeightOnly(module, dict(weights))
    return layer.train(module.training)


def kernels_of(model: nn.Module) -> dict[str, str]:
    """Return weight name → what runs it on the CPU of this machine, of all packed weights.

    ``native avx512, int8 rows``, or ``torch: `` and why no native kernel does.
    """
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(module, QuantLinear | QuantEmbedding):
            found[f"{prefix}weight"] = module.kernel
        elif isinstance(module, WeightOnly):
            found |= {f"{prefix}{leaf}": module.kernel for leaf in module.dtypes}
    return found


def is_linear(owner: Owner) -> bool:
    """Whether a layer computes as ``nn.Linear`` does."""
    return owner.op == "linear" and type(owner.module).forward is nn.Linear.forward


def _only_looks_up(module: nn.Module) -> bool:
    plain = type(module).forward is nn.Embedding.forward
    return plain and isinstance(module, nn.Embedding) and module.max_norm is None
