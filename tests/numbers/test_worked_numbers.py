"""The literature's worked examples, every figure as arithmetic gives it.

Well-known tutorials print some of them otherwise; where they do, the printed figure stands beside
the computed one. docs/how-it-works/numbers.md tells the same examples to a reader.
"""

from __future__ import annotations

import pytest
import torch

from bitsmith.numbers.affine import (
    dequantize,
    fake_quantize,
    quantize,
    quantize_codes,
    scale_zero_point,
)
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.integer import int4, int8
from bitsmith.numbers.granularity import PerChannel
from bitsmith.numbers.packing import packed_bytes
from bitsmith.numbers.scheme import Scheme

ASYMMETRIC = Scheme(int8, symmetric=False)
FULL = Scheme(int8, narrow_range=False)
ZERO = torch.tensor(0, dtype=torch.int32)
TEN_WEIGHTS = (
    "-0.56372453 1.39399302 0.55357852 0.54269608 -1.39940624 "
    "1.44327844 -0.48863919 0.22549443 -0.90172897 0.46398788"
)


def parameters(low: float, high: float, scheme: Scheme) -> tuple[float, int]:
    scale, zero_point = scale_zero_point(torch.tensor(low), torch.tensor(high), scheme)
    assert scale.dtype == torch.float32
    return float(scale), int(zero_point)


def test_int4_over_plus_minus_one_and_a_half() -> None:
    scale, zero_point = parameters(-1.5, 1.5, Scheme(int4))
    assert (scale, zero_point) == (pytest.approx(0.2, rel=1e-7), 0)
    code = quantize_codes(torch.tensor(1.39399302), torch.tensor(scale), ZERO, Scheme(int4))
    assert code.item() == 7
    assert dequantize(code, torch.tensor(scale), ZERO).item() == pytest.approx(1.4, rel=1e-6)


def test_ten_weights_in_int4() -> None:
    weights = torch.tensor([float(w) for w in TEN_WEIGHTS.split()])
    scale, _ = scale_zero_point(torch.tensor(-1.5), torch.tensor(1.5), Scheme(int4))
    codes = quantize_codes(weights, scale, ZERO, Scheme(int4))
    assert codes.tolist() == [-3, 7, 3, 3, -7, 7, -2, 1, -5, 2]


def test_absmax_of_10_8() -> None:
    scale, _ = parameters(-10.8, 10.8, Scheme(int8))
    assert round(1 / scale, 3) == 11.759  # S of the other convention; printed as 11.76


def test_zero_point_of_minus_7_59_to_10_8() -> None:
    scale, zero_point = parameters(-7.59, 10.8, ASYMMETRIC)
    assert (round(1 / scale, 3), zero_point) == (13.866, -23)
    assert round(255 / 18.39, 3) == 13.866
    assert round(255 / 17.39, 2) != 13.86  # as printed: a misprint of the denominator


def test_per_tensor_against_per_channel() -> None:
    w = torch.tensor([[0.1, -0.2, 0.15], [2.5, -3.0, 2.8]])
    tensor = quantize(w, Scheme(int8))
    channel = quantize(w, Scheme(int8, granularity=PerChannel(0)))
    assert float(tensor.scale) == pytest.approx(3 / 127)
    assert tensor.codes.tolist() == [[4, -8, 6], [106, -127, 119]]  # 2.8 · 127/3 = 118.53, not 118
    before, after = ((q.dequantize() - w)[0].abs().mean().item() for q in (tensor, channel))
    assert (round(before, 5), round(after, 5)) == (0.00827, 0.00039)  # not 0.007563, 0.000493
    assert round(before / after) == 21  # not 15


@pytest.mark.parametrize(
    ("scheme", "scale", "zero_point"),
    [(ASYMMETRIC, 0.0072935, -12), (FULL, 0.0079723, 0), (Scheme(int8), 0.0080037, 0)],
    ids=["asymmetric", "symmetric, full", "symmetric, narrow"],
)
def test_first_convolution_of_resnet18(scheme: Scheme, scale: float, zero_point: int) -> None:
    found = parameters(-0.8433799, 1.0164733, scheme)
    assert (round(found[0], 7), found[1]) == (scale, zero_point)


@pytest.mark.parametrize(
    ("billions", "gigabytes"),
    [
        (7, {"fp32": 28, "fp16": 14, "int8": 7, "int4": 3.5, "int2": 1.75, "int1": 0.875}),
        (70, {"fp32": 280, "int4": 35, "int2": 17.5}),  # Llama-2 70B; int2 printed as 17
    ],
)
def test_bytes_of_a_language_model(billions: int, gigabytes: dict[str, float]) -> None:
    found = {name: packed_bytes(billions * 10**9, formats[name].bits) / 1e9 for name in gigabytes}
    assert found == gigabytes


def test_one_weight_learns_through_int4() -> None:
    """x = 1, y = 1.7, learning rate 0.1; the gradient passes straight through the rounding."""
    w = torch.tensor(1.0, requires_grad=True)
    table = []
    for _ in range(7):
        q = fake_quantize(w, Scheme(int4), torch.tensor(0.2), ZERO)
        loss = (1.7 - q * 1.0) ** 2
        table.append((f"{w.item():.2f}", f"{q.item():.1f}", f"{loss.item():.2f}"))
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - 0.1 * gradient).detach().requires_grad_()
    assert table == [
        ("1.00", "1.0", "0.49"),
        ("1.14", "1.2", "0.25"),
        ("1.24", "1.2", "0.25"),
        ("1.34", "1.4", "0.09"),
        ("1.40", "1.4", "0.09"),
        ("1.46", "1.4", "0.09"),
        ("1.52", "1.4", "0.09"),
    ]
