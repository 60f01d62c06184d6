"""Optimizers and learning rates of the training loop."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from bitsmith.errors import InputError

__all__ = ["cosine", "make_optimizer"]


def make_optimizer(
    parameters: list[nn.Parameter],
    name: str | torch.optim.Optimizer,
    lr: float,
    momentum: float,
    decay: float,
) -> torch.optim.Optimizer:
    if isinstance(name, torch.optim.Optimizer):
        return name
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    raise InputError(f"optimizer is 'sgd' or 'adamw', not {name!r}")


def cosine(lr: float, epoch: int, epochs: int, steps: int | None) -> Iterator[float]:
    """Yield the learning rate of each step of an epoch, without end."""
    step = 0
    while True:
        # Within an epoch of unknown length the rate stays where the epoch began.
        share = 0.0 if steps is None else min(step / steps, 1.0)
        yield lr * (1 + math.cos(math.pi * (epoch + share) / epochs)) / 2
        step += 1
