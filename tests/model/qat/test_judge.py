"""Which of two models is nearer to float."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bitsmith.model.ptq import ptq
from bitsmith.model.qat.judge import Found, Judge
from bitsmith.model.qat.trainable import TrainableModel


def test_judged_by_predictions_and_where_those_are_sure_by_what_is_below() -> None:
    near, far = Found(0.25, 2.0, 90.0), Found(0.26, 1.0, 90.0)
    assert near.order < far.order
    sure, surer = Found(1e-11, 0.2, 100.0), Found(3e-11, 0.1, 100.0)
    assert surer.order < sure.order


def mixed(x: torch.Tensor) -> torch.Tensor:
    """Return samples, and each mixed with the eight before it."""
    others = [torch.cat([x[-i:], x[:-i]]) for i in range(1, 9)]
    return torch.cat([x, *(2 / 3 * x + other / 3 for other in others)])


def test_distance_is_the_divergence_of_the_deployed_predictions() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(8, 4), torch.randn(200, 8)
    quantized = ptq(net, "W2A4", [x])
    found = Judge(quantized, x)(TrainableModel(quantized))
    with torch.no_grad():
        ours, theirs = quantized(mixed(x)).double(), net(mixed(x)).double()
    p, q = torch.softmax(theirs, 1), torch.softmax(ours, 1)
    each = (p * (p / q).log()).sum(1)
    both = float(each[:200].mean()) * float(each[200:].mean())
    assert found.distance == pytest.approx(both**0.5, rel=1e-5)
    same = 100 * float((ours.argmax(1) == theirs.argmax(1))[:200].double().mean())
    assert found.agreement == pytest.approx(same)
    assert found.shown == (found.distance, found.agreement)


def test_outputs_that_are_no_logits_have_no_agreement() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(8, 1), torch.randn(64, 8)
    quantized = ptq(net, "W4A8", [x])
    found = Judge(quantized, x)(TrainableModel(quantized))
    with torch.no_grad():
        error = (quantized(mixed(x)) - net(mixed(x))).double().square()
    assert found.agreement is None
    both = float(error[:64].mean()) * float(error[64:].mean())
    assert found.distance == pytest.approx(both**0.5, rel=1e-4)
