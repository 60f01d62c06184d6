"""The batch norms of a module: what they remember of the training data, and what they are given."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bitsmith.errors import InputError, WeightsError

__all__ = ["fingerprint", "recorded_inputs", "stored_statistics", "trained_batch_norms"]


def trained_batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms of ``model`` by name, after checking that they remember something.

    Raises:
        InputError: there are none (what there is instead is listed); or some keep no running
            statistics, or still have those they were built with. All are named.
        WeightsError: running statistics are not finite, or a variance is negative.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    >>> _ = net(torch.randn(9, 3))  # in training mode: the batch norm takes statistics
    >>> list(trained_batch_norms(net))
    ['1']
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not norms:
        kinds = Counter(type(m).__name__ for m in model.modules() if not any(m.children()))
        held = ", ".join(f"{kind} ×{count}" for kind, count in kinds.most_common())
        raise InputError(
            f"{type(model).__name__} has no batch norms, only {held or 'nothing'}; data can be "
            "synthesised only from the statistics that batch norms store: give the model before "
            "they are folded into its weights, as modules (not as an exported program), or use "
            "real data"
        )
    without = [n for n, m in norms.items() if m.running_mean is None or m.running_var is None]
    if without:
        raise InputError(
            f"batch norms without running statistics: {', '.join(without)}; they were built with "
            "track_running_stats=False and remember nothing of the training data; use real data"
        )
    bad = [name for name, norm in norms.items() if not _sane(norm)]
    if bad:
        raise WeightsError(
            "running statistics that are NaN, infinite, or a negative variance: "
            f"{', '.join(bad)}; load the weights again"
        )
    fresh = [name for name, norm in norms.items() if _fresh(norm)]
    if fresh:
        raise InputError(
            f"batch norms that were never trained (mean 0 and variance 1 in every channel): "
            f"{', '.join(fresh)}; load trained weights first"
        )
    return norms


def stored_statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the running mean [C] and standard deviation √(variance + eps) [C]."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, (norm.running_var + norm.eps).sqrt()


@contextmanager
def recorded_inputs(norms: dict[str, _BatchNorm]) -> Iterator[list[tuple[_BatchNorm, Tensor]]]:
    """Give a list that every call of a batch norm adds ``(norm, input [B, C, …])`` to."""
    inputs: list[tuple[_BatchNorm, Tensor]] = []

    def record(norm: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        inputs.append((norm, given[0]))

    handles = [norm.register_forward_pre_hook(record) for norm in norms.values()]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def fingerprint(norms: dict[str, _BatchNorm]) -> str:
    """Return a SHA-256 in hex of the names and running statistics."""
    digest = hashlib.sha256()
    for name, norm in norms.items():
        digest.update(f"{name}\n".encode())
        for value in stored_statistics(norm):
            digest.update(value.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def _sane(norm: _BatchNorm) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    finite = bool(mean.isfinite().all()) and bool(variance.isfinite().all())
    return finite and bool((variance >= 0).all())


def _fresh(norm: _BatchNorm) -> bool:
    mean, std = stored_statistics(norm)
    return bool((mean == 0).all()) and bool((std == (1 + norm.eps) ** 0.5).all())
