"""What the ranks of a distributed run have seen together."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

__all__ = ["mean_over_ranks"]


@torch.no_grad()
def mean_over_ranks(*values: Tensor) -> tuple[Tensor, ...]:
    """Return the means of ``values`` over all ranks; as they are where there is one.

    >>> mean_over_ranks(torch.ones(2))[0].tolist()
    [1.0, 1.0]
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    together = torch.cat([v.detach().reshape(-1) for v in values])
    distributed.all_reduce(together)
    mean = together / distributed.get_world_size()
    parts = torch.split(mean, [v.numel() for v in values])
    return tuple(part.reshape(v.shape) for part, v in zip(parts, values, strict=True))
