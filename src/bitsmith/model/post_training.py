"""One verb for both lanes: ``bs.ptq(model, recipe, data)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from bitsmith.errors import RecipeError
from bitsmith.model.presets import make_recipe
from bitsmith.model.ptq import ptq as static
from bitsmith.model.qat.ladder import Effort, Ladder
from bitsmith.model.recipe import Recipe
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

    Raises:
        RecipeError: an argument of the other lane was given.
        BitsmithError: as the two functions say.

    >>> quantized = ptq(nn.Sequential(nn.Linear(64, 8)), "W4G64")
    >>> [(row.layer, row.outcome) for row in quantized.coverage]
    [('0.weight', 'packed')]
    """
    chosen = make_recipe(recipe)
    if chosen.lane == "module":
        given = {"target": target != "onnxruntime", "machine": machine != "any"}
        given |= {"effort": effort != "low", "training": training is not None}
        given |= {"ladder": ladder is not None, "checkpoint": checkpoint is not None}
        _refuse(chosen, given | {"calibrator": calibrator is not None})
        return quantize_weights(
            model,
            chosen,
            data,
            rounding=rounding,
            transform=transform,
            ragged=ragged,
            advance=advance,
        )
    given = {"rounding": rounding is not None, "transform": transform is not None}
    _refuse(chosen, given | {"ragged": ragged != "error"})
    return static(
        model,
        chosen,
        data,
        target=target,
        machine=machine,
        calibrator=calibrator,
        effort=effort,
        training=training,
        ladder=ladder,
        seed=seed,
        checkpoint=checkpoint,
        advance=advance,
        progress=progress,
    )


def _refuse(recipe: Recipe, given: dict[str, bool]) -> None:
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise RecipeError(
            f"recipe {recipe.name!r} is of the {recipe.lane} lane, which takes no "
            f"{', '.join(wrong)}"
        )
