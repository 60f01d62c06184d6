"""Which of two models is nearer to float."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitsmith.model.ptq import ptq
from bitsmith.model.qat.judge import Found, Judge
from bitsmith.model.qat.mixtures import mixed
from bitsmith.model.qat.trainable import TrainableModel


def test_judged_by_predictions_and_where_those_are_sure_by_what_is_below() -> None:
    near, far = Found(0.25, 2.0, 90.0), Found(0.26, 1.0, 90.0)
    assert near.order < far.order
    sure, surer = Found(1e-11, 0.2, 100.0), Found(3e-11, 0.1, 100.0)
    assert surer.order < sure.order


def with_mixtures(x: torch.Tensor) -> torch.Tensor:
    """Return samples, and behind them the eight mixtures of each that are judged."""
    parts = [x]
    for seed in range(8):
        torch.manual_seed(seed)
        parts += [mixed(part) for part in x.split(32)]
    return torch.cat(parts)


def test_distance_is_the_divergence_of_the_deployed_predictions() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(8, 4), torch.randn(200, 8)
    quantized, every = ptq(net, "W2A4", [x]), with_mixtures(x)
    found = Judge(quantized, x)(TrainableModel(quantized))
    with torch.no_grad():
        ours, theirs = quantized(every).double(), net(every).double()
    p, q = torch.softmax(theirs, 1), torch.softmax(ours, 1)
    each = (p * (p / q).log()).sum(1)
    assert found.distance == pytest.approx(float(each[200:].mean()), rel=1e-5)
    same = 100 * float((ours.argmax(1) == theirs.argmax(1))[:200].double().mean())
    assert found.agreement == pytest.approx(same)
    assert found.shown == (found.distance, found.agreement)


def test_outputs_that_are_no_logits_have_no_agreement() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(8, 1), torch.randn(64, 8)
    quantized, every = ptq(net, "W4A8", [x]), with_mixtures(x)
    found = Judge(quantized, x)(TrainableModel(quantized))
    with torch.no_grad():
        error = (quantized(every) - net(every)).double().square()
    assert found.agreement is None
    assert found.distance == pytest.approx(float(error[64:].mean()), rel=1e-4)


def test_mixtures_are_the_same_for_every_model_and_draw_nothing_from_the_callers_state() -> None:
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(48, 4)),
        torch.randn(40, 1, 6, 6),
    )
    quantized = ptq(net, "W4A4", [x])
    judge, model = Judge(quantized, x), TrainableModel(quantized)
    state = torch.get_rng_state()
    first = judge(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert judge(model) == first == Judge(quantized, x)(model)


def test_one_sample_is_judged_as_it_is() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(8, 4), torch.randn(16, 8)
    quantized = ptq(net, "W4A8", [x])
    x = x[:1]
    with torch.no_grad():
        p, q = torch.softmax(net(x).double(), 1), torch.softmax(quantized(x).double(), 1)
    found = Judge(quantized, x)(TrainableModel(quantized))
    assert found.distance == pytest.approx(max(float((p * (p / q).log()).sum()), 1e-6), rel=1e-4)
