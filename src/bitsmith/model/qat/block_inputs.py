"""What the blocks of a network get and should give, one block after another."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from bitsmith.model.graph.operators import run_node
from bitsmith.model.qat.segments import Segment
from bitsmith.model.qat.trainable import TrainableModel

__all__ = ["BlockInputs"]

_CHUNK = 128


@final
class BlockInputs:
    """Inputs of the current block as the blocks before give them, and in float, and its target.

    Attributes:
        given: what the tuned blocks before give: centred codes of a quantized tensor, real values
            of a float one, token ids.
        real: what the float network has there.
        target: what the float block makes of that.
    """

    def __init__(self, model: TrainableModel, samples: Tensor) -> None:
        self._model = model
        name = model.source.program.graph.inputs[0].name
        self.given, self.real, self.target = samples, samples, samples
        if self._in_codes(name):
            with torch.no_grad():
                self.given = model.centred(name, samples)

    def _in_codes(self, name: str) -> bool:
        return name in self._model.source.program.encodings

    @torch.no_grad()
    def begin(self, part: Segment) -> None:
        """Compute the float outputs of ``part``."""
        self.target = torch.cat([self._float(part, x) for x in torch.split(self.real, _CHUNK)])

    @torch.no_grad()
    def end(self, part: Segment) -> None:
        """Go to the block after ``part``, as it is tuned now."""
        outputs = [
            self._model.part(part.nodes, part.input, x, part.output)
            for x in torch.split(self.given, _CHUNK)
        ]
        if self._in_codes(part.output):
            scale = self._model.range_of(part.output).scale()
            outputs = [(out / scale).round_() for out in outputs]
        self.given, self.real = torch.cat(outputs), self.target

    def drawn(self, part: Segment, pick: Tensor, drop: float) -> Tensor:
        """Return the inputs ``pick``, a share ``drop`` of their elements as float has them."""
        given = self.given[pick]
        if not drop or not given.is_floating_point():
            return given
        real = self.real[pick]
        if self._in_codes(part.input):
            real = real / self._model.range_of(part.input).scale().detach()
        return torch.where(torch.rand_like(given) < drop, real, given)

    @torch.no_grad()
    def error(self, part: Segment) -> float:
        """Return the mean squared error of the block's output as it is tuned now."""
        total = 0.0
        chunks = torch.split(self.given, _CHUNK), torch.split(self.target, _CHUNK)
        for x, target in zip(*chunks, strict=True):
            out = self._model.part(part.nodes, part.input, x, part.output)
            total += float((out - target).double().square().sum())
        return total / self.target.numel()

    def _float(self, part: Segment, x: Tensor) -> Tensor:
        graph, values = self._model.source.program.graph, {part.input: x}
        for node in part.nodes:
            params = {role: graph.params[name] for role, name in node.params.items()}
            values[node.name] = run_node(node, params, [values[i] for i in node.inputs])
        return values[part.output]
