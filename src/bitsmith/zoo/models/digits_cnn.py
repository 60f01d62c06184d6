"""A small residual network for 8×8 digits: every operator of the main job, trained in seconds."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.zoo.models import ZooModel

__all__ = ["DigitsCnn", "DigitsNet"]


@final
class DigitsNet(nn.Module):
    """Two stages (conv, batch norm, relu, then a residual pair of convolutions), pool, linear.

    Args:
        width: channels of the first stage; the second has twice as many.
        classes: number of logits.
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = _conv(1, width, stride=1)
        self.first = _conv(width, width, stride=1)
        self.second = _conv(width, width, stride=1)
        self.down = _conv(width, 2 * width, stride=2)
        self.third = _conv(2 * width, 2 * width, stride=1)
        self.fourth = _conv(2 * width, 2 * width, stride=1)
        self.linear = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]`` of images ``[batch, 1, 8, 8]``."""
        x = F.relu(self.stem(x))  # [B, W, 8, 8]
        x = F.relu(self.second(F.relu(self.first(x))) + x)  # [B, W, 8, 8]
        x = F.relu(self.down(x))  # [B, 2W, 4, 4]
        x = F.relu(self.fourth(F.relu(self.third(x))) + x)  # [B, 2W, 4, 4]
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # [B, 2W]
        logits: Tensor = self.linear(x)
        return logits


def _conv(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """A 3×3 convolution and its batch norm."""
    conv = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


@final
class DigitsCnn(ZooModel, name="digits-cnn"):
    """The network of ``bitsmith demo``: 112,106 parameters."""

    input_shape = (1, 8, 8)
    dataset = "digits"

    @classmethod
    def build(cls) -> nn.Module:
        return DigitsNet()
