"""Clustering: tables, files on disk read back, and what int8 keeps of the clusters."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bitsmith.data import load_dataset
from bitsmith.errors import InputError, WeightsError
from bitsmith.insight.zoo_network import ZooNetwork
from bitsmith.model.graph import capture, simplify
from bitsmith.model.presets import make_recipe
from bitsmith.model.ptq import quantize_graph
from bitsmith.model.store.survey import survey
from bitsmith.numbers.entropy_coding import HuffmanStream, huffman_decode
from bitsmith.studies import Options, studies
from bitsmith.studies.clustering import clusters, entries
from bitsmith.studies.clustering.clusters import FORMS, forms, keep_clusters, layer_codes
from bitsmith.studies.clustering.entries import clustered, file_sizes, float_size
from bitsmith.studies.clustering.signs import without_negative_factors


class Net(nn.Module):
    """Batch norms that multiply channels with unlike numbers, one of them negative."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8 * 64, 10)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([0.2, 0.5, 1.0, 1.3, 2.0, 3.1, 0.9, -1.0]))

    def forward(self, x):
        return self.linear(torch.relu(self.norm(self.conv(x))).flatten(1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    data = load_dataset("digits")
    return ZooNetwork("net", Net().eval(), data.split("train"), data.split("test"), "here")


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_every_layer_has_a_table_of_so_many_values(network, bits):
    model = clustered(network.module, bits, None)
    found = survey(model).weights
    assert set(found) == {"conv.weight", "linear.weight"}
    for name, weight in found.items():
        w, there = network.module.get_parameter(name).detach(), weight.dequantize()
        assert len(there.unique()) <= min(1 << bits, w.numel())
        assert torch.equal(there, there.half().float())
        if bits == 8 and w.numel() <= 256:
            assert torch.allclose(there, w, atol=2e-3)


def test_weights_that_meet_large_inputs_count_more(network):
    x = torch.zeros(32, 1, 8, 8)
    x[:, :, :4] = torch.randn(32, 1, 4, 8, generator=torch.Generator().manual_seed(1))
    plain, weighted = (clustered(network.module, 2, d) for d in (None, [x]))
    name = "linear.weight"
    w = network.module.linear.weight.detach()
    inputs = torch.relu(network.module.norm(network.module.conv(x))).flatten(1).detach()
    inputs = inputs.square().mean(0)
    errors = [
        float(((survey(m).weights[name].dequantize() - w).square() * inputs).sum())
        for m in (plain, weighted)
    ]
    assert errors[1] < errors[0]


def test_files_hold_the_model(network, tmp_path, monkeypatch):
    model = clustered(network.module, 3, None)
    written = {}

    def keep(tensors, path):
        from safetensors.torch import save_file

        save_file(tensors, path)
        written.update(load_file(path))
        written["size"] = path.stat().st_size

    monkeypatch.setattr(entries, "save_file", keep)
    sizes = file_sizes(model)
    assert sizes.coded == written["size"]
    assert 0 < sizes.squeezed < sizes.packed
    for name, weight in survey(model).weights.items():
        q = weight.qtensor()
        parts = (written[f"{name}/{p}"] for p in ("lengths", "blocks", "stream"))
        stream = HuffmanStream(*parts, int(written[f"{name}/count"]))
        assert torch.equal(huffman_decode(stream), q.codes.reshape(-1).to(torch.uint8))
        table = written[f"{name}/table"].float().reshape(-1)
        read = table[huffman_decode(stream).long()].reshape(weight.shape)
        assert torch.equal(read, weight.dequantize())
    assert {"norm.weight", "norm.running_mean", "linear.bias"} <= set(written)
    values = sum(t.numel() * t.element_size() for t in network.module.state_dict().values())
    assert values < float_size(network.module).packed < values + 2000


def in_int8(network, bits=4):
    """Return clustered values, the network in plain int8 and the same with clusters kept."""
    weights = {
        n: w.dequantize() for n, w in survey(clustered(network.module, bits, None)).weights.items()
    }
    module = Net().eval()
    module.load_state_dict({**network.module.state_dict(), **weights})
    graph = simplify(capture(module, [network.example]))
    plain = quantize_graph(graph, make_recipe("W8A8"), network.calibration(64, 0))
    return weights, module, plain, keep_clusters(plain, weights, bits)


def test_plain_int8_destroys_clusters_and_keeping_keeps_them(network):
    weights, module, plain, kept = in_int8(network)
    spread, own = layer_codes(plain, weights), layer_codes(kept, weights)
    assert [c.layer for c in own] == ["conv", "linear"]
    for before, after in zip(spread, own, strict=True):
        assert before.before == after.before <= 16
        assert before.after > 16 >= after.after
        assert before.kept < after.kept
    # seven of eight channels are multiplied with a positive number: their clusters are kept whole
    assert own[0].kept >= 100 * 7 / 8
    assert own[1].kept == 100
    x = network.test.batches(200, limit=200)
    x = next(iter(x))[0]
    real, there = module(x).detach(), kept(x)
    assert float((there - real).square().mean() / real.square().mean()) < 0.02


def test_factors_lose_their_sign_and_the_network_stays(network):
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    changed = without_negative_factors(network.module, x)
    assert float(network.module.norm.weight.min()) < 0
    assert float(changed.norm.weight.min()) > 0
    assert torch.equal(changed.conv.weight[:7], network.module.conv.weight[:7])
    assert torch.equal(changed.conv.weight[7], -network.module.conv.weight[7])
    assert torch.allclose(changed(x), network.module(x), atol=1e-5)


def test_a_norm_that_is_not_behind_its_neighbour_is_left_alone():
    class Crossed(Net):
        def forward(self, x):
            x = self.norm(torch.relu(self.conv(x)))
            return self.linear(x.flatten(1))

    torch.manual_seed(0)
    module, x = Crossed().eval(), torch.randn(5, 1, 8, 8)
    changed = without_negative_factors(module, x)
    assert torch.equal(changed.norm.weight, module.norm.weight)
    assert torch.equal(changed(x), module(x))


def test_codes_stand_for_the_clustered_weights(network):
    weights, _, plain, kept = in_int8(network)
    layer = kept.program.layers["linear"]
    error = (layer.weight.dequantize() - weights["linear.weight"]).abs().max()
    assert float(error) <= 0.51 * float(weights["linear.weight"].abs().max()) / 64
    assert layer.table.numel() <= 16
    assert kept.recipe.name == "CODEBOOK4A8"
    assert plain.program.layers["linear"].table is None


def test_more_values_than_a_table_holds_are_refused(network):
    weights, _, plain, _ = in_int8(network)
    with pytest.raises(WeightsError, match="a table of 2 bits holds 4"):
        keep_clusters(plain, weights, 2)


def test_finetuning_keeps_tables_and_is_done_once(network, monkeypatch):
    packed = clustered(network.module, 3, None)
    plain = network.judge("float32", "float", network.module, 300)
    effort = {"judged": 300, "images": 64, "epochs": 1, "samples": 256}
    runs = []
    fit = clusters.fit

    def counted(*args, **kwargs):
        layer = args[0].converted().program.layers["linear"]
        runs.append((args[0].effective_weight("linear").clone(), layer))
        return fit(*args, **kwargs)

    monkeypatch.setattr(clusters, "fit", counted)
    first = forms(network, packed, 3, plain, effort, Options())
    assert [f.name for f in first] == list(FORMS)
    assert all(c.after <= 8 for c in first[2].layers)
    assert first[1].packed < first[0].packed
    again = forms(network, packed, 3, plain, effort, Options())
    assert len(runs) == 1
    (start, layer), weight = runs[0], network.module.linear.weight
    distances = (weight / layer.weight.scale - layer.table.reshape(-1, 1, 1)).abs()
    own = layer.table[distances.argmin(0)] == layer.weight.codes
    assert int(own.sum()) > 0
    assert torch.equal(start == weight, own), "float weights where theirs is the nearest entry"
    assert torch.equal(again[2].evaluation.predictions, first[2].evaluation.predictions)


def test_settings_are_refused():
    study = studies["clustering"]()
    with pytest.raises(InputError, match="setting bits"):
        study.run(Options(settings={"bits": 8}))
