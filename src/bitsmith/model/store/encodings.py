"""Encodings apart from the model: schemes, scales, zero points and tables, without the codes.

One safetensors file; its metadata says what the tensors are. Applied to a float checkpoint they
give a quantized model by rounding to nearest, so the same checkpoint gives the same codes.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError, WeightsError
from bitsmith.model.owners import memory_key, weight_owners
from bitsmith.model.recipe import Recipe
from bitsmith.model.store.folder import damaged, parse_json
from bitsmith.model.store.manifest import LayerEntry, Manifest, WeightEntry
from bitsmith.model.store.parts import misfits, part_specs
from bitsmith.model.store.reround import filler_codes, reround
from bitsmith.model.store.safetensors_file import map_tensors, tensor_sha256, write_tensors
from bitsmith.model.store.survey import join, survey
from bitsmith.model.swap import Plan, RoundedWeight, Swap
from bitsmith.model.weight_rows import with_kernels
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.stored import from_stored, to_stored

__all__ = ["apply_encodings", "save_encodings"]

_KEY = "bitsmith.encodings"


def save_encodings(model: nn.Module, path: str | Path) -> Path:
    """Write how ``model`` is quantized, without its weights; returns ``path``.

    Args:
        model: of the module lane.
        path: ``….safetensors``; an older file of encodings is replaced, no other.

    Raises:
        InputError: the place cannot be written, or is another file; the model has no packed
            weights.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"encodings are a safetensors file: name {path} {path.stem}.safetensors")
    if path.exists():
        _read(path)  # refuses what is something else
    found = survey(model)
    if scaled := [
        n.removesuffix(".input_scale") for n in found.floats if n.endswith("input_scale")
    ]:
        raise InputError(
            "layers that divide their input by scales of their own (transform=…) have no encodings "
            f"that a float checkpoint alone could take: {', '.join(scaled)}"
        )
    weights = {
        name: WeightEntry(
            w.scheme, tuple(w.shape), w.stored_shape, tensor_sha256(w.parts()["codes"])
        )
        for name, w in found.weights.items()
    }
    matrices = {
        name: entry
        for name, entry in found.floats.items()
        if entry.role == "parameter" and found.tensors[entry.tensor].dim() >= 2
    }
    recipe = getattr(model, "recipe", None)
    manifest = Manifest(
        weights, found.layers, matrices, {}, recipe if isinstance(recipe, Recipe) else None
    )
    tensors = {
        f"{name}/{part}": tensor
        for name, weight in found.weights.items()
        for part, tensor in weight.parts().items()
        if part != "codes"
    }
    temporary = path.with_name(f".{path.name}.new")
    try:
        write_tensors(temporary, tensors, {_KEY: json.dumps(manifest.to_json())})
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def apply_encodings(model: nn.Module, path: str | Path) -> nn.Module:
    """Return a copy of a float ``model`` quantized with the encodings that ``path`` holds.

    Every weight is rounded to the nearest code. In ``coverage`` a row says so where these are not
    the codes that the encodings were taken from: the checkpoint is another, or they were not
    nearest (GPTQ).

    Args:
        model: the float model, of the same architecture; it is not changed.
        path: of :func:`save_encodings`.

    Raises:
        InputError: there is no such file.
        WeightsError: it is damaged or holds something else; or names, shapes, ties or values of
            the weights do not fit (all are listed).
    """
    path = Path(path)
    manifest, tensors = _read(path)
    activation = _activation(manifest, path)
    plan = _plan(model, manifest, path)
    note = "other codes than the encodings were taken from: another checkpoint, or not nearest"

    def rounder(name: str, weight: Tensor, scheme: Scheme) -> RoundedWeight:
        entry = manifest.weights[name]
        parts = {"codes": filler_codes(scheme, entry.stored_shape)}
        parts |= {p: tensors[f"{name}/{p}"] for p in _kept(entry)}
        q = reround(weight, from_stored(parts, scheme, entry.stored_shape))
        same = tensor_sha256(to_stored(q)["codes"]) == entry.codes_sha256
        return RoundedWeight(q, "nearest", reason="" if same else note)

    swap = Swap(model, plan, activation)
    for owner in swap.owners:
        swap.swap(owner, rounder)
    result: Any = swap.model
    result.coverage = with_kernels(swap.rows, result)
    if manifest.recipe is not None:
        result.recipe = manifest.recipe
    quantized: nn.Module = result
    return quantized


