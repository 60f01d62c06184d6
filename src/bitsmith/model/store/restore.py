"""Put stored tensors into a model that has none: packed layers, parameters, buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitsmith.errors import WeightsError
from bitsmith.model.layers.embedding import QuantEmbedding
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.store.manifest import LayerEntry, Manifest
from bitsmith.model.store.parts import part_specs, weight_of_parts
from bitsmith.model.store.survey import Slot, join, slots

__all__ = ["restore"]

_PLAIN: dict[str, type[nn.Module]] = {"linear": nn.Linear, "embedding": nn.Embedding}


def restore(
    model: nn.Module, manifest: Manifest, tensors: Mapping[str, Tensor], place: str
) -> nn.Module:
    """Return ``model`` with the tensors in it; it is changed.

    Args:
        model: the float model, on the meta device or not.
        manifest: what the tensors are.
        tensors: by name in the file, checked against the manifest.
        place: where they were read, for messages.

    Raises:
        WeightsError: names, shapes, sharing or classes do not fit (all are listed), or something
            is left on the meta device.
    """
    named, modules, shared = slots(model)
    stored = {
        name: torch.view_as_complex(tensors[entry.tensor])
        if entry.complex
        else tensors[entry.tensor]
        for name, entry in manifest.floats.items()
    }
    _check(named, modules, shared, manifest, stored, place)
    extra = _input_scales(manifest)
    replaced = _put_floats(named, manifest, stored, extra)
    weights = {
        name: weight_of_parts(
            {p: tensors[f"{name}/{p}"] for p in part_specs(entry.scheme, entry.stored_shape)},
            entry.scheme,
            entry.stored_shape,
            entry.shape,
        )
        for name, entry in manifest.weights.items()
    }
    layers = {
        id(modules[path]): _layer(
            modules[path], entry, weights, stored.get(join(path, "input_scale"))
        )
        for path, entry in manifest.layers.items()
    }
    for parent in modules.values():
        for name, child in parent._modules.items():
            if id(child) in layers:
                parent._modules[name] = layers[id(child)]
    result = layers.get(id(model), model)
    _refuse_meta(result, replaced, place)
    return result


def _check(
    named: Mapping[str, Slot],
    modules: Mapping[str, nn.Module],
    shared: Mapping[str, str],
    manifest: Manifest,
    stored: Mapping[str, Tensor],
    place: str,
) -> None:
    shapes: dict[str, tuple[int, ...]] = {name: tuple(t.shape) for name, t in stored.items()}
    wrong = []
    for path, layer in manifest.layers.items():
        for leaf, weight in layer.weights.items():
            shapes[join(path, leaf)] = manifest.weights[weight].shape
        if path in modules and (misfit := _class_misfit(modules[path], layer)):
            wrong.append(f"{path or 'the model'} {misfit}")
    extra = _input_scales(manifest)
    wrong += [f"{n} is not in the model" for n in shapes if n not in named and n not in extra]
    for name, slot in named.items():
        if slot.tensor is None:
            continue
        if name in shapes and tuple(slot.tensor.shape) != shapes[name]:
            wrong.append(f"{name} is {list(shapes[name])}, in the model {list(slot.tensor.shape)}")
        elif name not in shapes and slot.role != "hidden":
            wrong.append(f"{name} of the model is not in the file")
    for path in sorted(set(shared) | set(manifest.shared)):
        mine, theirs = shared.get(path), manifest.shared.get(path)
        if mine != theirs:
            wrong.append(
                f"module {path} is {_sharing(theirs)} in the file, {_sharing(mine)} in the model"
            )
    if wrong:
        raise WeightsError("\n  ".join([f"{place} does not fit the model:", *wrong]))


def _sharing(first: str | None) -> str:
    return "one of its own" if first is None else f"the same as {first or 'the model'}"


def _class_misfit(module: nn.Module, layer: LayerEntry) -> str:
    """Return why a module is not the one that was quantized; empty when it may be."""
    plain = _PLAIN.get(layer.kind)
    if plain is None:
        found = type(module).__name__
        return "" if found == layer.module else f"is a {found}, not a {layer.module}"
    if isinstance(module, plain) and type(module).forward is plain.forward:
        return ""
    return f"is a {type(module).__name__} and does not compute as {plain.__name__}"


def _input_scales(manifest: Manifest) -> set[str]:
    """Return the names that linear layers have here and not in the float model."""
    linear = (path for path, layer in manifest.layers.items() if layer.kind == "linear")
    return {join(path, "input_scale") for path in linear}


def _put_floats(
    named: Mapping[str, Slot],
    manifest: Manifest,
    stored: Mapping[str, Tensor],
    extra: set[str],
) -> dict[int, Tensor]:
    """Set parameters and buffers; returns id of the tensor replaced → new tensor."""
    replaced: dict[int, Tensor] = {}
    parameters: dict[str, nn.Parameter] = {}
    for name, entry in manifest.floats.items():
        if name in extra and name not in named:
            continue
        slot, new = named[name], stored[name]
        if slot.role == "parameter":
            if entry.tensor not in parameters:
                parameters[entry.tensor] = nn.Parameter(new, requires_grad=False)
            new = parameters[entry.tensor]
        if slot.tensor is not None:
            replaced[id(slot.tensor)] = new
        setattr(slot.module, slot.leaf, new)
    return replaced


def _layer(
    module: nn.Module,
    entry: LayerEntry,
    weights: Mapping[str, PackedWeight],
    input_scale: Tensor | None = None,
) -> nn.Module:
    own = {leaf: weights[name] for leaf, name in entry.weights.items()}
    if entry.kind == "linear":
        bias: Any = module.bias
        layer = QuantLinear(own["weight"], bias, entry.activation)
        layer.input_scale = input_scale
        return layer
    if entry.kind == "embedding":
        return QuantEmbedding(own["weight"], entry.padding_idx, entry.dtypes["weight"])
    for leaf, dtype in entry.dtypes.items():  # the type that WeightOnly takes over
        parent, _, last = leaf.rpartition(".")
        empty = torch.empty(own[leaf].shape, dtype=dtype, device="meta")
        setattr(module.get_submodule(parent), last, nn.Parameter(empty, False))
    return WeightOnly(module, own)


def _refuse_meta(model: nn.Module, replaced: Mapping[int, Tensor], place: str) -> None:
    """Refuse tensors without values, but for the empty ones in the place of packed weights."""
    named, _, _ = slots(model)
    empty = _placeholders(model)
    left = [
        name
        for name, slot in named.items()
        if slot.tensor is not None and slot.tensor.is_meta and id(slot.tensor) not in empty
    ]
    for path, module in model.named_modules():
        for name, value in list(vars(module).items()):
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            if isinstance(value, Tensor) and id(value) in replaced:
                setattr(module, name, replaced[id(value)])
                continue
            meta = [t for t in _tensors(value) if t.is_meta and id(t) not in empty]
            if meta:
                left.append(join(path, name))
    if left:
        raise WeightsError(
            f"{place}: these tensors of the model have no values, because they are neither in the "
            f"file nor computed on the meta device: {', '.join(left)}; register them as buffers "
            "before the model is quantized, or pass the model built on the CPU"
        )


def _placeholders(model: nn.Module) -> set[int]:
    return {
        id(module.inner.get_parameter(leaf))
        for module in model.modules()
        if isinstance(module, WeightOnly)
        for leaf in module.dtypes
    }


def _tensors(value: Any) -> Iterator[Tensor]:
    """Give a tensor, or those in a list, tuple or dict."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        yield from (v for v in value if isinstance(v, Tensor))
    elif isinstance(value, dict):
        yield from (v for v in value.values() if isinstance(v, Tensor))
