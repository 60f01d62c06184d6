"""The trained graph inside wrappers: compiled, data parallel, averaged."""

from __future__ import annotations

from typing import Any

from torch import nn

from bitsmith.model.qat.trainable import TrainableModel

__all__ = ["trained_graph"]


def trained_graph(model: nn.Module) -> TrainableModel | None:
    """Return the graph that ``model`` trains; None: it is of the module lane, or neither."""
    found: Any = model
    while found is not None and not isinstance(found, TrainableModel):
        found = found._modules.get("_orig_mod") or found._modules.get("module")
    return found
