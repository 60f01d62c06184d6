"""Ask the machine before quantizing: would the layers be slower than they are?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, final

from torch import nn

from bitsmith.model.recipe import Recipe
from bitsmith.model.speed.layers import FLOAT, LayerSpeed, layer_speeds
from bitsmith.model.speed.race import faster
from bitsmith.model.swap import Ragged

__all__ = ["SpeedWarning", "ask_machine", "slower"]


@final
class SpeedWarning(UserWarning):
    """Layers that a recipe would make slower on this machine."""


def slower(found: Sequence[LayerSpeed], recipe: str) -> list[LayerSpeed]:
    """Return the layers that ``recipe`` makes slower than float: the whole interval says so."""
    return [f for f in found if recipe in f.times and _ratio(f, recipe).high < 1]


def ask_machine(
    model: nn.Module,
    recipe: str | Recipe,
    example: Any,
    *,
    ragged: Ragged = "float",
    seconds: float = 0.2,
) -> list[LayerSpeed]:
    """Time the layers that ``recipe`` would pack, and warn of those that would be slower here.

    Returns what :func:`~bitsmith.model.speed.layers.layer_speeds` found; nothing is quantized. The
    warning, one for all, names the layers, their shapes, what they were called with, and how many
    times slower they would be.

    Args:
        model, recipe, example, ragged, seconds: as of ``layer_speeds``.

    Raises:
        BitsmithError: as ``layer_speeds``.

    Warns:
        SpeedWarning: at least one kind of layer is slower.
    """
    found = layer_speeds(model, [recipe], example, ragged=ragged, seconds=seconds)
    name = next((n for f in found for n in f.times if n != FLOAT), "")
    if worse := slower(found, name):
        lines = "\n  ".join(_line(f, name) for f in worse)
        kinds = len(found)
        warnings.warn(
            f"recipe {name!r} would be slower than float on this machine in {len(worse)} of "
            f"{kinds} kinds of layers:\n  {lines}\n'bitsmith bench' measures other recipes",
            SpeedWarning,
            stacklevel=3,
        )
    return found


def _ratio(found: LayerSpeed, recipe: str) -> Any:
    return faster(found.times[recipe], found.times[FLOAT])


def _line(found: LayerSpeed, recipe: str) -> str:
    first, *more = found.layers
    names = first + (f" and {len(more)} like it" if more else "")
    before, after = found.times[FLOAT].median_ms, found.times[recipe].median_ms
    shape = "×".join(map(str, found.weights[0]))
    given = "×".join(map(str, found.inputs))
    times = 1 / _ratio(found, recipe).value
    return (
        f"{names} ({found.op} {shape}, input {given}): {after:.3g} ms against {before:.3g}, "
        f"{times:.1f} times slower"
    )
