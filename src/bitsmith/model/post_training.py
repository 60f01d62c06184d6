"""One verb for both lanes: ``bs.ptq(model, recipe, data)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn

from bitsmith.errors import RecipeError
from bitsmith.model.presets import make_recipe
from bitsmith.model.ptq import ptq as static
from bitsmith.model.qat.ladder import Effort, Ladder
from bitsmith.model.recipe import Recipe
from bitsmith.model.speed.ask import ask_machine
from bitsmith.model.swap import Ragged
from bitsmith.model.train import Batches
from bitsmith.model.weights import quantize_weights

__all__ = ["ptq"]


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
    progress: bool = True,
    rounding: str | None = None,
    transform: str | None = None,
    ragged: Ragged = "error",
    check_speed: Any | None = None,
    advance: Callable[[int], None] | None = None,
) -> nn.Module:
    """Return ``model`` quantized after training; the recipe decides the lane.

    A static recipe (``W8A8``, ``W4A8-edge8``) captures the model as a graph in integers and gives
    a :class:`~bitsmith.model.quantized.QuantizedModel`: see :func:`bitsmith.model.ptq.ptq`, whose
    arguments are ``target``, ``machine``, ``calibrator``, ``effort`` and those after it, up to
    ``progress``. Every other (``W4G64``, ``NF4``,
    ``W8A8-dynamic``) packs the weights of a copy of the module, without tracing: see
    :func:`bitsmith.model.weights.quantize_weights`, whose arguments are
    ``rounding``, ``transform`` and ``ragged``. Both carry ``coverage`` and ``recipe``.

    ``check_speed`` takes the inputs of one call, as the model will get them (a tensor, a tuple or
    a dict): before anything is quantized the layers that a recipe would pack are timed on them, in
    float and packed, and a :class:`~bitsmith.model.speed.ask.SpeedWarning` lists those that would
    be slower on this machine.

    Raises:
        RecipeError: an argument of the other lane was given; ``check_speed`` is of the module lane.
        BitsmithError: as the two functions say.

    >>> quantized = ptq(nn.Sequential(nn.Linear(64, 8)), "W4G64")
    >>> [(row.layer, row.outcome) for row in quantized.coverage]
    [('0.weight', 'packed')]
    """
    chosen = make_recipe(recipe)
    packing: dict[str, Any] = {"rounding": rounding, "transform": transform, "ragged": ragged}
    climbing: dict[str, Any] = {
        "effort": effort,
        "training": training,
        "ladder": ladder,
        "checkpoint": checkpoint,
    }
    placing: dict[str, Any] = {
        "target": target,
        "machine": machine,
        "calibrator": calibrator,
    } | climbing
    if chosen.lane == "module":
        _refuse(chosen, placing, static)
        if check_speed is not None:
            ask_machine(model, chosen, check_speed, ragged=ragged)
        return quantize_weights(model, chosen, data, advance=advance, **packing)
    _refuse(chosen, packing, quantize_weights)
    if check_speed is not None:
        raise RecipeError(
            f"recipe {chosen.name!r} is static, and the runtime that it is for executes it: "
            "check_speed is for recipes that pack weights"
        )
    how = placing | {"seed": seed, "progress": progress}
    return static(model, chosen, data, advance=advance, **how)


def _refuse(recipe: Recipe, given: dict[str, Any], other: Callable[..., Any]) -> None:
    """Refuse arguments that the lane does not take: those other than the other lane's defaults."""
    usual = {name: p.default for name, p in signature(other).parameters.items()}
    wrong = [
        name
        for name, value in given.items()
        if (value != usual[name] if isinstance(value, str) else value is not usual[name])
    ]
    if wrong:
        raise RecipeError(
            f"recipe {recipe.name!r} is of the {recipe.lane} lane, which takes no "
            f"{', '.join(wrong)}"
        )
