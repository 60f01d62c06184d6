"""What keeps a model from being tuned block by block, found before any work."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from bitsmith.data.split import Batches
from bitsmith.errors import DataError, InputError
from bitsmith.model.calibrate import as_inputs
from bitsmith.model.graph.ir import Graph
from bitsmith.model.qat.segments import segments

__all__ = ["check_climb", "held_out", "known_samples", "obstacles", "read_once", "too_few"]

_JUDGED = 512
"""Samples that rungs are judged on, at most."""


def check_climb(effort: str, of_model: list[str], of_data: list[str]) -> None:
    """Refuse what cannot be climbed, with every fault.

    Raises:
        InputError: there are faults of the model, or of the settings.
        DataError: there are only faults of the data.
    """
    if faults := [*of_model, *of_data]:
        kind = InputError if of_model else DataError
        raise kind(
            "\n  ".join([f"effort {effort} is not for this:", *faults])
            + "\neffort low takes any model and data; bs.qat.prepare trains with a loop of your own"
        )


def obstacles(
    graph: Graph, layers: Collection[str], tables: Collection[str] = (), learn: str = "weights"
) -> list[str]:
    """Return why the blocks of a graph cannot be tuned, in sentences; empty where they can.

    Args:
        graph: placed.
        layers: names of the layers in integers.
        tables: those of them that do not train as integers of a scale of their own.
        learn: as of :class:`bitsmith.model.qat.reconstruct.Reconstruction`.
    """
    found = []
    for what, names in (("inputs", [i.name for i in graph.inputs]), ("outputs", graph.outputs)):
        if len(names) != 1:
            found.append(
                f"the model has {len(names)} {what} ({', '.join(names)}), and blocks are tuned "
                "and judged from one input to one output"
            )
    if not layers:
        found.append("no convolution or linear layer of the model runs in integers")
    elif not found and not segments(graph, layers):
        found.append("no block of the model can be reconstructed: none holds a layer")
    if learn == "rounding" and tables:
        found.append(
            "learn='rounding' goes up or down between integers of a scale that stays, and that is "
            f"not how {', '.join(tables)} train (a table, a few signs, scales that follow the "
            "weight, or a batch norm): use learn='weights'"
        )
    return found


def read_once(data: object, epochs: int, what: str = "data") -> list[str]:
    """Return the fault of training data that a second epoch would find used up."""
    if epochs < 2 or not isinstance(data, Iterator):
        return []
    return [
        f"{what} is read again in every epoch, and a {type(data).__name__} can be read only once: "
        "give a list, a DataLoader or training=a function of the epoch"
    ]


def held_out(samples: int) -> int:
    """Return how many of the samples judge, so that nothing learns from them."""
    return min(max(samples // 8, 1), _JUDGED)


def too_few(samples: int | None, batch_size: int) -> list[str]:
    """Return the fault of samples that are not enough for one step; none where unknown."""
    if samples is None or samples - held_out(samples) >= batch_size:
        return []
    return [
        f"reconstruction draws {batch_size} samples a step, and there are "
        f"{samples - held_out(samples)} besides the {held_out(samples)} that judge"
    ]


def known_samples(data: Any) -> int | None:
    """Return how many samples there are, where that can be seen without reading them.

    >>> import torch
    >>> known_samples([torch.zeros(3, 2), (torch.zeros(5, 2), torch.zeros(5).long())])
    8
    """
    if isinstance(data, Batches):
        return data.samples
    return sum(len(as_inputs(b)[0]) for b in data) if isinstance(data, list | tuple) else None
