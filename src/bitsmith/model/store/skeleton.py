"""The float model without its weights, for stored tensors to be put into."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from bitsmith.errors import BitsmithError, InputError
from bitsmith.zoo.load import load_model

__all__ = ["Skeleton", "build_skeleton"]

Skeleton = nn.Module | Callable[[], nn.Module] | str

_RANDOM = {
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "log_normal_",
    "normal_",
    "random_",
    "uniform_",
}


@final
class _Uninitialised(TorchFunctionMode):
    """``torch.empty`` takes no memory, and nothing is drawn for tensors without values.

    ``torch.device("meta")`` would take everything there, also tables that only the constructor
    can compute; and its arithmetic imports PyTorch's compiler: seconds, and more memory than a
    small model.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        target = args[0] if args else given.get("tensor")  # as torch.nn.init passes it
        random = getattr(func, "__name__", "") in _RANDOM
        if random and isinstance(target, Tensor) and target.is_meta:
            return target
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


def _to_meta(module: nn.Module, name: str, parameter: Any) -> Any:
    """Take a parameter that has memory after all to the meta device as soon as it is registered."""
    if parameter is None or parameter.is_meta:
        return None
    return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)


def build_skeleton(model: Skeleton | None, builder: str | None, folder: Path) -> nn.Module:
    """Return a float model to change, its parameters on the meta device where it is built here.

    Args:
        model: a module, of which the copy shares the tensors; a callable; a name; or None.
        builder: the name in the folder, for None.
        folder: for messages.

    Raises:
        InputError: there is nothing to build, or it is not to be trusted unasked.
    """
    if isinstance(model, nn.Module):
        shared = itertools.chain(model.parameters(), model.buffers())
        return copy.deepcopy(model, {id(t): t for t in shared})
    if model is None:
        if builder is None:
            raise InputError(
                f"{folder} does not say what builds its model: pass it without weights, as "
                "model=lambda: Net(…)"
            )
        if ":" in builder or builder.endswith(".pt2"):
            raise InputError(
                f"{folder} was made with {builder!r}, which would run code that the folder names: "
                f"pass model={builder!r} (bitsmith verify: --model {builder}) if you trust it"
            )
        model = builder
    if isinstance(model, str):
        name = model
        built = _without_weights(lambda: load_model(name, pretrained=False).module)
    else:
        built = _without_weights(model)
    if not isinstance(built, nn.Module):
        raise InputError(f"model() returned a {type(built).__name__}, no nn.Module")
    return built


def _without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    hook = register_module_parameter_registration_hook(_to_meta)
    try:
        with _Uninitialised():
            return build()
    except BitsmithError:
        raise
    except Exception as error:  # a constructor may raise anything when a weight has no value
        raise InputError(
            f"building the model without weights failed: {type(error).__name__}: {error}; pass it "
            "built (model=Net(…)), with its weights on the meta device or not"
        ) from error
    finally:
        hook.remove()
