"""Is what trains still in order: numbers that are finite, and checkpoints of the same recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError
from bitsmith.model.module_qat.quantizer import (
    WeightQuantizer,
    identity_of,
    read_state,
    weight_quantizers,
)

__all__ = ["check_finite", "forget_recipe", "inside", "refuse_other_recipe"]

_STATE = "_extra_state"


def check_finite(model: nn.Module, *, collapsed: bool = True) -> None:
    """Refuse a model in training some of whose numbers are NaN, infinite, or a scale of nothing.

    Args:
        model: of ``prepare``, also wrapped.
        collapsed: also refuse weights all of whose scales fell to their floor, 1/1024 of where
            they started.

    Raises:
        InputError: names every layer with the quantity (weight, scale, offset, table, or the
            gradient of one) and how many of its values; or the model was not prepared.
    """
    model = inside(model)
    bad: list[str] = []
    own: set[int] = set()
    for _, original, quantizer in weight_quantizers(model):
        quantities = {"weight": original, **dict(quantizer.named_parameters(recurse=False))}
        own |= {id(q) for q in quantities.values()}
        for what, values in quantities.items():
            bad += _offences(quantizer.label, what, values)
        count = quantizer.collapsed() if collapsed else 0
        if count and count == quantizer.layout.count:
            bad.append(f"{quantizer.label}: its scale has collapsed to 0")
    for name, parameter in model.named_parameters():
        if id(parameter) not in own:
            bad += _offences(name, "value", parameter)
    for name, buffer in model.named_buffers():
        bad += _offences(name, "value", buffer)
    if bad:
        raise InputError(
            "\n  ".join(["training has gone wrong:", *bad])
            + "\ngo back to the last good checkpoint and lower the learning rate, or freeze the "
            "scales (freeze_scales)"
        )


def _offences(name: str, what: str, values: Tensor) -> list[str]:
    """Return what is wrong with a tensor and its gradient, in words."""
    found = []
    for kind, part in ((what, values), (f"gradient of the {what}", values.grad)):
        if part is None or not part.is_floating_point():
            continue
        count = int((~torch.isfinite(part.detach())).sum())
        if count:
            found.append(f"{name}: {kind}: {count} of {part.numel()} are NaN or infinite")
    return found


def inside(model: nn.Module) -> nn.Module:
    """Return the prepared model inside wrappers: compiled, data parallel, averaged.

    Raises:
        InputError: there is none.
    """
    found: Any = model
    while not isinstance(found.__dict__.get("coverage"), list):
        found = found._modules.get("_orig_mod") or found._modules.get("module")
        if found is None:
            break
    if found is None or next(weight_quantizers(found), None) is None:
        raise InputError(f"{type(model).__name__} was not prepared for training here")
    result: nn.Module = found
    return result


def refuse_other_recipe(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuse a state dict of another recipe before anything is loaded.

    A hook of the prepared model, called by ``load_state_dict``.

    Raises:
        InputError: weights that the checkpoint trains otherwise, or not at all; all are listed.
    """
    found = {
        key: value
        for key, value in state.items()
        if key.startswith(prefix) and key.endswith(_STATE) and ".parametrizations." in f".{key}"
    }
    wrong = []
    for path, part in module.named_modules(prefix=prefix.removesuffix(".")):
        if not isinstance(part, WeightQuantizer):
            continue
        given = found.pop(f"{path}.{_STATE}", None)
        own = identity_of({"identity": part.identity()})
        if given is None:
            wrong.append(f"{part.label}: float in the checkpoint, here {own}")
        elif read_state(given).get("identity") != part.identity():
            wrong.append(f"{part.label}: {identity_of(read_state(given))} there, here {own}")
    wrong += [f"{key}: {identity_of(read_state(value))} there, here float" for key, value in
              found.items()]  # fmt: skip
    if wrong:
        raise InputError(
            "\n  ".join(["the checkpoint was trained with another recipe:", *wrong])
            + "\nprepare the model with the checkpoint's recipe, ragged and learn"
        )


def forget_recipe(model: nn.Module) -> None:
    """Remove the hook from a model that trains no longer."""
    hooks = model._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if getattr(hook, "hook", None) is refuse_other_recipe:
            del hooks[key]