def _read(path: Path) -> tuple[Manifest, dict[str, Tensor]]:
    tensors, metadata = map_tensors(path)
    if _KEY not in metadata:
        raise WeightsError(f"{path} does not hold encodings: its metadata has no {_KEY}")
    manifest = Manifest.from_json(parse_json(metadata[_KEY], path), str(path))
    wrong, expected = [], set()
    for name, entry in manifest.weights.items():
        specs = _kept(entry)
        expected |= {f"{name}/{part}" for part in specs}
        own = {p: tensors[f"{name}/{p}"] for p in specs if f"{name}/{p}" in tensors}
        wrong += [f"{name}/{misfit}" for misfit in misfits(own, specs)]
    wrong += [f"{name} is not expected" for name in sorted(set(tensors) - expected)]
    if wrong:
        raise damaged(path, *wrong)
    return manifest, tensors


def _kept(entry: WeightEntry) -> dict[str, Any]:
    """Return the parts that encodings have: all but the codes."""
    specs = part_specs(entry.scheme, entry.stored_shape)
    return {name: spec for name, spec in specs.items() if name != "codes"}


def _activation(manifest: Manifest, path: Path) -> Scheme | None:
    found: list[LayerEntry] = [e for e in manifest.layers.values() if e.kind == "linear"]
    schemes = list(dict.fromkeys(entry.activation for entry in found))
    if len(schemes) > 1:
        raise WeightsError(f"{path}: linear layers have {len(schemes)} schemes of activations")
    return schemes[0] if schemes else None


def _plan(model: nn.Module, manifest: Manifest, path: Path) -> Plan:
    owners = weight_owners(model)
    found = {join(o.name, leaf): o.module.get_parameter(leaf) for o in owners for leaf in o.weights}
    names = {
        join(layer_path, leaf): weight
        for layer_path, layer in manifest.layers.items()
        for leaf, weight in layer.weights.items()
    }
    wrong = [f"{name} is not a weight of the model" for name in names if name not in found]
    wrong += [
        f"{name} of the model is not in the encodings"
        for name in found
        if name not in names and name not in manifest.floats
    ]
    wrong += _misfits(found, names, manifest.weights)
    if wrong:
        raise WeightsError("\n  ".join([f"{path} does not fit the model:", *wrong]))
    wide = {n: e for n, e in manifest.weights.items() if e.stored_shape[1] > _columns(e)}
    reasons = {name: "the encodings keep it in float" for name in found if name not in names}
    reasons |= {n: f"rows of {_columns(e)} padded to {e.stored_shape[1]}" for n, e in wide.items()}
    return Plan(
        tuple(owners),
        {name: entry.scheme for name, entry in manifest.weights.items()},
        {name: entry.stored_shape[1] for name, entry in wide.items()},
        reasons,
    )


def _columns(entry: WeightEntry) -> int:
    return torch.Size(entry.shape[1:]).numel()


def _misfits(
    found: Mapping[str, nn.Parameter],
    names: Mapping[str, str],
    weights: Mapping[str, WeightEntry],
) -> list[str]:
    """Return which weights have another shape, no values, bad values, or are tied otherwise."""
    wrong = []
    first: dict[Hashable, str] = {}
    for name, parameter in found.items():
        if name not in names:
            continue
        entry, tied = weights[names[name]], first.setdefault(memory_key(parameter), name)
        if tied != names[name]:
            wrong.append(f"{name} is {names[name]} in the encodings, {tied} in the model")
        elif tuple(parameter.shape) != entry.shape:
            shape = list(parameter.shape)
            wrong.append(f"{name} is {list(entry.shape)}, in the model {shape}")
        elif parameter.is_meta:
            wrong.append(f"{name} is on the meta device: load its values first")
        elif bad := int((~torch.isfinite(parameter)).sum()):
            wrong.append(f"{name} has {bad} NaN or infinite of {parameter.numel()} values")
    return wrong
