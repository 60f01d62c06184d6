"""The layers of a model, in float and as recipes would pack them, on the inputs they really get."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import psutil
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bitsmith.errors import DataError
from bitsmith.model.blocks import as_arguments
from bitsmith.model.owners import Owner
from bitsmith.model.presets import make_recipe
from bitsmith.model.recipe import Recipe
from bitsmith.model.speed.memory import copies
from bitsmith.model.speed.race import Contestant, Times, race
from bitsmith.model.speed.stand_in import packed_bytes, stand_in
from bitsmith.model.swap import Plan, Ragged, plan_modules

__all__ = ["FLOAT", "LayerSpeed", "layer_speeds"]

FLOAT = "float32"
"""Name of the layer as it is."""
_MEMORY = 0.5
"""Share of the free memory that the copies of one layer may take."""


@final
@dataclass(frozen=True)
class LayerSpeed:
    """How long layers take that have one shape and get inputs of one shape.

    Attributes:
        layers: their names.
        op: ``linear``, ``conv``, ``embedding`` …
        weights: shape of each of their weights.
        inputs: shape of their first input.
        copies: of the layer in float that were gone round.
        times: ``float32``, and each recipe that packs the layer, by name.
    """

    layers: tuple[str, ...]
    op: str
    weights: tuple[tuple[int, ...], ...]
    inputs: tuple[int, ...]
    copies: int
    times: dict[str, Times]


@final
@dataclass(frozen=True, eq=False)
class _Seen:
    """What a layer was called with."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        given = (*self.arguments, *self.keywords.values())
        return tuple(tuple(v.shape) for v in given if isinstance(v, Tensor))


def layer_speeds(
    model: nn.Module,
    recipes: Sequence[str | Recipe],
    example: Any,
    *,
    ragged: Ragged = "float",
    seconds: float = 0.5,
    turns: int = 20,
    advance: Callable[[int, int], None] | None = None,
) -> list[LayerSpeed]:
    """Return how long each kind of layer takes, in float and with each recipe, here and now.

    The model is called once on ``example`` and every layer with weights is timed on what it was
    given. Layers that are alike in everything but their values are timed once. What is packed has
    the speed of what the recipe makes, without the work of rounding well; going round over copies
    of a layer finds its weights where the model does: in the cache only if the model fits there.

    Args:
        model: in evaluation mode; it is not changed.
        recipes: of the module lane.
        example: inputs of one call: a tensor, a tuple of positional or a dict of keyword arguments.
        ragged: as of ``bs.ptq``.
        seconds: for each way of each kind of layer.
        turns: see :func:`~bitsmith.model.speed.race.race`.
        advance: told done turns, and all (for a progress bar).

    Raises:
        RecipeError, SchemeError, WeightsError: as :func:`~bitsmith.model.swap.plan_modules`.
        DataError: no layer that a recipe packs was reached.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> found = layer_speeds(net, ["W8"], torch.randn(3, 64), seconds=0.001, turns=5)
    >>> [(f.layers, f.inputs, list(f.times)) for f in found]
    [(('0', '2'), (3, 64), ['float32', 'W8'])]
    """
    chosen = [make_recipe(recipe) for recipe in recipes]
    plans = {recipe.name: (plan_modules(model, recipe, ragged), recipe) for recipe in chosen}
    owners = _packed_owners(plans)
    kinds = _kinds(owners, _inputs(model, owners, example), plans)
    if not kinds:
        raise DataError(
            "the example reached no layer that a recipe packs: there is nothing to time"
        )
    working_set = sum(_float_bytes(o.module) for o in owners)
    total = turns * sum(1 + len(_fitting(like[0], plans)) for like, _ in kinds)
    found, done = [], 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if advance is not None:
            advance(done, total)

    for like, seen in kinds:
        count, contestants = _contestants(like[0], seen, plans, working_set)
        times = race(contestants, seconds=seconds, turns=turns, advance=step)
        shapes = tuple(tuple(like[0].module.get_parameter(w).shape) for w in like[0].weights)
        names = tuple(o.name for o in like)
        found.append(LayerSpeed(names, like[0].op, shapes, seen.shapes[0], count, times))
    return found


