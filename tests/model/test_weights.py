"""The module lane: any module, layers swapped, everything reported."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import bitsmith as bs
from bitsmith.errors import (
    DataError,
    ExportError,
    InputError,
    RecipeError,
    SchemeError,
    UnknownNameError,
    WeightsError,
)
from bitsmith.model.blocks import input_statistics, owner_blocks
from bitsmith.model.layers.embedding import QuantEmbedding
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.owners import weight_owners
from bitsmith.model.presets import make_recipe
from bitsmith.model.recipe import Recipe, Rule
from bitsmith.model.weights import coverage_of, quantize_weights


class Net(nn.Module):
    """Embedding tied to the head, a shared block, a recurrent layer, a convolution, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(96, 64)
        self.blocks = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        self.blocks.append(self.blocks[0])
        self.lstm = nn.LSTM(64, 64, batch_first=True)
        self.conv = nn.Conv1d(64, 64, 1)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 96, bias=False)
        self.head.weight = self.table.weight

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        x = self.table(index)
        for block in self.blocks:
            x = torch.relu(block(x)) + x
        x = self.conv(self.lstm(x)[0].mT).mT
        return self.head(self.norm(x + self.attention(x, x, x)[0]))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


INDEX = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))
DATA = [torch.randint(0, 96, (4, 9), generator=torch.Generator().manual_seed(s)) for s in (2, 3)]
RECIPES = ["W8", "W4", "W4G64", "W3G32", "W2G16", "NF4", "MXFP4", "CODEBOOK4", "W8A8-dynamic"]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("data", [None, DATA], ids=["plain", "data"])
def test_every_recipe_runs_and_nothing_of_the_model_changes(net, name, data) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        expected = net(INDEX)
        quantized = bs.ptq(net, name, data)
        found = quantized(INDEX)
        assert torch.equal(net(INDEX), expected)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    error = float((found - expected).norm() / expected.norm())
    bits = int(next((c for c in name if c.isdigit()), "4"))
    assert 0 < error < {8: 0.02, 4: 0.25, 3: 0.35, 2: 0.9}[bits]
    assert {type(m) for m in quantized.modules()} >= {QuantLinear, QuantEmbedding, WeightOnly}


