"""Where packed weights are used in a module, and the module with markers in their place.

A marker is an operator of the domain ``bitsmith`` with a number; it takes what the layer takes
and says the shape of what the layer gives. So PyTorch's exporter translates everything around
the layers without a weight of theirs.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bitsmith.model.layers.embedding import QuantEmbedding
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.numbers.scheme import Scheme

__all__ = ["DOMAIN", "MARKER", "Place", "places_of", "with_markers"]

DOMAIN, MARKER = "bitsmith", "PackedLayer"

Use = Literal["linear", "embedding", "weight"]


@final
@dataclass(frozen=True)
class Place:
    """One use of a packed weight.

    Attributes:
        name: of the weight in the float model, for example ``head.weight``.
        use: a linear layer, an embedding, or the weight itself for any other module.
        packed: the weight; tied weights are one object.
        bias: of a linear layer.
        activation: scheme of the inputs of a linear layer; None: they are float.
        dtype: of the weight in the float model, where the layer knows it.
    """

    name: str
    use: Use
    packed: PackedWeight
    bias: Tensor | None = None
    activation: Scheme | None = None
    dtype: torch.dtype = torch.float32


def places_of(model: nn.Module) -> list[Place]:
    """Return every use of a packed weight, in module order; a shared module appears once."""
    return [place for name, module in model.named_modules() for place in _places(name, module)]


def with_markers(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` with markers; the numbers are indices into :func:`places_of`.

    Parameters and buffers are shared with ``model``, not copied.
    """
    numbers = itertools.count()
    shared = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
    result = copy.deepcopy(model, dict(shared))
    markers: dict[int, nn.Module] = {}
    for name, module in list(result.named_modules()):
        found = list(_places(name, module))
        if found:
            markers[id(module)] = _marker(module, found, next(numbers))
            for _ in found[1:]:
                next(numbers)
    for parent in list(result.modules()):
        for child_name, child in list(parent.named_children()):
            if id(child) in markers:
                setattr(parent, child_name, markers[id(child)])
    return markers.get(id(result), result).train(model.training)


def _places(name: str, module: nn.Module) -> Iterator[Place]:
    prefix = f"{name}." if name else ""
    if isinstance(module, QuantLinear):
        dtype = torch.float32 if module.bias is None else module.bias.dtype
        yield Place(
            f"{prefix}weight", "linear", module.packed, module.bias, module.activation, dtype
        )
    elif isinstance(module, QuantEmbedding):
        yield Place(f"{prefix}weight", "embedding", module.packed, dtype=module.dtype)
    elif isinstance(module, WeightOnly):
        for key, weight in module.packed.items():
            assert isinstance(weight, PackedWeight)
            leaf = key.replace("/", ".")
            yield Place(prefix + leaf, "weight", weight, dtype=module.dtypes[leaf])


def _marker(module: nn.Module, places: list[Place], number: int) -> nn.Module:
    if isinstance(module, WeightOnly):
        leaves = {
            key.replace("/", "."): tuple(p.packed.shape)
            for key, p in zip(module.packed, places, strict=True)
        }
        return _Weights(module.inner, leaves, number)
    return _Layer(places[0], number)


class _Layer(nn.Module):  # final in spirit: torch.export traces instances of it
    """Stands for a linear layer or an embedding."""

    def __init__(self, place: Place, number: int) -> None:
        super().__init__()
        self._embeds = place.use == "embedding"
        self._width = place.packed.shape[1 if self._embeds else 0]
        self._number = number

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape if self._embeds else x.shape[:-1]
        return _mark((x,), self._number, [*lead, self._width])


class _Weights(nn.Module):  # final in spirit: torch.export traces instances of it
    """Any other module, called with weights that are markers."""

    def __init__(self, inner: nn.Module, leaves: dict[str, tuple[int, ...]], number: int) -> None:
        super().__init__()
        self.inner = inner
        self._leaves = leaves
        self._number = number

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weights = {
            leaf: _mark((), self._number + i, list(shape))
            for i, (leaf, shape) in enumerate(self._leaves.items())
        }
        return functional_call(self.inner, weights, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """Fall back on the inner module, as the layer that this stands for does."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def _mark(inputs: tuple[Tensor, ...], number: int, shape: list[int]) -> Tensor:
    found: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{MARKER}",
        inputs,
        {"number": number},
        dtype=torch.float32,
        shape=shape,
        version=1,
    )
    return found
