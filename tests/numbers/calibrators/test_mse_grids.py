"""The squared error of formats that are not integers: minifloats, tables, powers of two."""

from __future__ import annotations

import pytest
import torch

from bitsmith.numbers.affine import fake_quantize, scale_zero_point
from bitsmith.numbers.calibrators.minmax import MinMax
from bitsmith.numbers.calibrators.mse import Mse, expected_squared_error
from bitsmith.numbers.calibrators.percentile import Percentile
from bitsmith.numbers.formats import formats
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.statistics import Extrema, Histogram

G = torch.Generator().manual_seed(0)
X = torch.cat([torch.randn(20_000, generator=G), torch.tensor([25.0])])


def scaled(name: str) -> bool:
    number = formats[name]
    return number.bits <= 8 and number.family not in ("integer", "learned") and number.min < 0


GRIDS = pytest.mark.parametrize("name", [n for n in formats if scaled(n)] + ["int1", "ternary"])


def histogram(x: torch.Tensor) -> Histogram:
    h = Histogram()
    h.update(x)
    return h


@GRIDS
def test_the_expected_error_is_that_of_quantizing_the_bin_centres(name: str) -> None:
    scheme, h = Scheme(formats[name]), histogram(X[:3000])
    bounds = torch.tensor([5.237, 1.191, 0.0137])  # off the bins' grid
    scale, zero_point = scale_zero_point(-bounds, bounds, scheme)
    found = expected_squared_error(h, scale, zero_point, scheme)
    for i in range(3):
        back = fake_quantize(h.centres.float(), scheme, scale[i], zero_point[i]).double()
        brute = ((back - h.centres) ** 2 * h.counts).sum() / h.count
        assert float(found[i]) == pytest.approx(float(brute), rel=1e-5)


@GRIDS
def test_mse_is_as_good_as_a_dense_search_and_never_worse_than_min_max(name: str) -> None:
    scheme, h = Scheme(formats[name]), histogram(X)
    scale, zero_point = Mse()(h, scheme)
    mine = float(expected_squared_error(h, scale.view(1), zero_point.view(1), scheme))
    bound = 25 * torch.exp2(-torch.arange(160) / 16)
    dense = expected_squared_error(h, *scale_zero_point(-bound, bound, scheme), scheme)
    assert mine <= float(dense.min()) * 1.02
    assert mine <= float(dense[0])


@GRIDS
def test_min_max_and_percentile_take_any_format(name: str) -> None:
    extrema = Extrema()
    extrema.update(X)
    assert MinMax()(extrema, Scheme(formats[name])) == Percentile()(
        histogram(X), Scheme(formats[name])
    )


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
def test_formats_that_take_no_scale_have_nothing_to_choose(name: str) -> None:
    assert float(Mse()(histogram(X), Scheme(formats[name]))[0]) == 1
