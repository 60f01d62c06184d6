"""Weight-only and dynamic quantization of any module: recipe and, if given, data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from bitsmith.algorithms.rounding import Rounding
from bitsmith.algorithms.roundings.searched import Searched
from bitsmith.algorithms.transform import Transform
from bitsmith.errors import DataError, RecipeError
from bitsmith.model.blocks import as_arguments, input_statistics, owner_blocks
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.owners import Owner
from bitsmith.model.presets import make_recipe
from bitsmith.model.recipe import Recipe
from bitsmith.model.swap import Ragged, Swap, WeightRow, plan_modules
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Extrema, Gram, Statistic

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
    statistics of one block, and later blocks see what the earlier ones became.

    Args:
        model: any module in evaluation mode.
        recipe: of the module lane: ``W4G64``, ``W8``, ``NF4``, ``CODEBOOK4``, ``W8A8-dynamic`` …
        data: calibration batches: a tensor, a tuple of positional or a dict of keyword
            arguments of ``model``; all are kept while it runs.
        rounding: a rounding by name, for every weight it can do; None chooses as said above.
        transform: ``awq``, or ``smoothquant`` (for dynamic activations): scales that move the
            difficulty between the inputs and the weights of linear layers. The layer divides its
            input by them. Needs data; a tied weight is left alone.
        ragged: where a group size does not divide the rows of a weight: ``error``, ``pad`` the
            rows with zeros, or leave the weight ``float``.
        advance: told the number of weights of each layer that is done.

    Raises:
        RecipeError: the recipe is static, a rule matches nothing, or there is nothing to do.
        SchemeError: a group size does not divide; every weight is listed.
        WeightsError: weights that are not finite, or on the meta device.
        DataError: the data is empty, or the rounding needs data and has none.
    """
    chosen = make_recipe(recipe)
    if chosen.lane != "module":
        raise RecipeError(f"recipe {chosen.name!r} is static: it goes through ptq with data")
    batches = None if data is None else list(data)
    if batches is not None:
        if not batches:
            raise DataError("the calibration data is empty: its iterator gave no batch")
        as_arguments(batches[0])
    if rounding is not None and batches is None and Rounding.registry[rounding].needs is not None:
        raise DataError(f"rounding {rounding!r} needs calibration data (data=…)")
    change = None if transform is None else Transform.registry[transform]()
    if change is not None and batches is None:
        raise DataError(f"transform {transform!r} needs calibration data (data=…)")
    swap = Swap(model, plan_modules(model, chosen, ragged), chosen.activation)
    for block in owner_blocks(swap.model, swap.owners):
        grams = {} if batches is None else input_statistics(swap.model, block, batches)
        seen = grams
        if change is not None and change.needs is Extrema and batches is not None:
            seen = input_statistics(swap.model, block, batches, lambda: Extrema(axis=-1))
        for owner in block.owners:
            gram, scales = grams.get(owner.name), None
            assert gram is None or isinstance(gram, Gram)
            if change is not None and owner.name in seen and swap.may_scale(owner):
                scales, gram = _transformed(change, owner, swap, seen[owner.name], gram)
            swap.swap(owner, _rounder(rounding, gram, scales))
            if scales is not None:
                layer = swap.model.get_submodule(owner.name)
                assert isinstance(layer, QuantLinear)
                layer.input_scale = scales
            if advance is not None:
                advance(sum(owner.module.get_parameter(w).numel() for w in owner.weights))
    result: Any = swap.model
    if isinstance(getattr(result, "coverage", []), Tensor | nn.Module):
        raise RecipeError("the model has a submodule or parameter called 'coverage': rename it")
    result.coverage, result.recipe = swap.rows, chosen
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


def _transformed(
    change: Transform, owner: Owner, swap: Swap, statistic: Statistic, gram: Gram | None
) -> tuple[Tensor | None, Gram | None]:
    """Return scales of the layer's input, None where 1 is as good, and the Gram of what is left."""
    weight = owner.module.get_parameter("weight").detach().float()
    found = change([weight], swap.scheme_of(owner, "weight"), statistic)
    if found.kept_identity:
        return None, gram
    return found.scales, None if gram is None else found.gram(gram)


def _rounder(
    name: str | None, gram: Gram | None, scales: Tensor | None
) -> Callable[[str, Tensor, Scheme], QTensor]:
    """Return what rounds a weight, with the statistic of its inputs where there is one."""

    def rounder(weight_name: str, weight: Tensor, scheme: Scheme) -> QTensor:
        given = None if gram is None else _padded(gram, weight.shape[1])
        if scales is not None:
            weight = weight.clone()
            weight[:, : len(scales)] *= scales
        kind = Rounding.registry[name or _default(scheme, given)]
        if kind.needs is not None and given is None:
            kind = Rounding.registry[_default(scheme, None)]
        takes = kind.needs or kind.takes
        statistic = given if takes is Gram else None
        rounding = Searched(_STEPS) if kind is Searched else kind()
        return rounding(weight, scheme, statistic=statistic).qtensor

    return rounder


def _padded(gram: Gram, columns: int) -> Gram | None:
    """Return the statistic of rows padded with zeros; None where it is of other inputs."""
    own = gram.sums.shape[-1]
    if own >= columns:
        return gram if own == columns else None
    wide = copy.copy(gram)
    wide.sums = functional.pad(gram.sums, (0, columns - own, 0, columns - own))
    return wide


def _default(scheme: Scheme, gram: Gram | None) -> str:
    if scheme.learned:
        return "kmeans"
    if scheme.format.bits >= _FINE:
        return "nearest"
    return "gptq" if gram is not None and scheme.scaled else "searched"
