"""Block after block, tuned until it gives what the float block gives."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from bitsmith.errors import DataError, InputError
from bitsmith.model.qat.block_inputs import BlockInputs
from bitsmith.model.qat.block_start import (
    choose_start,
    kept_values,
    layers_of,
    restore,
    scales_of,
)
from bitsmith.model.qat.refusals import obstacles
from bitsmith.model.qat.relative import RelativeAdam, step_sizes
from bitsmith.model.qat.segments import Segment, segments
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.qat.weights import LearnedRounding, LearnedStep
from bitsmith.model.qat.weights.kept import FrozenWeight

__all__ = ["INTERRUPTED", "Reconstruction", "ReconstructionRow", "reconstruct", "tabled"]

INTERRUPTED = "interrupted"
"""The reason of blocks that were not reached."""

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
        frozen: those whose codes stay, because 8 bits obey the machine's bound; their biases and
            the scales of activations train.
        before, after: mean squared error of its output, against float, relative to the output's
            mean square; of nearest (or whatever the model had) and of what was learned. None where
            it was not reached, or is not finite.
        kept: what was learned was better and is there; else the block is as it was.
        reason: why it is as it was; empty where it is not.
        start: what it went back to before it was tuned (``float biases``, ``float weights in 8
            bits``), because that was nearer; empty where nothing was, and where it is as it was.
        seconds: of wall time.
    """

    segment: str
    layers: tuple[str, ...]
    frozen: tuple[str, ...]
    before: float | None
    after: float | None
    kept: bool
    reason: str
    start: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return what the same run gives again, as plain data: without the seconds."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        del plain["seconds"]
        return plain


def reconstruct(
    model: TrainableModel,
    samples: Tensor,
    how: Reconstruction | None = None,
    *,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
    on_block: Callable[[ReconstructionRow], None] | None = None,
    done: int = 0,
    random: Tensor | None = None,
) -> list[ReconstructionRow]:
    """Tune every block of ``model`` in place, one after another; return one row per block.

    The blocks of BRECQ (arXiv 2102.05426), whose inputs are those that the quantized blocks before
    give, mixed element by element with float ones and, inside, with activations that are not
    rounded (QDrop, arXiv 2203.05740, equation 9). A block that got no better keeps what it had.
    Interrupted (Ctrl-C), the block at hand is put back as it was.

    Args:
        model: in training mode; of one input and one output.
        samples: model inputs ``[N, …]``; three tensors of a block's size are held for them.
        how: the defaults if None.
        seed: of batches and of what is dropped.
        advance: told 1 after every step, for a progress bar.
        on_block: told the row of each block when it is done, of those not reached when interrupted.
        done: the first blocks, which ``model`` has from an earlier run; they have no row.
        random: PyTorch's random state behind the last of them.

    Raises:
        DataError: fewer samples than a batch.
        InputError: several inputs or outputs, no block with a layer, or a rounding to learn of
            codes that are no integers; all faults are listed.
    """
    how = how or Reconstruction()
    layers = model.layer_names()
    if faults := obstacles(model.source.program.graph, layers, tabled(model), how.learn):
        raise InputError("\n  ".join(["the model cannot be reconstructed:", *faults]))
    if len(samples) < how.batch_size:
        raise DataError(
            f"reconstruction draws {how.batch_size} samples a step, and there are {len(samples)}"
        )
    parts = segments(model.source.program.graph, layers)
    rows: list[ReconstructionRow] = []

    def told(row: ReconstructionRow) -> None:
        rows.append(row)
        if on_block is not None:
            on_block(row)

    if done >= len(parts):
        return rows

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        try:
            inputs = BlockInputs(model, samples)
            for index, part in enumerate(parts):
                inputs.begin(part)
                if index == done and random is not None:
                    torch.set_rng_state(random)
                if index >= done:
                    told(_tune(model, part, inputs, how, advance))
                elif advance is not None:
                    advance(how.steps)
                if part is not parts[-1]:
                    inputs.end(part)
        except KeyboardInterrupt:
            for part in parts[done + len(rows) :]:
                told(_row(model, part, None, None, INTERRUPTED, 0.0))
            raise
    return rows


