"""A model, layer kind by layer kind, and whole."""

import pytest
import torch
from torch import nn

from bitsmith.errors import InputError
from bitsmith.insight.bench.bandwidth import Bandwidth
from bitsmith.insight.bench.network import network_speeds
from bitsmith.insight.bench.records import network_records

LIMIT = Bandwidth(1e10, "assumed", {"assumed": 1e10})


def test_layers_and_the_whole():
    stages = []

    def stage(name, total):
        stages.append([name, total, 0])

        def advance(count):
            stages[-1][2] += count

        return advance

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    found = network_speeds(
        model, ["W8", "CODEBOOK4"], torch.randn(2, 64), thread_count=1, seconds=0.002, turns=5,
        bandwidth=LIMIT, stage=stage,
    )  # fmt: skip
    assert [k.layers for k in found.layers] == [("0", "2")]
    assert [w.name for w in found.whole] == ["float32", "W8", "CODEBOOK4"]
    reference, int8, table = found.whole
    assert reference.to_float.value == 1
    assert table.bytes < int8.bytes < reference.bytes == 4 * 2 * (64 * 64 + 64)
    assert stages[-1] == ["the whole model", 15, 15]
    assert stages[-2] == ["layers", 15, 15]
    records = network_records(found, {"model": "mine"})
    assert {r.metric for r in records} == {"read_bandwidth", "latency", "times_float32"}
    assert sum(r.layer is None and r.metric == "latency" for r in records) == 3


@pytest.mark.parametrize("recipes", [[], ["W8", "W8"]])
def test_refuses(recipes):
    with pytest.raises(InputError, match="each once"):
        network_speeds(nn.Linear(8, 8), recipes, torch.randn(1, 8), bandwidth=LIMIT)
