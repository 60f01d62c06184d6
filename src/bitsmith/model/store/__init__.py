"""Save and load quantized models of both lanes, and encodings apart from the model.

``folder`` writes a folder whole or not at all; ``graph`` stores models of the graph lane, and
``modules`` those of the module lane: ``survey`` finds what to store, ``manifest`` describes it,
``safetensors_file`` writes and maps the tensors, ``restore`` puts them back into what ``skeleton``
built. ``encodings`` keeps schemes and scales for another checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from bitsmith.errors import InputError
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.store.encodings import apply_encodings, save_encodings
from bitsmith.model.store.folder import GRAPH, MODULES
from bitsmith.model.store.graph import load_graph, save_graph
from bitsmith.model.store.modules import load_modules, save_modules
from bitsmith.model.store.skeleton import Skeleton

__all__ = ["apply_encodings", "load", "save", "save_encodings"]


def save(model: nn.Module, folder: str | Path, *, builder: str | None = None) -> Path:
    """Write a quantized model to ``folder``, in the place of an older one; returns the folder.

    The folder is written whole or not at all. Nothing in it is a pickle.

    Args:
        model: of :func:`bitsmith.ptq` (either lane).
        folder: a new name, or a folder that bitsmith wrote.
        builder: module lane: what makes the float model, a zoo name or
            ``package.module:callable``; see :func:`load`.

    Raises:
        InputError: the place cannot be written, or holds something else; or the model is not
            quantized.
    """
    if isinstance(model, QuantizedModel):
        if builder is not None:
            raise InputError("a model of the graph lane is stored whole: it takes no builder")
        return save_graph(model, folder)
    return save_modules(model, folder, builder=builder)


def load(
    folder: str | Path, model: Skeleton | None = None, *, verify: bool = True
) -> QuantizedModel | Any:
    """Return the model that :func:`save` wrote.

    Args:
        folder: to read.
        model: module lane: the float model without its weights (a module on the meta device, a
            callable that builds one, or a name), see
            :func:`bitsmith.model.store.modules.load_modules`.
        verify: module lane: compare the SHA-256 of the tensors with the one recorded.

    Returns:
        A :class:`QuantizedModel`, or an ``nn.Module`` whose packed weights are views of the
        file's pages.

    Raises:
        InputError: the folder or a file in it is missing.
        WeightsError: a file is damaged or was changed by hand, or does not fit ``model``.
    """
    folder = Path(folder)
    if (folder / MODULES).is_file():
        return load_modules(folder, model, verify=verify)
    if not (folder / GRAPH).is_file():
        raise InputError(f"{folder} is not a bitsmith folder: it has no {GRAPH} and no {MODULES}")
    if model is not None:
        raise InputError(f"{folder} holds a model of the graph lane, which needs no skeleton")
    return load_graph(folder)
