"""Post-training quantization: a float model, a recipe and data become a quantized model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from bitsmith.errors import DataError, RecipeError, WeightsError
from bitsmith.model.calibrate import MIN_SAMPLES, as_inputs, encodings, gather
from bitsmith.model.convert import integer_layer, integer_table
from bitsmith.model.graph import Graph, capture, simplify
from bitsmith.model.place import place
from bitsmith.model.presets import make_recipe
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.recipe import Recipe
from bitsmith.model.simulate import Program
from bitsmith.model.targets import make_target
from bitsmith.numbers.calibrators import make_calibrator

__all__ = ["ptq", "quantize_graph"]


def ptq(
    model: nn.Module,
    recipe: str | Recipe = "W8A8",
    data: Iterable[Any] | None = None,
    *,
    target: str = "onnxruntime",
    machine: str = "any",
    calibrator: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> QuantizedModel:
    """Return ``model`` quantized after training, in one pass over ``data``.

    Args:
        model: a trained module; it is not changed. Captured with ``torch.export``.
        recipe: ``W8A8``, another preset, a JSON file or a :class:`Recipe`.
        data: calibration batches, ``x`` or ``(x, y)``, any iterable; from the training split.
        target: the runtime that will execute the file.
        machine: what the file must be exact on; see the target's ``machines``.
        calibrator: instead of the recipe's, for example ``percentile:99.99``.
        advance: told the number of samples of each batch (for a progress bar).

    Raises:
        CaptureError: the model cannot be traced.
        DataError: no data, too little, of the wrong shape, or not finite.
        RecipeError, UnknownNameError, WeightsError: as their names say.
    """
    chosen = make_recipe(recipe)
    if chosen.lane == "module":
        raise RecipeError(
            f"recipe {chosen.name!r} is not static: bs.ptq or quantize_weights does it"
        )
    make_target(target, machine)
    if data is None:
        raise DataError(f"recipe {chosen.name} is static: it needs calibration data (data=…)")
    _check_weights(model)
    batches = iter(data)
    first = next(batches, None)
    if first is None:
        raise DataError("the calibration data is empty: its iterator gave no batch")
    inputs = as_inputs(first)
    started = time.perf_counter()
    graph = simplify(capture(model, [x[:2] for x in inputs]))
    captured = time.perf_counter() - started
    quantized = quantize_graph(
        graph,
        chosen,
        itertools.chain([first], batches),
        target=target,
        machine=machine,
        calibrator=calibrator,
        advance=advance,
    )
    quantized.provenance["capture_seconds"] = captured
    quantized.provenance["quantize_seconds"] = time.perf_counter() - started
    return quantized


def quantize_graph(
    graph: Graph,
    recipe: Recipe,
    data: Iterable[Any],
    *,
    target: str = "onnxruntime",
    machine: str = "any",
    calibrator: str | None = None,
    min_samples: int = MIN_SAMPLES,
    advance: Callable[[int], None] | None = None,
) -> QuantizedModel:
    """Return a captured and simplified graph quantized; arguments and errors as :func:`ptq`."""
    runtime = make_target(target, machine)
    ranges = make_calibrator(calibrator or recipe.calibrator)
    placement = place(graph, runtime, recipe)
    seen = 0

    def count(samples: int) -> None:
        nonlocal seen
        seen += samples
        if advance is not None:
            advance(samples)

    statistics = gather(graph, placement, ranges, data, min_samples=min_samples, advance=count)
    found = encodings(graph, placement, runtime, ranges, recipe.static_activation, statistics)
    layers = {
        name: integer_table(graph, node, placement)
        if node.op == "embedding"
        else integer_layer(graph, node, placement, runtime, found[node.inputs[0]])
        for name in placement.weights
        if (node := graph.node(name)) is not None
    }
    program = Program(graph, placement.outcomes, found, layers)
    provenance = {
        "calibrator": ranges.spec,
        "calibration_samples": seen,
        "torch": torch.__version__,
    }
    return QuantizedModel(program, recipe, target, machine, provenance)


def _check_weights(model: nn.Module) -> None:
    """Refuse NaN and infinite weights before anything is traced; all of them are listed."""
    bad = {
        name: int((~torch.isfinite(value)).sum())
        for name, value in itertools.chain(model.named_parameters(), model.named_buffers())
        if value.is_floating_point()
    }
    offenders = [f"{name} ({count})" for name, count in bad.items() if count]
    if offenders:
        raise WeightsError(f"weights are NaN or infinite: {', '.join(offenders)}")
