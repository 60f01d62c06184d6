"""Samples put together from two: few become many, and the float model says what they are."""

from __future__ import annotations

import torch
from torch import Tensor

from bitsmith.errors import DataError

__all__ = ["mixed"]


def mixed(x: Tensor) -> Tensor:
    """Return samples in each of which is some of another sample of the batch.

    Images ``[N, C, H, W]`` get one rectangle of another one each, the same for all of the batch, of
    an area share uniform in [0, 1] (CutMix, arXiv 1905.04899, section 3.1, without its labels).
    Other floats are ``w · x_i + (1 − w) · x_j``, w uniform in [1/2, 1] (mixup, arXiv 1710.09412,
    equation 1, without its labels). A batch of one has nothing to mix with, and stays as it is.

    What is drawn is drawn from PyTorch's random state.

    Args:
        x: a batch ``[N, …]`` of floats; not changed.

    Raises:
        DataError: the samples are no floats.

    >>> mixed(torch.ones(4, 3)).tolist() == torch.ones(4, 3).tolist()
    True
    """
    if not x.is_floating_point():
        raise DataError(
            f"samples that are mixed are floats, and these are {x.dtype}: there is nothing between "
            "two tokens or indices; train without mix"
        )
    other = torch.randperm(len(x))
    if x.dim() != 4:
        weight = (1 + torch.rand(len(x), *(1,) * (x.dim() - 1))).to(x) / 2
        return weight * x + (1 - weight) * x[other]
    side = float(torch.rand(())) ** 0.5
    size = [int(side * whole) for whole in x.shape[2:]]
    top, left = (
        int(torch.randint(whole - part + 1, ()))
        for whole, part in zip(x.shape[2:], size, strict=True)
    )
    out = x.clone()
    there = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    out[there] = x[other][there]
    return out
