"""The multilayer perceptron 784-256-128-10."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast, final

from torch import Tensor, nn

from bitsmith.zoo.models import ZooModel

__all__ = ["Mlp", "MnistMlp"]


@final
class Mlp(nn.Module):
    """Linear layers with ReLU between them; the input is flattened.

    Args:
        in_features: values per sample: 784 for 28×28 images, 64 for 8×8 digits.
        hidden: width of each hidden layer.
        classes: number of logits.

    >>> import torch
    >>> Mlp(in_features=64)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, in_features: int = 784, hidden: Sequence[int] = (256, 128), classes: int = 10
    ) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]`` of ``x`` ``[batch, …]``."""
        return cast(Tensor, self.layers(x.flatten(1)))


@final
class MnistMlp(ZooModel, name="mlp"):
    """784-256-128-10 with ReLU, 235,146 parameters."""

    input_shape = (1, 28, 28)
    dataset = "mnist"

    @classmethod
    def build(cls) -> nn.Module:
        return Mlp()
