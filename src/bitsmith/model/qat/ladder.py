"""From a quantized model to a better one, rung by rung: block reconstruction, then distillation."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from bitsmith.data.training import check_training_data
from bitsmith.errors import InputError
from bitsmith.model.checkpoint import Checkpoint, read_checkpoint, snapshot, write_checkpoint
from bitsmith.model.divergence import DivergedError
from bitsmith.model.identity import digest, identity_of_quantized
from bitsmith.model.qat.fit import fit
from bitsmith.model.qat.judge import Judge
from bitsmith.model.qat.reconstruct import (
    INTERRUPTED,
    Reconstruction,
    ReconstructionRow,
    reconstruct,
    tabled,
)
from bitsmith.model.qat.refusals import check_climb, held_out, obstacles, read_once, too_few
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.train import Batches

__all__ = ["Effort", "Ladder", "Rung", "check_effort", "climb"]

Effort = Literal["low", "medium", "high"]


@final
@dataclass(frozen=True)
class Ladder:
    """How much work each rung is.

    Attributes:
        blocks: of the reconstruction.
        samples: for it, at most; held in memory.
        epochs: of distillation, where the least width of weights and activations is 3 bits or
            more, and where it is 2 or less.
        lr: of distillation at the start, in quantization steps (:func:`fit`).
        mix: distil on mixtures of samples (:func:`fit`), where they are floats.
        goal: agreement with the float model's predictions, in percent of the judged samples, at
            which no further rung is climbed; None climbs them all.
    """

    blocks: Reconstruction = field(default_factory=Reconstruction)
    samples: int = 2048
    epochs: tuple[int, int] = (18, 24)
    lr: float = 1e-2
    mix: bool = True
    goal: float | None = None

    def __post_init__(self) -> None:
        bad_goal = self.goal is not None and not 0 < self.goal <= 100
        bad_epochs = len(self.epochs) != 2 or min(self.epochs) < 1
        if self.samples < 1 or bad_epochs or not self.lr > 0 or bad_goal:
            raise InputError(
                "a ladder has at least one sample, two numbers of epochs of at least one, a rate "
                f"above 0, and a goal in (0, 100] or None, not {self}"
            )


@final
@dataclass(frozen=True)
class Rung:
    """What one stage gave.

    Attributes:
        name: ``ranges and rounding``, ``block reconstruction`` or ``distillation``.
        distance: of predictions from the float model's, in nats: KL divergence
            (:func:`bitsmith.model.qat.fit.distillation` with T = 1), or the mean squared difference
            of outputs that are no logits; where inputs are floats, of mixtures of two of the judged
            samples.
        agreement: judged samples with the float model's prediction, in percent; None for outputs
            that are no logits.
        seconds: of wall time.
        kept: it was better than what was there before.
        stopped: why it ended early, with what it had by then; None where it did not.
    """

    name: str
    distance: float
    agreement: float | None
    seconds: float
    kept: bool
    stopped: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields that apply."""
        return {k: v for k, v in asdict(self).items() if v is not None}


