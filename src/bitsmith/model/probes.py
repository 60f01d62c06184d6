"""A few inputs of a graph, to measure what a rewrite does to its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError
from bitsmith.model.calibrate import checked_inputs
from bitsmith.model.graph.ir import Graph
from bitsmith.model.graph.operators import run_float

__all__ = ["Probes"]

#: Size of an axis that the graph leaves open, for random inputs.
_OPEN = 8


@final
@dataclass(frozen=True)
class Probes:
    """Inputs of a graph, and the float outputs that a rewrite is compared with.

    Attributes:
        batches: model inputs of each batch.
        outputs: of the graph they were made for, batch by batch.
    """

    batches: tuple[Sequence[Tensor], ...]
    outputs: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def of(cls, graph: Graph, batches: Iterable[Any] | None, samples: int) -> Probes:
        """Return at most ``samples`` samples of ``batches``, or 8 random ones.

        Raises:
            DataError: no samples, of the wrong shape, or not finite.
        """
        given = [_random(graph)] if batches is None else list(_first(graph, batches, samples))
        if not given:
            raise DataError("there are no samples to measure with; an iterator may be used up")
        with torch.no_grad():
            return cls(tuple(given), tuple(run_float(graph, x) for x in given))

    def change(self, graph: Graph) -> float:
        """Return the mean squared change of the outputs over their variance; the worst output."""
        worst = 0.0
        for before, after in self._pairs(graph):
            variance = float(before.double().var(correction=0))
            error = float((after.double() - before.double()).square().mean())
            worst = max(worst, error / variance if variance > 0 else float(error > 0))
        return worst

    def largest_change(self, base: Graph, graph: Graph) -> float:
        """Return the largest difference of outputs of two graphs over the largest output."""
        worst = 0.0
        with torch.no_grad():
            for x in self.batches:
                for one, two in zip(run_float(base, x), run_float(graph, x), strict=True):
                    size = float(one.abs().max()) or 1.0
                    worst = max(worst, float((one - two).abs().max()) / size)
        return worst

    def tensor(self, graph: Graph, name: str) -> Iterator[Tensor]:
        """Yield tensor ``name`` of ``graph`` for each batch."""
        for x in self.batches:
            kept: list[Tensor] = []

            def keep(seen: str, value: Tensor, kept: list[Tensor] = kept) -> None:
                if seen == name:
                    kept.append(value)

            with torch.no_grad():
                run_float(graph, x, keep)
            yield kept[0]

    def _pairs(self, graph: Graph) -> list[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            after = [run_float(graph, x) for x in self.batches]
        columns = zip(zip(*self.outputs, strict=True), zip(*after, strict=True), strict=True)
        return [(torch.cat(a), torch.cat(b)) for a, b in columns]


def _first(graph: Graph, batches: Iterable[Any], samples: int) -> Iterator[list[Tensor]]:
    left = samples
    for inputs in checked_inputs(graph, batches):
        yield [x[:left] for x in inputs]
        left -= len(inputs[0])
        if left <= 0:
            return


def _random(graph: Graph) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for declared in graph.inputs:
        shape = [_OPEN if s == -1 else s for s in declared.shape]
        dtype = getattr(torch, declared.dtype)
        ids = torch.zeros(shape, dtype=dtype)
        found.append(torch.randn(shape, generator=generator) if dtype.is_floating_point else ids)
    return found
