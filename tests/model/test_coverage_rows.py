"""A row of the coverage says how a weight was really rounded, and why not as was asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bitsmith.algorithms.objective import output_error, weight_error
from bitsmith.errors import SchemeError
from bitsmith.model.weight_rows import WeightRow
from bitsmith.model.weights import coverage_of, quantize_weights
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.statistics import Gram


class Net(nn.Module):
    """A tied head, an LSTM, a plain layer, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(96, 64)
        self.lstm = nn.LSTM(64, 64, batch_first=True)
        self.plain = nn.Linear(64, 64)
        self.idle = nn.Linear(64, 64)
        self.head = nn.Linear(64, 96, bias=False)
        self.head.weight = self.table.weight

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.head(self.plain(self.lstm(self.table(index))[0]))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


DATA = [torch.randint(0, 96, (4, 9), generator=torch.Generator().manual_seed(s)) for s in (2, 3)]
LSTM = ("lstm.weight_ih_l0", "lstm.weight_hh_l0")


def rows_of(model: nn.Module, *arguments: object, **options: str) -> dict[str, WeightRow]:
    return {r.layer: r for r in coverage_of(quantize_weights(model, *arguments, **options))}


def test_a_rounding_that_needs_data_is_not_said_to_have_been_used_without(net: Net) -> None:
    rows = rows_of(net, "W4G64", DATA, rounding="gptq")
    assert (rows["plain.weight"].algorithm, rows["plain.weight"].reason) == ("gptq", "")
    lacks = "gptq needs statistics of its inputs: "
    assert rows["table.weight"].algorithm == "nearest"  # 8 bits
    assert rows["table.weight"].reason == lacks + "none were gathered for this embedding"
    for name in LSTM:
        assert rows[name].algorithm == "searched"
        assert rows[name].reason == lacks + "none were gathered for this lstm"
    assert rows["idle.weight"].algorithm == "searched"
    assert rows["idle.weight"].reason == lacks + "no calibration batch reached it"
    tied = rows["head.weight"]
    assert (tied.outcome, tied.algorithm, tied.objective) == ("tied", "", None)


def test_what_is_chosen_without_being_asked_for_says_what_it_lacked(net: Net) -> None:
    rows = rows_of(net, "W4G64", DATA)
    assert rows["plain.weight"].algorithm == "gptq"
    assert rows["table.weight"].reason == ""  # 8 bits: nearest with data or without
    assert "gptq needs statistics" in rows[LSTM[0]].reason
    tables = rows_of(net, "CODEBOOK4", DATA)
    assert tables["plain.weight"].reason == ""
    assert tables[LSTM[0]].algorithm == "kmeans"
    assert "kmeans without statistics of its inputs" in tables[LSTM[0]].reason
    assert {r.reason for r in rows_of(net, "W4G64").values()} == {"", "tied to table.weight"}


def test_nearest_that_was_kept_is_called_nearest() -> None:
    even = nn.Linear(64, 4, bias=False)
    with torch.no_grad():
        even.weight.copy_(torch.arange(16.0).repeat(4, 4))  # the codes themselves: no error
    row = rows_of(even, "W4G64", rounding="hqq")["weight"]
    assert row.algorithm == "nearest"
    assert row.reason == "hqq was not better than nearest rounding"
    assert row.objective == row.nearest_objective == 0
    asked = rows_of(even, "W4G64", rounding="nearest")["weight"]
    assert (asked.algorithm, asked.reason) == ("nearest", "")


@pytest.mark.parametrize("transform", ["awq", "smoothquant"])
def test_a_transform_that_was_not_applied_says_why(net: Net, transform: str) -> None:
    with torch.no_grad():
        net.plain.weight[:, :4] *= 20  # so that scales pay
    rows = rows_of(net, "W3", DATA, rounding="gptq", transform=transform)
    assert rows["plain.weight"].algorithm == f"{transform}+gptq"
    assert rows["plain.weight"].reason == ""
    none = f"no {transform}: "
    assert rows["idle.weight"].reason.startswith(none + "no calibration batch reached it; gptq")
    assert rows[LSTM[0]].reason.startswith(none + "only plain linear layers have scales")


def test_a_transform_leaves_a_weight_of_two_layers_alone() -> None:
    net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 64))
    net[2].weight = net[0].weight
    rows = rows_of(net, "W3", [torch.randn(32, 64)], transform="awq")
    assert rows["0.weight"].reason == "no awq: its weight is tied: 2.weight"
    assert rows["0.weight"].algorithm == "gptq"
    assert rows["2.weight"].reason == "tied to 0.weight"


def test_scales_of_one_are_no_transform() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(32, 8)), torch.ones(64, 32)  # all inputs alike
    row = rows_of(net, "W4", [x], transform="awq")["0.weight"]
    assert row.reason == "no awq: no scales were better than 1"
    assert row.algorithm == "gptq"


def test_objectives_are_those_of_the_codes_that_are_stored() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 16, bias=False))
    x = torch.randn(128, 64) @ torch.randn(64, 64)
    gram = Gram()
    gram.update(x)
    weight = net[0].weight.detach()
    for data, error in (([x], lambda w: output_error(weight, w, gram)), (None, None)):
        quantized = quantize_weights(net, "W3G32", data)
        (row,) = coverage_of(quantized)
        stored = quantized[0].packed.qtensor()
        plain = quantize(weight, stored.scheme).dequantize()
        measure = error or (lambda w: weight_error(weight, w))
        assert row.objective == pytest.approx(measure(stored.dequantize()), rel=1e-9)
        assert row.nearest_objective == pytest.approx(measure(plain), rel=1e-9)
        assert row.objective < row.nearest_objective
        assert WeightRow(**row.to_json()) == replace(row, kernel="")


def test_a_rounding_that_cannot_follow_a_scheme_names_the_weight(net: Net) -> None:
    with pytest.raises(SchemeError, match=r"^table.weight: int8 has a table of its own"):
        quantize_weights(net, "CODEBOOK4", rounding="kmeans")
