"""Save and load a model of the module lane: ``quantization.json``, ``weights.safetensors``.

No pickle. Tensors have the names of the float model: the packed parts of a weight are
``encoder.0.query.weight/codes``, ``…/scale`` and so on, everything else is itself. Buffers outside
the state dict are stored too: a model that is built without memory cannot compute them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError, WeightsError
from bitsmith.model.recipe import Recipe
from bitsmith.model.store.folder import MODULES, WEIGHTS, damaged, parse_json, write_folder
from bitsmith.model.store.manifest import Manifest, WeightEntry
from bitsmith.model.store.parts import misfits, part_specs
from bitsmith.model.store.restore import restore
from bitsmith.model.store.safetensors_file import file_sha256, map_tensors, write_tensors
from bitsmith.model.store.skeleton import Skeleton, build_skeleton
from bitsmith.model.store.survey import Survey, survey
from bitsmith.model.weight_rows import WeightRow, with_kernels

__all__ = ["load_modules", "save_modules"]


def save_modules(model: nn.Module, folder: str | Path, *, builder: str | None = None) -> Path:
    """Write ``model`` to ``folder``, replacing a folder that bitsmith wrote; returns the folder.

    Tensors are written one after the other as they lie in memory.

    Args:
        model: with packed weights; of a model on another device one tensor at a time is copied.
        folder: to write.
        builder: what makes the float model: a zoo name, or ``package.module:callable``. With a
            zoo name the folder loads without a skeleton.

    Raises:
        InputError: the place cannot be written, or holds something else; the model has no packed
            weights, or state that is no tensor.
    """
    found = survey(model)
    manifest = _manifest(model, found, builder)
    tensors = {
        f"{name}/{part}": tensor
        for name, weight in found.weights.items()
        for part, tensor in weight.parts().items()
    } | {
        name: torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
        for name, t in found.tensors.items()
    }

    def write(place: Path) -> None:
        digest = write_tensors(place / WEIGHTS, tensors)
        (place / MODULES).write_text(_lines(manifest.to_json() | {"sha256": digest}))

    return write_folder(Path(folder), write)


def load_modules(
    folder: str | Path, model: Skeleton | None = None, *, verify: bool = True
) -> nn.Module:
    """Return the model that :func:`save_modules` wrote, in evaluation mode.

    The float weights are never in memory, and the packed ones are views of the file's pages. The
    file must stay as it is while the model is in use; saving to the same folder does no harm.

    Args:
        folder: to read.
        model: the float model without its weights: a module on the meta device (it is not
            changed); a callable that builds one, which is called so that its parameters have no
            memory; or a name as :func:`bitsmith.zoo.load.load_model` takes it. None: the folder's
            own builder, where that is a zoo name.
        verify: compare the SHA-256 of the tensors with the one recorded, which reads the whole
            file once; False leaves every page on the disk until it is used.

    Raises:
        InputError: the folder, a file in it or a model is missing.
        WeightsError: a file is damaged or was changed by hand, or does not fit the model; every
            misfit is listed.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} is not whole: it has no {WEIGHTS}")
    manifest = Manifest.from_json(_read_json(folder / MODULES), str(folder / MODULES))
    tensors, _ = map_tensors(folder / WEIGHTS)
    _check_tensors(manifest, tensors, folder)
    if verify and file_sha256(folder / WEIGHTS) != manifest.sha256:
        raise damaged(folder / WEIGHTS, f"its SHA-256 is not the one in {MODULES}")
    result: Any = restore(
        build_skeleton(model, manifest.builder, folder), manifest, tensors, str(folder)
    )
    if manifest.recipe is not None:
        result.recipe = manifest.recipe
    if manifest.coverage is not None:
        result.coverage = with_kernels(manifest.coverage, result)
    loaded: nn.Module = result.eval()
    return loaded


def _read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        InputError: there is no such file.
        WeightsError: it is not JSON.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} is not a bitsmith folder: it has no {path.name}")
    return parse_json(path.read_bytes(), path)


def _lines(data: dict[str, Any]) -> str:
    """Return JSON with one entry a line: to be read, and still short."""
    return "{\n" + ",\n".join(f"{json.dumps(k)}: {_entries(v)}" for k, v in data.items()) + "\n}\n"


def _entries(value: Any) -> str:
    if isinstance(value, dict) and value:
        inner = (f" {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
        return "{\n" + ",\n".join(inner) + "\n}"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f" {json.dumps(v)}" for v in value) + "\n]"
    return json.dumps(value)


def _manifest(model: nn.Module, found: Survey, builder: str | None) -> Manifest:
    weights = {
        name: WeightEntry(w.scheme, tuple(w.shape), w.stored_shape)
        for name, w in found.weights.items()
    }
    recipe, coverage = getattr(model, "recipe", None), getattr(model, "coverage", None)
    known = isinstance(coverage, list) and all(isinstance(row, WeightRow) for row in coverage)
    return Manifest(
        weights,
        found.layers,
        found.floats,
        found.shared,
        recipe if isinstance(recipe, Recipe) else None,
        builder,
        coverage if known else None,
    )


def _check_tensors(manifest: Manifest, tensors: dict[str, Tensor], folder: Path) -> None:
    """Compare the tensors with what the manifest says that they are."""
    wrong, parts = [], set()
    for name, entry in manifest.weights.items():
        specs = part_specs(entry.scheme, entry.stored_shape)
        own = {p: tensors[f"{name}/{p}"] for p in specs if f"{name}/{p}" in tensors}
        parts |= {f"{name}/{p}" for p in own}
        wrong += [f"{name}/{misfit}" for misfit in misfits(own, specs)]
    floats = {entry.tensor for entry in manifest.floats.values()}
    wrong += [f"{name} is missing" for name in sorted(floats - set(tensors))]
    wrong += [f"{name} is not expected" for name in sorted(set(tensors) - floats - parts)]
    wrong += [
        f"{entry.tensor} is no tensor of pairs"
        for entry in manifest.floats.values()
        if entry.complex and entry.tensor in tensors and not _pairs(tensors[entry.tensor])
    ]
    if wrong:
        raise WeightsError(
            "\n  ".join([f"{folder / WEIGHTS} does not hold what {MODULES} says:", *wrong])
        )


def _pairs(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.float64) and tensor.shape[-1:] == (2,)
