"""A model as it is against what recipes make of it: each kind of layer, and the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from bitsmith.errors import InputError
from bitsmith.insight.bench.bandwidth import Bandwidth, read_bandwidth
from bitsmith.model.blocks import as_arguments
from bitsmith.model.presets import make_recipe
from bitsmith.model.speed.layers import FLOAT, LayerSpeed, layer_speeds
from bitsmith.model.speed.race import Contestant, Ratio, Times, faster, race, threads
from bitsmith.model.weights import quantize_weights

__all__ = ["NetworkSpeeds", "WholeSpeed", "network_speeds"]


@final
@dataclass(frozen=True)
class WholeSpeed:
    """One call of the whole model.

    Attributes:
        name: ``float32``, or the recipe.
        times: of a call.
        to_float: times faster than float32 in the same turns.
        bytes: of all parameters and buffers.
    """

    name: str
    times: Times
    to_float: Ratio
    bytes: int


@final
@dataclass(frozen=True)
class NetworkSpeeds:
    """What was measured of a model.

    Attributes:
        layers: kinds of layers, in module order.
        whole: the model, float32 first.
        threads: that everything used.
        bandwidth: of reading memory.
    """

    layers: tuple[LayerSpeed, ...]
    whole: tuple[WholeSpeed, ...]
    threads: int
    bandwidth: Bandwidth


def network_speeds(
    model: nn.Module,
    recipes: Sequence[str],
    example: Any,
    *,
    thread_count: int | None = None,
    seconds: float = 1.0,
    turns: int = 20,
    bandwidth: Bandwidth | None = None,
    stage: Callable[[str, int], Callable[[int], None]] | None = None,
) -> NetworkSpeeds:
    """Return how fast the layers of ``model`` are, and the model, in float and with each recipe.

    Weights are rounded to nearest (tables clustered): what a rounding does with data does not
    change the speed. Layers whose rows no group divides stay float.

    Args:
        model: in evaluation mode; it is not changed.
        recipes: of the module lane, each once.
        example: inputs of one call: a tensor, a tuple of positional or a dict of keyword arguments.
        thread_count: of everything; None: PyTorch's.
        seconds, turns: of each way of each kind of layer, and of the whole.
        bandwidth: measured before; None: measured now.
        stage: begins a stage of a name and a total, and returns what advances it.

    Raises:
        InputError: no recipe, or one twice.
        BitsmithError: as :func:`~bitsmith.model.speed.layers.layer_speeds`.
    """
    if not recipes or len(set(recipes)) < len(recipes):
        raise InputError(f"recipes to compare, each once, not {', '.join(recipes) or 'none'}")
    begin = stage or (lambda *_: lambda _: None)
    with threads(thread_count) as count, torch.no_grad():
        limit = bandwidth or read_bandwidth(count)
        done, step = 0, begin("layers", 0)

        def advance(now: int, total: int) -> None:
            nonlocal done, step
            if not done:
                step = begin("layers", total)
            step(now - done)
            done = now

        layers = layer_speeds(
            model, recipes, example, seconds=seconds, turns=turns, advance=advance
        )
        models = {FLOAT: model} | {name: _packed(model, name) for name in recipes}
        arguments, keywords = as_arguments(example)
        contestants = [
            Contestant(name, [_call(one, arguments, keywords)]) for name, one in models.items()
        ]
        step = begin("the whole model", turns * len(models))
        times = race(contestants, seconds=seconds, turns=turns, advance=step)
    whole = [
        WholeSpeed(name, times[name], faster(times[name], times[FLOAT]), _bytes(one))
        for name, one in models.items()
    ]
    return NetworkSpeeds(tuple(layers), tuple(whole), count, limit)


def _packed(model: nn.Module, name: str) -> nn.Module:
    recipe = make_recipe(name)
    learned = any(r.weight is not None and r.weight.learned for r in recipe.rules)
    rounding = None if learned else "nearest"
    return quantize_weights(model, recipe, rounding=rounding, ragged="float").eval()


def _call(
    model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> Callable[[], object]:
    return lambda: model(*arguments, **keywords)


def _bytes(model: nn.Module) -> int:
    """Return the bytes of what a state dict holds, tied parameters once."""
    state = model.state_dict(keep_vars=True).values()
    return sum(math.prod(t.shape) * t.element_size() for t in {id(t): t for t in state}.values())
