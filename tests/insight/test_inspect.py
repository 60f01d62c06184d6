"""What ``inspect`` measures, against formulas written out here."""

import numpy as np
import pytest
import torch
from torch import nn

from bitsmith.errors import WeightsError
from bitsmith.insight.inspect import (
    SHARES,
    format_bytes,
    inspect,
    inspect_records,
    weight_facts,
)
from bitsmith.insight.report.inspection import inspection_figure
from bitsmith.insight.report.style import png, standalone_svg
from bitsmith.insight.storage import model_sizes


def test_facts_of_a_weight():
    w = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    w[3, 5] = 9.0
    found = weight_facts("a", "linear", w)
    d = w.double()
    std = d.std(unbiased=False)
    assert found.outlier == pytest.approx((9.0 / std).item())
    assert found.kurtosis == pytest.approx((((d - d.mean()) / std) ** 4).mean().item())
    assert (found.low, found.high) == (w.min().item(), 9.0)
    for bits, limit in ((8, 127), (4, 7.5), (2, 1.5)):
        scale = w.abs().amax(1, keepdim=True) / limit
        top = 127 if bits == 8 else 2 ** (bits - 1) - 1
        low = -127 if bits == 8 else -(2 ** (bits - 1))
        guess = torch.round(w / scale).clamp(low, top) * scale
        assert found.mae[bits] == pytest.approx((guess - w).abs().mean().item(), rel=1e-4)
        assert found.relative[bits] == pytest.approx(found.mae[bits] / d.abs().mean().item())
    assert found.mae[8] < found.mae[4] < found.mae[2]


def test_constant_weights_have_finite_facts():
    found = weight_facts("a", "linear", torch.zeros(3, 4))
    assert (found.outlier, found.kurtosis, found.relative[4]) == (0, 0, 0)


def test_quantiles_are_values_of_the_weight():
    w = torch.arange(1000.0).flip(0).view(10, 100)
    found = weight_facts("a", "linear", w)
    assert found.quantiles == (0.0, 9.0, 499.0, 989.0, 998.0)
    few = weight_facts("a", "linear", torch.tensor([[3.0, -1.0]]))
    assert few.quantiles == (-1.0, -1.0, -1.0, 3.0, 3.0)
    x = torch.randn(7, 91, generator=torch.Generator().manual_seed(2))
    expected = np.quantile(x.numpy(), [s / 100 for s in SHARES], method="inverted_cdf")
    assert weight_facts("a", "linear", x).quantiles == tuple(expected.tolist())


def test_error_grows_as_bits_go():
    w = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    errors = weight_facts("a", "linear", w).mae
    assert list(errors) == [8, 7, 6, 5, 4, 3, 2]
    assert list(errors.values()) == sorted(errors.values())


def test_bytes():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    scales, rest = 4 * 5, 4 * 15
    assert format_bytes(net) == {
        "float32": 4 * (135 + 5 + 10),
        "float16": 2 * (135 + 5 + 10),
        "bfloat16": 2 * (135 + 5 + 10),
        "int8": 135 + scales + rest,
        "fp8_e4m3fn": 135 + scales + rest,
        "int6": 102 + scales + rest,  # 135 · 6 / 8 = 101.25
        "int4": 68 + scales + rest,
        "int3": 51 + scales + rest,
        "int2": 34 + scales + rest,
        "ternary": 34 + scales + rest,
        "int1": 17 + scales + rest,
    }


def test_sizes_in_groups_where_they_divide():
    net = nn.Sequential(nn.Linear(128, 16, bias=False), nn.Linear(16, 8, bias=False))
    sizes = {s.storage.name: s for s in model_sizes(net.parameters())}
    assert (sizes["int4 group 64"].fitting, sizes["int4 group 64"].weights) == (1, 2)
    # Codes of half a byte; a scale for 64 weights in the first, one per channel in the second.
    assert sizes["int4 group 64"].bytes == 1024 + 4 * 32 + 64 + 4 * 8
    assert sizes["mxfp4 group 32"].bytes == 1024 + 64 + 64 + 4 * 8
    assert sizes["int4 group 64"].bits_per_weight == 8 * sizes["int4 group 64"].bytes / 2176


def test_records_of_sizes():
    found = inspect(nn.Linear(64, 8), None)
    records = [r for r in inspect_records(found, {"model": "m"}) if r.bytes is not None]
    by_name = {r.recipe: r for r in records}
    assert by_name["int4 group 64"].granularity == "per-group 64"
    assert by_name["int4 group 64"].bits_per_weight == 4.5
    assert by_name["float32"].granularity is None
    assert by_name["ternary"].weight_bits == 2
    assert {r.value for r in records} == {64 * 8 + 8}


def test_a_weight_without_values_is_left_out():
    found = inspect(nn.ParameterList([torch.zeros(0, 4), torch.ones(2, 4)]), None)
    assert [w.parameters for w in found.weights] == [8]


def test_picture_of_an_inspection():
    figure = inspection_figure(inspect(nn.Sequential(nn.Linear(9, 5), nn.Linear(5, 3)), None))
    text = standalone_svg(figure.draw, figure.size)
    assert text == standalone_svg(figure.draw, figure.size)
    constant = inspect(nn.ParameterList([torch.zeros(2, 3)]), None)
    assert png(inspection_figure(constant).draw, (5, 2)).startswith(b"\x89PNG")


def test_says_what_would_be_quantized_and_why_not():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(144, 2)).eval()
    found = inspect(net, torch.zeros(1, 1, 8, 8))
    outcomes = {row.op: row for row in found.coverage}
    assert outcomes["conv"].outcome == "integer"
    assert outcomes["hardswish"].outcome == "float"
    assert "HardSwish" in outcomes["hardswish"].reason
    assert sum(row.macs_share for row in found.coverage) == pytest.approx(1)
    assert found.parameters == 4 * 9 + 4 + 288 + 2
    records = inspect_records(found, {"model": "m"})
    assert {r.layer for r in records if r.metric == "mae"} == {"0", "3"}


def test_says_what_a_weight_only_recipe_would_pack():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 64), nn.Linear(64, 64))
    net.append(nn.Linear(64, 64, bias=False))
    net[4].weight = net[3].weight
    rows = {
        r.layer: r for r in inspect(net.eval(), torch.zeros(1, 1, 8, 8), recipe="W4G16").coverage
    }
    assert rows["0.weight"].outcome == "float"
    assert "9" in rows["0.weight"].reason
    assert rows["2.weight"].outcome == "packed"
    assert rows["2.weight"].reason == "uint4, per-group 16"
    assert (rows["4.weight"].outcome, rows["4.weight"].reason) == ("tied", "tied to 3.weight")
    assert sum(r.macs_share for r in rows.values()) == pytest.approx(1)
    dynamic = inspect(net, torch.zeros(1, 1, 8, 8), recipe="W8A8-dynamic")
    assert {r.weight_bits for r in dynamic.coverage} == {8.0}


def test_without_an_example_only_parameters():
    found = inspect(nn.Linear(4, 3), None)
    assert found.coverage == []
    assert found.why_not
    assert [w.layer for w in found.weights] == ["weight"]


def test_refuses_weights_that_are_not_finite():
    net = nn.Linear(4, 3)
    with torch.no_grad():
        net.weight[0, 0] = float("nan")
    with pytest.raises(WeightsError, match=r"weight \(1\)"):
        inspect(net, None)
