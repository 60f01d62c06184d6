"""A model from its specification: a zoo name, ``package.module:callable`` or a ``.pt2`` program."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError, WeightsError
from bitsmith.zoo.models import zoo_models
from bitsmith.zoo.published import find_weights
from bitsmith.zoo.weights import PICKLE_SUFFIXES, load_weights

__all__ = ["LoadedModel", "load_model"]

#: ATen operators with a flag that is true in a program exported in training mode.
TRAINING_FLAGS = {"dropout": 2, "feature_dropout": 2, "batch_norm": 5, "instance_norm": 5}

#: Files that people name in place of a model.
_NO_MODELS = {".onnx", ".bitsmith", ".gguf", ".safetensors"} | PICKLE_SUFFIXES

#: Names of the files in a program that hold pickled objects.
OBJECT_PREFIXES = ("custom_obj_", "opaque_obj_")


@final
@dataclass(frozen=True)
class LoadedModel:
    """A module in evaluation mode and what is known about it."""

    name: str
    module: nn.Module
    dataset: str | None
    """Name of the data set, or text data set, that the model is for."""
    input_shape: tuple[int, ...] | None
    """Shape of one sample, without the batch; None where it is unknown, or token ids."""
    weights_sha256: str | None
    """Of the weights file, or of the program; None when no file was read."""


def load_model(
    spec: str,
    weights: Path | str | None = None,
    *,
    allow_pickle: bool = False,
    pretrained: bool = True,
) -> LoadedModel:
    """Return the model that ``spec`` names, in evaluation mode.

    Args:
        spec: a zoo name (``cifar-resnet20``), ``package.module:callable`` (called without
            arguments, returns an ``nn.Module``) or the path of a ``.pt2`` program.
        weights: a weights file that must fit exactly; without one a zoo model takes its
            published weights.
        allow_pickle: accept a pickled ``weights`` file, and pickled objects in a program.
        pretrained: False leaves a zoo model without a ``weights`` file at random weights.

    Raises:
        UnknownNameError: no zoo model has that name.
        WeightsError: weights are missing, damaged, refused or do not fit.
        InputError: the callable or the program cannot be loaded, or ``spec`` is another file.

    >>> load_model("mlp", pretrained=False).input_shape
    (1, 28, 28)
    """
    if spec.endswith(".pt2"):
        return _from_program(Path(spec), weights, allow_pickle)
    if ":" in spec:
        module = _from_callable(spec)
        digest = None
        if weights is not None:
            digest = load_weights(module, weights, allow_pickle=allow_pickle)
        return LoadedModel(spec, module.eval(), None, None, digest)
    if spec not in zoo_models:
        _refuse_files(spec)
    entry = zoo_models[spec]
    file = weights
    if file is None and pretrained:
        file = find_weights(entry)
    module, digest = entry.build(), None
    if file is not None:
        digest = load_weights(module, file, allow_pickle=allow_pickle, unused=entry.weights_unused)
    return LoadedModel(spec, module.eval(), entry.dataset, entry.input_shape, digest)


def _refuse_files(spec: str) -> None:
    """Say of a file what may stand in its place, rather than that no zoo model is called so."""
    path = Path(spec)
    if path.suffix not in _NO_MODELS and not path.is_file():
        return
    other = ""
    if path.suffix in (".onnx", ".bitsmith"):
        other = "; bitsmith evaluate runs .onnx files and .bitsmith folders, verify .onnx files"
    elif path.suffix == ".gguf":
        other = f"; evaluate the folder beside it, {path}.bitsmith"
    elif path.suffix in _NO_MODELS:
        other = "; weights go to --weights (weights=…)"
    raise InputError(
        f"{spec} is no model: a model is a zoo name (see: bitsmith list models), "
        f"package.module:callable or a .pt2 program{other}"
    )


def _from_callable(spec: str) -> nn.Module:
    module_name, _, attribute = spec.partition(":")
    form = f"model {spec!r} (package.module:callable)"
    if not module_name or not attribute:
        raise InputError(f"{form} needs a module before the colon and a callable after it")
    try:
        imported = importlib.import_module(module_name)
    except Exception as error:  # a foreign module may raise anything while it is imported
        raise InputError(
            f"{form}: importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    try:
        make: Any = functools.reduce(getattr, attribute.split("."), imported)
    except AttributeError as error:
        raise InputError(f"{form}: {error}") from error
    if isinstance(make, nn.Module) or not callable(make):
        raise InputError(
            f"{form}: {attribute!r} is a {type(make).__name__}; it must be a callable without "
            "arguments that returns an nn.Module (a class or a function)"
        )
    try:
        module = make()
    except Exception as error:  # as above
        raise InputError(
            f"{form}: calling {attribute}() failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{form}: {attribute}() returned a {type(module).__name__}, no nn.Module")
    return module


def _from_program(path: Path, weights: Path | str | None, allow_pickle: bool) -> LoadedModel:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the program {path}: {error.strerror or error}") from error
    if not allow_pickle:
        _refuse_objects(data, path)
    try:
        with contextlib.nullcontext() if allow_pickle else _tensors_only():
            program = torch.export.load(io.BytesIO(data))
    except Exception as error:  # torch.export.load raises many types, none of them documented
        first = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"{path} ({len(data)} bytes) is no program of torch.export.save, or is damaged: "
            f"{type(error).__name__}: {first}"
        ) from error
    _refuse_training_mode(program, path)
    module = program.module()
    # PyTorch makes train() and eval() of a program raise, because its mode was fixed when it was
    # exported. It is known to be evaluation here, so asking for evaluation again is harmless.
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    if (batch := _only_batch(program)) is not None:
        module.register_forward_pre_hook(functools.partial(_refuse_batch, path, batch))
    digest = hashlib.sha256(data).hexdigest()
    if weights is not None:
        digest = load_weights(module, weights, allow_pickle=allow_pickle)
    return LoadedModel(path.stem, module.eval(), None, _sample_shape(program), digest)


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Make every ``torch.load`` inside a tensors-only one.

    ``torch.export.load`` asks for arbitrary pickles in places and has no parameter to forbid
    it; PyTorch's own environment variable does.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _refuse_objects(data: bytes, path: Path) -> None:
    """Refuse pickled objects in a program, which are read by other means than ``torch.load``."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path} ({len(data)} bytes) is no program of torch.export.save, or is damaged: {error}"
        ) from error
    found = [n for n in names if any(prefix in n for prefix in OBJECT_PREFIXES)]
    if found:
        raise WeightsError(
            f"{path} holds pickled objects, which can run code when they are read: "
            f"{', '.join(found)}; allow them (--allow-pickle) if you trust its source"
        )


