"""ptq: the whole of it on small models, and what it refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import bitsmith as bs
from bitsmith.errors import (
    CaptureError,
    DataError,
    InputError,
    RecipeError,
    UnknownNameError,
    WeightsError,
)
from bitsmith.model import graph_quantization
from bitsmith.model.convert import integer_layer
from bitsmith.model.presets import make_recipe
from bitsmith.model.ptq import ptq
from bitsmith.model.qat.ladder import Ladder
from bitsmith.model.recipe import Recipe
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


@torch.no_grad()
def spread_out(seed: int = 0) -> nn.Sequential:
    """A network whose channels differ in range by three orders, as some trained ones do."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(8, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(),
        nn.Conv2d(16, 12, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    factor = 10 ** torch.linspace(-1.5, 1.5, 16).reshape(-1, 1, 1, 1)
    net[2].weight *= factor
    net[2].bias *= 0.1 * factor.flatten()
    net[4].weight /= factor.reshape(1, -1, 1, 1)
    return net.eval()


def nearest_only(placement, target, found, *_):
    """What the target alone chooses, in place of the sweep over the layers."""
    nodes = [n for n in placement.graph if n.name in placement.weights]
    return {n.name: integer_layer(n, placement, target, found[n.inputs[0]]) for n in nodes}, []


def noise_of(recipe: Recipe) -> float:
    model, quantized = spread_out(), ptq(spread_out(), recipe, data(64))
    x = torch.randn(128, 8, 9, 10, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = model(x)
    return float((quantized(x) - expected).square().mean() / expected.var())


def test_one_scale_a_weight_is_equalized_and_corrected():
    base = make_recipe("W8A8-pertensor")
    plain = noise_of(replace(base, equalize=False, correct_bias=False))
    equalized = noise_of(replace(base, correct_bias=False))
    corrected = noise_of(replace(base, equalize=False))
    assert equalized < 0.1 * plain
    assert corrected < 0.9 * plain
    assert noise_of(base) < 0.1 * plain


def test_what_was_equalized_is_reported():
    quantized = ptq(spread_out(), "W8A8-pertensor", data(64))
    rows = {row["layer"]: row for row in quantized.provenance["equalization"]}
    assert set(rows) == set(quantized.program.layers)
    done = [row for row in rows.values() if row["outcome"] == "equalized"]
    assert done
    assert all(row["after"] < row["before"] or row["before"] < 2 for row in done)
    assert any("relu instead of the clamp" in row["reason"] for row in done)
    assert all(row["reason"] for row in rows.values() if row["outcome"] == "skipped")
    json.dumps(quantized.provenance)
    assert "layers" in quantized.provenance  # the sweep that corrects biases


def test_nothing_is_equalized_that_was_not_asked_for():
    for recipe in ("W8A8", replace(make_recipe("W8A8-pertensor"), equalize=False)):
        assert "equalization" not in ptq(spread_out(), recipe, data(64)).provenance
    asked = replace(make_recipe("W8A8"), equalize=True, correct_bias=True)
    found = ptq(spread_out(), asked, data(64)).provenance
    assert {"equalization", "layers"} <= set(found)


@pytest.mark.parametrize("recipe", ["W8A4", "W8A3"])
def test_narrow_activations_alone_are_made_up_for(recipe, monkeypatch):
    """Weights of 8 bits learn what their inputs lost; a network in 8 bits is left alone."""
    swept = noise_of(make_recipe(recipe))
    with monkeypatch.context() as patch:
        patch.setattr(graph_quantization, "sequential", nearest_only)
        assert swept < 0.7 * noise_of(make_recipe(recipe))
    assert "layers" in ptq(net(), recipe, data()).provenance
    assert "layers" not in ptq(net(), "W8A8", data()).provenance


def test_data_that_is_read_once_is_read_once():
    """Equalization looks at the first batches and calibration sees them too."""
    one, again = (
        ptq(spread_out(), "W8A8-pertensor", batches) for batches in (data(96), iter(data(96)))
    )
    assert one.provenance["calibration_samples"] == again.provenance["calibration_samples"] == 96
    x = data(16, 3)[0][0]
    assert torch.equal(one(x), again(x))


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


@pytest.mark.parametrize("recipe", ["W4A4", "W4"])
def test_what_is_no_batches_is_told_so(recipe):
    digits = bs.load_dataset("digits")
    for given, said in (
        (digits, "Digits is no batches: .*train split"),
        (digits.split("train"), "Split is no batches"),
        ("digits", "iterable of batches.*not 'digits'"),
        (5, "iterable of batches.*not 5"),
    ):
        with pytest.raises(DataError, match=said):
            bs.ptq(net(), recipe, given)


def test_low_effort_takes_nothing_that_only_training_needs(tmp_path):
    more = {"training": data(), "ladder": Ladder(goal=99), "checkpoint": tmp_path}
    with pytest.raises(InputError, match="takes no training, ladder, checkpoint"):
        ptq(net(), "W4A4", data(), **more)


def test_a_deployed_model_names_the_inputs_it_lacks():
    model, x = ptq(net(), "W8A8", data()), data()[0][0]
    with pytest.raises(InputError, match=r"takes 1 inputs \(.*\), not 2"):
        model(x, x)
    with pytest.raises(InputError, match="has no values"):
        model(x[:0])
