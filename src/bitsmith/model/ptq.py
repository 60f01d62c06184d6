"""Post-training quantization: a float model, a recipe and data become a quantized model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from bitsmith.data.training import check_training_data
from bitsmith.errors import DataError, InputError, RecipeError
from bitsmith.model.calibrate import as_inputs, checked_batches
from bitsmith.model.graph import capture, simplify
from bitsmith.model.graph_quantization import (
    SWEPT,
    check_weights,
    check_without_training,
    quantize_graph,
)
from bitsmith.model.kept import Kept
from bitsmith.model.place import Placement, place
from bitsmith.model.presets import make_recipe
from bitsmith.model.qat.ladder import Effort, Ladder, check_effort, climb
from bitsmith.model.qat.refusals import (
    check_climb,
    known_samples,
    obstacles,
    read_once,
    too_few,
)
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.recipe import Recipe
from bitsmith.model.targets import make_target
from bitsmith.model.train import Batches
from bitsmith.numbers.formats.integer import ternary

__all__ = ["ptq", "quantize_graph"]


def ptq(
    model: nn.Module,
    recipe: str | Recipe = "W8A8",
    data: Iterable[Any] | None = None,
    *,
    target: str = "onnxruntime",
    machine: str = "any",
    calibrator: str | None = None,
    effort: Effort = "low",
    training: Batches | None = None,
    ladder: Ladder | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    advance: Callable[[int], None] | None = None,
    progress: bool = True,
) -> QuantizedModel:
    """Return ``model`` quantized after training.

    ``effort="low"`` takes one pass over ``data`` and no gradients: ranges, and below 8 bits codes
    and biases found layer by layer (:func:`bitsmith.model.sequential.sequential`). ``"medium"``
    learns the rounding block by block, ``"high"`` distils the float model into the result
    (:func:`bitsmith.model.qat.ladder.climb`); what a stage did not better is not kept, and
    ``provenance["rungs"]`` tells. Interrupted, both return the best so far.

    Args:
        model: a trained module; it is not changed. Captured with ``torch.export``.
        recipe: ``W8A8``, another preset, a JSON file or a :class:`Recipe`.
        data: calibration batches, ``x`` or ``(x, y)``, any iterable; from the training split.
        target: the runtime that will execute the file.
        machine: what the file must be exact on; see the target's ``machines``.
        calibrator: instead of the recipe's, for example ``percentile:99.99``.
        effort: how much work.
        training: batches for ``"high"``, for example of augmented samples; ``data`` if None, which
            then has to be readable again and again. Labels are not looked at.
        ladder: how much work ``"medium"`` and ``"high"`` are; ``"low"`` takes neither this nor
            ``training`` and ``checkpoint``.
        seed: of everything random in them.
        checkpoint: a folder in which they keep what is done, to go on from after a stop.
        advance: told the number of samples of each batch, and then of steps of learned rounding
            (for a progress bar).
        progress: show a progress bar during distillation.

    Raises:
        CaptureError: the model cannot be traced.
        DataError: no data, too little, of the wrong shape, or not finite.
        InputError: no such effort; or one of more than ``low`` for a model of several inputs or
            outputs or without a block to tune, or for data that cannot be read again. All faults
            are in one message, before calibration.
        RecipeError, UnknownNameError, WeightsError: as their names say.
    """
    check_effort(effort)
    chosen = make_recipe(recipe)
    if chosen.lane == "module":
        raise RecipeError(
            f"recipe {chosen.name!r} is not static: bs.ptq or quantize_weights does it"
        )
    check_without_training(chosen)
    runtime = make_target(target, machine)
    check_training_data(data, "calibration")
    check_training_data(training)
    if effort == "low":
        given = {"training": training, "ladder": ladder, "checkpoint": checkpoint}
        if unused := [name for name, value in given.items() if value is not None]:
            raise InputError(
                f"effort='low' trains nothing and takes no {', '.join(unused)}: leave it out, or "
                "climb further with effort='medium' or 'high'"
            )
    if data is None:
        raise DataError(f"recipe {chosen.name} is static: it needs calibration data (data=…)")
    check_weights(model)
    batches = iter(checked_batches(data))
    first = next(batches, None)
    if first is None:
        raise DataError("the calibration data is empty: its iterator gave no batch")
    inputs = as_inputs(first)
    started = time.perf_counter()
    graph = simplify(capture(model, [x[:2] for x in inputs]))
    captured = time.perf_counter() - started
    ladder = ladder or Ladder()
    if effort != "low":
        _check_climb(place(graph, runtime, chosen), effort, ladder, data, training)
    keep = Kept(SWEPT if effort == "low" else ladder.samples)
    quantized = quantize_graph(
        graph,
        chosen,
        itertools.chain([first], batches),
        target=target,
        machine=machine,
        calibrator=calibrator,
        keep=keep,
        advance=advance,
    )
    if effort != "low":
        quantized, _ = climb(
            quantized,
            keep.tensor(),
            data if training is None else training,
            effort,
            ladder=ladder,
            seed=seed,
            checkpoint=checkpoint,
            advance=advance,
            progress=progress,
        )
    quantized.provenance["capture_seconds"] = captured
    quantized.provenance["quantize_seconds"] = time.perf_counter() - started
    return quantized


def _check_climb(
    placement: Placement, effort: str, ladder: Ladder, data: Iterable[Any], training: Batches | None
) -> None:
    """Refuse what effort medium and high cannot do, as far as it can be known."""
    layers = [
        n.name for n in placement.graph if n.name in placement.weights and n.op != "embedding"
    ]
    tables = [n for n in layers if n in placement.tables or placement.weights[n].format == ternary]
    faults = []
    if effort == "high" and training is None:
        faults = read_once(data, 1 + max(ladder.epochs))  # calibration has read it once
    elif effort == "high":
        faults = read_once(training, max(ladder.epochs), "training")
    known = known_samples(data)
    kept = None if known is None else min(known, ladder.samples)
    check_climb(
        effort,
        obstacles(placement.graph, layers, tables, ladder.blocks.learn),
        [*faults, *too_few(kept, ladder.blocks.batch_size)],
    )