_Plans = Mapping[str, tuple[Plan, Recipe]]


def _packed_owners(plans: _Plans) -> list[Owner]:
    """Return the layers of which at least one recipe packs a weight."""
    plan, _ = next(iter(plans.values()))
    return [o for o in plan.owners if _fitting(o, plans)]


def _fitting(owner: Owner, plans: _Plans) -> list[str]:
    return [name for name, (plan, _) in plans.items() if _schemes(owner, plan)]


def _schemes(owner: Owner, plan: Plan) -> dict[str, Any]:
    named = _leaves(owner).items()
    return {leaf: plan.schemes[name] for leaf, name in named if name in plan.schemes}


def _leaves(owner: Owner) -> dict[str, str]:
    """Return name of a weight in the layer → in the model."""
    return {leaf: f"{owner.name}.{leaf}" if owner.name else leaf for leaf in owner.weights}


def _inputs(model: nn.Module, owners: Iterable[Owner], example: Any) -> dict[str, _Seen]:
    """Return name → what each layer was first called with."""
    seen: dict[str, _Seen] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if name not in seen:
                kept = tuple(_own(a) for a in arguments)
                seen[name] = _Seen(kept, {k: _own(v) for k, v in keywords.items()})

        return hook

    handles: list[RemovableHandle] = [
        o.module.register_forward_pre_hook(watch(o.name), with_kwargs=True) for o in owners
    ]
    arguments, keywords = as_arguments(example)
    try:
        with torch.no_grad():
            model(*arguments, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    return {name: one for name, one in seen.items() if one.shapes}


def _own(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _kinds(
    owners: Iterable[Owner], seen: Mapping[str, _Seen], plans: _Plans
) -> list[tuple[list[Owner], _Seen]]:
    """Return layers that are alike, with the inputs of the first, in module order."""
    alike: dict[Any, list[Owner]] = {}
    for owner in owners:
        if owner.name not in seen:
            continue
        shapes = tuple(tuple(owner.module.get_parameter(w).shape) for w in owner.weights)
        schemes = tuple(tuple(_schemes(owner, plan).items()) for plan, _ in plans.values())
        key = (owner.op, repr(owner.module), shapes, seen[owner.name].shapes, schemes)
        alike.setdefault(key, []).append(owner)
    return [(same, seen[same[0].name]) for same in alike.values()]


def _contestants(
    owner: Owner, seen: _Seen, plans: _Plans, working_set: int
) -> tuple[int, list[Contestant]]:
    """Return the copies of the float layer, and the float layer with all that are packed."""
    own = _float_bytes(owner.module)
    fitting = _fitting(owner, plans)
    memory = _MEMORY * psutil.virtual_memory().available / (1 + len(fitting))
    count = copies(own, working_set, memory)
    made = [Contestant(FLOAT, _calls(owner.module, count, seen))]
    for name in fitting:
        plan, recipe = plans[name]
        prefix = f"{owner.name}." if owner.name else ""
        columns = {
            k.removeprefix(prefix): v for k, v in plan.columns.items() if k.startswith(prefix)
        }
        layer = stand_in(owner, _schemes(owner, plan), recipe.activation, columns)
        size = packed_bytes(layer)
        many = copies(size, working_set * size / own, memory)
        made.append(Contestant(name, _calls(layer, many, seen)))
    return count, made


def _calls(layer: nn.Module, count: int, seen: _Seen) -> list[Callable[[], object]]:
    def call(own: nn.Module) -> Callable[[], object]:
        return lambda: own(*seen.arguments, **seen.keywords)

    return [call(layer if i == 0 else copy.deepcopy(layer)) for i in range(count)]


def _float_bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())
