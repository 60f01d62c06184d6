"""The state of a training run on disk: written after every epoch, resumed bit for bit."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError

__all__ = ["Checkpoint", "load_into", "read_checkpoint", "write_checkpoint"]

_VERSION = 1


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
    """

    fingerprint: Mapping[str, Any]
    epochs: int
    module: dict[str, Any]
    optimizer: dict[str, Any]
    random: Tensor
    history: list[dict[str, Any]]
    steps: int | None


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
        raise InputError(f"{path} is not a training checkpoint, or is damaged: {error}") from error
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


def load_into(module: nn.Module, optimizer: torch.optim.Optimizer, found: Checkpoint) -> None:
    """Put the state back."""
    module.load_state_dict(found.module)
    optimizer.load_state_dict(found.optimizer)
    torch.set_rng_state(found.random)
