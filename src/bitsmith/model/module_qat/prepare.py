"""From a float model to one that trains with quantized weights."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any, final

import torch
from torch import nn

from bitsmith.errors import RecipeError, SchemeError
from bitsmith.model.identity import digest, identity_of_recipe
from bitsmith.model.layers.replace import is_linear
from bitsmith.model.module_qat.attach import DENSE, attach, fused_layers
from bitsmith.model.module_qat.check import refuse_other_recipe
from bitsmith.model.module_qat.quantizer import WeightQuantizer, choose
from bitsmith.model.owners import Owner, memory_key
from bitsmith.model.presets import make_recipe
from bitsmith.model.recipe import Recipe
from bitsmith.model.swap import Plan, Ragged, plan_modules
from bitsmith.model.weight_rows import WeightRow
from bitsmith.numbers.scheme import Scheme

__all__ = ["prepare"]


def prepare(
    model: nn.Module,
    recipe: str | Recipe,
    *,
    learn: str = "lsq",
    ragged: Ragged = "error",
) -> nn.Module:
    """Return a copy of ``model`` that trains with the weights ``recipe`` will pack.

    The copy is an ordinary module: optimizers, schedulers, autocast, ``torch.compile``,
    ``DistributedDataParallel`` and checkpoints of its ``state_dict`` work as with the float model.
    Every planned weight is computed in each forward pass from a float parameter
    (``layer.parametrizations.weight.original``), rounded as it will be stored, scales included;
    inputs of linear layers are quantized token by token where the recipe says so. Gradients pass
    straight through the rounding. :func:`bitsmith.model.module_qat.convert` packs the result.

    The copy carries ``recipe`` and ``coverage``: one row for every weight, with the quantizer as
    the algorithm. Weights that were tied still are, and share a quantizer. A whole module cannot
    be pickled, as no parametrized module can: save its state dict, and load it into a copy that
    was prepared alike; another recipe's is refused.

    Args:
        model: any module, with trained weights to start from; it is not changed.
        recipe: of the module lane: ``W4``, ``W4G32``, ``W8A8-dynamic``, ``CODEBOOK4``, ``NF4`` …
        learn: ``lsq``: scales (and offsets, and tables) are parameters that are trained with the
            weights; ``minmax``: they are computed from the weight in every step: its extremes, or
            the means of ``xnor`` and ``twn`` where it is binary or ternary. Or a weight quantizer
            by its own name.
        ragged: as of :func:`bitsmith.model.weights.quantize_weights`.

    Raises:
        RecipeError: the recipe is static, a rule matches nothing, or there is nothing to train.
        SchemeError: a weight's scheme cannot be trained this way (every one is listed), or a group
            size does not divide.
        UnknownNameError: no such way to learn.
        WeightsError: weights that are not finite, or on the meta device.
    """
    chosen = make_recipe(recipe)
    if chosen.lane != "module":
        raise RecipeError(
            f"recipe {chosen.name!r} is static: it trains the captured graph, with an example of "
            "the model's input"
        )
    plan = plan_modules(model, chosen, ragged)
    kinds = _kinds(plan, chosen, learn)
    result: Any = copy.deepcopy(model)
    if isinstance(getattr(result, "coverage", []), torch.Tensor | nn.Module):
        raise RecipeError("the model has a submodule or parameter called 'coverage': rename it")
    named = dict(result.named_modules())
    makers = _Makers(plan, kinds)
    for owner in plan.owners:
        quantizers: dict[str, WeightQuantizer] = {}
        for leaf in owner.weights:
            quantizer = makers.take(owner, leaf, named[owner.name])
            if quantizer is not None:
                quantizers[leaf] = quantizer
        if quantizers:
            whole = is_linear(owner) and set(quantizers) == {"weight"}
            attach(named[owner.name], quantizers, chosen.activation if whole else None)
    fused_layers(result, False)
    result.register_load_state_dict_pre_hook(refuse_other_recipe)
    result.coverage, result.recipe = makers.rows, chosen
    tensors = (*model.named_parameters(), *model.named_buffers())
    result.source_identity = identity_of_recipe(chosen) | {"float weights sha256": digest(tensors)}
    trained: nn.Module = result
    return trained


@final
class _Makers:
    """Makes the quantizers of a model, one for weights that are tied, and lists them.

    Attributes:
        rows: one for every weight, in module order.
    """

    def __init__(self, plan: Plan, kinds: dict[str, type[WeightQuantizer]]) -> None:
        self.rows: list[WeightRow] = []
        self._plan, self._kinds = plan, kinds
        self._made: dict[Hashable, tuple[str, nn.Parameter, WeightQuantizer | None]] = {}

    def take(self, owner: Owner, leaf: str, module: nn.Module) -> WeightQuantizer | None:
        """Return the quantizer of a weight, or None where it stays float.

        Args:
            owner: of the float model, in whose memory it shows which weights are tied.
            leaf: name of the weight in it.
            module: the copy of the layer.
        """
        name, parameter = _join(owner.name, leaf), module.get_parameter(leaf)
        key, values = memory_key(owner.module.get_parameter(leaf)), parameter.numel()
        if key in self._made:
            first, one, quantizer = self._made[key]
            _tie(module, leaf, one)
            outcome = "float" if quantizer is None else "tied"
            self.rows.append(WeightRow(name, owner.op, outcome, f"tied to {first}", values, 0.0))
            return quantizer
        reason, scheme = self._plan.reasons.get(name, ""), self._plan.schemes.get(name)
        if scheme is None:
            self._made[key] = name, parameter, None
            bits = 8.0 * parameter.element_size()
            self.rows.append(WeightRow(name, owner.op, "float", reason, values, bits))
            return None
        quantizer = self._kinds[name](parameter, scheme, name, self._plan.columns.get(name))
        self._made[key] = name, parameter, quantizer
        if isinstance(module, nn.Embedding) and module.sparse:
            reason = "; ".join(filter(None, (reason, DENSE)))
        bits = 8 * quantizer.qtensor(quantizer.flat(parameter.detach())).nbytes / values
        row = WeightRow(name, owner.op, "trained", reason, values, bits, quantizer.name)
        self.rows.append(row)
        return quantizer


def _tie(module: nn.Module, leaf: str, parameter: nn.Parameter) -> None:
    """Make the weight that parameter: one that shared its memory is a copy of its own by now."""
    path, _, last = leaf.rpartition(".")
    holder = module.get_submodule(path)
    if holder._parameters.get(last) is not parameter:
        setattr(holder, last, parameter)


def _kinds(plan: Plan, recipe: Recipe, learn: str) -> dict[str, type[WeightQuantizer]]:
    """Return the quantizer of every planned weight.

    Raises:
        SchemeError: some cannot be trained; all are listed.
    """
    kinds: dict[str, type[WeightQuantizer]] = {}
    refused = []
    for name, scheme in plan.schemes.items():
        try:
            kinds[name] = choose(learn, scheme)
        except SchemeError as error:
            refused.append(f"{name} ({scheme.format.name}): {error}")
    if recipe.activation is not None:
        refused += _beside_integers(plan)
    if refused:
        raise SchemeError(
            "\n  ".join([f"recipe {recipe.name!r} cannot be trained with {learn!r}:", *refused])
        )
    return kinds


def _beside_integers(plan: Plan) -> list[str]:
    """Return the linear weights whose scheme has no integer sums with one scale a row."""
    refused = []
    schemes: dict[Hashable, Scheme | None] = {}
    for owner in plan.owners:
        for leaf in owner.weights:
            weight, name = owner.module.get_parameter(leaf), _join(owner.name, leaf)
            scheme = schemes.setdefault(memory_key(weight), plan.schemes.get(name))
            if is_linear(owner) and scheme is not None and not _sums(scheme, weight):
                refused.append(
                    f"{name}: quantized inputs need a symmetric integer weight with one scale a "
                    f"row, not {scheme.format.name}, {scheme.granularity}"
                )
    return refused


def _sums(scheme: Scheme, weight: nn.Parameter) -> bool:
    rows = weight.flatten(1).shape
    groups = scheme.granularity.scale_shape(rows)
    return scheme.affine and scheme.symmetric and groups in ((), (rows[0], 1))


def _join(owner: str, leaf: str) -> str:
    return f"{owner}.{leaf}" if owner else leaf
