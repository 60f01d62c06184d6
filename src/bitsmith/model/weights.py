"""Weight-only and dynamic quantization of any module: recipe and, if given, data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.algorithms.rounding import Rounding
from bitsmith.algorithms.roundings.nearest import Nearest
from bitsmith.algorithms.roundings.searched import Searched
from bitsmith.algorithms.transform import Transform
from bitsmith.data.training import check_training_data
from bitsmith.errors import DataError, RecipeError, SchemeError
from bitsmith.model.blocks import input_statistics, named_arguments, owner_blocks
from bitsmith.model.fisher import squared_gradients
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.owners import Owner
from bitsmith.model.passes import Passes, block_passes
from bitsmith.model.presets import make_recipe
from bitsmith.model.recipe import Recipe
from bitsmith.model.swap import (
    Plan,
    Ragged,
    RoundedWeight,
    Rounder,
    Swap,
    joined,
    plan_modules,
)
from bitsmith.model.weight_rows import WeightRow, with_kernels
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Extrema, Fisher, Gram, Statistic

__all__ = ["coverage_of", "quantize_weights"]

_STEPS = 20
"""Candidates of a range search: within 1 % of the error of 64, in a third of the time."""
_FINE = 7
"""Bits from which the range of nearest rounding is as good as any."""


def quantize_weights(
    model: nn.Module,
    recipe: str | Recipe = "W4G64",
    data: Iterable[Any] | None = None,
    *,
    rounding: str | None = None,
    transform: str | None = None,
    ragged: Ragged = "error",
    advance: Callable[[int], None] | None = None,
) -> nn.Module:
    """Return a copy of ``model`` with packed weights; nothing is traced.

    The copy shares what stays float with ``model``, and carries ``coverage`` (one row for every
    weight) and ``recipe``.

    Without data, weights of less than 7 bits are rounded to nearest in ranges searched for each
    group, tables are clustered, and others rounded in the min–max range. With data, GPTQ
    rounds integer weights of linear layers and convolutions, other formats are searched with
    the second moments of their inputs. It goes block by block, so that memory holds the
    statistics of one block, and later blocks see what the earlier ones became. Roundings that
    need gradients (``fisher-kmeans``) get those of the float model's own predictions, of all
    weights in one pass: :func:`bitsmith.model.fisher.squared_gradients`.

    Args:
        model: any module in evaluation mode.
        recipe: of the module lane: ``W4G64``, ``W8``, ``NF4``, ``CODEBOOK4``, ``W8A8-dynamic`` …
        data: calibration batches: a tensor, a tuple of positional or a dict of keyword
            arguments of ``model``. They are gone through once for every block (twice with
            ``smoothquant``) and never kept, so memory does not grow with the data; an iterator,
            which gives them once, does for a model of one block only.
        rounding: a rounding by name; None chooses as said above. A weight of whose inputs there
            are no statistics (an embedding's, an LSTM's) is rounded as without data where the
            rounding needs them, and its row in ``coverage`` says so.
        transform: ``awq``, or ``smoothquant`` (for dynamic activations): scales that move the
            difficulty between the inputs and the weights of linear layers. The layer divides its
            input by them. Needs data; a tied weight is left alone, and its row says so.
        ragged: where a group size does not divide the rows of a weight: ``error``, ``pad`` the
            rows with zeros, or leave the weight ``float``.
        advance: told the number of weights of each layer that is done.

    Raises:
        RecipeError: the recipe is static, a rule matches nothing, or there is nothing to do.
        SchemeError: a group size does not divide, or the transform does not take learned tables
            (every weight is listed), or the rounding that was asked for cannot follow the scheme
            of a weight.
        WeightsError: weights that are not finite, or on the meta device.
        DataError: the data is empty, or an iterator where several passes are needed; or the
            rounding needs data and has none.
    """
    chosen = make_recipe(recipe)
    if chosen.lane != "module":
        raise RecipeError(f"recipe {chosen.name!r} is static: it goes through ptq with data")
    check_training_data(data, "calibration")
    batches = None if data is None else Passes(data)
    kind = None if rounding is None else Rounding.registry[rounding]
    if kind is not None and kind.needs is not None and batches is None:
        raise DataError(f"rounding {rounding!r} needs calibration data (data=…)")
    change = None if transform is None else Transform.registry[transform]()
    if change is not None and batches is None:
        raise DataError(f"transform {transform!r} needs calibration data (data=…)")
    plan = plan_modules(model, chosen, ragged)
    learned = [name for name, scheme in plan.schemes.items() if scheme.learned]
    if change is not None and learned and not change.learned:
        raise SchemeError(change.refusal(f"each of {', '.join(learned)}"))
    swap = Swap(model, plan, chosen.activation)
    blocks = owner_blocks(swap.model, swap.owners)
    twice = change is not None and change.needs is Extrema
    felt = kind is not None and kind.needs is Fisher
    seen_inputs = batches is not None and not (felt and change is None)
    if batches is not None and batches.once:
        passes = block_passes(swap.model, blocks) * (1 + twice) if seen_inputs else 0
        batches.check_passes(passes + felt, chosen)
    fishers = _gradients(model, plan, batches) if felt and batches is not None else None
    for block in blocks:
        grams = {}
        if batches is not None and seen_inputs:
            grams = input_statistics(swap.model, block, batches)
        seen = grams
        if twice and batches is not None:
            seen = input_statistics(swap.model, block, batches, lambda: Extrema(axis=-1))
        for owner in block.owners:
            inputs = _inputs_of(owner, grams.get(owner.name), seen_inputs)
            if change is not None:
                inputs = _transformed(change, owner, swap, seen.get(owner.name), inputs)
            swap.swap(owner, _rounder(rounding, inputs, fishers))
            if inputs.scales is not None:
                layer = swap.model.get_submodule(owner.name)
                assert isinstance(layer, QuantLinear)
                layer.input_scale = inputs.scales
            if advance is not None:
                advance(sum(owner.module.get_parameter(w).numel() for w in owner.weights))
    result: Any = swap.model
    if isinstance(getattr(result, "coverage", []), Tensor | nn.Module):
        raise RecipeError("the model has a submodule or parameter called 'coverage': rename it")
    result.coverage, result.recipe = with_kernels(swap.rows, result), chosen
    quantized: nn.Module = result
    return quantized


def coverage_of(model: nn.Module) -> list[WeightRow]:
    """Return one row for every weight of a model that :func:`quantize_weights` made.

    Raises:
        RecipeError: it did not.
    """
    rows = getattr(model, "coverage", None)
    if not isinstance(rows, list):
        raise RecipeError(f"{type(model).__name__} was not quantized here: it has no coverage")
    return rows


@final
@dataclass(frozen=True)
class _Inputs:
    """What is known of the inputs of a layer, and what was done to them.

    Attributes:
        gram: their statistic, after the division by ``scales``; None without.
        missing: why there is none although there is data.
        scales: that the input is divided by; None for none.
        transform: that gave the scales; empty where there are none.
        note: why a transform that was asked for gave none.
    """

    gram: Gram | None = None
    missing: str = ""
    scales: Tensor | None = None
    transform: str = ""
    note: str = ""


def _inputs_of(owner: Owner, statistic: Statistic | None, data: bool) -> _Inputs:
    """Return what is known of the inputs of a layer."""
    if statistic is not None:
        assert isinstance(statistic, Gram)
        return _Inputs(statistic)
    if not data:
        return _Inputs()
    unseen = "no calibration batch reached it"
    return _Inputs(
        missing=unseen if owner.op == "linear" else f"none were gathered for this {owner.op}"
    )


def _transformed(
    change: Transform, owner: Owner, swap: Swap, statistic: Statistic | None, inputs: _Inputs
) -> _Inputs:
    """Return the inputs with scales, or with the reason why there are none."""
    reason = swap.unscalable(owner)
    if reason or statistic is None:
        return replace(inputs, note=f"no {change.name}: {reason or inputs.missing}")
    weight = owner.module.get_parameter("weight").detach().float()
    found = change([weight], swap.scheme_of(owner, "weight"), statistic)
    if found.kept_identity:
        return replace(inputs, note=f"no {change.name}: no scales were better than 1")
    gram = None if inputs.gram is None else found.gram(inputs.gram)
    return replace(inputs, gram=gram, scales=found.scales, transform=change.name)


def _gradients(model: nn.Module, plan: Plan, batches: Iterable[Any]) -> dict[str, Fisher]:
    """Return weight name → squared gradients of the loss in the float model."""
    named = (named_arguments(model, batch) for batch in batches)
    return squared_gradients(model, list(plan.schemes), named, unreached="omit")


def _rounder(asked: str | None, inputs: _Inputs, fishers: Mapping[str, Fisher] | None) -> Rounder:
    """Return what rounds a weight, and says how it did.

    Args:
        asked: the rounding by name.
        inputs: of the layer.
        fishers: weight name → squared gradients; None where the rounding takes none.
    """

    def rounder(weight_name: str, weight: Tensor, scheme: Scheme) -> RoundedWeight:
        given, what, missing = _statistic(weight_name, weight, inputs, fishers)
        if inputs.scales is not None:
            weight = weight.clone()
            weight[:, : len(inputs.scales)] *= inputs.scales
        wanted = asked or _default(scheme, given is not None or bool(missing))
        kind, reason = Rounding.registry[wanted], ""
        if given is None and missing and kind is not Nearest:
            if kind.needs is not None:
                kind = Rounding.registry[_default(scheme, False)]
                reason = f"{wanted} needs statistics of its {what}: {missing}"
            elif kind.takes is not None:
                reason = f"{wanted} without statistics of its {what}: {missing}"
        statistic = given if type(given) in (kind.needs, kind.takes) else None
        rounding = Searched(_STEPS) if kind is Searched else kind()
        try:
            found = rounding(weight, scheme, statistic=statistic)
        except (SchemeError, DataError) as error:
            raise type(error)(f"{weight_name}: {error}") from error
        algorithm = kind.name
        if found.kept_nearest and kind is not Nearest:
            algorithm = Nearest.name
            reason = joined(reason, f"{kind.name} was not better than nearest rounding")
        return RoundedWeight(
            found.qtensor,
            "+".join(filter(None, (inputs.transform, algorithm))),
            found.objective,
            found.nearest_objective,
            joined(inputs.note, reason),
        )

    return rounder


def _statistic(
    name: str, weight: Tensor, inputs: _Inputs, fishers: Mapping[str, Fisher] | None
) -> tuple[Statistic | None, str, str]:
    """Return the statistic for a weight, of what it is, and why there is none."""
    if fishers is None:
        given = None if inputs.gram is None else _padded(inputs.gram, weight.shape[1])
        return given, "inputs", inputs.missing
    if name not in fishers:
        return None, "gradients", "the loss does not depend on it"
    return _of_rows(fishers[name], weight, inputs.scales), "gradients", ""


def _padded(gram: Gram, columns: int) -> Gram | None:
    """Return the statistic of rows padded with zeros; None where it is of other inputs."""
    own = gram.sums.shape[-1]
    if own >= columns:
        return gram if own == columns else None
    wide = copy.copy(gram)
    wide.sums = functional.pad(gram.sums, (0, columns - own, 0, columns - own))
    return wide


def _of_rows(fisher: Fisher, weight: Tensor, scales: Tensor | None) -> Fisher:
    """Return the statistic of a weight as it is rounded: of rows, scaled, padded with zeros."""
    rows, own = copy.copy(fisher), fisher.sums.flatten(1)
    if scales is not None:  # ∂/∂(w·s) = (∂/∂w) / s
        own = own / scales.to(torch.float64).square()
    rows.sums = functional.pad(own, (0, weight.shape[1] - own.shape[1]))
    return rows


def _default(scheme: Scheme, data: bool) -> str:
    """Return the rounding of a scheme, with statistics of the layer's inputs or without."""
    if scheme.learned:
        return "kmeans"
    if scheme.format.bits >= _FINE:
        return "nearest"
    return "gptq" if data and scheme.scaled else "searched"
