"""prepare and convert in both lanes, what changes during training, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import bitsmith as bs
from bitsmith.errors import DataError, InputError, RecipeError, UnknownNameError, WeightsError
from bitsmith.model.qat import (
    bit_schedule,
    check_finite,
    convert,
    fit,
    freeze_scales,
    prepare,
    quant_noise,
    set_bits,
)
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.quantized import QuantizedModel

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def test_the_recipe_decides_the_lane():
    graph, module = prepare(net(), "W4A4", X), prepare(net(), "W4")
    assert isinstance(graph, TrainableModel)
    assert isinstance(convert(graph), QuantizedModel)
    assert not isinstance(module, TrainableModel)
    # native kernels add float sums in an order of their own
    torch.testing.assert_close(convert(module)(X), module.eval()(X), rtol=1e-5, atol=1e-6)
    assert bs.qat.prepare is prepare


def test_data_are_a_batch_or_batches():
    one = convert(prepare(net(), "W8A8", X))
    for data in ([X], iter([(X, torch.zeros(16).long())]), [X[:8], X[8:]]):
        assert convert(prepare(net(), "W8A8", data)).encodings == one.encodings
    prepare(net(), "W4A4", X[:1])


def test_binary_weights_train_though_they_cannot_be_rounded_well():
    model = prepare(net(), "W1A8", X)
    run = fit(model, [X], epochs=80, lr=1e-2, progress=False)
    assert run.history[-1].loss < 0.5 * run.history[0].loss
    assert {int(v.bits) for v in convert(model).program.layers.values()} == {1}


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"recipe": "W4A4", "data": None}, DataError, "needs data"),
        ({"recipe": "W4A4", "data": []}, DataError, "gave no batch"),
        ({"recipe": "W4A4", "batch_norm": "keep"}, InputError, "'fold' or 'train'"),
        ({"recipe": "W4A4", "ranges": "lsqq"}, UnknownNameError, "lsq"),
        ({"recipe": "W4A4", "weights": "lsqq"}, UnknownNameError, "lsq"),
        ({"recipe": "W4A4", "ragged": "pad"}, RecipeError, "ragged"),
        ({"recipe": "W4A4", "target": "tensorrt"}, UnknownNameError, "tensorrt"),
        ({"recipe": "W4", "ranges": "pact", "learn_edges": True}, RecipeError,
         "ranges, learn_edges"),
        ({"recipe": "W4A4", "data": X * torch.nan}, DataError, "NaN"),
    ],
)  # fmt: skip
def test_bad_requests(more: dict[str, object], error: type[Exception], words: str):
    arguments = {"data": X, **more}
    with pytest.raises(error, match=re.escape(words)):
        prepare(net(), **arguments)


def test_bad_weights_and_strangers():
    broken = net()
    with torch.no_grad():
        broken[2].weight[0, 0] = torch.inf
    with pytest.raises(WeightsError, match=r"2\.weight"):
        prepare(broken, "W4A4", X)
    for function in (convert, set_bits, check_finite, quant_noise):
        with pytest.raises(InputError, match="not prepared"):
            function(net(), *{set_bits: (4,), quant_noise: (0.5,)}.get(function, ()))


def test_bits_are_lowered():
    model = prepare(net(), "W2A2", X)
    names = set_bits(model, 8)
    assert {"0", "2", "4"} <= set(names)
    wide = (model(X) - net()(X)).square().mean()
    with pytest.raises(InputError, match=r"0 \(8 of 2\).*activations of"):
        convert(model)
    assert torch.equal(model(X), model.eval()(X))
    model.train()
    assert set_bits(model, 8) == []
    set_bits(model, None)
    assert wide < (model(X) - net()(X)).square().mean()
    assert {v.bits for v in convert(model).program.layers.values()} == {2}
    with pytest.raises(InputError, match="2 to 8"):
        set_bits(model, 9)


def test_a_schedule_of_bits():
    seen = []
    model = prepare(net(), "W3A3", X)
    lower = bit_schedule({0: 6, 2: 4, 3: None})

    def at_epoch(epoch: int, trained: nn.Module) -> None:
        lower(epoch, trained)
        seen.append(int(model.codes_of("2").bits))

    fit(model, [X], epochs=4, on_epoch=at_epoch, progress=False)
    assert seen == [6, 6, 4, 3]
    convert(model)
    module = prepare(net(), "W2")
    lower(0, module)
    with pytest.raises(InputError):
        convert(module)
    with pytest.raises(InputError, match="lowers"):
        bit_schedule({0: 2, 1: 4})


def test_a_schedule_goes_on_after_a_checkpoint():
    model, other = prepare(net(), "W2A4", X), prepare(net(), "W2A4", X)
    set_bits(model, 5)
    model(X).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    other.load_state_dict(model.state_dict())
    assert set_bits(other, 5) == []
    assert torch.equal(other(X), model(X))


def test_noise():
    model = prepare(net(), "W2A8", X)
    whole = model(X)
    quant_noise(model, 0.5, 2)
    assert not torch.equal(model(X), model(X))
    assert torch.equal(model.eval()(X), whole)
    quant_noise(model.train(), 1.0)
    assert torch.equal(model(X), whole)
    with pytest.raises(InputError, match="share"):
        quant_noise(model, 1.5)


@pytest.mark.parametrize("recipe", ["W4A4", "CODEBOOK3A8"])
def test_scales_are_frozen(recipe: str):
    model = prepare(net(), recipe, X, ranges="lsq+")
    freeze_scales(model)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(n.endswith("weight") or n.startswith("biases") for n in trained)
    freeze_scales(model, False)
    assert sum(p.requires_grad for p in model.parameters()) > len(trained)
    with pytest.raises(InputError, match="follow the weight"):
        freeze_scales(prepare(net(), "W4A4", X, weights="minmax"))


def test_what_went_wrong_is_named():
    model = prepare(net(), "W4A4", X)
    check_finite(model)
    with torch.no_grad():
        model.codes_of("2").weight[0, :3] = torch.nan
        model.codes_of("4").log_scale.fill_(-20.0)
        model.own_ranges()["2"].log_scale.fill_(-20.0)
        model.bias_of("0").fill_(torch.inf)
    with pytest.raises(InputError) as caught:
        check_finite(model)
    text = str(caught.value)
    assert "layer 2: weight: 3 of 256" in text
    assert "layer 4: its scale has collapsed to 0" in text
    assert "activations of 2: their scale has collapsed to 0" in text
    assert "layer 0: bias: 16 of 16" in text
    with pytest.raises(InputError, match="layer 2: weight"):
        convert(model)


def test_diverging_keeps_the_last_good_state():
    model = prepare(net(), "W4A4", X)
    descent = torch.optim.SGD(model.parameters(), lr=1e30)
    with pytest.raises(InputError, match=r"not finite|the loss is nan"):
        fit(model, [X * 1e30], epochs=2, optimizer=descent, progress=False)
    assert all(bool(p.isfinite().all()) for p in model.parameters())  # of the last good epoch
