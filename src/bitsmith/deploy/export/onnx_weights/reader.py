"""Read the quantized weights of a file that ``write`` made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from bitsmith.deploy.export.onnx_weights.parts import from_parts
from bitsmith.deploy.export.onnx_weights.storage import Part, Storage
from bitsmith.errors import InputError, WeightsError
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["METADATA", "read"]

METADATA = "bitsmith.weights"
_PARTS = ("codes", "scale", "zero_point", "codebook")


def read(path: str | Path) -> dict[str, QTensor]:
    """Return weight name → :class:`~bitsmith.numbers.qtensor.QTensor`, bit for bit as written.

    Tied weights are one object under several names. Rows that were padded are as long as they
    were stored.

    Raises:
        InputError: there is no such file.
        WeightsError: it is no ONNX file, not one of these, or was changed; all of it is listed.
    """
    path = Path(path)
    try:
        proto = onnx.load(str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise WeightsError(f"{path} is not an ONNX file, or is truncated: {error}") from error
    described = {p.key: p.value for p in proto.metadata_props}
    if METADATA not in described:
        raise WeightsError(f"{path} has no {METADATA} in its metadata: bitsmith did not write it")
    held = {i.name: i for i in proto.graph.initializer}
    found: dict[str, QTensor] = {}
    problems = []
    weights, schemes, tied = _settings(path, described[METADATA])
    for name, settings in weights.items():
        try:
            found[name] = _weight(name, settings, schemes, held)
        except (InputError, KeyError, TypeError, IndexError, AssertionError) as error:
            problems.append(f"{name}: {error if str(error) else type(error).__name__}")
    if problems:
        lines = "\n  ".join(problems)
        raise WeightsError(f"{path} is damaged or was changed by hand:\n  {lines}")
    return found | {other: found[name] for other, name in tied.items()}


def _settings(path: Path, text: str) -> tuple[dict[str, Any], list[Any], dict[str, str]]:
    try:
        data = json.loads(text)
        weights, schemes, tied = dict(data["weights"]), list(data["schemes"]), dict(data["tied"])
        if unknown := [name for name in tied.values() if name not in weights]:
            raise ValueError(f"weights are tied to {', '.join(unknown)}, which it does not have")
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its metadata {METADATA} cannot be read: {error}") from error
    return weights, schemes, tied


def _weight(
    name: str, settings: Mapping[str, Any], schemes: list[Any], held: Mapping[str, Any]
) -> QTensor:
    fields = dict(settings)
    scheme = Scheme.from_json(schemes[fields.pop("scheme")])
    shape = tuple(fields.pop("shape"))
    storage = Storage(**fields, scheme=scheme, shape=(shape[0], shape[1]))
    parts = {
        part: Part.from_proto(held[f"{name}.{part}"]) for part in _PARTS if f"{name}.{part}" in held
    }
    return from_parts(parts, storage)
