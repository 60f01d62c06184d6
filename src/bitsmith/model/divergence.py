"""Training that left the finite numbers: the error, and what went wrong first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.errors import InputError

__all__ = [
    "DivergedError",
    "count_not_finite",
    "first_not_finite",
    "not_finite",
    "of_the_batch",
    "of_the_loss",
]


@final
class DivergedError(InputError):
    """The loss, a weight or a scale is NaN or infinite; the module has its last good state."""


def count_not_finite(what: str, values: Any) -> list[str]:
    """Return how many values of a tensor are NaN or infinite, in words; nothing where none is."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        return []
    count = int((~torch.isfinite(values.detach())).sum())
    return [f"{what}: {count} of {values.numel()} values are NaN or infinite"] if count else []


def not_finite(module: nn.Module) -> list[str]:
    """Return the names of parameters and buffers with NaN or infinite values."""
    return [name for name, value in module.state_dict().items() if count_not_finite(name, value)]


def of_the_batch(x: Tensor, y: Tensor) -> list[str]:
    """Return what is wrong with a batch itself."""
    return [*count_not_finite("the inputs of this batch", x), *count_not_finite("its targets", y)]


@torch.no_grad()
def first_not_finite(module: nn.Module, x: Tensor, y: Tensor) -> str:
    """Return what went wrong first in ``module`` on a batch whose loss is not finite.

    The batch itself, else parameters and buffers, and the first submodule whose output is not
    finite.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> _ = net[0].weight.data.fill_(3e38)
    >>> first_not_finite(net, torch.full((1, 2), 9.0), torch.zeros(1))
    'output of 0 (Linear): 2 of 2 values are NaN or infinite'
    """
    if bad := of_the_batch(x, y):
        return "; ".join(bad)
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(part: nn.Module, _: Any, output: Any) -> None:
            label = f"output of {name or 'the model'} ({type(part).__name__})"
            if not found:
                found.extend(b for t in _tensors(output) for b in count_not_finite(label, t))

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in module.named_modules()]
    try:
        output = module(x)
    finally:
        for handle in handles:
            handle.remove()
    state = [f"{name} is not finite" for name in not_finite(module)]
    return "; ".join([*found[:1], *state]) or of_the_loss(output)


def of_the_loss(output: Any) -> str:
    """Return the verdict on outputs that are all finite."""
    largest = max((float(t.abs().max()) for t in _tensors(output) if t.numel()), default=0.0)
    return f"outputs (up to {largest:g}) and targets are finite, their loss is not"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
