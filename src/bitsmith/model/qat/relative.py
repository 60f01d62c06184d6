"""Adam whose steps are shares of what they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.model.qat.codes import wide
from bitsmith.model.qat.weights.learned_step import LearnedStep
from bitsmith.model.qat.weights.table import TableCodes

__all__ = ["RelativeAdam", "step_sizes"]


@final
class RelativeAdam(torch.optim.Adam):
    """Adam (arXiv 1412.6980) with steps in units of each output channel's size.

    Where batch norms are folded, the channels of a weight differ in size by orders of magnitude,
    and one learning rate is too large for some. A step of a weight ``[O, …]`` is multiplied by the
    root mean square that its channel had at first, that of a vector by the vector's, as in
    Adafactor (arXiv 1804.04235, section 8); scalars take Adam's own step. Where ``sizes`` names a
    parameter, its steps are in those units instead: see :func:`step_sizes`.

    >>> weight = torch.nn.Parameter(torch.tensor([[100.0, 100.0], [1.0, 1.0]]))
    >>> descent = RelativeAdam([weight], lr=0.01)
    >>> weight.sum().backward()
    >>> descent.step()
    >>> [[round(value, 2) for value in row] for row in weight.tolist()]
    [[99.0, 99.0], [0.99, 0.99]]
    """

    def __init__(
        self, params: Any, lr: float = 1e-3, sizes: Mapping[nn.Parameter, Tensor] | None = None
    ) -> None:
        super().__init__(params, lr=lr)
        known, own = sizes or {}, [p for group in self.param_groups for p in group["params"]]
        self._sizes = [known[p] if p in known else _size(p) for p in own]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch's stub has two overloads
        """Take one step."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in parameters]
        loss: float | None = super().step(closure)
        for p, old, size in zip(parameters, before, self._sizes, strict=True):
            if p.dim():
                p.copy_(old + (p - old) * size)
        return loss


@torch.no_grad()
def step_sizes(model: nn.Module) -> dict[nn.Parameter, Tensor]:
    """Return the quantization step of each channel of the weights that train as codes.

    A weight of 2 bits has to go further than one of 4 until its code changes, so that a rate in
    steps suits both. Of a weight with a table, the channel's size over a quarter of the entries.
    """
    sizes: dict[nn.Parameter, Tensor] = {}
    for codes in model.modules():
        weight = getattr(codes, "weight", None)
        if isinstance(codes, LearnedStep):
            sizes[codes.weight] = wide(codes.start, codes.weight).clone()
        elif isinstance(codes, TableCodes) and isinstance(weight, nn.Parameter):
            sizes[weight] = _size(weight) * 4 / max(len(codes.entries), 4)
    return sizes


@torch.no_grad()
def _size(p: Tensor) -> Tensor:
    if not p.dim():
        return torch.ones_like(p)
    axes = tuple(range(1, p.dim())) if p.dim() > 1 else (0,)
    size = p.double().square().mean(axes, keepdim=True).sqrt().to(p.dtype)
    whole = p.double().square().mean().sqrt().to(p.dtype)
    size = torch.where(size > 0, size, whole)
    return torch.where(size > 0, size, torch.ones_like(size))
