"""Look through a model before a byte is written: what will be stored, and what cannot be."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast, final
from weakref import WeakKeyDictionary

from torch import Tensor

from bitsmith.deploy.export.compressed_tensors.group import Group, refusals
from bitsmith.deploy.export.compressed_tensors.layout import Spec, part_specs
from bitsmith.deploy.export.compressed_tensors.settings import loads_dequantized
from bitsmith.model.store.safetensors_file import DTYPES
from bitsmith.numbers.qtensor import QTensor

__all__ = ["Kinds", "Parameter", "Survey", "survey"]


@final
@dataclass(frozen=True)
class Parameter:
    """A parameter of the model and the tensors that will stand for it.

    Attributes:
        name: of the parameter, for example ``model.layers.0.mlp.up_proj.weight``.
        shape: of the parameter.
        group: how it is quantized; None: it stays as it is.
        specs: name in the file → type and shape.
    """

    name: str
    shape: tuple[int, ...]
    group: Group | None
    specs: Mapping[str, Spec]

    @property
    def module(self) -> str:
        """The name of its module."""
        return self.name.rpartition(".")[0]


@final
@dataclass(frozen=True)
class Kinds:
    """Which modules of the model are Linear, also those with a tied weight, and Embedding."""

    linears: Collection[str]
    embeddings: Collection[str]

    @classmethod
    def of(cls, linears: Collection[str], embeddings: Collection[str]) -> Self:
        """Return the two in order, and quick to look up."""
        return cls(dict.fromkeys(linears), dict.fromkeys(embeddings))


@final
@dataclass(frozen=True)
class Survey:
    """What will be stored, and everything that cannot be."""

    parameters: tuple[Parameter, ...]
    problems: tuple[str, ...]

    @property
    def grouped(self) -> dict[str, Group]:
        """Quantized module → its group."""
        return {p.module: p.group for p in self.parameters if p.group is not None}


def survey(
    tensors: Mapping[str, QTensor | Tensor],
    config: Mapping[str, Any],
    kinds: Kinds,
    dynamic: Collection[str],
) -> Survey:
    """Look at one tensor after the other; none is kept. Arguments as of ``write``."""
    parameters: list[Parameter] = []
    problems = [*_config_problems(config)]
    seen: WeakKeyDictionary[QTensor, str] = WeakKeyDictionary()
    taken: dict[str, str] = {}
    for name in tensors:
        value = tensors[name]
        reasons = [*_value_problems(value)]
        group = Group(value.scheme, name in dynamic) if isinstance(value, QTensor) else None
        if isinstance(value, QTensor) and group and not reasons:
            reasons = _quantized_problems(name, value, group, seen)
        if not reasons:
            parameters.append(_parameter(name, value, group))
            parts = parameters[-1].specs
            reasons = [f"{part} is taken by {taken[part]}" for part in parts if part in taken]
            taken |= dict.fromkeys(parts, name)
        problems += [f"{name}: {reason}" for reason in reasons]
    found = Survey(tuple(parameters), ())
    names = set(tensors)
    heads = [name for name in kinds.linears if f"{name}.weight" not in names]
    problems += _model_problems(found, config, kinds, dynamic, heads)
    return Survey(tuple(parameters), tuple(problems))


def _parameter(name: str, value: QTensor | Tensor, group: Group | None) -> Parameter:
    shape = tuple(value.shape)
    if isinstance(value, Tensor) or group is None:
        return Parameter(name, shape, None, {name: (cast(Tensor, value).dtype, shape)})
    parts = part_specs(value.scheme, shape, group.layout)
    module = name.removesuffix("weight")
    return Parameter(name, shape, group, {module + part: spec for part, spec in parts.items()})


def _config_problems(config: Mapping[str, Any]) -> Iterator[str]:
    if "quantization_config" in config:
        yield "config: it has a quantization_config already; give that of the float model"
    try:
        json.dumps(dict(config))
    except (TypeError, ValueError) as error:
        yield f"config: it cannot be written as JSON: {error}"


def _value_problems(value: object) -> Iterator[str]:
    if not isinstance(value, QTensor | Tensor):
        yield f"it is a {type(value).__name__}, not a tensor"
    elif (value.codes if isinstance(value, QTensor) else value).is_meta:
        yield "it is on the meta device, so it has no values"
    elif isinstance(value, Tensor) and value.dtype not in DTYPES:
        yield f"safetensors has no type for {value.dtype}"


def _quantized_problems(
    name: str, value: QTensor, group: Group, seen: WeakKeyDictionary[QTensor, str]
) -> list[str]:
    found = refusals(group, value.shape)
    if not name.endswith(".weight"):
        found.append("only the parameter 'weight' of a module has a layout")
    if value in seen:
        found.append(
            f"it is tied to {seen[value]}: loaders cannot tie quantized weights; leave it float "
            "or untie the two"
        )
    seen[value] = name
    return found


def _model_problems(
    found: Survey,
    config: Mapping[str, Any],
    kinds: Kinds,
    dynamic: Collection[str],
    heads: Collection[str],
) -> Iterator[str]:
    """Give what is wrong with the model as a whole; ``heads`` are Linear with a tied weight."""
    quantized = {p.name: p for p in found.parameters if p.group}
    if not quantized:
        yield "no weight is quantized"
    if strangers := [name for name in dynamic if name not in quantized]:
        yield f"dynamic names what is no quantized weight: {', '.join(strangers)}"
    for p in quantized.values():
        if p.module in kinds.linears:
            continue
        if p.module not in kinds.embeddings:
            yield f"{p.name}: {p.module} is neither a Linear nor an Embedding of the model"
            continue
        if p.name in dynamic:
            yield f"{p.name}: inputs of an Embedding are indices, which nothing quantizes"
        if heads and config.get("vocab_size", p.shape[0]) == p.shape[0]:
            yield (
                f"{p.name}: {', '.join(heads)} is tied to it, and loaders cannot tie quantized "
                "weights; leave it float or untie the two"
            )
    alike = {json.dumps([group.weights, group.inputs]) for group in found.grouped.values()}
    if len(alike) > 1 and (special := loads_dequantized(found.grouped, kinds.linears)):
        yield (
            f"{len(alike)} schemes, and embeddings or zero points per row or group among them: "
            "transformers loads these only where all weights share one scheme; leave them float, "
            f"make them symmetric, or use one scheme: {', '.join(special)}"
        )
