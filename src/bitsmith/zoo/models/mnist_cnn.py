"""The two-convolution network of PyTorch's MNIST example."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.zoo.models import ZooModel

__all__ = ["Cnn", "MnistCnn"]


@final
class Cnn(nn.Module):
    """conv 32, conv 64 (3×3, no padding), max-pool 2, dropout, linear 128, dropout, linear.

    Args:
        channels: of the input image.
        size: height and width of the input image.
        classes: number of logits.
    """

    def __init__(self, channels: int = 1, size: int = 28, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * ((size - 4) // 2) ** 2, 128)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]`` of images ``[batch, channels, size, size]``."""
        x = F.relu(self.conv1(x))  # [B, 32, 26, 26]
        x = F.relu(self.conv2(x))  # [B, 64, 24, 24]
        x = self.dropout1(F.max_pool2d(x, 2))  # [B, 64, 12, 12]
        x = F.relu(self.fc1(x.flatten(1)))  # [B, 128]
        logits: Tensor = self.fc2(self.dropout2(x))
        return logits


@final
class MnistCnn(ZooModel, name="mnist-cnn"):
    """The network of PyTorch's MNIST example, 1,199,882 parameters."""

    input_shape = (1, 28, 28)
    dataset = "mnist"

    @classmethod
    def build(cls) -> nn.Module:
        return Cnn()
