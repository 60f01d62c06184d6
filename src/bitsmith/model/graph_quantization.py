"""A captured graph, a recipe and data become a quantized model, without gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from bitsmith.errors import RecipeError, WeightsError
from bitsmith.model.calibrate import MIN_SAMPLES, as_inputs, encodings, gather
from bitsmith.model.convert import IntegerLayer, integer_layer, integer_table
from bitsmith.model.equalize import Equalized, equalize
from bitsmith.model.graph import Graph
from bitsmith.model.kept import Kept
from bitsmith.model.place import Placement, place
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.recipe import Recipe
from bitsmith.model.sequential import Sweep, SweepRow, sequential
from bitsmith.model.simulate import Program
from bitsmith.model.targets import Target, make_target
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import int1
from bitsmith.numbers.scheme import PerTensor

__all__ = ["SWEPT", "check_weights", "check_without_training", "quantize_graph"]

SWEPT = 256
"""Samples that codes and biases are found from, layer by layer."""
_PROBED = 64
"""Samples that equalization is measured on."""


def quantize_graph(
    graph: Graph,
    recipe: Recipe,
    data: Iterable[Any],
    *,
    target: str = "onnxruntime",
    machine: str = "any",
    calibrator: str | None = None,
    min_samples: int = MIN_SAMPLES,
    keep: Kept | None = None,
    trains: bool = False,
    advance: Callable[[int], None] | None = None,
) -> QuantizedModel:
    """Return a captured and simplified graph quantized.

    Args:
        graph: of a float model. Where the recipe equalizes, the model's graph is the equalized
            one, and ``provenance["equalization"]`` tells of every layer.
        recipe: static.
        data, target, machine, calibrator, advance: as of :func:`bitsmith.model.ptq.ptq`.
        min_samples: fewer samples are an error.
        keep: keeps the first samples, those that a sweep over the layers takes among them.
        trains: the result is where training starts: 1-bit weights are allowed.

    Raises:
        DataError: no data, too little, of the wrong shape, or not finite.
        RecipeError: 1-bit weights; a rule matches nothing.
        UnknownNameError, WeightsError: as their names say.
    """
    if not trains:
        check_without_training(recipe)
    runtime = make_target(target, machine)
    ranges = make_calibrator(calibrator or recipe.calibrator)
    placement = place(graph, runtime, recipe)
    equalized: list[Equalized] = []
    if _chosen(recipe.equalize, _one_scale(placement)):
        data = iter(data)
        head = _head(data)
        graph, equalized = equalize(graph, head, replace_relu6=True, absorb=True, samples=_PROBED)
        placement, data = place(graph, runtime, recipe), itertools.chain(head, data)
    seen = 0

    def count(samples: int) -> None:
        nonlocal seen
        seen += samples
        if advance is not None:
            advance(samples)

    keep = keep or Kept(SWEPT)
    watched = keep.watch(data)
    statistics = gather(placement, ranges, watched, min_samples=min_samples, advance=count)
    found = encodings(placement, runtime, ranges, statistics)
    layers, rows = _rounded(placement, runtime, recipe, found, keep)
    program = Program(placement.graph, placement.outcomes, found, layers)
    provenance = {
        "calibrator": ranges.spec,
        "calibration_samples": seen,
        "torch": torch.__version__,
    }
    if equalized:
        provenance["equalization"] = [asdict(row) for row in equalized]
    if rows:
        provenance["layers"] = [asdict(row) for row in rows]
    return QuantizedModel(program, recipe, target, machine, provenance)


def check_without_training(recipe: Recipe) -> None:
    """Refuse weights that only training can find.

    Raises:
        RecipeError: a rule of the recipe has 1-bit weights.
    """
    if any(r.weight is not None and r.weight.format == int1 for r in recipe.rules):
        raise RecipeError(
            f"recipe {recipe.name!r}: 1-bit weights need training: bs.qat.prepare or bs.qat.fit"
        )


def _chosen(given: bool | None, otherwise: bool) -> bool:
    return otherwise if given is None else given


def _one_scale(placement: Placement) -> bool:
    """Whether all channels of a weight share a scale."""
    return any(s.granularity == PerTensor() for s in placement.weights.values())


def _head(batches: Iterator[Any]) -> list[Any]:
    """Take the first batches, as many as equalization is measured on."""
    head: list[Any] = []
    count = 0
    for batch in batches:
        head.append(batch)
        count += len(as_inputs(batch)[0])
        if count >= _PROBED:
            break
    return head


def _rounded(
    placement: Placement,
    target: Target,
    recipe: Recipe,
    found: dict[str, Encoding],
    keep: Kept,
) -> tuple[dict[str, IntegerLayer], list[SweepRow]]:
    """Return the layers in integers, with a row for each where rounding takes care."""
    schemes = placement.weights.values()
    bits = [*(s.format.bits for s in schemes), *(e.format.bits for e in found.values())]
    narrow = bool(placement.tables) or min(bits, default=8) < 8
    corrects = _chosen(recipe.correct_bias, narrow or _one_scale(placement))
    if (narrow or corrects) and not any(s.format == int1 for s in schemes):
        sweep = Sweep(samples=SWEPT, correct_bias=corrects)
        return sequential(placement, target, found, keep.batches, sweep)
    nodes = [n for n in placement.graph if n.name in placement.weights]
    return {
        n.name: integer_table(n, placement)
        if n.op == "embedding"
        else integer_layer(n, placement, target, found[n.inputs[0]])
        for n in nodes
    }, []


def check_weights(model: nn.Module) -> None:
    """Refuse NaN and infinite weights before anything is traced; all of them are listed.

    Raises:
        WeightsError: there are some.
    """
    bad = {
        name: int((~torch.isfinite(value)).sum())
        for name, value in itertools.chain(model.named_parameters(), model.named_buffers())
        if value.is_floating_point()
    }
    offenders = [f"{name} ({count})" for name, count in bad.items() if count]
    if offenders:
        raise WeightsError(f"weights are NaN or infinite: {', '.join(offenders)}")
