"""What a measurement is of: a float model, an exported file, or a saved simulation."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import onnx
import torch
from torch import Tensor, nn

from bitsmith.deploy.export.onnx import write_float
from bitsmith.deploy.runtimes import Session, open_session
from bitsmith.errors import InputError
from bitsmith.model.graph import Graph, capture, simplify
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.store import load

__all__ = ["Subject", "float_session", "module_subject", "open_artefact", "simulation_folder"]


@final
@dataclass(frozen=True)
class Subject:
    """Something that maps a batch to logits, and what is known about it.

    Attributes:
        name: what reports call it.
        call: batch x → logits; what is captured for a mask as well takes it second, and has two
            ``input_names``.
        runtime: ``onnxruntime``, ``openvino``, ``torch`` or ``simulation``.
        method: ``float`` or ``ptq``; None for a file that bitsmith did not write.
        bytes: of the file; None for what has none.
        described: the recipe, target, machine and provenance that the file carries.
    """

    name: str
    call: Callable[..., Any]
    runtime: str
    method: str | None
    bytes: int | None
    described: dict[str, Any] = field(default_factory=dict)


def simulation_folder(artefact: str | Path) -> Path:
    """Return the folder of the simulation saved beside an ONNX file.

    >>> simulation_folder("r20.onnx").name
    'r20.onnx.bitsmith'
    """
    path = Path(artefact)
    return path.with_name(f"{path.name}.bitsmith")


def float_session(graph: Graph, runtime: str, threads: int | None = None) -> tuple[Session, int]:
    """Return the float32 network in ``runtime``, and the bytes of its ONNX file.

    Raises:
        ExportError: an operator has no ONNX form; all are listed.
        RuntimeMissingError, InputError: as :func:`~bitsmith.deploy.runtimes.open_session`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        write_float(graph, path)
        content = path.read_bytes()
    return open_session(content, runtime, threads=threads), len(content)


def module_subject(
    name: str, module: nn.Module, example: Tensor, runtime: str, threads: int | None = None
) -> Subject:
    """Return a float module as it is in PyTorch (``torch``), or as float32 ONNX in a runtime.

    Args:
        name: what reports call it.
        module: in evaluation mode.
        example: at least one sample [B, …], to capture it with.
        runtime: ``torch``, or a registered runtime.
        threads: of the runtime; for ``torch`` the process's own setting counts.
    """
    if runtime == "torch":
        state = [*module.parameters(), *module.buffers()]
        size = sum(t.numel() * t.element_size() for t in state if t.is_floating_point())
        return Subject(name, module, "torch", "float", size)
    session, size = float_session(simplify(capture(module, example[:2])), runtime, threads)
    return Subject(name, session, runtime, "float", size)


def open_artefact(
    path: Path, runtime: str, threads: int | None = None, *, simulate: bool = False
) -> Subject:
    """Return an ``.onnx`` file in a runtime, or a ``.bitsmith`` folder as its simulation.

    Args:
        path: the file or the folder.
        runtime: a registered runtime; not used for a simulation.
        threads: of the runtime.
        simulate: for a file, run the simulation saved beside it instead.

    Raises:
        InputError: there is no such file or folder, it is damaged, or the runtime refuses it.
    """
    if path.name.endswith(".bitsmith") or simulate:
        folder = path if path.name.endswith(".bitsmith") else simulation_folder(path)
        model = load(folder)
        size = path.stat().st_size if path.is_file() else None
        if not isinstance(model, QuantizedModel):  # packed weights, which torch runs
            size = sum(f.stat().st_size for f in folder.iterdir()) if size is None else size
            return Subject(path.name, _Plain(model), "torch", "ptq", size)
        method = model.provenance.get("method", "ptq")
        return Subject(path.name, _Plain(model), "simulation", method, size, _of_model(model))
    described = _metadata(path)
    known = described.get("provenance", {})
    method = known.get("method", "ptq") if "recipe" in described else None
    session = open_session(path, runtime, threads=threads)
    return Subject(path.name, session, runtime, method, path.stat().st_size, described)


@final
class _Plain:
    """A module without gradients: its first output; says as a session does what it takes."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        graph = model.program.graph if isinstance(model, QuantizedModel) else None
        self.input_names = [] if graph is None else [i.name for i in graph.inputs]

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        output = self._model(*inputs)
        return output[0] if isinstance(output, tuple) else output


def _of_model(model: QuantizedModel) -> dict[str, Any]:
    return {
        "recipe": model.recipe.name,
        "target": model.target,
        "machine": model.machine,
        "provenance": model.provenance,
    }


def _metadata(path: Path) -> dict[str, Any]:
    """Return what bitsmith wrote into an ONNX file about how it was made; {} for other files."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise InputError(f"{path} is not a readable ONNX file: {error}") from error
    found = {p.key: p.value for p in proto.metadata_props}
    if "bitsmith.recipe" not in found:
        return {}
    return {
        "recipe": json.loads(found["bitsmith.recipe"])["name"],
        "target": found.get("bitsmith.target"),
        "machine": found.get("bitsmith.machine"),
        "provenance": json.loads(found.get("bitsmith.provenance", "{}")),
    }
