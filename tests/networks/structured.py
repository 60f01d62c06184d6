"""Small models with a structure of their own: residuals, attention, several inputs or outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.model.presets import make_recipe
from bitsmith.model.recipe import Recipe, Rule
from networks.convolutional import IMAGE, conv, plain
from networks.harness import Specimen


class Residual(nn.Module):
    """Two branches of different range, joined; relu after; a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
        )  # fmt: skip
        self.short = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.body(x)
        y += x
        y = F.relu_(y)
        y = F.relu(self.body(y) + self.short(y))
        return self.head(y.mean((2, 3)))


class ClassToken(nn.Module):
    """A vision transformer in small: patches, a token repeated for the batch, one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.linspace(-1, 1, 16).reshape(1, 1, 16))
        self.position = nn.Parameter(torch.linspace(-2, 2, 17 * 16).reshape(1, 17, 16))
        self.block = nn.TransformerEncoderLayer(
            16, 2, 32, batch_first=True, norm_first=True, activation="gelu"
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.block(x)[:, 0])


class SqueezeExcite(nn.Module):
    def __init__(self, gate: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 3)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), gate()
        )
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x * self.squeeze(x))


class Dense(nn.Module):
    """Densenet-like: bn → relu → conv on a growing concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in (8, 12, 16))
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1, bias=False) for c in (8, 12, 16))
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Attention(nn.Module):
    """Self-attention written by hand, between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, 16))


class Fused(nn.Module):
    """F.scaled_dot_product_attention between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (2, 8)).transpose(1, 2) for m in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x + self.attention(x, x, x, need_weights=False)[0]))


class Parameter(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(shape))
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x) + self.shift).relu() * self.shift)


class Shared(nn.Module):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu() * 4.0)


class Two(nn.Module):
    """Two inputs or two outputs."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if y is not None:
            return self.b((self.a(x) + self.b(y)).relu())
        hidden = self.a(x).relu()
        return self.b(hidden), hidden


def mlp(act: Callable[[], nn.Module], floats: str = "", shape: tuple[int, ...] = (16,)) -> Specimen:
    return plain(
        lambda: nn.Linear(16, 24), act, lambda: nn.Linear(24, 12), act, lambda: nn.Linear(12, 5),
        shape=shape, floats=floats,
    )  # fmt: skip


def keep_float(match: str) -> Recipe:
    base = make_recipe("W8A8")
    return Recipe("mixed", (Rule(match, None), *base.rules), base.activation)


def residual(recipe: str | Recipe = "W8A8", floats: str = "") -> Specimen:
    return Specimen(Residual, (IMAGE,), frozenset(floats.split()), recipe)


TOKENS = ((7, 16),)
STRUCTURED = {
    "residual": residual(),
    "residual W4A8": residual("W4A8"),
    "residual W2A8": residual("W2A8"),
    "residual W4A8-edge8": residual("W4A8-edge8"),
    "a layer in float": residual(keep_float("body.3"), "conv"),
    "the stem in float": residual(keep_float("stem.*"), "conv"),
    "squeeze and excite": Specimen(SqueezeExcite, (IMAGE,)),
    "squeeze and excite, hard": Specimen(
        lambda: SqueezeExcite(nn.Hardsigmoid), (IMAGE,), frozenset({"hardsigmoid"})
    ),
    "dense": Specimen(Dense, (IMAGE,)),
    "shared convolution": Specimen(Shared, (IMAGE,)),
    "attention by hand": Specimen(Attention, TOKENS),
    "scaled dot product": Specimen(Fused, TOKENS),
    "class token": Specimen(
        ClassToken, ((3, 16, 16),), frozenset({"batch_constant", "layer_norm", "gelu"})
    ),
    "multi-head attention": Specimen(
        MultiHead, TOKENS, frozenset({"layer_norm", "add", "reshape", "transpose"})
    ),
    "parameter": Specimen(lambda: Parameter((16,)), TOKENS),
    "parameter, larger": Specimen(lambda: Parameter((7, 16)), TOKENS),
    "two inputs": Specimen(lambda: Two(2), ((16,), (16,))),
    "two outputs": Specimen(lambda: Two(1), ((16,),)),
    "mlp, relu": mlp(nn.ReLU),
    "mlp, gelu": mlp(nn.GELU, "gelu"),
    "mlp, gelu tanh": mlp(lambda: nn.GELU("tanh"), "gelu"),
    "mlp, silu": mlp(nn.SiLU, "silu"),
    "mlp, hardswish": mlp(nn.Hardswish, "hardswish"),
    "mlp, sigmoid": mlp(nn.Sigmoid),
    "mlp, leaky relu": mlp(nn.LeakyReLU),
    "mlp, tanh": mlp(nn.Tanh, "tanh"),
    "mlp on tokens": mlp(nn.ReLU, shape=(7, 16)),
    "mlp on two token axes": mlp(nn.ReLU, shape=(3, 7, 16)),
    "softmax at the end": plain(
        lambda: nn.Linear(16, 5), lambda: nn.Softmax(-1), shape=(16,), floats="softmax"
    ),
    "sigmoid at the end": plain(conv(), nn.Sigmoid, floats="sigmoid"),
    "layer norm": plain(
        lambda: nn.Linear(16, 16), lambda: nn.LayerNorm(16), lambda: nn.Linear(16, 5),
        shape=(7, 16), floats="layer_norm",
    ),
    "layer norm without affine": plain(
        lambda: nn.Linear(16, 16), lambda: nn.LayerNorm(16, elementwise_affine=False),
        lambda: nn.Linear(16, 5), shape=(7, 16), floats="layer_norm",
    ),
    "linear, bn, relu": plain(
        lambda: nn.Linear(16, 16), lambda: nn.BatchNorm1d(16), nn.ReLU, lambda: nn.Linear(16, 5),
        shape=(16,),
    ),
    "bn first": plain(lambda: nn.BatchNorm2d(8), conv(padding=1), nn.ReLU, conv()),
    "linear without bias": plain(lambda: nn.Linear(16, 5, bias=False), shape=(16,)),
    "linear without bias on tokens": plain(
        lambda: nn.Linear(16, 8, bias=False), nn.ReLU, lambda: nn.Linear(8, 5, bias=False),
        shape=(7, 16),
    ),
    "relu at the end": plain(lambda: nn.Linear(16, 5), nn.ReLU, shape=(16,)),
}  # fmt: skip
