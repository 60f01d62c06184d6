"""Residual networks for 32×32 images (He et al., arXiv:1512.03385, section 4.2).

Shortcuts are the paper's option A, without parameters: every second row and column, and zero
channels on both sides. Parameter names are those of the published weights.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.zoo.models import ZooModel

__all__ = [
    "CifarResNet",
    "CifarResNet20",
    "CifarResNet32",
    "CifarResNet44",
    "CifarResNet56",
    "CifarResNet110",
]

SOURCE = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"


@final
class ResidualBlock(nn.Module):
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, channels, H/stride, W/stride]`` of ``x`` ``[B, channels_in, H, W]``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.padding:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


@final
class CifarResNet(nn.Module):
    """6n + 2 layers: a convolution, three stages of n blocks (16, 32, 64 channels), a linear.

    Args:
        depth: number of layers, 6n + 2: 20, 32, 44, 56, 110.
        classes: number of logits.
    """

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth is 6n + 2 (20, 32, 44, 56, 110), not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]`` of images ``[batch, 3, H, W]``."""
        x = F.relu(self.bn1(self.conv1(x)))  # [B, 16, 32, 32]
        x = self.layer3(self.layer2(self.layer1(x)))  # [B, 64, 8, 8]
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # [B, 64]
        logits: Tensor = self.linear(x)
        return logits


def _stage(channels_in: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [ResidualBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(ResidualBlock(channels_in, channels, stride), *rest)


@final
class CifarResNet20(ZooModel, name="cifar-resnet20"):
    """0.27 million parameters; 91.73 % on the test split of CIFAR-10."""

    input_shape = (3, 32, 32)
    dataset = "cifar10"
    weights_file = "cifar10-resnet20.safetensors"
    weights_url = SOURCE + "resnet20-12fca82f.th"

    @classmethod
    def build(cls) -> nn.Module:
        return CifarResNet(20)


@final
class CifarResNet32(ZooModel, name="cifar-resnet32"):
    """0.46 million parameters; 92.63 % on the test split of CIFAR-10."""

    input_shape = (3, 32, 32)
    dataset = "cifar10"
    weights_file = "cifar10-resnet32.safetensors"
    weights_url = SOURCE + "resnet32-d509ac18.th"

    @classmethod
    def build(cls) -> nn.Module:
        return CifarResNet(32)


@final
class CifarResNet44(ZooModel, name="cifar-resnet44"):
    """0.66 million parameters; the source states 93.10 % on the test split of CIFAR-10."""

    input_shape = (3, 32, 32)
    dataset = "cifar10"
    weights_file = "cifar10-resnet44.safetensors"
    weights_url = SOURCE + "resnet44-014dd654.th"

    @classmethod
    def build(cls) -> nn.Module:
        return CifarResNet(44)


@final
class CifarResNet56(ZooModel, name="cifar-resnet56"):
    """0.85 million parameters; the source states 93.39 % on the test split of CIFAR-10."""

    input_shape = (3, 32, 32)
    dataset = "cifar10"
    weights_file = "cifar10-resnet56.safetensors"
    weights_url = SOURCE + "resnet56-4bfd9763.th"

    @classmethod
    def build(cls) -> nn.Module:
        return CifarResNet(56)


@final
class CifarResNet110(ZooModel, name="cifar-resnet110"):
    """1.7 million parameters; the source states 93.68 % on the test split of CIFAR-10."""

    input_shape = (3, 32, 32)
    dataset = "cifar10"
    weights_file = "cifar10-resnet110.safetensors"
    weights_url = SOURCE + "resnet110-1d1ed7c2.th"

    @classmethod
    def build(cls) -> nn.Module:
        return CifarResNet(110)