def climb(
    quantized: QuantizedModel,
    samples: Tensor,
    training: Batches | Iterable[Any] | Callable[[int], Iterable[Any]],
    effort: Effort,
    *,
    ladder: Ladder | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    advance: Callable[[int], None] | None = None,
    progress: bool = True,
) -> tuple[QuantizedModel, list[Rung]]:
    """Return the best model of all rungs up to ``effort``, and a row for each rung.

    ``medium`` learns the rounding block by block (:func:`reconstruct`); ``high`` then distils the
    float model into the whole network, without labels. A rung is kept where it is nearer to the
    float outputs on samples that it did not learn from. Interrupted (Ctrl-C), or when training
    diverges, the best so far is returned, and its provenance says so: ``rungs``, and ``blocks``
    with a row for each block of the reconstruction.

    Args:
        quantized: the first rung: ranges and rounding without training.
        samples: model inputs ``[N, …]``, for block reconstruction; the last eighth of them (at most
            512) judges (:func:`bitsmith.model.qat.refusals.held_out`).
        training: batches for distillation, their labels are not looked at.
        effort: how far to go; ``low`` returns what is given.
        ladder: how much work each rung is.
        seed: of everything random.
        checkpoint: a folder that keeps what is done, to go on from after a stop.
        advance: told 1 after every step of a block.
        progress: show a progress bar during distillation.

    Raises:
        DataError: fewer samples than a step takes; samples of another split than train; training
            data that can be read only once.
        InputError: no such effort; a model whose blocks cannot be tuned; a checkpoint of another
            run. All faults are listed, before any work.
    """
    check_effort(effort)
    check_training_data(training)
    ladder = ladder or Ladder()
    model = TrainableModel(quantized)
    check_climb(
        effort,
        obstacles(quantized.program.graph, model.layer_names(), tabled(model), ladder.blocks.learn),
        [
            *too_few(len(samples), ladder.blocks.batch_size),
            *read_once(training, max(ladder.epochs) if effort == "high" else 1),
        ],
    )
    judged = held_out(len(samples))
    judge = Judge(quantized, samples[-judged:])
    found = judge(model)
    rungs, nearest = [Rung("ranges and rounding", *found.shown, 0.0, True)], found.order
    if effort == "low":
        return quantized, rungs
    best, interrupted = quantized, False
    blocks: list[dict[str, Any]] = []
    folder = None if checkpoint is None else Path(checkpoint)
    run = _fingerprint(quantized, samples, ladder, seed)
    stages: list[tuple[str, Callable[[], None]]] = [
        (
            "block reconstruction",
            lambda: _learn(model, samples[:-judged], ladder, seed, folder, run, advance, blocks),
        ),
        (
            "distillation",
            lambda: _distil(model, training, ladder, seed, folder, run, progress),
        ),
    ]
    for name, stage in stages[: 1 if effort == "medium" else 2]:
        reached = max(r.agreement or 0.0 for r in rungs if r.kept)
        if interrupted or (ladder.goal is not None and reached >= ladder.goal):
            break
        started, stopped = time.perf_counter(), None
        try:
            stage()
        except KeyboardInterrupt:
            interrupted, stopped = True, "interrupted"
        except DivergedError as error:
            stopped = str(error)
            warnings.warn(f"{name} stopped: {error}", RuntimeWarning, stacklevel=2)
        found = judge(model)
        better, seconds = found.order < nearest, time.perf_counter() - started
        rungs.append(Rung(name, *found.shown, seconds, better, stopped))
        if better:
            best, nearest = model.converted(), found.order
        elif name != stages[-1][0]:
            model = TrainableModel(best)
    best.provenance["effort"] = effort
    best.provenance["rungs"] = [r.to_json() for r in rungs]
    best.provenance["blocks"] = blocks
    if any(r.kept and r.name == "distillation" for r in rungs):
        best.provenance["method"] = "ptq+finetune"
    if interrupted:
        best.provenance["interrupted"] = True
    return best, rungs


def check_effort(effort: str) -> None:
    """Refuse an effort that there is not.

    Raises:
        InputError: it is none of :data:`Effort`.
    """
    if effort not in get_args(Effort):
        raise InputError(f"effort is one of {', '.join(get_args(Effort))}, not {effort!r}")


def _learn(
    model: TrainableModel,
    samples: Tensor,
    ladder: Ladder,
    seed: int,
    folder: Path | None,
    run: dict[str, Any],
    advance: Callable[[int], None] | None,
    blocks: list[dict[str, Any]],
) -> None:
    """Learned rounding, on from where an earlier run was; its rows go to ``blocks``.

    What is done is kept after every block.
    """
    path = None if folder is None else folder / "rounding.pt"
    found = None if path is None else read_checkpoint(path, run)
    if found is not None:
        model.load_state_dict(found.module)
        blocks += found.history

    def tuned(row: ReconstructionRow) -> None:
        blocks.append(row.to_json())
        if path is not None and row.reason != INTERRUPTED:
            state = Checkpoint(
                run, len(blocks), snapshot(model), {}, torch.get_rng_state(), list(blocks), None
            )
            write_checkpoint(path, state)

    reconstruct(
        model,
        samples[: ladder.samples],
        ladder.blocks,
        seed=seed,
        advance=advance,
        on_block=tuned,
        done=0 if found is None else found.epochs,
        random=None if found is None else found.random,
    )


def _distil(
    model: TrainableModel,
    training: Any,
    ladder: Ladder,
    seed: int,
    folder: Path | None,
    run: dict[str, Any],
    progress: bool,
) -> None:
    path = None if folder is None else folder / "distillation.pt"
    floats = getattr(torch, model.source.program.graph.inputs[0].dtype).is_floating_point
    fit(
        model,
        training,
        epochs=ladder.epochs[narrowest(model.source) < 3],
        mix=ladder.mix and floats,
        lr=ladder.lr,
        seed=seed,
        checkpoint=path,
        fingerprint=run,
        progress=progress,
    )
    model.train()


def narrowest(quantized: QuantizedModel) -> int:
    """Return the least number of bits of a weight or an activation."""
    program = quantized.program
    weights = [layer.bits for layer in program.layers.values()]
    return min([*weights, *(e.format.bits for e in program.encodings.values())])


def _fingerprint(
    quantized: QuantizedModel, samples: Tensor, ladder: Ladder, seed: int
) -> dict[str, Any]:
    return {
        **identity_of_quantized(quantized),
        "samples sha256": digest([("samples", samples)]),
        "blocks": repr(ladder.blocks),
        "samples": ladder.samples,
        "seed": seed,
    }
