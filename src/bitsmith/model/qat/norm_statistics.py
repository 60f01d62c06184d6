"""Statistics of batch norms in training, in both lanes: kept, or found anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from bitsmith.data.training import check_training_data
from bitsmith.errors import DataError, InputError
from bitsmith.model.calibrate import as_inputs
from bitsmith.model.frozen_norms import freeze, is_frozen
from bitsmith.model.qat.batch_norms import FoldedNorm
from bitsmith.model.qat.unwrap import trained_graph

__all__ = ["freeze_batch_norms", "reestimate_batch_norms"]


def freeze_batch_norms(model: nn.Module, frozen: bool = True) -> None:
    """Let batch norms use their running statistics in training, and keep them; or let them go.

    Usual for the last epochs: from then on training computes what is deployed. Gamma and beta
    train on. Checkpoints of ``fit`` hold it; of state dicts those of a graph do, and those of a
    module, whose batch norms are its own, do not.

    Args:
        model: of ``prepare`` (of a graph with ``batch_norm="train"``), also wrapped.
        frozen: False: use the statistics of each batch again.

    Raises:
        InputError: the model has no batch norm of its own.
    """
    for norm in _norms(model):
        if isinstance(norm, FoldedNorm):
            norm.frozen.fill_(int(frozen))
            continue
        freeze(norm, frozen, model.training)


@torch.no_grad()
def reestimate_batch_norms(model: nn.Module, batches: Iterable[Any]) -> None:
    """Replace the running statistics by those of ``batches``, which count alike.

    One pass in training mode, with the weights as they are rounded now. What was frozen stays
    frozen, with the new statistics. For models that train with batch norms of their own: after
    quantization without training there are none, they are folded, and the mean of each channel is
    put back by bias correction (:func:`bitsmith.model.sequential.sequential`).

    Args:
        model: as of :func:`freeze_batch_norms`; its mode stays.
        batches: ``x`` or ``(x, y)``. In a distributed run give every rank the same ones.

    Raises:
        DataError: no batches.
        InputError: the model has no batch norm of its own.
    """
    check_training_data(batches, "statistics of batch norms")
    norms = _norms(model)
    was = model.training
    before = [{k: v.clone() for k, v in n.named_buffers(recurse=False)} for n in norms]
    frozen = [n for n in norms if _is_frozen(n)]
    freeze_batch_norms(model, False)
    momenta = {n: n.momentum for n in norms if isinstance(n, BatchNorm)}
    model.train()
    found = False
    try:
        for norm in norms:
            if isinstance(norm, FoldedNorm):
                norm.begin()
            else:
                norm.reset_running_stats()
                norm.momentum = None
        count = 0
        for batch in batches:
            inputs = as_inputs(batch)
            if any(bool((~torch.isfinite(x)).any()) for x in inputs):
                raise DataError(f"batch {count + 1} has values that are NaN or infinite")
            model(*inputs)
            count += 1
        if not count:
            raise DataError("there are no batches to find statistics from; an iterator is used up?")
        found = True
    finally:
        for norm, old in zip(norms, before, strict=True):
            if isinstance(norm, FoldedNorm):
                norm.finish()
            else:
                norm.momentum = momenta[norm]
            if not found:
                for name, value in norm.named_buffers(recurse=False):
                    value.copy_(old[name])
        _freeze(frozen)
        model.train(was)


def _norms(model: nn.Module) -> list[FoldedNorm | BatchNorm]:
    found = [m for m in model.modules() if isinstance(m, FoldedNorm | BatchNorm)]
    if not found:
        hint = ": prepare it with batch_norm='train'" if trained_graph(model) is not None else ""
        raise InputError(f"the model has no batch norm of its own{hint}")
    return found


def _is_frozen(norm: FoldedNorm | BatchNorm) -> bool:
    if isinstance(norm, FoldedNorm):
        return bool(int(norm.frozen))
    return is_frozen(norm)


def _freeze(norms: list[FoldedNorm | BatchNorm]) -> None:
    for norm in norms:
        freeze_batch_norms(norm)
