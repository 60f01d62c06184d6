"""Block after block, tuned until it gives what the float block gives."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from bitsmith.errors import DataError, InputError
from bitsmith.model.graph.operators import run_node
from bitsmith.model.qat.relative import RelativeAdam, step_sizes
from bitsmith.model.qat.segments import Segment, segments
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.qat.weights import LearnedRounding

__all__ = ["Reconstruction", "ReconstructionRow", "reconstruct"]

_WARM = 0.2
"""Share of the steps before the regularizer pulls roundings to 0 or 1 (arXiv 2004.10568)."""
_SHARPEST, _SOFTEST = 2.0, 20.0
"""Ends of the exponent of the regularizer."""


@final
@dataclass(frozen=True)
class Reconstruction:
    """How a block is tuned.

    Attributes:
        steps: of Adam, for each block.
        batch_size: samples a step.
        learn: ``weights``: weights and scales train through their rounding (LSQ, arXiv
            1902.08153); ``rounding``: only up or down for each weight (AdaRound, 2004.10568).
        lr: of weights or roundings at the start, falling along a cosine; None is 6e-3
            quantization steps (:class:`RelativeAdam`) or 1e-2.
        scale_lr: of biases and of the scales of activations.
        drop: share of activations that stay float in a step.
        weight: of AdaRound's regularizer, for each weight.
    """

    steps: int = 300
    batch_size: int = 32
    learn: Literal["weights", "rounding"] = "weights"
    lr: float | None = None
    scale_lr: float = 1e-3
    drop: float = 0.5
    weight: float = 0.01

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not 0 <= self.drop < 1:
            raise InputError(f"at least one step and sample, and drop in [0, 1), not {self}")
        if self.learn not in ("weights", "rounding"):
            raise InputError(f"learn is 'weights' or 'rounding', not {self.learn!r}")


@final
@dataclass(frozen=True)
class ReconstructionRow:
    """What one block gained.

    Attributes:
        segment: first and last node.
        layers: names of its layers.
        before, after: mean squared error of its output, against float, relative to the output's
            mean square; of nearest (or whatever the model had) and of what was learned.
        kept: what was learned was not better, so the block is as it was.
        seconds: of wall time.
    """

    segment: str
    layers: tuple[str, ...]
    before: float
    after: float
    kept: bool
    seconds: float


def reconstruct(
    model: TrainableModel,
    samples: Tensor,
    how: Reconstruction | None = None,
    *,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> list[ReconstructionRow]:
    """Tune every block of ``model`` in place, one after another; return one row per block.

    The blocks of BRECQ (arXiv 2102.05426), whose inputs are those that the quantized blocks before
    give, mixed element by element with float ones and, inside, with activations that are not
    rounded (QDrop, arXiv 2203.05740, equation 9). A block that got no better keeps what it had.

    Args:
        model: in training mode; of one input and one output.
        samples: model inputs ``[N, …]``; three tensors of a block's size are held for them.
        how: the defaults if None.
        seed: of batches and of what is dropped.
        advance: told 1 after every step, for a progress bar.

    Raises:
        DataError: fewer samples than a batch.
    """
    how = how or Reconstruction()
    if len(samples) < how.batch_size:
        raise DataError(
            f"reconstruction draws {how.batch_size} samples a step, and there are {len(samples)}"
        )
    parts = segments(model.source.program.graph, model.layer_names())
    rows = []
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        stream = _Stream(model, samples)
        for part in parts:
            stream.prepare(part)
            layers = [n.name for n in part.nodes if n.name in model.layer_names()]
            rows.append(_tune(model, part, layers, stream, how, advance))
            stream.move(part)
    return rows


@final
class _Stream:
    """Inputs of the current block, as codes and in float, and its float outputs."""

    def __init__(self, model: TrainableModel, samples: Tensor) -> None:
        self.model, self.chunk = model, 128
        name = model.source.program.graph.inputs[0].name
        self.real = samples
        with torch.no_grad():
            self.codes = model.centred(name, samples)
        self.target = samples

    def prepare(self, part: Segment) -> None:
        """Compute the float outputs of ``part``."""
        with torch.no_grad():
            self.target = torch.cat(
                [self._float(part, x) for x in torch.split(self.real, self.chunk)]
            )

    def move(self, part: Segment) -> None:
        """Go to the block after ``part``, as it is tuned now."""
        model, program = self.model, self.model.source.program
        if program.outcomes[part.nodes[-1].name].float_output:
            return
        with torch.no_grad():
            r = model.range_of(part.output)
            self.codes = torch.cat(
                [
                    (model.part(part.nodes, part.input, c, part.output) / r.scale()).round_()
                    for c in torch.split(self.codes, self.chunk)
                ]
            )
        self.real = self.target

    def _float(self, part: Segment, x: Tensor) -> Tensor:
        graph, values = self.model.source.program.graph, {part.input: x}
        for node in part.nodes:
            params = {role: graph.params[name] for role, name in node.params.items()}
            values[node.name] = run_node(node, params, [values[i] for i in node.inputs])
        return values[part.output]


def _tune(
    model: TrainableModel,
    part: Segment,
    layers: list[str],
    stream: _Stream,
    how: Reconstruction,
    advance: Callable[[int], None] | None,
) -> ReconstructionRow:
    started = time.perf_counter()
    power = float(stream.target.double().square().mean()) or 1.0
    before = _error(model, part, stream) / power
    own = _copies(model, part, layers)
    learned = model.learn_rounding(layers) if how.learn == "rounding" else {}
    rounding, others = _parameters(model, part, layers, learned)
    lr = how.lr or (6e-3 if how.learn == "weights" else 1e-2)
    groups = [{"params": rounding, "lr": lr}, {"params": others, "lr": how.scale_lr}]
    groups = [g for g in groups if g["params"]]
    if not groups:
        return ReconstructionRow(part.name, tuple(layers), before, before, True, 0.0)
    optimizer = RelativeAdam(
        groups, sizes={r.v: torch.ones(()) for r in learned.values()} | step_sizes(model)
    )
    first = [g["lr"] for g in optimizer.param_groups]
    model.drop = how.drop
    for step in range(how.steps):
        t = step / how.steps
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * t)) / 2
        pick = torch.randint(len(stream.real), (how.batch_size,))
        loss = _loss(model, part, stream, pick, how.drop) / power
        if learned and t >= _WARM:
            share = (t - _WARM) / (1 - _WARM)
            exponent = _SHARPEST + (_SOFTEST - _SHARPEST) * (1 + math.cos(math.pi * share)) / 2
            count = sum(r.v.numel() for r in learned.values())
            loss = loss + how.weight * sum(r.undecided(exponent) for r in learned.values()) / count
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        if advance is not None:
            advance(1)
    model.drop = 0.0
    model.end_rounding(learned)
    after = _error(model, part, stream) / power
    kept = not after < before
    if kept:
        _restore(own)
    seconds = time.perf_counter() - started
    return ReconstructionRow(part.name, tuple(layers), before, after, kept, seconds)


def _copies(
    model: TrainableModel, part: Segment, layers: list[str]
) -> list[tuple[nn.Parameter, Tensor]]:
    """Every parameter that the tuning of ``part`` may change, with its value."""
    lists = model.weights_of(layers), model.biases_of(layers), model.scales_of(part.nodes)
    return [(p, p.detach().clone()) for parameters in lists for p in parameters]


@torch.no_grad()
def _restore(copies: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, value in copies:
        parameter.copy_(value)


def _parameters(
    model: TrainableModel, part: Segment, layers: list[str], learned: dict[str, LearnedRounding]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    rounding = [r.v for r in learned.values()]
    others = [*model.biases_of(layers), *model.scales_of(part.nodes)]
    if not learned:
        rounding = [p for p in model.weights_of(layers) if p.requires_grad]
    return rounding, others


def _loss(
    model: TrainableModel, part: Segment, stream: _Stream, pick: Tensor, drop: float
) -> Tensor:
    codes = stream.codes[pick]
    if drop:
        scale = model.range_of(part.input).scale().detach()
        codes = torch.where(torch.rand_like(codes) < drop, stream.real[pick] / scale, codes)
    out = model.part(part.nodes, part.input, codes, part.output)
    return (out - stream.target[pick]).square().mean()


@torch.no_grad()
def _error(model: TrainableModel, part: Segment, stream: _Stream) -> float:
    total = 0.0
    for codes, target in zip(
        torch.split(stream.codes, stream.chunk),
        torch.split(stream.target, stream.chunk),
        strict=True,
    ):
        out = model.part(part.nodes, part.input, codes, part.output)
        total += float((out - target).double().square().sum())
    return total / stream.target.numel()
