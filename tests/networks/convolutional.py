"""Small convolutional models, one per thing that a convolutional network may contain."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.harness import Specimen

IMAGE = (8, 9, 10)


class Around(nn.Module):
    """conv → ``inside`` → conv: what is tested sits between two integer operators."""

    def __init__(self, inside: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.inside = inside
        self.last = nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inside(self.first(x)))


def around(inside: Callable[[Tensor], Tensor], channels: int = 8, *floats: str) -> Specimen:
    return Specimen(lambda: Around(inside, channels), (IMAGE,), frozenset(floats))


def plain(
    *layers: Callable[[], nn.Module], shape: tuple[int, ...] = IMAGE, floats: str = ""
) -> Specimen:
    return Specimen(
        lambda: nn.Sequential(*(make() for make in layers)), (shape,), frozenset(floats.split())
    )


def conv(i: int = 8, o: int = 8, k: object = 3, **more: object) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(i, o, k, **more)


CONVOLUTIONS = {
    "conv1d": plain(
        lambda: nn.Conv1d(8, 12, 3, padding=1), nn.ReLU, lambda: nn.Conv1d(12, 4, 2), shape=(8, 15)
    ),
    "grouped": plain(conv(groups=2, padding=1), nn.ReLU, conv(groups=4)),
    "depthwise, relu6": plain(
        conv(), nn.ReLU6, conv(groups=8, padding=1), nn.ReLU6, conv(8, 8, 1)
    ),
    "depthwise, multiplier 2": plain(conv(8, 16, groups=8, padding=1), nn.ReLU, conv(16, 4, 1)),
    "dilation": plain(conv(dilation=2, padding=2), conv(dilation=(1, 3))),
    "stride": plain(conv(stride=2, padding=1), conv(stride=(1, 2), padding=1)),
    "asymmetric kernel": plain(conv(8, 8, (1, 5), padding=(0, 2)), conv(8, 8, (3, 1))),
    "padding same": plain(conv(padding="same"), nn.ReLU, conv(8, 8, 5, padding="same")),
    "padding valid": plain(conv(padding="valid"), conv()),
    "padding same, even kernel": plain(
        conv(), conv(8, 8, 2, padding="same"), conv(), floats="aten"
    ),
    "padding reflect": plain(conv(), conv(padding=1, padding_mode="reflect"), floats="aten"),
    "no bias, bn, relu": plain(
        conv(bias=False), lambda: nn.BatchNorm2d(8), nn.ReLU, conv(bias=False)
    ),
    "bn without affine": plain(conv(), lambda: nn.BatchNorm2d(8, affine=False), nn.ReLU, conv()),
    "odd channels": plain(conv(8, 5), nn.ReLU, conv(5, 3), nn.ReLU, conv(3, 7)),
    "segmentation": plain(conv(padding=1), nn.ReLU, conv(8, 3, 1)),
    "transposed": plain(
        conv(), lambda: nn.ConvTranspose2d(8, 6, 2, stride=2), lambda: nn.BatchNorm2d(6), nn.ReLU,
        conv(6), floats="conv_transpose",
    ),
    "transposed, grouped": plain(
        conv(), lambda: nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=2), lambda: nn.BatchNorm2d(8),
        conv(), floats="conv_transpose",
    ),
    "leaky relu": plain(conv(), lambda: nn.LeakyReLU(0.1), conv()),
    "silu": plain(conv(), nn.SiLU, conv(), floats="silu"),
    "hardswish": plain(conv(), nn.Hardswish, conv(), floats="hardswish"),
    "hardsigmoid": plain(conv(), nn.Hardsigmoid, conv(), floats="hardsigmoid"),
    "hardtanh": plain(conv(), nn.Hardtanh, conv()),
    "prelu": plain(conv(), nn.PReLU, conv(), floats="aten"),
    "elu": plain(conv(), nn.ELU, conv(), floats="aten"),
    "max pool": plain(conv(), nn.ReLU, lambda: nn.MaxPool2d(2), conv()),
    "max pool, padding": plain(conv(), lambda: nn.MaxPool2d(3, 2, 1), nn.ReLU, conv()),
    "max pool, ceil": plain(conv(padding=1), lambda: nn.MaxPool2d(2, ceil_mode=True), conv()),
    "max pool 1d": plain(
        lambda: nn.Conv1d(8, 8, 3), lambda: nn.MaxPool1d(2), lambda: nn.Conv1d(8, 4, 2),
        shape=(8, 15),
    ),
    "avg pool": plain(conv(padding=1), lambda: nn.AvgPool2d(3, 2, 1), conv()),
    "avg pool, without pads": plain(
        conv(padding=1), lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), conv()
    ),
    "avg pool, ceil": plain(
        conv(padding=1), lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), conv()
    ),
    "avg pool, ceil, with pads": plain(
        conv(padding=1), lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), conv(8, 8, 2)
    ),
    "avg pool, relu": plain(conv(), nn.ReLU, lambda: nn.AvgPool2d(2), nn.ReLU, conv()),
    "avg pool 1d": plain(
        lambda: nn.Conv1d(8, 8, 3), lambda: nn.AvgPool1d(2), lambda: nn.Conv1d(8, 4, 2),
        shape=(8, 15),
    ),
    "adaptive pool to 1": plain(
        conv(), nn.ReLU, lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten, lambda: nn.Linear(8, 5)
    ),
    "adaptive pool to a divisor": plain(
        conv(padding=1), lambda: nn.AdaptiveAvgPool2d((3, 5)), conv(8, 8, 1)
    ),
    "adaptive pool to a non-divisor": plain(
        conv(padding=1), lambda: nn.AdaptiveAvgPool2d((4, 3)), conv(8, 8, 1), floats="aten"
    ),
    "dropout": plain(conv(), lambda: nn.Dropout2d(0.5), nn.ReLU, lambda: nn.Dropout(0.5), conv()),
    "nearest upsample": plain(conv(), lambda: nn.Upsample(scale_factor=2), conv()),
    "bilinear upsample": plain(
        conv(), lambda: nn.Upsample(scale_factor=2, mode="bilinear"), conv(), floats="aten"
    ),
    "pixel shuffle": plain(conv(8, 16), lambda: nn.PixelShuffle(2), conv(4)),
}  # fmt: skip


def _gated(x: Tensor) -> Tensor:
    return x * x.mean((2, 3), keepdim=True)


BETWEEN = {
    "mean, keepdim": around(lambda x: x * x.mean((2, 3), keepdim=True)),
    "mean over one axis": around(lambda x: x + x.mean(3, keepdim=True), 8, "mean"),
    "view": around(lambda x: x.view(x.shape[0], 4, 2, 9, 10).view(x.shape[0], 8, 9, 10)),
    "permute": around(lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2)),
    "transpose": around(lambda x: x.transpose(2, 3)),
    "slice with steps": around(lambda x: x[:, 1:8:2, ::2, -5:], 4),
    "chunk": around(lambda x: torch.cat([*reversed(x.chunk(2, 1))], 1)),
    "split": around(lambda x: x.split([2, 6], 1)[1] * 1.0, 6),
    "select": around(lambda x: x[:, 3].unsqueeze(1), 1),
    "unbind": around(lambda x: torch.stack([*x.unbind(1)][:3], 1), 3, "aten"),
    "pad, spatial": around(lambda x: F.pad(x, (1, 2, 0, 1))),
    "pad, channels": around(lambda x: F.pad(x.relu(), (0, 0, 0, 0, 2, 1)), 11),
    "pad, value": around(lambda x: F.pad(x, (1, 1, 1, 1), value=3.5)),
    "pad, negative": around(lambda x: F.pad(x, (-1, 1)), 8, "aten"),
    "clamp(-1, 1)": around(lambda x: x.clamp(-1, 1)),
    "clamp(0.1, 2)": around(lambda x: x.clamp(0.1, 2)),
    "clamp from below": around(lambda x: x.clamp(min=-0.5)),
    "relu with two readers": around(lambda x: x.relu() + x.relu().mean((2, 3), keepdim=True)),
    "one relu, two readers": around(lambda x: _gated(x.relu())),
    "relu of a read tensor": around(lambda x: x.relu() + x),
    "in place on a view": around(lambda x: x.flatten(2).relu_().view(-1, 8, 9, 10)),
    "in place on a clone": around(lambda x: x.clone().mul_(2.0) + x),
    "in place, carried": around(lambda x: x.relu().floor_(), 8, "aten"),
    "in place": around(lambda x: x.clone().add_(x.relu()).relu_()),
    "residual add, relu": around(lambda x: (x + x.flip(1)).relu(), 8, "aten"),
    "add, max, add": around(lambda x: (x + F.max_pool2d(x, 3, 1, 1)).relu()),
    "times 0.5": around(lambda x: x * 0.5),
    "plus 1.0": around(lambda x: 1.0 + x),
    "minus": around(lambda x: x - x.relu(), 8, "sub"),
    "1 - x": around(lambda x: 1.0 - x, 8, "sub"),
    "divided": around(lambda x: x / 2.0, 8, "div"),
    "plus zero": around(lambda x: x + 0.0),
    "add, alpha": around(lambda x: torch.add(x, x.relu(), alpha=2), 8, "aten"),
    "gate": around(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    "x times itself": around(lambda x: x * x),
    "doubled": around(lambda x: x + x),
    "concat": around(lambda x: torch.cat([x, x.relu() * 3.0], 1), 16),
    "concat of three": around(lambda x: torch.cat([x, x.sigmoid(), x.relu()], 1), 24),
    "concat with itself": around(lambda x: torch.cat([x, x], 1), 16),
    "concat, relu": around(lambda x: torch.cat([x, x * 2.0], 1).relu(), 16),
    "cumsum": around(lambda x: x.cumsum(1), 8, "aten"),
    "max over channels": around(lambda x: x.amax(1, keepdim=True), 1, "aten"),
    "softmax over channels": around(lambda x: x.softmax(1)),
    "flip": around(lambda x: x.flip(3), 8, "aten"),
    "expand": around(lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3), 8, "aten"),
    "zeros like": around(lambda x: torch.cat([x, torch.zeros_like(x)], 1), 16, "full_like"),
    "float64 inside": around(lambda x: (x.double() * 2).float(), 8, "aten", "cast"),
}  # fmt: skip