def _refuse_training_mode(program: torch.export.ExportedProgram, path: Path) -> None:
    found = []
    for node in program.graph.nodes:
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        flag = TRAINING_FLAGS.get(name)
        if flag is not None and len(node.args) > flag and node.args[flag] is True:
            found.append(node.name)
    if found:
        raise InputError(
            f"{path} was exported in training mode ({', '.join(found)}); "
            "call model.eval() before torch.export.export"
        )


def _only_batch(program: torch.export.ExportedProgram) -> int | None:
    """Return the one batch size that a program takes; None where it may vary."""
    first = next(iter(program.graph_signature.user_inputs), None)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name == first and isinstance(value, Tensor) and value.dim():
            size = value.shape[0]  # a symbol where it may vary
            return size if isinstance(size, int) else None
    return None


def _refuse_batch(path: Path, batch: int, _: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Say of another batch size what can be done; the program itself names a guard only."""
    if inputs and isinstance(inputs[0], Tensor) and inputs[0].shape[0] != batch:
        raise InputError(
            f"{path} was exported for batches of {batch} only; export it again with a batch that "
            "may vary: torch.export.export(model, (x,), "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)), from an x of two samples or more"
        )


def _sample_shape(program: torch.export.ExportedProgram) -> tuple[int, ...] | None:
    """Return the example's shape without its batch, if the program has one tensor for input."""
    example = program.example_inputs
    if example is None or len(example[0]) != 1 or example[1]:
        return None
    only = example[0][0]
    return tuple(only.shape[1:]) if isinstance(only, Tensor) else None
