"""Layer errors against a calculation of one's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitsmith.errors import DataError
from bitsmith.insight.layers import sqnr, tensor_errors, weight_spreads
from bitsmith.model.ptq import ptq
from bitsmith.model.store import load, save


def two_layers() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


@pytest.fixture(scope="module")
def net():
    return two_layers()


@pytest.fixture(scope="module")
def batches():
    return torch.randn(96, 6, generator=torch.Generator().manual_seed(1)).split(32)


@pytest.fixture(scope="module")
def model(net, batches):
    return ptq(net, "W8A8", batches)


def test_errors_are_those_against_the_float_network(net, model, batches):
    found = {e.op: e for e in tensor_errors(model, batches)}
    x = torch.cat(list(batches))
    hidden = F.relu(F.linear(x, net[0].weight, net[0].bias)).detach()
    name = found["linear"].tensor
    codes = torch.cat([model.trace(b).codes[name] for b in batches])
    e = found["linear"].encoding
    guess = (codes.double() - e.zero_point) * e.scale
    gap = (hidden.double() - guess).abs()
    assert found["linear"].n == hidden.numel()
    noise = 10 * math.log10(hidden.double().square().sum() / gap.square().sum())
    assert found["linear"].sqnr == pytest.approx(noise, abs=1e-4)
    assert found["linear"].max_lsb == pytest.approx(gap.max().item() / e.scale, rel=1e-4)
    assert found["linear"].mean_lsb == pytest.approx(gap.mean().item() / e.scale, rel=1e-4)
    assert found["linear"].values.high == pytest.approx(hidden.max().item())
    assert found["linear"].values.count == hidden.numel()


def test_error_of_the_input_is_its_rounding(model, batches):
    first = tensor_errors(model, batches)[0]
    assert first.op == "input"
    x = torch.cat(list(batches))
    e = first.encoding
    outside = ((x < e.low - e.scale / 2) | (x > e.high + e.scale / 2)).double().mean().item()
    assert first.clipped == pytest.approx(outside)
    assert first.max_lsb >= 0.4


def test_weights(net, model):
    first, second = weight_spreads(model)
    assert first.shape == (12, 6)
    assert first.values.low == net[0].weight.min().item()
    assert second.values.high == net[2].weight.max().item()
    assert 35 < first.sqnr < 60
    assert 6.5 < first.bits <= 8
    assert 0 < first.low_scale <= first.high_scale


def test_a_loaded_simulation_has_no_float_weights(model, batches, tmp_path):
    save(model, tmp_path / "m.bitsmith")
    with pytest.raises(DataError, match="loaded simulation"):
        tensor_errors(load(tmp_path / "m.bitsmith"), batches)


def test_needs_samples(model):
    with pytest.raises(DataError, match="samples"):
        tensor_errors(model, [])


def test_sqnr_has_ends():
    assert sqnr(0.0, 0.0) == 150
    assert sqnr(0.0, 1.0) == -150
    assert sqnr(1e30, 1e-30) == 150
