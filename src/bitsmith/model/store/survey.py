"""What a model of the module lane holds, by the names of the float model it was made from."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import final

from torch import Tensor, nn

from bitsmith.errors import InputError
from bitsmith.model.layers.embedding import QuantEmbedding
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.owners import memory_key
from bitsmith.model.store.manifest import FloatEntry, LayerEntry

__all__ = ["Slot", "Survey", "join", "slots", "survey"]


@final
@dataclass(frozen=True)
class Slot:
    """One name under which a module has a parameter or a buffer.

    Attributes:
        module: that has it.
        leaf: its name there.
        tensor: None where a buffer is announced and not made.
        role: ``parameter``, ``buffer``, or ``hidden`` (a buffer outside the state dict).
    """

    module: nn.Module
    leaf: str
    tensor: Tensor | None
    role: str


@final
@dataclass(frozen=True)
class Survey:
    """Everything to store.

    Attributes:
        weights: name → packed weight, each once.
        layers: path → layer with packed weights.
        floats: name → parameter or buffer; tied ones under each name.
        tensors: name → tensor of ``floats``, each once.
        shared: path → first path of a module that appears again.
    """

    weights: dict[str, PackedWeight] = field(default_factory=dict)
    layers: dict[str, LayerEntry] = field(default_factory=dict)
    floats: dict[str, FloatEntry] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)


def survey(model: nn.Module) -> Survey:
    """Return what ``model`` holds.

    Raises:
        InputError: it has no packed weights, or modules whose state is more than tensors.
    """
    found = Survey()
    names: dict[Hashable, str] = {}
    hidden: set[str] = set()
    stateful = []
    for path, module in _modules(model, found.shared):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            stateful.append(f"{path} ({type(module).__name__})")
        if (layer := _layer(module)) is not None:
            entry, weights = layer
            for leaf, weight in weights.items():
                name = names.setdefault(id(weight), join(path, leaf))
                entry.weights[leaf] = name
                found.weights[name] = weight
                hidden.add(join(path, leaf))
            found.layers[path] = entry
        for name, slot in _own(path, module):
            if slot.tensor is None or name in hidden:
                continue
            first = names.setdefault(memory_key(slot.tensor), name)
            pairs = slot.tensor.is_complex()
            found.floats[name] = FloatEntry(first, slot.role, pairs)
            found.tensors[first] = slot.tensor
    if not found.layers:
        raise InputError(
            f"{type(model).__name__} has no packed weights: quantize it before it is saved"
        )
    if stateful:
        raise InputError(
            "modules with a state of their own (get_extra_state) cannot be stored without pickle: "
            + ", ".join(stateful)
        )
    return found


def slots(model: nn.Module) -> tuple[dict[str, Slot], dict[str, nn.Module], dict[str, str]]:
    """Return name → slot, path → module and path → first path of modules that appear again."""
    shared: dict[str, str] = {}
    modules = dict(_modules(model, shared))
    named = {name: slot for path, m in modules.items() for name, slot in _own(path, m)}
    return named, modules, shared


def join(path: str, leaf: str) -> str:
    """Return the name of ``leaf`` in the module at ``path``; the model itself is at ``""``."""
    return f"{path}.{leaf}" if path else leaf


def _modules(model: nn.Module, shared: dict[str, str]) -> Iterator[tuple[str, nn.Module]]:
    """Give every module once, under its first path; the other paths go to ``shared``."""
    seen: dict[int, str] = {}

    def walk(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen:
            shared[path] = seen[id(module)]
            return
        seen[id(module)] = path
        yield path, module
        if isinstance(module, WeightOnly):
            module = module.inner
        for name, child in module._modules.items():
            if child is not None and not isinstance(child, PackedWeight):
                yield from walk(child, join(path, name))

    yield from walk(model, "")


def _own(path: str, module: nn.Module) -> Iterator[tuple[str, Slot]]:
    """Give name → slot of a module's own parameters and buffers."""
    if isinstance(module, WeightOnly):
        module = module.inner
    for leaf, parameter in module._parameters.items():
        yield join(path, leaf), Slot(module, leaf, parameter, "parameter")
    for leaf, buffer in module._buffers.items():
        role = "hidden" if leaf in module._non_persistent_buffers_set else "buffer"
        yield join(path, leaf), Slot(module, leaf, buffer, role)


def _layer(module: nn.Module) -> tuple[LayerEntry, dict[str, PackedWeight]] | None:
    """Return a layer's entry, its weights not named yet, and its weights by name in it."""
    if isinstance(module, QuantLinear):
        return LayerEntry("linear", {}, module.activation), {"weight": module.packed}
    if isinstance(module, QuantEmbedding):
        entry = LayerEntry(
            "embedding", {}, padding_idx=module.padding_idx, dtypes={"weight": module.dtype}
        )
        return entry, {"weight": module.packed}
    if isinstance(module, WeightOnly):
        weights = {
            name.replace("/", "."): weight
            for name, weight in module.packed._modules.items()
            if isinstance(weight, PackedWeight)
        }
        name = type(module.inner).__name__
        return LayerEntry("other", {}, dtypes=dict(module.dtypes), module=name), weights
    return None
