"""Batch norms of PyTorch that keep their running statistics while everything else trains."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

__all__ = ["freeze", "freeze_again", "frozen_names", "is_frozen"]


def is_frozen(norm: nn.Module) -> bool:
    """Return whether :func:`freeze` was the last that was done to it."""
    return _evaluate in norm._forward_pre_hooks.values()


def freeze(norm: nn.Module, frozen: bool, training: bool) -> None:
    """Let ``norm`` evaluate whatever mode its model is in, by a hook; or take the hook away.

    Args:
        norm: a batch norm.
        frozen: whether it is to evaluate.
        training: its mode where it is not.
    """
    hooks = norm._forward_pre_hooks
    for key in [k for k, hook in hooks.items() if hook is _evaluate]:
        del hooks[key]
    if frozen:
        norm.register_forward_pre_hook(_evaluate)
    else:
        norm.train(training)


def frozen_names(module: nn.Module) -> list[str]:
    """Return the batch norms of ``module`` that are frozen: no state dict holds a hook."""
    return [n for n, m in module.named_modules() if isinstance(m, BatchNorm) and is_frozen(m)]


def freeze_again(module: nn.Module, names: Iterable[str]) -> None:
    """Freeze the batch norms of those names, and no others."""
    wanted = set(names)
    for name, part in module.named_modules():
        if isinstance(part, BatchNorm) and (name in wanted) != is_frozen(part):
            freeze(part, name in wanted, module.training)


def _evaluate(norm: nn.Module, _: Any) -> None:
    norm.training = False
