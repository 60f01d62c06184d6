"""From a quantized model to a better one, rung by rung: block reconstruction, then distillation."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from bitsmith.data.training import check_training_data
from bitsmith.errors import InputError
from bitsmith.model.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from bitsmith.model.graph.operators import run_float
from bitsmith.model.qat.fit import distillation, fit
from bitsmith.model.qat.reconstruct import Reconstruction, reconstruct
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.train import Batches

__all__ = ["Effort", "Ladder", "Rung", "climb"]

Effort = Literal["low", "medium", "high"]

_JUDGED = 512
"""Samples that rungs are judged on, at most."""


@final
@dataclass(frozen=True)
class Ladder:
    """How much work each rung is.

    Attributes:
        blocks: of the reconstruction.
        samples: for it, at most; held in memory.
        epochs: of distillation; the least width of weights and activations decides between the
            numbers for 4 bits and more, 3 bits, and 2 or less.
        goal: agreement with the float model's predictions, in percent of the judged samples, at
            which no further rung is climbed; None climbs them all.
    """

    blocks: Reconstruction = field(default_factory=Reconstruction)
    samples: int = 2048
    epochs: tuple[int, int, int] = (6, 8, 10)
    goal: float | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or min(self.epochs) < 1 or not 0 < (self.goal or 100) <= 100:
            raise InputError(
                f"a ladder has at least one sample and epoch and a goal in (0, 100], not {self}"
            )


@final
@dataclass(frozen=True)
class Rung:
    """What one stage gave.

    Attributes:
        name: ``ranges and rounding``, ``block reconstruction`` or ``distillation``.
        distance: from the float outputs on the judged samples: see
            :func:`bitsmith.model.qat.fit.distillation`.
        agreement: judged samples with the float model's prediction, in percent; None for outputs
            that are no logits.
        seconds: of wall time.
        kept: it was better than what was there before.
    """

    name: str
    distance: float
    agreement: float | None
    seconds: float
    kept: bool

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
    float outputs on samples that it did not learn from. Interrupted (Ctrl-C), the best so far is
    returned, and its provenance says so.

    Args:
        quantized: the first rung: ranges and rounding without training.
        samples: model inputs ``[N, …]``, for block reconstruction; the last eighth of them (at most
            512) judges.
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
        InputError: no such effort; a checkpoint of another run; training diverged and left nothing.
    """
    if effort not in get_args(Effort):
        raise InputError(f"effort is one of {', '.join(get_args(Effort))}, not {effort!r}")
    check_training_data(training)
    ladder = ladder or Ladder()
    judged = min(max(len(samples) // 8, 1), _JUDGED)
    judge = _Judge(quantized, samples[-judged:])
    distance, agreement = judge(TrainableModel(quantized))
    rungs = [Rung("ranges and rounding", distance, agreement, 0.0, True)]
    if effort == "low":
        return quantized, rungs
    model = TrainableModel(quantized)
    best, interrupted = quantized, False
    folder = None if checkpoint is None else Path(checkpoint)
    run = _fingerprint(quantized, samples, ladder, seed)
    stages: list[tuple[str, Callable[[], None]]] = [
        (
            "block reconstruction",
            lambda: _learn(model, samples[:-judged], ladder, seed, folder, run, advance),
        ),
        (
            "distillation",
            lambda: _distil(model, training, ladder, seed, folder, progress),
        ),
    ]
    for name, stage in stages[: 1 if effort == "medium" else 2]:
        nearest = min(r.distance for r in rungs)
        top = max(rungs, key=lambda r: r.agreement or 0.0).agreement
        if interrupted or (ladder.goal is not None and (top or 0.0) >= ladder.goal):
            break
        started = time.perf_counter()
        try:
            stage()
        except KeyboardInterrupt:
            interrupted = True
        distance, agreement = judge(model)
        better = distance < nearest
        rungs.append(Rung(name, distance, agreement, time.perf_counter() - started, better))
        if better:
            best = model.converted()
        elif name != stages[-1][0]:
            model = TrainableModel(best)
    best.provenance["effort"] = effort
    best.provenance["rungs"] = [r.to_json() for r in rungs]
    if any(r.kept and r.name == "distillation" for r in rungs):
        best.provenance["method"] = "ptq+finetune"
    if interrupted:
        best.provenance["interrupted"] = True
    return best, rungs


@final
class _Judge:
    """Distance from the float model, on samples that nothing learns from."""

    def __init__(self, quantized: QuantizedModel, samples: Tensor) -> None:
        self._parts = torch.split(samples, 128)
        graph = quantized.program.graph
        with torch.no_grad():
            self._float = [run_float(graph, [x])[0] for x in self._parts]

    @torch.no_grad()
    def __call__(self, model: TrainableModel) -> tuple[float, float | None]:
        """Return distance and agreement of the integers that ``model`` stands for."""
        was, model.drop = model.training, 0.0
        model.train()  # the same integers, faster
        out = torch.cat([torch.as_tensor(model(x)) for x in self._parts])
        model.train(was)
        wanted = torch.cat(self._float)
        distance = float(distillation(out, wanted))
        if out.dim() != 2 or out.shape[1] < 2:
            return distance, None
        return distance, 100 * float((out.argmax(1) == wanted.argmax(1)).double().mean())


def _learn(
    model: TrainableModel,
    samples: Tensor,
    ladder: Ladder,
    seed: int,
    folder: Path | None,
    run: dict[str, Any],
    advance: Callable[[int], None] | None,
) -> None:
    """Learned rounding, or what an earlier run left of it."""
    path = None if folder is None else folder / "rounding.pt"
    found = None if path is None else read_checkpoint(path, run)
    if found is not None:
        model.load_state_dict(found.module)
        return
    reconstruct(model, samples[: ladder.samples], ladder.blocks, seed=seed, advance=advance)
    if path is not None:
        state = {k: v.clone() for k, v in model.state_dict().items()}
        write_checkpoint(path, Checkpoint(run, 0, state, {}, torch.get_rng_state(), [], None))


def _distil(
    model: TrainableModel,
    training: Any,
    ladder: Ladder,
    seed: int,
    folder: Path | None,
    progress: bool,
) -> None:
    bits = narrowest(model.source)
    epochs = ladder.epochs[0 if bits >= 4 else 1 if bits == 3 else 2]
    path = None if folder is None else folder / "distillation.pt"
    fit(model, training, epochs=epochs, seed=seed, checkpoint=path, progress=progress)
    model.train()


def narrowest(quantized: QuantizedModel) -> int:
    """Return the least number of bits of a weight or an activation."""
    program = quantized.program
    weights = [layer.bits for layer in program.layers.values()]
    return min([*weights, *(e.format.bits for e in program.encodings.values())])


def _fingerprint(
    quantized: QuantizedModel, samples: Tensor, ladder: Ladder, seed: int
) -> dict[str, Any]:
    digest = hashlib.sha256(samples.contiguous().numpy().tobytes())
    for name, value in sorted(quantized.program.graph.params.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return {
        "recipe": quantized.recipe.name,
        "data and weights": digest.hexdigest(),
        "blocks": repr(ladder.blocks),
        "samples": ladder.samples,
        "seed": seed,
    }
