"""Options that were given to ``quantize`` or ``train`` and could have no effect."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bitsmith.cli.synthetic import SYNTHETIC
from bitsmith.errors import InputError

if TYPE_CHECKING:
    import typer

    from bitsmith.model.recipe import Recipe

__all__ = ["refuse_idle", "refuse_idle_in_training"]

_Rule = tuple[tuple[str, ...], str]

_STATIC = "for static recipes, which trace the model; leave out, or choose one such as W8A8"

#: Parameters of ``quantize`` that a lane has no use for, and what to do instead.
_IDLE: dict[str, tuple[_Rule, ...]] = {
    "module": (
        (
            ("target", "machine", "calibrator", "effort", "goal", "checkpoint", "weights_as"),
            _STATIC,
        ),
        (
            ("report",),
            "for static recipes; leave out, and measure the written file with bitsmith verify and "
            "bitsmith evaluate",
        ),
    ),
    "static": (
        (
            ("rounding", "transform", "ragged"),
            "for recipes that pack weights; leave out, or choose one such as W4G64",
        ),
    ),
}
_NO_DATA = (
    ("calibration_samples", "batch_size", "seed", "split"),
    "for samples to calibrate on, and there are none; leave out, or pass --data",
)
_LOW = (("goal", "checkpoint"), "for effort medium and high; leave out, or choose one of them")
_REAL = (("input_shape",), "for samples that are made up; leave out, or pass --data synthetic")
_TRAINED = (
    (("target", "machine", "calibrator", "weights_as"), _STATIC),
    (
        ("calibration_samples",),
        "for ranges of activations, or for synthetic samples; leave out, or choose a static "
        "recipe such as W4A8",
    ),
)


def refuse_idle(
    context: typer.Context, recipe: Recipe, data: str | None, effort: str = "low"
) -> None:
    """Refuse every option of ``quantize`` that was given and that ``recipe`` has no use for.

    An option that was not given is left alone, whatever its default.

    Args:
        context: of the command; knows where the value of a parameter comes from.
        recipe: decides the lane.
        data: samples to calibrate on; a recipe that packs weights may go without.
        effort: low trains nothing.

    Raises:
        InputError: lists all of them, each with the remedy.
    """
    rules = [*_IDLE[recipe.lane]]
    if recipe.lane == "module" and data is None:
        rules.append(_NO_DATA)
    if recipe.lane == "static" and effort == "low":
        rules.append(_LOW)
    if data != SYNTHETIC:
        rules.append(_REAL)
    _refuse(context, recipe, rules)


def refuse_idle_in_training(context: typer.Context, recipe: Recipe, data: str | None) -> None:
    """Refuse every option of ``train`` that was given and that ``recipe`` has no use for.

    Raises:
        InputError: lists all of them, each with the remedy.
    """
    rules = [*_TRAINED] if recipe.lane == "module" else []
    if data == SYNTHETIC:
        rules = rules[:1]
    else:
        rules.append(_REAL)
    _refuse(context, recipe, rules)


def _refuse(context: typer.Context, recipe: Recipe, rules: Iterable[_Rule]) -> None:
    faults = []
    for parameters, remedy in rules:
        if given := [_option(p) for p in parameters if _given(context, p)]:
            faults.append(f"{', '.join(given)}: {remedy}")
    if faults:
        does = "packs weights" if recipe.lane == "module" else "is static, a graph in integers"
        lines = "\n  ".join(faults)
        raise InputError(
            f"recipe {recipe.name!r} {does}; options were given that cannot apply:\n  {lines}"
        )


def _option(parameter: str) -> str:
    return f"--{parameter.replace('_', '-')}"


def _given(context: typer.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
