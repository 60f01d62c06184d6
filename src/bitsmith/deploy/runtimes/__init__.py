"""Runtimes that really execute a file, one file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor

from bitsmith.errors import InputError
from bitsmith.registry import Registry

__all__ = ["ExecutedNode", "Session", "open_session", "runtimes"]


_WRITES_ONE = "an ONNX file is needed, as bitsmith quantize --out NAME.onnx writes it"


@final
@dataclass(frozen=True)
class ExecutedNode:
    """A node of the graph that the runtime made of the file."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Session(ABC):
    """A loaded file, ready to run.

    Args:
        model: the serialized ONNX file.
        threads: threads inside an operator; None: the runtime's default.
    """

    registry: ClassVar[Registry[type[Session]]] = Registry("runtime", __name__)
    name: ClassVar[str]
    input_names: Sequence[str]
    output_names: Sequence[str]

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Session.registry.add(name, cls)

    @abstractmethod
    def __init__(self, model: bytes, threads: int | None = None) -> None: ...

    @property
    @abstractmethod
    def version(self) -> str:
        """The runtime's version."""

    @abstractmethod
    def run(self, *inputs: Tensor) -> list[Tensor]:
        """Return the outputs, in the order of ``output_names``."""

    @abstractmethod
    def executed(self) -> list[ExecutedNode]:
        """Return the nodes of the optimized graph, in no particular order."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the first output: a session can be evaluated like a model."""
        return self.run(*inputs)[0]


def open_session(
    model: str | Path | bytes, runtime: str = "onnxruntime", *, threads: int | None = None
) -> Session:
    """Load a file (or its bytes) into a runtime.

    Raises:
        InputError: the file cannot be read, or the runtime refuses it.
        RuntimeMissingError: the runtime is not installed.
    """
    session = Session.registry[runtime]
    if isinstance(model, bytes):
        return session(model, threads)
    try:
        content = Path(model).read_bytes()
    except OSError as error:
        raise InputError(f"{model} cannot be read: {error.strerror}") from error
    if not content:
        raise InputError(f"{model} is empty; {_WRITES_ONE}")
    try:
        return session(content, threads)
    except InputError as error:
        raise InputError(f"{model}: {error}; {_WRITES_ONE}") from error


def as_tensors(arrays: Sequence[object]) -> list[Tensor]:
    """Return arrays as tensors of their own."""
    return [torch.as_tensor(a).clone() for a in arrays]


runtimes = Session.registry
