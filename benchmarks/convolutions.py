"""Convolutions with packed weights in eager PyTorch, against float32 and decoding, by turns.

Layers of ResNet-18, ResNet-50 and MobileNetV3 for one image, and a small 3×3, from 49 to 196
positions, with each instruction set that this machine has.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import bitsmith as bs
from bitsmith.model.kernels.library import INSTRUCTIONS, kernels, why_not
from bitsmith.model.layers.convolution import most_positions
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.speed.race import Contestant, faster, race
from record import arguments, save

RECIPES = ("W8", "W4")
LAYERS = (  # channels in, out, kernel, stride, height and width
    (128, 128, 3, 1, 8), (256, 256, 3, 1, 14), (512, 512, 3, 1, 7), (256, 512, 1, 2, 14),
    (1024, 256, 1, 1, 14), (256, 1024, 1, 1, 14), (512, 2048, 1, 1, 7), (2048, 512, 1, 1, 7),
    (960, 160, 1, 1, 7),
)  # fmt: skip


def main() -> None:
    """Print and record a row for each layer and recipe."""
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(options.threads)
    layers = LAYERS[:1] if options.quick else LAYERS
    library = kernels()
    assert library is not None, why_not()
    sets = [library.machine] if options.quick else range(1, library.machine + 1)
    rows = []
    for number in sets:
        library.use(number)
        for layer, recipe in itertools.product(layers, RECIPES):
            if row := _row(layer, recipe, options.quick):
                rows.append({"instructions": INSTRUCTIONS[number], **row})
    library.use(library.machine)
    save("convolutions", rows, options.quick, threads=options.threads)


@torch.inference_mode()
def _row(layer: tuple[int, ...], recipe: str, quick: bool) -> dict[str, Any] | None:
    inputs, outputs, kernel, stride, size = layer
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2).eval()
    packed = bs.ptq(nn.Sequential(conv), recipe, progress=False)[0]
    assert isinstance(packed, WeightOnly)
    x = torch.randn(1, inputs, size, size)

    def decoded() -> torch.Tensor:
        return functional.conv2d(x, packed.weight, conv.bias, stride, kernel // 2)

    positions = conv(x)[0, 0].numel()
    if positions > most_positions():
        return None
    torch.testing.assert_close(packed(x), decoded(), rtol=1e-4, atol=1e-4)
    ways = {"float32": lambda: conv(x), "packed": lambda: packed(x), "decoded": decoded}
    made = [Contestant(name, [call]) for name, call in ways.items()]
    times = race(made, seconds=0.05 if quick else 1.5, turns=5 if quick else 20)
    row: dict[str, Any] = {
        "layer": f"{inputs}→{outputs} {kernel}×{kernel}/{stride} {size}×{size}",
        "positions": positions,
        "recipe": recipe,
    }
    row |= {f"{name}, ms": round(t.median_ms, 3) for name, t in times.items()}
    for other in ("float32", "decoded"):
        ratio = faster(times["packed"], times[other])
        row[f"times {other}"] = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    return row


if __name__ == "__main__":
    main()
