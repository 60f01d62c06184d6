"""``bs.ptq``: one signature for both lanes, each of which refuses the arguments of the other."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from torch import nn

import bitsmith
from bitsmith.errors import RecipeError
from bitsmith.model.ptq import ptq
from bitsmith.model.weights import quantize_weights


def test_its_parameters_are_those_of_both_lanes_with_their_defaults() -> None:
    public = signature(bitsmith.ptq).parameters
    for lane in (ptq, quantize_weights):
        for name, parameter in list(signature(lane).parameters.items())[3:]:
            assert public[name].default == parameter.default, name
            assert public[name].kind == parameter.kind, name
            assert public[name].annotation == parameter.annotation, name
    assert set(public) >= {*signature(ptq).parameters, *signature(quantize_weights).parameters}


def test_arguments_of_the_other_lane_are_all_listed() -> None:
    net, x = nn.Linear(64, 8), [torch.randn(16, 64)]
    with pytest.raises(RecipeError, match=r"takes no machine, calibrator, effort, checkpoint$"):
        bitsmith.ptq(
            net, "W4G64", machine="vnni", calibrator="mse", effort="high", checkpoint="here"
        )
    with pytest.raises(RecipeError, match=r"takes no rounding, transform, ragged$"):
        bitsmith.ptq(net, "W8A8", x, rounding="gptq", transform="awq", ragged="pad")
    bitsmith.ptq(net, "W4G64", target="onnxruntime", seed=3, progress=False)


def test_awq_names_every_weight_whose_table_is_learned() -> None:
    net, x = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64)), [torch.randn(32, 64)]
    with pytest.raises(bitsmith.BitsmithError) as caught:
        bitsmith.ptq(net, "CODEBOOK4", x, transform="awq")
    for part in ("'awq'", "0.weight, 2.weight", "learned", "smoothquant", "W4G64", "none"):
        assert part in str(caught.value)
    bitsmith.ptq(net, "CODEBOOK4", x, transform="smoothquant")
