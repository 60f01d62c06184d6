"""ptq: the whole of it on small models, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bitsmith.errors import CaptureError, DataError, RecipeError, UnknownNameError, WeightsError
from bitsmith.model.ptq import ptq
from networks.harness import randomised
from networks.structured import Residual


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomised(Residual())


def data(n: int = 32, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x = torch.randn(n, 8, 9, 10, generator=torch.Generator().manual_seed(seed))
    return [(p, torch.zeros(len(p), dtype=torch.long)) for p in x.split(16)]


@pytest.mark.parametrize(("recipe", "decibels"), [("W8A8", 28), ("W4A8", 9), ("W4A8-edge8", 10)])
def test_outputs_are_close_to_the_float_model(recipe, decibels):
    model = net()
    quantized = ptq(model, recipe, data())
    x = torch.randn(64, 8, 9, 10, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = model(x)
    noise = (quantized(x) - expected).square().mean()
    assert 10 * torch.log10(expected.var() / noise) > decibels


def test_one_bit_weights_need_training():
    with pytest.raises(RecipeError, match=r"'W1A8': 1-bit weights need training: bs\.qat"):
        ptq(net(), "W1A8", data())


def test_the_result_is_the_same_every_time_and_for_every_batching():
    model, x = net(), data()[0][0]
    first, second = (ptq(model, "W8A8", data()) for _ in range(2))
    assert torch.equal(first(x), second(x))
    assert first.encodings == second.encodings
    assert torch.equal(torch.cat([first(p) for p in x.split(3)]), first(x))


def test_the_model_is_not_changed():
    model = net().train()
    before = copy.deepcopy(model.state_dict())
    ptq(model, "W8A8", data())
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_any_iterable_is_read_once():
    batches = iter(data())
    seen: list[int] = []
    quantized = ptq(net(), "W8A8", (b for b in batches), advance=seen.append)
    assert seen == [16, 16]
    assert next(batches, None) is None
    assert quantized.provenance["calibration_samples"] == 32
    assert quantized.provenance["calibrator"] == "mse"


def test_a_first_batch_of_one_sample():
    x = torch.cat([b[0] for b in data()])
    quantized = ptq(net(), "W8A8", x.split(1))
    assert quantized(x).shape == (32, 5)


def test_the_calibrator_can_be_chosen():
    mse, percentile = (ptq(net(), "W8A8", data(), calibrator=c) for c in (None, "percentile:90"))
    assert percentile.provenance["calibrator"] == "percentile:90"
    assert percentile.encodings["x"]["scale"] < mse.encodings["x"]["scale"]


def test_coverage():
    rows = {row.layer: row for row in ptq(net(), "W4A8-edge8", data()).coverage}
    assert rows["stem.0"].reason == "QLinearConv"
    assert rows["head"].reason == "QGemm with float output"
    assert 7 < rows["stem.0"].weight_bits <= 8
    assert rows["body.0"].weight_bits == pytest.approx(4, abs=0.6)
    assert rows["mean.pool"].outcome == "integer"
    assert rows["mean"].outcome == "codes"
    assert "weight_bits" not in rows["mean"].to_json()
    assert sum(row.macs_share for row in rows.values()) == pytest.approx(1.0)


def test_a_layer_whose_weight_is_computed_stays_float_and_says_so():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 3))
    model = nn.Sequential(nn.Conv2d(8, 8, 1), layer)
    quantized = ptq(model, "W8A8", data())
    reasons = {row.reason for row in quantized.coverage if row.op == "aten"}
    assert "its weight is computed (remove the parametrization before quantizing)" in reasons
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert all(row.outcome == "integer" for row in ptq(model, "W8A8", data()).coverage)


def test_weights_shared_by_two_convolutions():
    first, second = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
    second.weight = first.weight
    quantized = ptq(nn.Sequential(first, nn.ReLU(), second), "W8A8", data())
    a, b = (quantized.program.layers[name].weight for name in ("0", "2"))
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(a.scale, b.scale)


def test_training_mode_is_put_back_after_an_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train()
    with pytest.raises(DataError):
        ptq(model, "W8A8", [torch.randn(8, 5)])
    assert model.training
    assert model[1].training


def test_half_precision_models_are_refused():
    with pytest.raises(CaptureError, match=r"call model\.float\(\) first"):
        ptq(net().half(), "W8A8", data())


def test_bad_requests():
    with pytest.raises(DataError, match=r"static: it needs calibration data"):
        ptq(net(), "W8A8")
    with pytest.raises(DataError, match="its iterator gave no batch"):
        ptq(net(), "W8A8", [])
    with pytest.raises(DataError, match="at least 8 samples, and the data gave 3"):
        ptq(net(), "W8A8", data(3))
    with pytest.raises(DataError, match=r"does not accept input of shape \[2, 3, 9, 10\]"):
        ptq(net(), "W8A8", [torch.randn(8, 3, 9, 10)])
    with pytest.raises(UnknownNameError, match="did you mean 'onnxruntime'"):
        ptq(net(), "W8A8", data(), target="onnxruntim")
    with pytest.raises(UnknownNameError, match="known: any, any-order, vnni"):
        ptq(net(), "W8A8", data(), machine="x86")
    with pytest.raises(UnknownNameError, match="unknown calibrator"):
        ptq(net(), "W8A8", data(), calibrator="best")
    with pytest.raises(RecipeError, match="unknown recipe"):
        ptq(net(), "W8B8", data())


def test_weights_that_are_not_finite_are_all_listed():
    model = net()
    with torch.no_grad():
        model.stem[0].weight[0, 0, 0, :2] = torch.nan
        model.head.bias[1] = torch.inf
        model.stem[1].running_var[0] = torch.nan
    with pytest.raises(WeightsError) as caught:
        ptq(model, "W8A8", data())
    for offender in ("stem.0.weight (2)", "head.bias (1)", "stem.1.running_var (1)"):
        assert offender in str(caught.value)
