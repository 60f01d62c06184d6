"""``quantization.json``: what the tensors beside it are, as plain data."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, final

import torch

from bitsmith.errors import InputError, WeightsError
from bitsmith.model.recipe import Recipe
from bitsmith.model.store.folder import UNREADABLE, damaged, reason
from bitsmith.model.weight_rows import WeightRow
from bitsmith.numbers.scheme import Scheme

__all__ = ["FloatEntry", "LayerEntry", "Manifest", "WeightEntry", "check_version"]

VERSION = 1
KINDS = ("linear", "embedding", "other")

_T = TypeVar("_T")


@final
@dataclass(frozen=True)
class WeightEntry:
    """One packed weight.

    Attributes:
        scheme: how it was quantized.
        shape: of the weight, as its layer has it.
        stored_shape: ``[rows, columns]`` of its codes; columns may be padded.
        codes_sha256: of the packed codes; in encodings, which do not hold the codes.
    """

    scheme: Scheme
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]
    codes_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        data = {
            "scheme": self.scheme.to_json(),
            "shape": list(self.shape),
            "stored_shape": list(self.stored_shape),
        }
        return data | ({"codes_sha256": self.codes_sha256} if self.codes_sha256 else {})

    @classmethod
    def from_json(cls, data: Any) -> WeightEntry:
        """Return the entry that :meth:`to_json` wrote."""
        scheme = Scheme.from_json(data["scheme"])
        shape, stored = _shape(data["shape"]), _shape(data["stored_shape"])
        if len(stored) != 2 or len(shape) < 2 or shape[0] != stored[0]:
            raise InputError(f"shape {list(shape)} is not stored as {list(stored)}")
        if math.prod(shape[1:]) > stored[1]:
            raise InputError(f"rows of shape {list(shape)} do not fit in {stored[1]} columns")
        scheme.granularity.scale_shape(stored)
        digest = data.get("codes_sha256")
        return cls(scheme, shape, stored, None if digest is None else _text(digest))


@final
@dataclass(frozen=True)
class LayerEntry:
    """One layer with packed weights.

    Attributes:
        kind: ``linear``, ``embedding`` or ``other`` (a module with packed weights inside).
        weights: name in the layer → name of the packed weight, another layer's where tied.
        activation: scheme of a linear layer's input, or None.
        padding_idx: of an embedding.
        dtypes: name in the layer → type of the weight when it is dequantized; not of ``linear``.
        module: class of an ``other`` layer.
    """

    kind: str
    weights: dict[str, str]
    activation: Scheme | None = None
    padding_idx: int | None = None
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    module: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain data, without keys that do not apply."""
        data = {
            "kind": self.kind,
            "weights": self.weights,
            "activation": self.activation and self.activation.to_json(),
            "padding_idx": self.padding_idx,
            "dtypes": {k: str(v).removeprefix("torch.") for k, v in self.dtypes.items()} or None,
            "module": self.module,
        }
        return {k: v for k, v in data.items() if v is not None}

    @classmethod
    def from_json(cls, data: Any) -> LayerEntry:
        """Return the entry that :meth:`to_json` wrote."""
        kind, weights = data["kind"], _texts(data["weights"])
        if kind not in KINDS:
            raise InputError(f"kind {_short(kind)} is not one of {', '.join(KINDS)}")
        if not weights or (kind != "other" and set(weights) != {"weight"}):
            raise InputError(f"a layer of kind {kind} cannot have the weights {sorted(weights)}")
        dtypes = {k: _dtype(v) for k, v in _texts(data.get("dtypes", {})).items()}
        if kind != "linear" and set(dtypes) != set(weights):
            raise InputError(f"types are given for {sorted(dtypes)}, not {sorted(weights)}")
        given, padding = data.get("activation"), data.get("padding_idx")
        if padding is not None and not isinstance(padding, int):
            raise InputError(f"padding_idx is {_short(padding)}")
        activation = None if given is None else Scheme.from_json(given)
        return cls(kind, weights, activation, padding, dtypes, data.get("module"))


@final
@dataclass(frozen=True)
class FloatEntry:
    """One name of a parameter or buffer that is stored as it is.

    Attributes:
        tensor: name in the file; another name where the two are one tensor.
        role: ``parameter``, ``buffer``, or ``hidden`` (a buffer outside the state dict).
        complex: stored as pairs of real and imaginary part.
    """

    tensor: str
    role: str
    complex: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        return {"tensor": self.tensor, "role": self.role} | (
            {"complex": True} if self.complex else {}
        )

    @classmethod
    def from_json(cls, data: Any) -> FloatEntry:
        """Return the entry that :meth:`to_json` wrote."""
        if data["role"] not in ("parameter", "buffer", "hidden"):
            raise InputError(f"role {_short(data['role'])} is not parameter, buffer or hidden")
        return cls(_text(data["tensor"]), data["role"], bool(data.get("complex", False)))


