"""The graph a captured model becomes: a short list of nodes over a small vocabulary.

A node computes one tensor, named like the node. The vocabulary is documented in
:mod:`bitsmith.model.graph.operators`; whatever PyTorch operator is not in it is carried as
``aten``, executed by PyTorch and never quantized.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, final

from torch import Tensor

__all__ = ["Graph", "GraphInput", "Node"]

#: A tensor shape; −1 is the dynamic batch (or a multiple of it).
Shape = tuple[int, ...]


@final
@dataclass(frozen=True)
class GraphInput:
    """A tensor the caller hands in: its name, shape (−1: dynamic) and dtype (``float32``)."""

    name: str
    shape: Shape
    dtype: str


@final
@dataclass(frozen=True)
class Node:
    """One operator and the tensor it computes.

    Attributes:
        name: unique; also the name of the output tensor.
        op: a word of the vocabulary.
        inputs: names of the tensors consumed (nodes or graph inputs), in order.
        attrs: plain JSON data: strides, axes, shapes …
        params: role → name in ``Graph.params``, for example ``{"weight": "conv1.weight"}``.
        shape: of the output; −1 is dynamic.
        layer: the module it came from, for example ``layer1.0.conv1`` (empty: the model itself).
        source: ``file:line`` of the user's code.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    shape: Shape = ()
    layer: str = ""
    source: str = ""

    def with_(self, **changes: Any) -> Node:
        """Return a copy with some attributes replaced."""
        return replace(self, **changes)


@final
@dataclass(frozen=True)
class Graph:
    """A captured model: nodes in an order in which they can run, and the tensors they own."""

    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    params: dict[str, Tensor]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def node(self, name: str) -> Node | None:
        """Return the node that computes tensor ``name``; None for a graph input."""
        return self._index().get(name)

    def consumers(self, name: str) -> list[Node]:
        """Return the nodes that read tensor ``name``, in order."""
        return [n for n in self.nodes if name in n.inputs]

    def param(self, node: Node, role: str) -> Tensor | None:
        """Return the tensor that ``node`` owns as ``role``; None where it has none."""
        name = node.params.get(role)
        return None if name is None else self.params[name]

    def shape(self, name: str) -> Shape:
        """Return the shape of tensor ``name``."""
        node = self.node(name)
        if node is not None:
            return node.shape
        return next(i.shape for i in self.inputs if i.name == name)

    def with_nodes(
        self,
        nodes: list[Node],
        *,
        renamed: dict[str, str] | None = None,
        params: dict[str, Tensor] | None = None,
    ) -> Graph:
        """Return the graph with other nodes; reads of a ``renamed`` tensor go to its new name.

        Parameters that nothing reads any more are dropped.
        """
        resolve = _resolver(renamed or {})
        fixed = [n.with_(inputs=tuple(resolve(i) for i in n.inputs)) for n in nodes]
        outputs = tuple(resolve(o) for o in self.outputs)
        available = {**self.params, **(params or {})}
        used = {p for n in fixed for p in n.params.values()}
        return Graph(self.inputs, outputs, tuple(fixed), {k: available[k] for k in sorted(used)})

    def without_dead(self) -> Graph:
        """Return the graph without nodes whose result nothing needs."""
        needed = set(self.outputs)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        return self.with_nodes([n for n in self.nodes if n.name in needed])

    def _index(self) -> dict[str, Node]:
        # Built once per instance; a frozen dataclass still has a __dict__.
        cached: dict[str, Node] | None = self.__dict__.get("_by_name")
        if cached is None:
            cached = {n.name: n for n in self.nodes}
            self.__dict__["_by_name"] = cached
        return cached


def _resolver(renamed: dict[str, str]) -> Any:
    def resolve(name: str) -> str:
        while name in renamed:
            name = renamed[name]
        return name

    return resolve