def test_tied_and_shared_stay_so_and_are_listed(net) -> None:
    quantized = quantize_weights(net, "W4G64")
    assert quantized.blocks[0] is quantized.blocks[2]
    assert quantized.head.packed is quantized.table.packed
    rows = {row.layer: row for row in coverage_of(quantized)}
    assert list(rows) == [
        "table.weight",
        "blocks.0.weight",
        "blocks.1.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    ]
    assert rows["head.weight"].outcome == "tied"
    assert rows["head.weight"].reason == "tied to table.weight"
    assert rows["table.weight"].bits_per_weight == 8 + 32 / 64
    assert rows["blocks.0.weight"].bits_per_weight == 4 + 16 / 64 + 4 / 64
    assert quantized.norm.weight is net.norm.weight  # what stays float is shared, not copied
    assert quantized.recipe.name == "W4G64"


def test_rules_keep_layers_in_float_and_must_match(net) -> None:
    base = make_recipe("W4G64")
    recipe = Recipe("mine", (Rule("head", None), Rule("table", None), *base.rules), None)
    rows = {r.layer: r for r in coverage_of(quantize_weights(net, recipe))}
    assert rows["table.weight"].outcome == rows["head.weight"].outcome == "float"
    assert rows["table.weight"].reason == "the recipe keeps it in float"
    assert rows["table.weight"].bits_per_weight == 32
    with pytest.raises(RecipeError, match="rules that match no layer: tail"):
        quantize_weights(net, Recipe("mine", (Rule("tail", None), *base.rules), None))


def test_group_sizes_that_do_not_divide_are_all_listed() -> None:
    net = nn.Sequential(nn.Linear(172, 64), nn.Linear(64, 172), nn.Linear(172, 8))
    with pytest.raises(SchemeError) as caught:
        quantize_weights(net, "W4G32")
    assert "0.weight: group_size must divide axis 1" in str(caught.value)
    assert "2.weight" in str(caught.value)
    assert "172 % 32 = 12; nearest: 4, 43" in str(caught.value)
    padded = quantize_weights(net, "W4G32", ragged="pad")
    row = coverage_of(padded)[0]
    assert row.reason == "rows of 172 padded to 192"
    assert row.bits_per_weight == pytest.approx((4 + 20 / 32) * 192 / 172)
    x = torch.randn(3, 172)
    with torch.no_grad():
        assert float((padded(x) - net(x)).norm() / net(x).norm()) < 0.2
    kept = coverage_of(quantize_weights(net, "W4G32", ragged="float"))
    assert [r.outcome for r in kept] == ["float", "packed", "float"]
    assert "172 % 32" in kept[0].reason


def test_data_lowers_the_error_of_the_output() -> None:
    torch.manual_seed(3)
    mix = torch.randn(64, 64) * torch.logspace(0, -2, 64)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    x = torch.randn(512, 64) @ mix
    with torch.no_grad():
        plain, aware = (quantize_weights(net, "W2G32", d) for d in (None, x[:256].split(64)))
        errors = [float((q(x[256:]) - net(x[256:])).square().mean()) for q in (plain, aware)]
    assert errors[1] < 0.6 * errors[0]


def correlated() -> tuple[nn.Module, torch.Tensor]:
    """A network whose inputs differ a hundredfold in size."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    return net, torch.randn(512, 64) * torch.logspace(0, -2, 64)


@pytest.mark.parametrize(
    ("transform", "recipe", "gain"),
    [("awq", "W3", 0.97), ("smoothquant", "W8A8-dynamic", 0.97)],
)
def test_transforms_move_the_difficulty_and_survive_saving(transform, recipe, gain, tmp_path):
    net, x = correlated()
    data = list(torch.split(x[:256], 64))
    plain = {"rounding": "nearest"}
    with torch.no_grad():
        expected = net(x[256:])
        errors = []
        for chosen in (None, transform):
            quantized = bs.ptq(net, recipe, data, transform=chosen, **plain)
            errors.append(float((quantized(x[256:]) - expected).square().mean()))
        assert errors[1] < gain * errors[0]
        layer = quantized[0]
        assert float(layer.input_scale.min()) > 0
        assert float((layer.weight - net[0].weight).abs().max()) < 0.2
        bs.save(quantized, tmp_path / "m")
        back = bs.load(tmp_path / "m", correlated()[0])
        assert torch.equal(back(x), quantized(x))
    with pytest.raises(ExportError, match="0: its input is divided by scales of its own"):
        bs.export(quantized, tmp_path / "m.gguf")
    with pytest.raises(InputError, match=r"have no encodings .*0, 2"):
        bs.save_encodings(quantized, tmp_path / "e.safetensors")
    assert torch.equal(torch.compile(quantized, backend="eager")(x), quantized(x))


def test_transforms_leave_tied_weights_alone_and_need_data(net) -> None:
    quantized = quantize_weights(net, "W4", DATA, transform="awq")
    assert quantized.head.input_scale is None
    with pytest.raises(DataError, match="transform 'awq' needs calibration data"):
        quantize_weights(net, "W4", transform="awq")
    with pytest.raises(RecipeError, match="takes no transform"):
        bs.ptq(net, "W8A8", DATA, transform="awq")
    with pytest.raises(UnknownNameError, match="did you mean 'awq'"):
        quantize_weights(net, "W4", DATA, transform="awk")


def test_what_cannot_be_packed_is_listed_with_its_reason() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 4))
            self.linear = nn.Linear(4, 4)
            self.up = nn.ConvTranspose1d(4, 4, 2)
            self.normed = parametrizations.weight_norm(nn.Linear(4, 4))

    rows = {o.name: o.refusal for o in weight_owners(Own())}
    assert rows[""] == "Own has parameters of its own: matrix"
    assert rows["linear"] == ""
    assert "transposed convolution" in rows["up"]
    assert "its weight is parametrized" in rows["normed"]
    found = {r.layer: r.reason for r in coverage_of(quantize_weights(Own(), "W8"))}
    assert found["matrix"] == rows[""]
    assert found["up.weight"] == rows["up"]
    assert "parametrized" in found["normed.parametrizations.weight.original1"]


def test_the_root_itself_can_be_a_layer() -> None:
    linear = nn.Linear(32, 4)
    quantized = quantize_weights(linear, "W8")
    assert isinstance(quantized, QuantLinear)
    assert quantized.bias is linear.bias


def test_blocks_are_what_a_network_repeats(net) -> None:
    found = [(b.name, [o.name for o in b.owners]) for b in owner_blocks(net, weight_owners(net))]
    assert found[:3] == [
        ("", ["table"]),
        ("blocks.0", ["blocks.0"]),
        ("blocks.1", ["blocks.1"]),
    ]
    grams = input_statistics(net, owner_blocks(net, weight_owners(net))[1], DATA)
    rows = torch.cat([net.table(d).reshape(-1, 64) for d in DATA])
    assert grams["blocks.0"].rows >= len(rows)  # a shared block sees both of its inputs


def test_bad_input_is_refused(net) -> None:
    with pytest.raises(RecipeError, match=r"W8A8.*static"):
        quantize_weights(net, "W8A8")
    with pytest.raises(RecipeError, match="of the module lane, which takes no machine, calibrator"):
        bs.ptq(net, "W8", machine="vnni", calibrator="mse")
    with pytest.raises(RecipeError, match="of the static lane, which takes no rounding"):
        bs.ptq(net, "W8A8", DATA, rounding="gptq")
    with pytest.raises(DataError, match="rounding 'gptq' needs calibration data"):
        quantize_weights(net, "W4G64", rounding="gptq")
    with pytest.raises(DataError, match="the calibration data is empty"):
        quantize_weights(net, "W4G64", iter(()))
    with pytest.raises(DataError, match="a calibration batch is a tensor, a tuple"):
        quantize_weights(net, "W4G64", ["text"])
    with pytest.raises(RecipeError, match="no layer to quantize"):
        quantize_weights(nn.LayerNorm(4), "W8")
    with pytest.raises(RecipeError, match="was not quantized here"):
        coverage_of(net)
    with torch.device("meta"):
        empty = nn.Linear(4, 4)
    with pytest.raises(WeightsError, match="weight is on the meta device: load its values first"):
        quantize_weights(empty, "W8")
    with torch.no_grad():
        net.head.weight[0, 0] = float("inf")
        net.conv.weight[0] = float("nan")
    with pytest.raises(WeightsError, match=r"table.weight has 1 NaN or infinite.*\n.*conv.weight"):
        quantize_weights(net, "W8")


class Labelled(nn.Module):
    """One input, dropout and a batch norm: what training mode would change."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Dropout(0.5))
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def test_labels_are_dropped_and_training_mode_changes_nothing() -> None:
    torch.manual_seed(0)
    net, x = Labelled(), torch.randn(32, 64)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = quantize_weights(net.train(), "W3", [(x, torch.zeros(32).long())])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert net.body[2].training
    plain = quantize_weights(net.eval(), "W3", [x])
    assert torch.equal(found.eval()(x), plain.eval()(x))


def test_batches_that_the_model_does_not_take_are_named() -> None:
    net, x = Labelled().eval(), torch.randn(32, 64)
    with pytest.raises(DataError, match="no input of Labelled: too many positional"):
        quantize_weights(net, "W3", [(x, x, x)])
    with pytest.raises(DataError, match=r"Labelled cannot run .* float32 \[32, 5\]: .*mat1"):
        quantize_weights(net, "W3", [x[:, :5]])
    with pytest.raises(DataError, match=r"cannot run .* of float32 \[32, 64\]"):
        quantize_weights(net.half(), "W3", [x])
    with pytest.raises(DataError, match="train split only"):
        quantize_weights(net, "W3", bs.load_dataset("digits").split("test").batches(8))
