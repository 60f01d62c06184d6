"""Save and load a model of the graph lane: ``graph.json`` and ``tensors.safetensors`` in a folder.

No pickle. Only what the simulation needs is kept: integers of the quantized layers, float
parameters of the float islands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitsmith.errors import InputError
from bitsmith.model.convert import IntegerLayer
from bitsmith.model.graph.ir import Graph, GraphInput, Node
from bitsmith.model.place import Outcome
from bitsmith.model.quantized import CoverageRow, QuantizedModel
from bitsmith.model.recipe import Recipe
from bitsmith.model.simulate import Program
from bitsmith.model.store.folder import (
    GRAPH,
    TENSORS,
    UNREADABLE,
    damaged,
    parse_json,
    reason,
    write_folder,
)
from bitsmith.model.store.manifest import check_version
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["load_graph", "save_graph"]

_VERSION = 1


def save_graph(model: QuantizedModel, folder: str | Path) -> Path:
    """Write ``model`` to ``folder``, replacing a folder that bitsmith wrote; returns the folder.

    Raises:
        InputError: the place cannot be written, or holds something else.
    """

    def write(place: Path) -> None:
        description, tensors = _describe(model)
        (place / GRAPH).write_text(json.dumps(description, indent=1))
        save_file(tensors, place / TENSORS)
        (place / TENSORS).chmod((place / GRAPH).stat().st_mode)  # save_file ignores the umask

    return write_folder(Path(folder), write)


def load_graph(folder: str | Path) -> QuantizedModel:
    """Return the model that :func:`save_graph` wrote.

    Raises:
        InputError: the folder or a file in it is missing.
        WeightsError: a file is damaged or was changed by hand.
    """
    folder = Path(folder)
    for name in (GRAPH, TENSORS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is not a bitsmith folder: it has no {name}")
    description = parse_json((folder / GRAPH).read_bytes(), folder / GRAPH)
    check_version(description, _VERSION, str(folder / GRAPH))
    try:
        tensors = load_file(folder / TENSORS)
    except (SafetensorError, *UNREADABLE) as error:
        raise damaged(folder / TENSORS, "it is not a safetensors file, or is truncated") from error
    try:
        return _restore(description, tensors)
    except UNREADABLE as error:
        raise damaged(folder, reason(error)) from error


def _describe(model: QuantizedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    program = model.program
    graph = _without_float_weights(program)
    tensors = {f"param:{k}": v for k, v in graph.params.items()}
    layers: dict[str, Any] = {}
    for name, layer in program.layers.items():
        tensors[f"codes:{name}"] = layer.weight.codes
        tensors[f"scale:{name}"] = layer.weight.scale
        tensors[f"zero_point:{name}"] = layer.weight.zero_point
        if layer.bias is not None:
            tensors[f"bias:{name}"] = layer.bias
        if layer.table is not None:
            tensors[f"table:{name}"] = layer.table
        layers[name] = {
            "scheme": layer.weight.scheme.to_json(),
            "error": layer.error,
            "nearest_error": layer.nearest_error,
        }
    description = {
        "version": _VERSION,
        "inputs": [vars(i) for i in graph.inputs],
        "outputs": list(graph.outputs),
        "nodes": [_plain(n) for n in graph],
        "outcomes": {k: vars(o) for k, o in program.outcomes.items()},
        "encodings": {k: e.to_json() for k, e in program.encodings.items()},
        "layers": layers,
        "recipe": model.recipe.to_json(),
        "target": model.target,
        "machine": model.machine,
        "provenance": model.file_provenance(),
        "coverage": [row.to_json() for row in model.coverage],
    }
    return description, {k: v.contiguous().clone() for k, v in tensors.items()}


def _without_float_weights(program: Program) -> Graph:
    nodes = [n.with_(params={}) if n.name in program.layers else n for n in program.graph]
    return program.graph.with_nodes(nodes)


def _plain(node: Node) -> dict[str, Any]:
    return {f: getattr(node, f) for f in Node.__dataclass_fields__}


def _restore(description: dict[str, Any], tensors: dict[str, Tensor]) -> QuantizedModel:
    inputs = tuple(GraphInput(**{**i, "shape": tuple(i["shape"])}) for i in description["inputs"])
    nodes = tuple(
        Node(**{**n, "inputs": tuple(n["inputs"]), "shape": tuple(n["shape"])})
        for n in description["nodes"]
    )
    params = {k.removeprefix("param:"): v for k, v in tensors.items() if k.startswith("param:")}
    graph = Graph(inputs, tuple(description["outputs"]), nodes, params)
    layers = {
        name: IntegerLayer(
            QTensor(
                tensors[f"codes:{name}"],
                tensors[f"scale:{name}"],
                tensors[f"zero_point:{name}"],
                None,
                Scheme.from_json(layer["scheme"]),
            ),
            tensors.get(f"bias:{name}"),
            layer["error"],
            layer["nearest_error"],
            tensors.get(f"table:{name}"),
        )
        for name, layer in description["layers"].items()
    }
    program = Program(
        graph,
        {k: Outcome(**o) for k, o in description["outcomes"].items()},
        {k: Encoding.from_json(e) for k, e in description["encodings"].items()},
        layers,
    )
    coverage = [CoverageRow(**{"weight_bits": None, **row}) for row in description["coverage"]]
    return QuantizedModel(
        program,
        Recipe.from_json(description["recipe"]),
        description["target"],
        description["machine"],
        description["provenance"],
        coverage,
    )