def tabled(model: TrainableModel) -> list[str]:
    """Return the layers that train, but not as integers of a scale of their own."""
    integers = LearnedStep | FrozenWeight
    return [
        n
        for n in model.layer_names()
        if model.norm_of(n) is not None or not isinstance(model.codes_of(n), integers)
    ]


def _row(
    model: TrainableModel,
    part: Segment,
    before: float | None,
    after: float | None,
    reason: str,
    seconds: float,
    start: tuple[str, ...] = (),
) -> ReconstructionRow:
    layers = layers_of(model, part)
    frozen = tuple(n for n in layers if isinstance(model.codes_of(n), FrozenWeight))
    before, after = (e if e is not None and math.isfinite(e) else None for e in (before, after))
    return ReconstructionRow(
        part.name, tuple(layers), frozen, before, after, not reason, reason, start, seconds
    )


def _tune(
    model: TrainableModel,
    part: Segment,
    inputs: BlockInputs,
    how: Reconstruction,
    advance: Callable[[int], None] | None,
) -> ReconstructionRow:
    started = time.perf_counter()
    power = float(inputs.target.double().square().mean()) or 1.0
    before = inputs.error(part) / power
    own = kept_values(model, part)
    try:
        start = choose_start(model, part, inputs)
        trained = _descend(model, part, inputs, how, power, advance)
        after = inputs.error(part) / power
    except BaseException:
        restore(own)
        raise
    if after < before:
        return _row(model, part, before, after, "", time.perf_counter() - started, start)
    restore(own)
    reason = "what was learned is no nearer" if math.isfinite(after) else "it diverged"
    reason = reason if trained else "nothing in it trains"
    return _row(model, part, before, after, reason, time.perf_counter() - started)


def _descend(
    model: TrainableModel,
    part: Segment,
    inputs: BlockInputs,
    how: Reconstruction,
    power: float,
    advance: Callable[[int], None] | None,
) -> bool:
    """Train what is in ``part``; return whether there is anything."""
    learned = model.learn_rounding(layers_of(model, part)) if how.learn == "rounding" else {}
    try:
        optimizer = _optimizer(model, part, learned, how)
        if optimizer is None:
            return False
        model.drop = how.drop
        first = [g["lr"] for g in optimizer.param_groups]
        for step in range(how.steps):
            t = step / how.steps
            for group, rate in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * t)) / 2
            pick = torch.randint(len(inputs.real), (how.batch_size,))
            out = model.part(
                part.nodes, part.input, inputs.drawn(part, pick, how.drop), part.output
            )
            loss = (out - inputs.target[pick]).square().mean() / power
            loss = loss + _undecided(learned, t, how.weight)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            if advance is not None:
                advance(1)
    finally:
        model.drop = 0.0
        model.end_rounding(learned)
        model.zero_grad(set_to_none=True)
    return True


def _optimizer(
    model: TrainableModel,
    part: Segment,
    learned: Mapping[str, LearnedRounding],
    how: Reconstruction,
) -> RelativeAdam | None:
    layers = layers_of(model, part)
    rounding = [r.v for r in learned.values()]
    if not learned:
        rounding = [p for p in model.weights_of(layers) if p.requires_grad]
    others = [*model.biases_of(layers), *scales_of(model, part)]
    lr = how.lr or (6e-3 if how.learn == "weights" else 1e-2)
    groups = [{"params": rounding, "lr": lr}, {"params": others, "lr": how.scale_lr}]
    groups = [g for g in groups if g["params"]]
    sizes = {r.v: torch.ones(()) for r in learned.values()} | step_sizes(model)
    return RelativeAdam(groups, sizes=sizes) if groups else None


def _undecided(learned: Mapping[str, LearnedRounding], t: float, weight: float) -> Tensor | float:
    """Return the regularizer of AdaRound at the share ``t`` of the steps."""
    if not learned or t < _WARM:
        return 0.0
    share = (t - _WARM) / (1 - _WARM)
    exponent = _SHARPEST + (_SOFTEST - _SHARPEST) * (1 + math.cos(math.pi * share)) / 2
    count = sum(r.v.numel() for r in learned.values())
    total = torch.stack([r.undecided(exponent) for r in learned.values()]).sum()
    return weight * total / count
