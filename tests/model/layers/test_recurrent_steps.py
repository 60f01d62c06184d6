"""LSTM and GRU on native kernels compute what PyTorch's do on the dequantized weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from bitsmith.model.kernels.library import kernels, why_not
from bitsmith.model.layers import other, recurrent
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.integer import int8, uint4
from bitsmith.numbers.scheme import PerChannel, PerGroup, Scheme

if kernels() is None:
    pytest.skip(f"no native kernels: {why_not()}", allow_module_level=True)

SCHEMES = [Scheme(int8, granularity=PerChannel(0)), Scheme(uint4, False, PerGroup(16))]
MODULES = {
    "lstm": nn.LSTM(32, 48),
    "deep lstm": nn.LSTM(32, 48, 2, bidirectional=True, batch_first=True),
    "lstm without bias": nn.LSTM(32, 48, bias=False),
    "gru": nn.GRU(32, 48, batch_first=True),
    "deep gru": nn.GRU(32, 48, 2, bidirectional=True, dropout=0.5).eval(),
    "lstm cell": nn.LSTMCell(32, 48),
    "gru cell": nn.GRUCell(32, 48, bias=False),
}


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "_SMALL", 0)


def twins(module: nn.Module, scheme: Scheme) -> tuple[WeightOnly, nn.Module]:
    """Return a module with packed weights, and the float one with their values."""
    names = [n for n, _ in module.named_parameters() if n.startswith("weight")]
    weights = {}
    reference = copy.deepcopy(module)
    for name in names:
        values = module.get_parameter(name).detach()
        weights[name] = PackedWeight(quantize(values, scheme), values.shape)
        reference.get_parameter(name).data = weights[name].dequantize()
    return WeightOnly(copy.deepcopy(module), weights), reference


def close(found: object, expected: object) -> None:
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        return
    assert len(found) == len(expected)
    for one, other_one in zip(found, expected, strict=True):
        close(one, other_one)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_steps_give_what_pytorch_gives(name: str, scheme: Scheme, monkeypatch) -> None:
    module = MODULES[name]
    layer, reference = twins(module, scheme)
    assert layer.kernel.endswith("float rows")
    calls: list[int] = []
    original = recurrent.recurrent_forward
    monkeypatch.setattr(
        other, "recurrent_forward", lambda *given: (calls.append(1), original(*given))[1]
    )
    cell = isinstance(module, nn.LSTMCell | nn.GRUCell)
    shapes = [(3, 32), (32,)] if cell else [(5, 3, 32), (7, 32), (1, 1, 32)]
    for shape in shapes:
        x = torch.randn(shape)
        with torch.no_grad():
            expected = reference(x)
            close(layer(x), expected)
            state = expected if cell else expected[1]
            close(layer(x, state), reference(x, state))
            close(layer(x, hx=state), reference(x, state))
    assert len(calls) == 3 * len(shapes)


def test_gradients_go_through_all_steps() -> None:
    layer, reference = twins(nn.LSTM(32, 48), SCHEMES[0])
    x, twin = (torch.ones(4, 2, 32, requires_grad=True) for _ in range(2))
    layer(x)[0].sum().backward()
    reference(twin)[0].sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(layer.inner.bias_hh_l0.grad, reference.bias_hh_l0.grad)


def test_what_steps_do_not_do_pytorch_does() -> None:
    layer, reference = twins(nn.LSTM(32, 48), SCHEMES[0])
    rows = pack_sequence([torch.randn(4, 32), torch.randn(2, 32)])
    close(layer(rows)[0].data, reference(rows)[0].data)
    double, state = torch.randn(3, 2, 32).double(), torch.zeros(1, 2, 48)
    assert not recurrent.runs_in_steps(layer.inner, layer._packed_weights(), double)
    with pytest.raises(RuntimeError, match=r"states of 2 times \[1, 2, 48\]"):
        layer(double.float(), (state, state[..., 1:]))
    projected, reference = twins(nn.LSTM(32, 48, proj_size=16), SCHEMES[0])
    x = torch.randn(3, 2, 32)
    close(projected(x), reference(x))
    noisy, _ = twins(nn.LSTM(32, 48, 2, dropout=0.5), SCHEMES[0])
    assert not recurrent.runs_in_steps(noisy.inner, noisy._packed_weights(), x)
    half, _ = twins(nn.GRU(32, 48), SCHEMES[0])
    half = half.bfloat16()
    assert half(x.bfloat16())[0].dtype == torch.bfloat16
