"""The state of a training run on disk: written after every epoch, resumed bit for bit."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from operator import length_hint
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.data.split import Split
from bitsmith.errors import InputError
from bitsmith.model.frozen_norms import freeze_again

__all__ = [
    "Checkpoint",
    "data_fingerprint",
    "load_into",
    "read_checkpoint",
    "snapshot",
    "write_checkpoint",
]

_VERSION = 3
_SETTINGS = ("seed", "augmentation", "erase", "blend", "labelled")
"""Attributes of training batches that decide what a sample looks like."""


@final
@dataclass(frozen=True)
class Checkpoint:
    """What is needed to go on.

    Attributes:
        fingerprint: plain data on what is trained and how; resuming demands the same.
        epochs: done.
        module, optimizer: their state dicts.
        random: state of PyTorch's generator.
        history: the records of the epochs, plain data.
        steps: batches in an epoch.
        frozen: names of the batch norms that keep their statistics.
    """

    fingerprint: Mapping[str, Any]
    epochs: int
    module: dict[str, Any]
    optimizer: dict[str, Any]
    random: Tensor
    history: list[dict[str, Any]]
    steps: int | None
    frozen: list[str] = field(default_factory=list)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint``, so that at any moment ``path`` is a whole file, old or new."""
    plain = {**vars(checkpoint), "version": _VERSION}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(plain, file)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path, fingerprint: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint at ``path``; None where there is none.

    Raises:
        InputError: the file is no checkpoint, or one of another run: every difference is named.
    """
    if not path.exists():
        return None
    try:
        plain = torch.load(path, weights_only=True)
        version = plain.pop("version")
        found = Checkpoint(**plain)
    except (
        RuntimeError,
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise InputError(  # what PyTorch says is advice to load it unsafely
            f"{path} is not a training checkpoint, or is damaged ({type(error).__name__}): delete "
            "it to start again"
        ) from error
    if version != _VERSION:
        raise InputError(
            f"{path} is a checkpoint of version {version}; this version reads {_VERSION}"
        )
    other = [
        f"{key}: {found.fingerprint.get(key)!r} there, {fingerprint.get(key)!r} now"
        for key in sorted({*found.fingerprint, *fingerprint})
        if found.fingerprint.get(key) != fingerprint.get(key)
    ]
    if other:
        raise InputError(
            f"checkpoint {path} is of another run ({'; '.join(other)}): give another path, or "
            "delete it to start again"
        )
    return found


def data_fingerprint(batches: Any) -> dict[str, Any]:
    """Return what can be known of training data without reading it from where it lies.

    Data set, split and SHA-256 of batches that know their split, the number of samples, the batch
    size, the number of batches, and how samples are drawn and changed; of tensors in memory (a
    list of batches, a ``TensorDataset``) the SHA-256. A plain function of the epoch tells nothing.

    >>> found = data_fingerprint([torch.zeros(4, 2), torch.zeros(3, 2)])
    >>> found["batch size"], found["batches"], len(found["data sha256"])
    (4, 2, 64)
    """
    split, source = getattr(batches, "split", None), getattr(batches, "dataset", None)
    held = batches if isinstance(batches, list | tuple) else getattr(source, "tensors", ())
    known: dict[str, Any] = {
        "samples": getattr(batches, "samples", None),
        "batch size": getattr(batches, "batch_size", None),
        "batches": length_hint(batches) or None,
    }
    if isinstance(split, Split):
        known |= {"data set": split.dataset, "split": split.name, "data sha256": split.sha256}
        known |= {key: _plain(getattr(batches, key, None)) for key in _SETTINGS}
    elif isinstance(source, Sized):
        known["samples"] = len(source)
    digest = hashlib.sha256()
    if _add(digest, held):
        known["data sha256"] = digest.hexdigest()
    if held is batches:
        known["batch size"] = _size(batches)
    return {key: value for key, value in known.items() if value is not None}


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


def _add(digest: Any, value: Any) -> bool:
    """Take in every tensor of nested lists; return whether there was one."""
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
        return True
    parts = value if isinstance(value, list | tuple) else ()
    return sum(_add(digest, part) for part in parts) > 0


def _size(batches: Any) -> int | None:
    """Return the number of samples in the first of a list of batches."""
    while isinstance(batches, list | tuple) and batches:
        batches = batches[0]
    return len(batches) if isinstance(batches, Tensor) and batches.dim() else None


def snapshot(module: nn.Module) -> dict[str, Any]:
    """Return a copy of the module's state."""
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in module.state_dict().items()}


def load_into(module: nn.Module, optimizer: torch.optim.Optimizer, found: Checkpoint) -> None:
    """Put the state back."""
    module.load_state_dict(found.module)
    freeze_again(module, found.frozen)
    optimizer.load_state_dict(found.optimizer)
    torch.set_rng_state(found.random)
