"""Swap the layers of any module for layers with packed weights; nothing is traced."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.errors import RecipeError, SchemeError
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.layers.replace import is_linear, packed_layer
from bitsmith.model.owners import Owner, check_weights, memory_key, overlaps, weight_owners
from bitsmith.model.recipe import Recipe
from bitsmith.model.weight_rows import WeightRow
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerBlock, PerGroup, Scheme

__all__ = [
    "Plan",
    "Ragged",
    "RoundedWeight",
    "Rounder",
    "Swap",
    "joined",
    "plan_modules",
]

Ragged = Literal["error", "pad", "float"]


@final
@dataclass(frozen=True)
class RoundedWeight:
    """A weight in codes, and how they were chosen; the attributes as of :class:`WeightRow`."""

    qtensor: QTensor
    algorithm: str
    objective: float | None = None
    nearest_objective: float | None = None
    reason: str = ""


Rounder = Callable[[str, Tensor, Scheme], RoundedWeight]


@final
@dataclass(frozen=True)
class Plan:
    """What a recipe means for one model.

    Attributes:
        owners: every layer with weights.
        schemes: weight name → scheme; a weight that is absent stays float.
        columns: weight name → columns its rows are padded to, where they are.
        reasons: weight name → why it stays float, that it was padded, or with which weight it
            shares a part of its memory.
    """

    owners: tuple[Owner, ...]
    schemes: dict[str, Scheme]
    columns: dict[str, int]
    reasons: dict[str, str]


def plan_modules(model: nn.Module, recipe: Recipe, ragged: Ragged = "error") -> Plan:
    """Return which weights ``recipe`` packs, and how.

    Args:
        model: any module, with its weights in memory.
        recipe: of the module lane.
        ragged: what to do where a group size does not divide the rows of a weight: ``error``,
            ``pad`` the rows with zeros, or leave the weight ``float``; both are listed.

    Raises:
        RecipeError: a rule matches nothing, or there is nothing to quantize.
        SchemeError: a group size does not divide; every weight is listed.
        WeightsError: weights on the meta device, NaN, infinite or beyond float32; all are listed.
    """
    owners = weight_owners(model)
    check_weights(owners)
    able = [(o.name, o.op) for o in owners if not o.refusal]
    if not able:
        refused = "; ".join(f"{o.name}: {o.refusal}" for o in owners)
        raise RecipeError(
            f"recipe {recipe.name!r}: the model has no layer to quantize"
            + (f" ({refused})" if refused else "")
        )
    chosen = recipe.weights(able)
    schemes: dict[str, Scheme] = {}
    columns: dict[str, int] = {}
    reasons: dict[str, str] = {}
    misfits = []
    apart: dict[Hashable, tuple[str, Tensor]] = {}
    for owner in owners:
        scheme = chosen.get(owner.name)
        for leaf in owner.weights:
            name, parameter = _join(owner.name, leaf), owner.module.get_parameter(leaf)
            if memory_key(parameter) in apart:
                continue  # tied: what becomes of the first is what becomes of all
            apart[memory_key(parameter)] = name, parameter
            if scheme is None:
                reasons[name] = owner.refusal or "the recipe keeps it in float"
                continue
            rows = parameter.flatten(1).shape
            try:
                scheme.granularity.scale_shape(rows)
            except SchemeError as error:
                wide = _padded(rows[1], scheme)
                if ragged == "error" or (ragged == "pad" and wide is None):
                    misfits.append(f"{name}: {error}")
                elif ragged == "float" or wide is None:
                    reasons[name] = str(error)
                else:
                    columns[name], schemes[name] = wide, scheme
                    reasons[name] = f"rows of {rows[1]} padded to {wide}"
                continue
            schemes[name] = scheme
    if misfits:
        raise SchemeError(
            "\n  ".join([f"recipe {recipe.name!r} does not fit every weight:", *misfits])
            + "\nuse another group size, give these layers a rule of their own, or pass "
            "ragged='pad' or ragged='float' (bitsmith quantize: --ragged pad or float)"
        )
    for later, first in overlaps(dict(apart.values())).items():
        if later in schemes or first in schemes:
            note = f"shares a part of its memory with {first}, from which it is stored apart"
            reasons[later] = joined(reasons.get(later), note)
    return Plan(tuple(owners), schemes, columns, reasons)


def joined(*reasons: str | None) -> str:
    """Return the reasons that there are, as one."""
    return "; ".join(filter(None, reasons))


@final
class Swap:
    """A copy of a model whose layers are swapped one after the other.

    Parameters that stay float are shared with the original, not copied. Weights that were tied,
    and modules that were shared, still are.

    Attributes:
        model: the copy, as far as it is swapped.
        rows: one for every weight, in module order; complete when every owner is swapped.
        owners: the layers of the copy with weights, still to be swapped or left alone.

    Args:
        model: any module; it is not changed.
        plan: of :func:`plan_modules`, for this model.
        activation: scheme of the inputs of linear layers, one range per token.
    """

    def __init__(self, model: nn.Module, plan: Plan, activation: Scheme | None = None) -> None:
        shared = itertools.chain(model.parameters(), model.buffers())
        self.model = copy.deepcopy(model, {id(t): t for t in shared})  # taken as they are
        self.rows: list[WeightRow] = []
        self._plan, self._activation = plan, activation
        self._packed: dict[Hashable, tuple[str, PackedWeight]] = {}
        # The plan knows how attention and the like are cut into owners; the copy has the modules.
        named = dict(self.model.named_modules())
        self.owners = [replace(o, module=named[o.name]) for o in plan.owners]

    def unscalable(self, owner: Owner) -> str:
        """Return why the input of ``owner`` cannot be divided by scales; empty when it can.

        It can where it becomes a ``QuantLinear`` whose weight no other layer uses.
        """
        if not is_linear(owner):
            return "only plain linear layers have scales of their input"
        weight, name = owner.module.get_parameter("weight"), _join(owner.name, "weight")
        users = [_join(o.name, leaf) for o in self.owners for leaf in o.weights
                 if o.module is not owner.module and _holds(o.module, leaf, weight)]  # fmt: skip
        if users or memory_key(weight) in self._packed:
            return f"its weight is tied: {', '.join(users)}"
        return "" if name in self._plan.schemes else "it stays float"

    def scheme_of(self, owner: Owner, leaf: str) -> Scheme:
        """Return the scheme of a weight that is to be packed."""
        return self._plan.schemes[_join(owner.name, leaf)]

    def swap(self, owner: Owner, rounder: Rounder) -> None:
        """Replace one layer of the copy by its packed form.

        Args:
            owner: one of :attr:`owners`, in their order.
            rounder: ``(name, weight [rows, columns] float32, scheme) → RoundedWeight``.
        """
        weights: dict[str, PackedWeight] = {}
        for leaf in owner.weights:
            name, parameter = _join(owner.name, leaf), owner.module.get_parameter(leaf)
            row, weight = _pack(name, parameter, owner.op, self._plan, rounder, self._packed)
            self.rows.append(row)
            if weight is not None:
                weights[leaf] = weight
        if not weights:
            return
        layer = packed_layer(owner, weights, self._activation)
        for parent in list(self.model.modules()):
            for child_name, child in list(parent._modules.items()):
                if child is owner.module:
                    parent._modules[child_name] = layer
        if self.model is owner.module:
            self.model = layer


def _pack(
    name: str,
    parameter: nn.Parameter,
    op: str,
    plan: Plan,
    rounder: Rounder,
    packed: dict[Hashable, tuple[str, PackedWeight]],
) -> tuple[WeightRow, PackedWeight | None]:
    """Return what becomes of a weight, and its packed form unless it stays float."""
    values, reason = parameter.numel(), plan.reasons.get(name, "")
    if memory_key(parameter) in packed:
        first, weight = packed[memory_key(parameter)]
        return WeightRow(name, op, "tied", f"tied to {first}", values, 0.0), weight
    if name not in plan.schemes:
        bits = 8.0 * parameter.element_size()
        return WeightRow(name, op, "float", reason, values, bits), None
    flat = parameter.detach().flatten(1).to(torch.float32)
    if name in plan.columns:
        flat = functional.pad(flat, (0, plan.columns[name] - flat.shape[1]))
    done = rounder(name, flat, plan.schemes[name])
    weight = PackedWeight(done.qtensor, parameter.shape)
    packed[memory_key(parameter)] = name, weight
    bits, reason = 8 * weight.nbytes / max(values, 1), joined(reason, done.reason)
    made = (done.algorithm, done.objective, done.nearest_objective)
    return WeightRow(name, op, "packed", reason, values, bits, *made), weight


def _holds(module: nn.Module, leaf: str, weight: nn.Parameter) -> bool:
    try:
        return memory_key(module.get_parameter(leaf)) == memory_key(weight)
    except AttributeError:  # packed already
        return False


def _padded(columns: int, scheme: Scheme) -> int | None:
    """Return the columns to pad to so that groups divide them; None where that cannot help."""
    granularity = scheme.granularity
    if isinstance(granularity, PerGroup) and granularity.axis in (-1, 1):
        return -(-columns // granularity.size) * granularity.size
    if isinstance(granularity, PerBlock) and len(granularity.shape) == 1:
        return -(-columns // granularity.shape[0]) * granularity.shape[0]
    return None


def _join(owner: str, leaf: str) -> str:
    return f"{owner}.{leaf}" if owner else leaf
