"""Post-training quantization as tutorials do it: one scale a tensor, nearest codes, float sums."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitsmith.numbers.affine import fake_quantize, scale_zero_point
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.scheme import Scheme

__all__ = ["RANGES", "Simulated", "ranges"]

Limits = list[tuple[Tensor, Tensor]]

#: Where the range of an activation comes from: of no data, of noise, of training images.
RANGES = ("none", "noise", "minmax", "mse")
#: The end of a range that has seen nothing: what a well-known library starts with.
_UNSEEN = 1.0


@final
class Simulated(nn.Module):
    """Linear layers with ReLU between them, whose weights and inputs are rounded.

    Args:
        layers: of the float network, not changed.
        bits: of weights (symmetric) and of inputs (unsigned, asymmetric).
        limits: smallest and largest input of each layer.
    """

    def __init__(self, layers: Iterable[nn.Linear], bits: int, limits: Limits) -> None:
        super().__init__()
        self._inputs = _input_scheme(bits)
        weights = Scheme(integer_format(bits, signed=True))
        self._layers = [(fake_quantize(n.weight.detach(), weights), n.bias) for n in layers]
        self._encodings = [scale_zero_point(*ends, self._inputs) for ends in limits]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[batch, classes]`` of ``x`` ``[batch, …]``."""
        x = x.flatten(1)
        last = len(self._layers) - 1
        for i, ((weight, bias), encoding) in enumerate(
            zip(self._layers, self._encodings, strict=True)
        ):
            x = F.linear(fake_quantize(x, self._inputs, *encoding), weight, bias)
            x = x if i == last else F.relu(x)
        return x


def ranges(
    layers: list[nn.Linear], spec: str, bits: int, batches: Iterable[tuple[Tensor, Any]]
) -> Limits:
    """Return the smallest and the largest input of each layer, as they are found.

    Args:
        layers: of the float network.
        spec: one of :data:`RANGES`: nothing is looked at, noise is, or a calibrator chooses from
            the batches.
        bits: that the range is for.
        batches: training images.
    """
    if spec == "none":
        one = torch.tensor(_UNSEEN)
        return [(one * 0 if i else -one, one) for i in range(len(layers))]
    calibrator = make_calibrator("minmax" if spec == "noise" else spec)
    seen = [calibrator.statistic() for _ in layers]
    for number, (images, _) in enumerate(batches):
        x = _noise(images, number) if spec == "noise" else images
        x = x.flatten(1)
        with torch.no_grad():
            for i, layer in enumerate(layers):
                x = F.relu(x) if i else x
                seen[i].update(x)
                x = layer(x)
    scheme = _input_scheme(bits)
    return [calibrator.limits(statistic, scheme) for statistic in seen]


def _input_scheme(bits: int) -> Scheme:
    return Scheme(integer_format(bits, signed=False), symmetric=False)


def _noise(images: Tensor, seed: int) -> Tensor:
    """Return uniform noise in [0, 1) of the same shape: the dummy input of many examples."""
    return torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
