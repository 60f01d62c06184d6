"""One way to multiply by a weight of a given size: of bitsmith, of PyTorch, of another library."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.owners import weight_owners
from bitsmith.model.speed.stand_in import stand_in
from bitsmith.numbers.scheme import Scheme

__all__ = ["Bind", "Contender", "Job", "Prepared", "float_layers", "packed_layers", "random_weight"]

#: Input [rows, k] → calls that multiply it by copies of the weight.
Bind = Callable[[Tensor], Sequence[Callable[[], object]]]


@final
@dataclass(frozen=True)
class Job:
    """What every contender prepares for.

    Attributes:
        n, k: outputs and inputs of the layer.
        threads: that it may use.
        copies: bytes of one copy → how many to go round.
    """

    n: int
    k: int
    threads: int
    copies: Callable[[int], int]


@final
@dataclass(frozen=True, eq=False)
class Prepared:
    """Copies of a weight, ready to be multiplied by.

    Attributes:
        bind: gives the calls for an input.
        bytes: of one copy, as it is read.
        products: that one call does.
    """

    bind: Bind
    bytes: int
    products: int = 1


@final
@dataclass(frozen=True, eq=False)
class Contender:
    """One row of the table.

    Attributes:
        name: of the row.
        family: ``float32``, ``bitsmith``, ``torch``, ``onnxruntime`` or ``llama.cpp``.
        prepare: makes the copies.
        rival: name of the ONNX Runtime row that it is compared with.
    """

    name: str
    family: str
    prepare: Callable[[Job], Prepared]
    rival: str | None = None


def random_weight(job: Job) -> Tensor:
    """Return float32 ``[n, k]``, as an initialised layer has, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(job.n, job.k, generator=generator).div_(job.k**0.5)


def float_layers(job: Job) -> Prepared:
    """Return ``torch.nn.functional.linear`` in float32."""
    first = random_weight(job)
    count = job.copies(first.nbytes)
    weights = [first, *(first.clone() for _ in range(count - 1))]

    def bind(x: Tensor) -> list[Callable[[], object]]:
        def call(weight: Tensor) -> Callable[[], object]:
            return lambda: functional.linear(x, weight)

        return [call(w) for w in weights]

    return Prepared(bind, first.nbytes)


def packed_layers(scheme: Scheme, activation: Scheme | None) -> Callable[[Job], Prepared]:
    """Return what prepares layers of bitsmith, called as a model calls them.

    Args:
        scheme: of the weight.
        activation: of the rows; None: float.
    """

    def prepare(job: Job) -> Prepared:
        layer = nn.Linear(job.k, job.n, bias=False)
        layer.weight.data = random_weight(job)
        packed = stand_in(weight_owners(layer)[0], {"weight": scheme}, activation).eval()
        with torch.no_grad():
            packed(torch.ones(1, job.k))  # repacked for this machine, where there are kernels
        size = sum(_held(m) for m in packed.modules() if isinstance(m, PackedWeight))
        count = job.copies(size)
        layers = [packed, *(copy.deepcopy(packed) for _ in range(count - 1))]

        def bind(x: Tensor) -> list[Callable[[], object]]:
            def call(own: nn.Module) -> Callable[[], object]:
                return lambda: own(x)

            return [call(own) for own in layers]

        return Prepared(bind, size)

    return prepare


def _held(weight: PackedWeight) -> int:
    """Return the bytes that a product reads: of the machine's form where there is one."""
    machine = getattr(weight, "machine", None)
    return int(machine.nbytes) if isinstance(machine, Tensor) else weight.nbytes
