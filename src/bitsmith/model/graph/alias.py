"""Which values of an exported program share memory: an in-place call changes all of them."""

from __future__ import annotations

from typing import final

from torch import fx

from bitsmith.model.graph.origin import schema_of

__all__ = ["Aliases"]

#: Results that are the input itself in evaluation mode, though their schemas promise a new tensor.
_HANDED_THROUGH = frozenset({"dropout", "feature_dropout"})


@final
class Aliases:
    """Families of values over one memory (a tensor and its views), and exact aliases in them."""

    def __init__(self) -> None:
        self._family: dict[fx.Node, fx.Node] = {}
        self._same: dict[fx.Node, fx.Node] = {}

    def add(self, node: fx.Node) -> None:
        """Record the result of the call ``node``, from what its schema says of its memory."""
        schema = schema_of(node)
        source = next((a for a in node.args if isinstance(a, fx.Node)), None)
        name = schema.name.split("::")[1]
        shares = any(r.alias_info is not None for r in schema.returns) or name in _HANDED_THROUGH
        if source is None or not shares:
            return
        self.view(node, source)
        written = any(r.alias_info is not None and r.alias_info.is_write for r in schema.returns)
        if written or name in {*_HANDED_THROUGH, "contiguous", "detach", "alias", "to"}:
            self._same[node] = self._same.get(source, source)

    def view(self, node: fx.Node, source: fx.Node) -> None:
        """Record that ``node`` is some view of ``source``."""
        self._family[node] = self._family.get(source, source)

    def family(self, node: fx.Node) -> list[fx.Node]:
        """Return every value over the memory of ``node``, itself among them."""
        root = self._family.get(node, node)
        return [root, *(n for n, r in self._family.items() if r is root)]

    def same(self, node: fx.Node) -> list[fx.Node]:
        """Return every value that is the very tensor ``node`` is, itself among them."""
        root = self._same.get(node, node)
        return [root, *(n for n, r in self._same.items() if r is root)]

    def read_later(self, call: fx.Node, changed: fx.Node) -> fx.Node | None:
        """Return a reader after ``call`` of another view of the memory it changes, if any."""
        others = set(self.family(changed)) - set(self.same(changed))
        reader = call.next
        while reader.op != "root":
            if others & set(reader.all_input_nodes):
                return reader
            reader = reader.next
        return None
