"""Read a folder in the compressed-tensors format, ours or another's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitsmith.deploy.export.compressed_tensors.layout import INT, PACK, from_parts
from bitsmith.deploy.export.compressed_tensors.parse import Settings, parse
from bitsmith.errors import InputError, WeightsError
from bitsmith.numbers.qtensor import QTensor

__all__ = ["read"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def read(folder: str | Path) -> dict[str, QTensor | Tensor]:
    """Return parameter → value of a folder in the compressed-tensors format, in order of names.

    What :func:`write` wrote comes back bit for bit, with its scheme. Files of other writers get
    the scheme that their ``quantization_config`` describes.

    Raises:
        InputError: there is no such folder, or a file of it is missing.
        WeightsError: a file is damaged, was changed by hand, or holds what cannot be read; all
            of it is listed.
    """
    folder = Path(folder)
    config = _json(folder / "config.json")
    try:
        settings = parse(config)
    except WeightsError as error:
        raise WeightsError(f"{folder}: {error}") from error
    with ExitStack() as stack:
        files = _open(folder, stack)
        values, problems = _values(files, settings)
    if problems:
        lines = "\n  ".join(problems)
        raise WeightsError(f"{folder} is damaged or was changed by hand:\n  {lines}")
    return {name: values[name] for name in sorted(values)}


@final
@dataclass(frozen=True)
class _Module:
    """The quantized weight of one module: the names of its parts, as they are stored."""

    layout: str
    parts: dict[str, str] = field(default_factory=dict)


def _values(
    files: Mapping[str, Any], settings: Settings
) -> tuple[dict[str, QTensor | Tensor], list[str]]:
    values: dict[str, QTensor | Tensor] = {}
    problems: list[str] = []
    modules, floats = _sorted(files)
    for name in floats:
        values[name] = files[name].get_tensor(name)
    for module, found in modules.items():
        parts = {part: files[name].get_tensor(name) for part, name in found.parts.items()}
        try:
            values[f"{module}.weight"] = _weight(module, parts, found.layout, settings)
        except InputError as error:
            problems.append(f"{module}: {error}")
    return values, problems


def _weight(module: str, parts: Mapping[str, Tensor], layout: str, settings: Settings) -> QTensor:
    entry = settings.entry_of(module)
    if entry is None:
        raise WeightsError("it is stored quantized, but no config group has it as a target")
    if entry.layout != layout:
        raise WeightsError(f"it is stored {layout}, but its config group says {entry.layout}")
    scale = parts.get("weight_scale")
    return from_parts(parts, entry.scheme_for(None if scale is None else scale.dtype), layout)


def _sorted(names: Mapping[str, Any]) -> tuple[dict[str, _Module], list[str]]:
    """Return the quantized modules and the names of all other tensors."""
    modules = {}
    for name in sorted(names):
        module, _, part = name.rpartition(".")
        if part == "weight_packed":
            modules[module] = _Module(PACK)
        elif part == "weight_scale" and f"{module}.weight_packed" not in names:
            modules[module] = _Module(INT)
    floats = []
    for name in sorted(names):
        module, _, part = name.rpartition(".")
        if module in modules and (part == "weight" or part.startswith(("weight_", "input_"))):
            modules[module].parts[part] = name
        else:
            floats.append(name)
    return modules, floats


def _open(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Return tensor name → open file."""
    if (folder / _SINGLE).is_file():
        return dict.fromkeys((handle := _handle(folder / _SINGLE, stack)).keys(), handle)
    if not (folder / _INDEX).is_file():
        raise InputError(f"{folder} has neither {_SINGLE} nor {_INDEX}")
    places = _json(folder / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise WeightsError(f"{folder / _INDEX} has no weight_map from tensors to files")
    if strange := sorted({v for v in places.values() if Path(v).name != v}):
        raise WeightsError(f"{folder / _INDEX} names files outside: {', '.join(strange)}")
    if gone := sorted({v for v in places.values() if not (folder / v).is_file()}):
        raise InputError(f"{folder} lacks the files {', '.join(gone)} of its index")
    handles = {v: _handle(folder / v, stack) for v in sorted(set(places.values()))}
    held = {v: set(handle.keys()) for v, handle in handles.items()}
    if missing := sorted(name for name, v in places.items() if name not in held[v]):
        raise WeightsError(f"tensors are not in the file of the index: {', '.join(missing)}")
    return {name: handles[v] for name, v in places.items()}


def _handle(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="pt", device="cpu"))
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is not a safetensors file, or is truncated: "
            f"{error}"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds a {type(data).__name__}, not an object")
    return data
