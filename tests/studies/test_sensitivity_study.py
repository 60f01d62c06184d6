"""Sensitivity: each layer alone and together, against networks that are run whole."""

import pytest
import torch
from torch import nn

from bitsmith.errors import InputError
from bitsmith.model.evaluate import correct
from bitsmith.model.graph import capture, simplify
from bitsmith.model.rounded import RoundedModel, multiplying, round_layers
from bitsmith.numbers.formats.integer import int2, int8
from bitsmith.numbers.scheme import PerChannel, Scheme
from bitsmith.studies import Options, studies
from bitsmith.studies.sensitivity.findings import findings
from bitsmith.studies.sensitivity.layers import sensitivity


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.body(x) + x)
        return self.head(x.flatten(1))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return simplify(capture(Residual().eval(), torch.zeros(2, 1, 6, 6)))


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 1, 6, 6, generator=generator), torch.randint(3, (n,), generator=generator))
        for n in (40, 40, 13)
    ]


def test_every_effect_is_that_of_the_network_run_whole(graph, batches):
    layers = round_layers(graph, Scheme(int2, granularity=PerChannel(0)))
    told = []
    found = sensitivity(graph, layers, batches, told.append)
    assert told == [40, 40, 13]
    names = [n.name for n in multiplying(graph)]
    assert [e.layer for e in found.layers] == names
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    plain = RoundedModel(graph, {})(x)
    assert torch.equal(found.right, correct(plain, y))
    for i, e in enumerate(found.layers):
        for effect, chosen in ((e.isolated, names[i : i + 1]), (e.cumulative, names[: i + 1])):
            logits = RoundedModel(graph, {n: layers[n] for n in chosen})(x)
            assert torch.equal(effect.right, correct(logits, y))
            noise = (logits - plain).double().square().sum() / plain.double().square().sum()
            assert effect.logits == pytest.approx(float(-10 * noise.log10()), abs=1e-3)
            share = effect.right.double().mean() - found.right.double().mean()
            assert effect.delta == pytest.approx(100 * float(share))
            assert effect.low <= effect.delta <= effect.high
    assert found.whole is found.layers[-1].cumulative
    assert found.layers[0].isolated.output == found.layers[0].cumulative.output


def test_what_is_reproduced_exactly_has_the_highest_ratio(graph, batches):
    layers = round_layers(graph, Scheme(int8, granularity=PerChannel(0)))
    for node in multiplying(graph):
        graph.param(node, "weight").copy_(layers[node.name].values)
    found = sensitivity(graph, layers, batches)
    assert {e.cumulative.logits for e in found.layers} == {150.0}
    assert {e.isolated.delta for e in found.layers} == {0.0}
    said = " ".join(findings(found, "8 bits"))
    assert "none of 3 layers is distinguishable" in said


def test_findings_name_a_layer_that_costs(graph, batches):
    torch.manual_seed(3)
    for node in multiplying(graph):
        graph.param(node, "weight").normal_()
    layers = round_layers(graph, Scheme(int2, granularity=PerChannel(0)))
    x = torch.randn(600, 1, 6, 6)
    labels = RoundedModel(graph, {})(x).argmax(1)
    found = sensitivity(graph, layers, [(x, labels)])
    said = findings(found, "2 bits")
    hurt = [e for e in found.layers if e.isolated.high < 0]
    assert hurt
    assert f"{len(hurt)} of 3 layers cost" in said[1]
    worst = min(found.layers, key=lambda e: e.isolated.delta)
    assert f"that of {worst.layer}, {worst.isolated.delta:+.2f}" in said[1]


def test_settings_are_refused():
    study = studies["sensitivity"]()
    with pytest.raises(InputError, match="setting bits"):
        study.run(Options(settings={"bits": 9}))
    with pytest.raises(InputError, match="cifar-resnet20 takes labelled samples"):
        study.run(Options(quick=True, dataset="digits"))
    with pytest.raises(InputError, match="2 to 8 bits, or 32 for float, not 12"):
        study.run(Options(settings={"activations": 12}))
