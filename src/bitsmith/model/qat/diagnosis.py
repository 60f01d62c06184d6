"""Which layer of a prepared model went wrong first, when a loss is not finite."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError
from bitsmith.model.divergence import (
    count_not_finite,
    first_not_finite,
    of_the_batch,
    of_the_loss,
)
from bitsmith.model.qat.check import check_finite
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.qat.unwrap import trained_graph

__all__ = ["first_wrong"]


def first_wrong(model: nn.Module, x: Tensor, y: Tensor) -> str:
    """Return what went wrong first on a batch whose loss is not finite, in words.

    The batch itself; else scales, weights and biases that are not finite, or scales that have
    collapsed (:func:`bitsmith.model.qat.check.check_finite`), and the first node of the graph, or
    submodule of a module, whose values are not finite.

    Args:
        model: of ``prepare``, also wrapped.
        x, y: the batch.
    """
    if bad := of_the_batch(x, y):
        return "; ".join(bad)
    found = _in_disorder(model)
    graph = trained_graph(model)
    if graph is None:
        return "; ".join([*found, first_not_finite(model, x, y)])
    first = _first_node(graph, x)
    if first or found:
        return "; ".join([*found, *first])
    with torch.no_grad():
        return of_the_loss(graph(x))


def _in_disorder(model: nn.Module) -> list[str]:
    try:
        check_finite(model)
    except InputError as error:  # between a heading and the remedy
        return [line.strip() for line in str(error).splitlines()[1:-1]]
    return []


@torch.no_grad()
def _first_node(graph: TrainableModel, x: Tensor) -> list[str]:
    state, program = graph._pass(), graph.source.program
    state.reals[program.graph.inputs[0].name] = x
    for node in program.graph:
        state.run(node)
        for kind, values in (("codes", state.codes), ("values", state.reals)):
            if bad := count_not_finite(f"{kind} of {node.name} ({node.op})", values.get(node.name)):
                return bad
    return []
