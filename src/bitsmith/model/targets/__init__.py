"""Targets: the runtimes that execute a quantized graph, one file each.

A target says what its runtime computes in integers, what it moves as codes, what stays float and
why, which kinds of machine it knows, and how weights must be rounded to be exact on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from bitsmith.algorithms.rounding import Rounding
from bitsmith.errors import UnknownNameError
from bitsmith.model.graph.ir import Graph, Node
from bitsmith.numbers.scheme import Scheme
from bitsmith.registry import Registry

__all__ = ["Target", "make_target", "targets"]


class Target(ABC):
    """What one runtime does with a quantized graph.

    Attributes:
        integer: operator → the runtime's integer kernel, for operators that always run in
            integers (they carry the arithmetic).
        joining: the same for operators that run in integers where their neighbours do.
        moves: operators that the runtime runs on codes without changing what they stand for;
            output and input share one encoding.
        requantizes: what the runtime runs to make codes of codes with another encoding.
        machines: machine name → what the file is exact on.
    """

    registry: ClassVar[Registry[type[Target]]] = Registry("target", __name__)
    name: ClassVar[str]
    integer: ClassVar[Mapping[str, str]]
    joining: ClassVar[Mapping[str, str]]
    moves: ClassVar[Mapping[str, str]]
    requantizes: ClassVar[str]
    machines: ClassVar[Mapping[str, str]]

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Target.registry.add(name, cls)

    def __init__(self, machine: str = "any") -> None:
        if machine not in self.machines:
            raise UnknownNameError(f"machine of target {self.name}", machine, self.machines)
        self.machine = machine

    @abstractmethod
    def refuses(self, graph: Graph, node: Node) -> str | None:
        """Return why ``node`` stays float here; None when it can run in integers or as codes."""

    @abstractmethod
    def float_output(self, node: Node) -> bool:
        """Whether the integer kernel of ``node`` can hand out its result in float."""

    @abstractmethod
    def rounding(self, node: Node, weight: Tensor, scheme: Scheme, input_bits: int = 8) -> Rounding:
        """Return how the weight of ``node`` is rounded to be exact on the machine.

        Args:
            node: a layer.
            weight: its weight.
            scheme: of the weight.
            input_bits: of the codes that the layer reads.
        """

    @abstractmethod
    def entry_limit(self, node: Node, weight: Tensor, input_bits: int) -> int:
        """Return the largest ``|code|`` at which any 8-bit weights of ``node`` are exact.

        Codes from a table are bounded by it, one by one. Arguments as of :meth:`rounding`.
        """

    @abstractmethod
    def fixed_range(self, node: Node) -> tuple[float, float] | None:
        """Return the output range the kernel of ``node`` demands, whatever calibration saw."""

    def kernel(self, op: str) -> str | None:
        """Return the runtime's name for what executes ``op`` in integers or on codes."""
        return self.integer.get(op) or self.joining.get(op) or self.moves.get(op)


def make_target(name: str, machine: str = "any") -> Target:
    """Return the target called ``name`` for a machine; unknown names suggest the nearest."""
    return Target.registry[name](machine)


targets = Target.registry
