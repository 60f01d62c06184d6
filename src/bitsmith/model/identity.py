"""Which network, recipe and runtime a training run is of: what its checkpoint must agree with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.recipe import Recipe

__all__ = ["digest", "identity_of_quantized", "identity_of_recipe"]


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of names, types, shapes and values.

    >>> digest([("a", torch.zeros(2))]) == digest([("a", torch.zeros(2, 1))])
    False
    """
    found = hashlib.sha256()
    for name, value in tensors:
        plain = value.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {list(plain.shape)}\n".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def identity_of_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return its name, and the SHA-256 of what it says: two recipes may have one name."""
    content = json.dumps(recipe.to_json(), sort_keys=True).encode()
    return {"recipe": recipe.name, "recipe sha256": hashlib.sha256(content).hexdigest()}


def identity_of_quantized(quantized: QuantizedModel) -> dict[str, Any]:
    """Return what it was made from and for: recipe, calibrator, runtime and float weights.

    Not its codes: another number of threads may choose others.
    """
    return {
        **identity_of_recipe(quantized.recipe),
        "calibrator": quantized.provenance.get("calibrator"),
        "target": quantized.target,
        "machine": quantized.machine,
        "float weights sha256": digest(sorted(quantized.program.graph.params.items())),
    }
