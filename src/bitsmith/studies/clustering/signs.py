"""The same network with batch norms that multiply by nothing negative."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["without_negative_factors"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Of the largest output, that rounding in float32 may change.
_TOLERANCE = 1e-4


@torch.no_grad()
def without_negative_factors(module: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy that computes the same, its factors of batch norms not negative.

    ``γ · (w ∗ x − μ) / σ + β`` stays what it is where γ, w and μ of a channel change sign. Folded
    into the convolution, a factor then is a positive scale, and weights that are equal before are
    equal times it. A batch norm belongs to the convolution that stands before it in the module,
    with as many channels; where that changes what the network computes, it is returned as it is.

    Args:
        module: in evaluation mode; not changed.
        example: inputs on which the two are compared.
    """
    changed, before = copy.deepcopy(module), None
    for layer in changed.modules():
        if isinstance(layer, _CONVOLUTIONS):
            before = layer
        elif isinstance(layer, _NORMS) and before is not None:
            if layer.affine and layer.num_features == before.out_channels:
                _flip(before, layer, layer.weight < 0)
            before = None
    was, now = module(example), changed(example)
    same = float((now - was).abs().max()) <= _TOLERANCE * float(was.abs().max())
    return changed if same else copy.deepcopy(module)


def _flip(convolution: nn.Module, norm: nn.Module, chosen: Tensor) -> None:
    """Change the sign of some channels of a convolution and of its batch norm."""
    for part in (convolution.weight, convolution.bias, norm.weight, norm.running_mean):
        if isinstance(part, Tensor):
            part[chosen] = -part[chosen]