@final
@dataclass(frozen=True)
class Manifest:
    """Everything but the tensors.

    Attributes:
        weights: name → packed weight.
        layers: path of the module → layer.
        floats: name → parameter or buffer.
        shared: path of a module → path under which it is described, where it appears again.
        recipe: what the model was made with, when known.
        builder: name that makes the float model without weights, when known.
        coverage: one row for every weight, when known.
        sha256: of the file with the tensors.
    """

    weights: dict[str, WeightEntry]
    layers: dict[str, LayerEntry]
    floats: dict[str, FloatEntry]
    shared: dict[str, str]
    recipe: Recipe | None = None
    builder: str | None = None
    coverage: list[WeightRow] | None = None
    sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain data, the inverse of :meth:`from_json`."""
        return {
            "version": VERSION,
            "builder": self.builder,
            "recipe": self.recipe and self.recipe.to_json(),
            "sha256": self.sha256,
            "weights": {k: v.to_json() for k, v in self.weights.items()},
            "layers": {k: v.to_json() for k, v in self.layers.items()},
            "floats": {k: v.to_json() for k, v in self.floats.items()},
            "shared": self.shared,
            "coverage": None if self.coverage is None else [r.to_json() for r in self.coverage],
        }

    @classmethod
    def from_json(cls, data: Any, place: str) -> Manifest:
        """Return the manifest that :meth:`to_json` wrote.

        Args:
            data: parsed JSON.
            place: where it was read, for messages.

        Raises:
            WeightsError: another version, or entries that are damaged; all are listed.
        """
        check_version(data, VERSION, place)
        wrong: list[str] = []
        weights = _entries(data, "weights", WeightEntry.from_json, wrong)
        layers = _entries(data, "layers", LayerEntry.from_json, wrong)
        floats = _entries(data, "floats", FloatEntry.from_json, wrong)
        shared = _entries(data, "shared", _text, wrong)
        wrong += [
            f"layers: {path!r}: there is no weight {_short(name)}"
            for path, layer in layers.items()
            for name in layer.weights.values()
            if name not in weights and not wrong
        ]
        recipe = _try("recipe", data.get("recipe"), Recipe.from_json, wrong)
        coverage = _try("coverage", data.get("coverage"), _rows, wrong)
        builder = _try("builder", data.get("builder"), _text, wrong)
        digest = _try("sha256", data.get("sha256"), _text, wrong)
        if wrong:
            raise damaged(place, *wrong)
        return cls(weights, layers, floats, shared, recipe, builder, coverage, digest)


def check_version(data: Any, version: int, place: str) -> None:
    """Refuse what is no object, or has another version.

    Raises:
        WeightsError: as said.
    """
    if not isinstance(data, Mapping):
        raise damaged(place, "it is not a JSON object")
    if data.get("version") != version:
        raise WeightsError(
            f"{place} has version {_short(data.get('version'))}; this bitsmith reads {version}: "
            "write it anew with this one (bitsmith quantize), or read it with the one that wrote it"
        )


def _entries(
    data: Mapping[str, Any], key: str, read: Callable[[Any], _T], wrong: list[str]
) -> dict[str, _T]:
    """Return the entries that can be read; the others go to ``wrong``."""
    given = data.get(key)
    if not isinstance(given, Mapping):
        wrong.append(f"{key} is {type(given).__name__}, not an object")
        return {}
    read_ones = {k: _try(f"{key}: {k!r}", v, read, wrong) for k, v in given.items()}
    return {k: v for k, v in read_ones.items() if v is not None}


def _try(what: str, value: Any, read: Callable[[Any], _T], wrong: list[str]) -> _T | None:
    if value is None:
        return None
    try:
        return read(value)
    except UNREADABLE as error:
        wrong.append(f"{what}: {reason(error)}")
    return None


def _short(value: Any) -> str:
    """Return a value of the file for a message; it may be of any size."""
    return reprlib.repr(value)


def _rows(data: Any) -> list[WeightRow]:
    return [WeightRow(**{**row, "layer": _text(row["layer"])}) for row in data]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{_short(value)} is not text")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {_text(k): _text(v) for k, v in value.items()}


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 1 << 48 for n in value):
        raise InputError(f"{_short(value)} is not a shape")
    return tuple(value)


def _dtype(value: str) -> torch.dtype:
    found = getattr(torch, value, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"{_short(value)} is not a floating-point type")
    return found
