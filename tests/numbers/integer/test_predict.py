"""One layer's prediction against Python's integers; the runtime is in test_predict_onnxruntime."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import int4, int8, uint8
from bitsmith.numbers.integer import (
    IntegerOperator,
    conv_accumulate,
    dyadic_multiplier,
    fixed_point_multiplier,
    requantize_dyadic,
    requantize_fixed_point,
)

X, Y = Encoding(0.02, 30, uint8), Encoding(1.5, 100, uint8)


def linear(
    rows: int = 40, inputs: int = 33, **changes: object
) -> tuple[IntegerOperator, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (7, inputs)).astype(np.int8)
    arguments = {
        "weight": torch.from_numpy(weight),
        "weight_scale": torch.from_numpy(rng.uniform(0.005, 0.02, 7).astype(np.float32)),
        "x": X,
        "y": Y,
        "bias": torch.from_numpy(rng.integers(-9000, 9000, 7).astype(np.int32)),
    }
    codes = rng.choice([0, 30, 200, 255], (rows, inputs)).astype(np.uint8)
    return IntegerOperator(**{**arguments, **changes}), codes


def test_sums_pairs_and_wrong_sums_by_a_loop() -> None:
    layer, codes = linear()
    exact = layer.predict(torch.from_numpy(codes))
    found = layer.predict(torch.from_numpy(codes), accumulator="int16_pairs")
    pairs = wrong = 0
    for n, o in np.ndindex(*found.sums.shape):
        products = [int(c) * int(w) for c, w in zip(codes[n], layer.weight[o], strict=True)]
        raw = [sum(products[i : i + 2]) for i in range(0, len(products), 2)]
        cut = [min(max(p, -32768), 32767) for p in raw]
        offset = int(layer.bias[o]) - 30 * int(layer.weight[o].sum())
        assert exact.sums[n, o] == sum(raw) + offset
        assert found.sums[n, o] == sum(cut) + offset
        pairs += sum(a != b for a, b in zip(raw, cut, strict=True))
        wrong += sum(raw) != sum(cut)
    assert (found.saturated_pairs, found.wrong_sums) == (pairs, wrong)
    assert pairs > wrong > 0
    assert (exact.saturated_pairs, exact.wrong_sums) == (0, 0)


def test_clipped_outputs_by_fractions() -> None:
    layer, codes = linear(y=Encoding(0.1, 100, uint8))
    found = layer.predict(torch.from_numpy(codes))
    half, clipped = Fraction(1, 2), 0
    for n, o in np.ndindex(*found.sums.shape):
        ratio = Fraction(float(layer.weight_scale[o])) * Fraction(X.scale) / Fraction(layer.y.scale)
        code = int(found.sums[n, o]) * ratio + 100
        clipped += not -half <= code <= 255 + half
        if not 0 <= code <= 255:
            assert int(found.output[n, o]) in (0, 255)
    assert 0 < found.clipped_outputs == clipped < found.output.numel()


def test_every_way_to_requantize_uses_the_float64_multiplier() -> None:
    layer, codes = linear(rows=400)
    x = torch.from_numpy(codes)
    ratio = layer.weight_scale.double() * X.scale / Y.scale
    m = fixed_point_multiplier(ratio)
    sums = layer.predict(x).sums
    expected = {
        "fixed_point": requantize_fixed_point(sums, *m, Y, 1),
        "fixed_point_single": requantize_fixed_point(sums, *m, Y, 1, "single"),
        "dyadic": requantize_dyadic(sums, *dyadic_multiplier(ratio), Y, 1),
    }
    float32 = layer.predict(x).output.int()
    for way, codes_of_way in expected.items():
        found = layer.predict(x, requantization=way)
        assert torch.equal(found.output, codes_of_way), way
        assert (found.output.int() - float32).abs().max() <= 1
        assert found.clipped_outputs == layer.predict(x).clipped_outputs


@pytest.mark.parametrize("kernel", [(3,), (3, 2)])
def test_convolutions_pass_their_geometry_on(kernel: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, (6, 2, *kernel), generator=generator, dtype=torch.int8)
    x = torch.randint(200, 256, (2, 4, *(19, 8)[: len(kernel)]), generator=generator).byte()
    steps = ((2,), (1,), (2,), 2)
    layer = IntegerOperator(weight, torch.tensor(0.01), X, Y, None, *steps)
    exact = conv_accumulate(x, 30, weight, None, *steps)
    assert torch.equal(layer.predict(x).sums, exact)
    saturating = layer.predict(x, accumulator="int16_pairs")
    assert saturating.saturated_pairs > 0
    assert saturating.wrong_sums == int((saturating.sums != exact).sum()) > 0
    assert layer.predict(x, requantization="dyadic").output.shape == exact.shape


def test_a_layer_without_output_encoding_is_float() -> None:
    layer, codes = linear(y=None)
    found = layer.predict(torch.from_numpy(codes))
    assert found.output.dtype == torch.float32
    assert found.clipped_outputs == 0
    scale = np.float32(X.scale) * layer.weight_scale.numpy()
    assert np.array_equal(found.output.numpy(), found.sums.numpy().astype(np.float32) * scale)
    with pytest.raises(DataError, match="fixed_point needs y; a float output is sums"):
        layer.predict(torch.from_numpy(codes), requantization="fixed_point")


def test_empty_batches_and_strides_of_memory() -> None:
    layer, codes = linear()
    x = torch.from_numpy(codes)
    for accumulator in ("int32", "int16_pairs"):
        empty = layer.predict(x[:0], accumulator)
        assert (tuple(empty.output.shape), empty.saturated_pairs) == ((0, 7), 0)
        whole = layer.predict(x, accumulator)
        every_other = layer.predict(x.T.contiguous().T[::2], accumulator)
        assert torch.equal(every_other.output, whole.output[::2])
        one = layer.predict(x[3], accumulator)
        assert torch.equal(one.output, whole.output[3])
    weight = torch.ones(2, 3, 1, 1, dtype=torch.int8)
    conv = IntegerOperator(weight, torch.tensor(0.5), X, Y)
    nothing = torch.zeros(0, 3, 4, 4, dtype=torch.uint8)
    for accumulator in ("int32", "int16_pairs"):
        assert tuple(conv.predict(nothing, accumulator).output.shape) == (0, 2, 4, 4)


def test_what_cannot_be_a_layer_is_listed_at_once() -> None:
    weight, one = torch.ones(4, 6, dtype=torch.int8), torch.tensor(1.0)
    wrong = {"bias": torch.zeros(4), "stride": (2,), "groups": 2, "y": Encoding(1.0, 0, int4)}
    pattern = (
        r"weight_scale is float32 \[\] or \[4\], not torch.float32 \[3\]; weight_scale is positive"
        r" and finite; bias is int32 \[4\], not torch.float32 \[4\]; a linear layer has no stride,"
        r" groups; y is encoded in 8 bits, not int4"
    )
    with pytest.raises(DataError, match=pattern):
        IntegerOperator(weight, torch.tensor([1.0, -1.0, 1.0]), X, **wrong)
    for shape in ((), (4,), (1, 1, 1, 1, 1)):
        with pytest.raises(DataError, match=r"weight is int8 \[O, K\] or"):
            IntegerOperator(torch.ones(shape, dtype=torch.int8), one, X)
    kernel = torch.ones(4, 2, 3, 3, dtype=torch.int8)
    with pytest.raises(DataError, match=r"stride is one number from 1.*padding.*groups divide"):
        IntegerOperator(kernel, one, X, stride=(0,), padding=(1, 1, 1), groups=3)


def test_what_cannot_be_asked_of_a_layer_is_listed_at_once() -> None:
    layer, _ = linear(x=Encoding(0.1, 0, int8))
    pattern = (
        "requantization is one of float32, fixed_point, fixed_point_single, dyadic, not 'gemmlowp';"
        r" int16_pairs are of uint8 codes.*codes are torch.int8 \[..., 33\], not torch.uint8 \[5\]"
    )
    with pytest.raises(DataError, match=pattern):
        layer.predict(torch.zeros(5, dtype=torch.uint8), "int16_pairs", "gemmlowp")
    with pytest.raises(DataError, match="accumulator is one of int32, int16_pairs, not 'int64'"):
        layer.predict(torch.zeros(2, 33, dtype=torch.int8), "int64")
    conv = IntegerOperator(torch.ones(4, 2, 3, 3, dtype=torch.int8), torch.tensor(1.0), X, groups=2)
    with pytest.raises(DataError, match=r"\[N, 4, \*in\], not torch.uint8 \[1, 2, 5, 5\]"):
        conv.predict(torch.zeros(1, 2, 5, 5, dtype=torch.uint8))
