"""A small MobileNetV2 (Sandler et al., arXiv:1801.04381) for 28×28 and 32×32 images."""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.zoo.models import ZooModel

__all__ = ["MobileNet", "MobileNetSmall"]

#: channels, blocks, stride of the first block
STAGES = ((16, 1, 1), (24, 2, 2), (32, 2, 2), (64, 2, 1))
EXPANSION = 4


@final
class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1 without activation; added to the input if it fits."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = channels_in * EXPANSION
        self.expand = nn.Sequential(
            nn.Conv2d(channels_in, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
        )
        self.project = nn.Sequential(
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, channels, H/stride, W/stride]`` of ``x`` ``[B, channels_in, H, W]``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


@final
class MobileNet(nn.Module):
    """A convolution, seven inverted residuals (16 to 64 channels), a 1×1 convolution, a linear.

    Args:
        channels: of the input image: 1 for 28×28 digits, 3 for 32×32 colour images.
        classes: number of logits.

    >>> import torch
    >>> MobileNet(channels=3).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        blocks: list[nn.Module] = []
        width = 16
        for out, count, stride in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(width, out, stride if index == 0 else 1))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Conv2d(width, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU6()
        )
        self.classifier = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]`` of images ``[batch, channels, H, W]``."""
        x = self.head(self.blocks(self.stem(x)))  # [B, 128, H/4, W/4]
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # [B, 128]
        logits: Tensor = self.classifier(x)
        return logits


@final
class MobileNetSmall(ZooModel, name="mobilenet-small"):
    """Depthwise convolutions, relu6 and linear bottlenecks: what per-tensor weights break."""

    input_shape = (1, 28, 28)
    dataset = "mnist"

    @classmethod
    def build(cls) -> nn.Module:
        return MobileNet()
