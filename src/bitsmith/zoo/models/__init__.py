"""The family of small models that have a name.

One file per architecture. A class of the family only describes: what goes in, which data set
it is for, where trained weights come from. :meth:`ZooModel.build` makes the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from bitsmith.registry import Registry

__all__ = ["ZooModel", "zoo_models"]


class ZooModel(ABC):
    """A description of a network; its class statement registers it. Never instantiated.

    Contract, tested for every member: ``build()`` returns a module that maps float32
    ``[batch, *input_shape]`` to float32 logits ``[batch, classes]`` for any batch and can be
    exported with a dynamic batch.

    >>> zoo_models["cifar-resnet20"].input_shape
    (3, 32, 32)
    """

    registry: ClassVar[Registry[type[ZooModel]]] = Registry("model", __name__)

    name: ClassVar[str]
    input_shape: ClassVar[tuple[int, ...]]
    """Shape of one sample, without the batch."""
    dataset: ClassVar[str]
    """Name of the data set that the model is for."""
    weights_file: ClassVar[str | None] = None
    """Name of the trained weights in the data folder and in the cache."""
    weights_url: ClassVar[str | None] = None
    """Public source of the weights; the file's name ends in 8 hex digits of its SHA-256."""

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        ZooModel.registry.add(name, cls)

    @classmethod
    @abstractmethod
    def build(cls) -> nn.Module:
        """Return the network with fresh random weights, in training mode."""


zoo_models = ZooModel.registry
