"""What ``inspect`` measures, against formulas written out here."""

import pytest
import torch
from torch import nn

from bitsmith.errors import WeightsError
from bitsmith.insight.inspect import format_bytes, inspect, inspect_records, weight_facts


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


def test_bytes():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    assert format_bytes(net) == {
        "float32": 4 * (135 + 5 + 10),
        "float16": 2 * (135 + 5 + 10),
        "int8": 135 + 4 * 5 + 4 * 15,
        "int4": 68 + 4 * 5 + 4 * 15,
    }


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
