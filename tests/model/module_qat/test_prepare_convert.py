"""What trains is what deploys: the packed model computes what the trained one did, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import bitsmith as bs
from bitsmith.errors import InputError, RecipeError, SchemeError, WeightsError
from bitsmith.model.layers.embedding import QuantEmbedding
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.module_qat import convert, prepare, set_bits
from bitsmith.model.recipe import Recipe, Rule
from bitsmith.model.weights import coverage_of, quantize_weights
from bitsmith.numbers.formats.integer import int1, ternary
from bitsmith.numbers.formats.minifloat import fp16
from bitsmith.numbers.scheme import PerChannel, Scheme


def named(name: str, scheme: Scheme) -> Recipe:
    return Recipe(name, (Rule("*", scheme),), None)


RECIPES = {
    **{r: r for r in ["W8", "W4", "W3", "W2", "W1", "W4G32", "W2G16", "NF4", "MXFP4", "CODEBOOK4"]},
    **{r: r for r in ["CODEBOOK2", "W8A8-dynamic", "W4A8-dynamic", "Q4_0", "Q4_1"]},
    "BINARY": named("BINARY", Scheme(int1, granularity=PerChannel(0))),
    "TERNARY": named("TERNARY", Scheme(ternary, granularity=PerChannel(0), scale_format=fp16)),
}
LEARNS = [(name, "lsq") for name in RECIPES]
LEARNS += [(n, "minmax") for n in ("W4", "W2G16", "MXFP4", "W8A8-dynamic", "BINARY", "TERNARY")]


class First(nn.Module):
    """The first of what a module returns, and all three inputs of attention from one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.attention = inner, isinstance(inner, nn.MultiheadAttention)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner(x, x, x) if self.attention else self.inner(x)
        return out[0] if isinstance(out, tuple) else out


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


LAYERS = {
    "linear": (lambda: nn.Linear(32, 16), normal(5, 3, 32)),
    "conv1d": (lambda: nn.Conv1d(16, 16, 4, stride=2), normal(2, 16, 12)),
    "conv2d": (
        lambda: nn.Conv2d(8, 16, (2, 2), padding=1, groups=2, bias=False),
        normal(2, 8, 6, 6),
    ),
    "embedding": (lambda: nn.Embedding(24, 32, padding_idx=0), torch.tensor([[1, 0, 23]])),
    "bounded embedding": (lambda: nn.Embedding(24, 32, max_norm=1.0), torch.tensor([[1, 0, 23]])),
    "lstm": (
        lambda: nn.LSTM(32, 32, num_layers=2, bidirectional=True, batch_first=True),
        normal(2, 5, 32),
    ),
    "lstm projected": (lambda: nn.LSTM(32, 64, proj_size=32), normal(5, 2, 32)),
    "gru": (lambda: nn.GRU(32, 32, dropout=0.2, num_layers=2), normal(5, 2, 32)),
    "rnn": (lambda: nn.RNN(32, 32, nonlinearity="relu"), normal(5, 2, 32)),
    "lstm cell": (lambda: nn.LSTMCell(32, 32), normal(3, 32)),
    "attention": (lambda: nn.MultiheadAttention(32, 4, batch_first=True), normal(2, 5, 32)),
    "encoder": (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), normal(2, 5, 32)),
}


def train(model: nn.Module, x: torch.Tensor, steps: int = 2) -> nn.Module:
    descent = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        descent.zero_grad()
        model(x).square().sum().backward()
        descent.step()
    return model


@pytest.fixture(autouse=True)
def _multiplied_by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the trained weights are, so that bits can be compared; native sums have another order."""
    monkeypatch.setattr(PackedWeight, "ready", lambda self: False)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit: also the sign of zero."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize(("name", "learn"), LEARNS)
@pytest.mark.parametrize("layer", LAYERS)
def test_converted_is_what_was_trained(layer, name, learn):
    build, x = LAYERS[layer]
    torch.manual_seed(0)
    trained = train(prepare(First(build()), RECIPES[name], learn=learn, ragged="pad"), x)
    with torch.no_grad():
        packed = convert(trained)
        assert same(packed(x), trained.eval()(x))
    assert {type(m) for m in packed.modules()} & {QuantLinear, QuantEmbedding, WeightOnly}
    assert not any(parametrize.is_parametrized(m) for m in packed.modules())


class Net(nn.Module):
    """Embedding tied to the head, a shared block, and layers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(96, 64)
        self.blocks = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        self.blocks.append(self.blocks[0])
        self.lstm = nn.LSTM(64, 64, batch_first=True)
        self.gru = nn.GRU(64, 64, batch_first=True)
        self.conv = nn.Conv1d(64, 64, 1)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 96, bias=False)
        self.head.weight = nn.Parameter(self.table.weight.data)  # one memory, two objects

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        x = self.table(index)
        for block in self.blocks:
            x = torch.relu(block(x)) + x
        x = self.gru(self.lstm(x)[0])[0]
        x = self.conv(x.mT).mT
        return self.head(self.norm(x + self.attention(x, x, x)[0]))


INDEX = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("name", ["W4", "W4G32", "W8A8-dynamic", "CODEBOOK4"])
def test_native_kernels_are_as_near_as_kernels_are(net, name, monkeypatch):
    trained = train(prepare(net, name), INDEX)
    monkeypatch.undo()
    with torch.no_grad():
        torch.testing.assert_close(
            convert(trained)(INDEX), trained.eval()(INDEX), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("name", ["W4", "W4G32", "W8A8-dynamic", "CODEBOOK4"])
def test_a_whole_network_is_saved_and_listed_as_one_that_was_quantized(net, name, tmp_path):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    trained = train(prepare(net, name), INDEX)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    packed, expected = convert(trained), quantize_weights(net, name, rounding="nearest")
    with torch.no_grad():
        found = packed(INDEX)
        assert same(found, trained.eval()(INDEX))
        bs.save(packed, tmp_path / "m")
        assert same(bs.load(tmp_path / "m", Net())(INDEX), found)
    rows, others = coverage_of(packed), coverage_of(expected)
    for row, other in zip(rows, others, strict=True):
        assert (row.layer, row.op, row.outcome) == (other.layer, other.op, other.outcome)
        assert (row.reason, row.values) == (other.reason, other.values)
        assert row.bits_per_weight == other.bits_per_weight
    assert packed.recipe == expected.recipe
    kinds = [type(m) for m in packed.modules()]
    assert kinds == [type(m) for m in expected.modules()]
    assert packed.state_dict().keys() == expected.state_dict().keys()


def test_tied_weights_train_as_one_and_shared_blocks_too(net):
    trained = prepare(net, "W4G64")
    table, head = trained.table.parametrizations.weight, trained.head.parametrizations.weight
    assert table.original is head.original
    assert table[0] is head[0]
    assert trained.blocks[0] is trained.blocks[2]
    train(trained, INDEX)
    assert torch.equal(trained.table.weight, trained.head.weight)
    rows = {row.layer: row for row in coverage_of(trained)}
    assert rows["head.weight"].outcome == "tied"
    assert rows["head.weight"].reason == "tied to table.weight"
    assert rows["table.weight"].outcome == "trained"
    assert rows["table.weight"].algorithm == "lsq"
    assert rows["blocks.0.weight"].algorithm == "lsq+"
    assert rows["blocks.0.weight"].bits_per_weight == 4 + 16 / 64 + 4 / 64
    packed = convert(trained)
    assert packed.head.packed is packed.table.packed


def test_super_blocks_of_gguf_train_too():
    torch.manual_seed(0)
    for name in ("Q2_K", "Q3_K", "Q4_K", "Q6_K"):
        trained = train(prepare(nn.Sequential(nn.Linear(256, 4)), name), normal(8, 256))
        with torch.no_grad():
            assert same(convert(trained)(normal(8, 256)), trained.eval()(normal(8, 256)))


def test_the_root_can_be_the_layer_and_other_types_stay():
    for dtype in (torch.float64, torch.bfloat16):
        trained = prepare(nn.Linear(32, 8, dtype=dtype), "W4G32")
        x = normal(4, 32).to(dtype)
        train(trained, x)
        packed = convert(trained)
        assert isinstance(packed, QuantLinear)
        with torch.no_grad():
            assert trained(x).dtype == dtype
            assert torch.equal(packed(x), trained.eval()(x))


def test_the_layer_keeps_its_class_hooks_and_names():
    net = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 8))
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    trained = prepare(net, "W8A8-dynamic")
    assert isinstance(trained[0], nn.Linear)
    assert isinstance(trained[1], nn.LSTM)
    trained(normal(3, 2, 8))
    assert calls == [1]
    assert "0.parametrizations.weight.original" in dict(trained.named_parameters())
    assert trained[0].bias is not net[0].bias


def test_a_copy_after_a_step_trains_apart_and_conversion_leaves_the_model_alone(net):
    trained = train(prepare(net, "W4"), INDEX)
    twin = copy.deepcopy(trained)
    train(twin, INDEX)
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    packed = convert(trained)
    with torch.no_grad():
        packed.norm.weight.add_(1)
    train(trained, INDEX, steps=1)  # goes on after conversion
    assert not torch.equal(
        twin.table.parametrizations.weight.original,
        state["table.parametrizations.weight.original"],
    )
    assert not same(packed.norm.weight, trained.norm.weight)
    trained.double().float()(INDEX)
    assert trained.lstm.all_weights[0][0].shape == (256, 64)


def test_padded_rows_and_float_rows_are_listed():
    net = nn.Sequential(nn.Linear(40, 8), nn.Linear(8, 8))
    with pytest.raises(SchemeError, match=r"0.weight: group_size must divide axis 1"):
        prepare(net, "W4G32")
    trained = train(prepare(net, "W4G32", ragged="pad"), normal(4, 40))
    assert coverage_of(trained)[0].reason == "rows of 40 padded to 64"
    packed = convert(trained)
    assert coverage_of(packed)[0].reason == "rows of 40 padded to 64"
    kept = prepare(net, "W4G32", ragged="float")
    assert [row.outcome for row in coverage_of(kept)] == ["float", "float"]


def test_sparse_gradients_become_dense_and_the_row_says_so():
    trained = prepare(nn.Sequential(nn.Embedding(8, 8, sparse=True)), "W8")
    assert coverage_of(trained)[0].reason == "its gradient is dense, not sparse"
    trained(torch.tensor([1, 2])).sum().backward()
    assert not trained[0].parametrizations.weight.original.grad.is_sparse
    assert coverage_of(convert(trained))[0].reason == ""


def test_bad_input_is_refused(net):
    with pytest.raises(RecipeError, match="'W8A8' is static"):
        prepare(net, "W8A8")
    with pytest.raises(RecipeError, match="no layer to quantize"):
        prepare(nn.LayerNorm(4), "W8")
    with pytest.raises(RecipeError, match=r"no layer to quantize .*parametrized"):
        prepare(prepare(nn.Sequential(nn.Linear(4, 4)), "W8"), "W8")
    with pytest.raises(SchemeError) as caught:
        prepare(net, "CODEBOOK4", learn="minmax")
    assert "blocks.0.weight (codebook4)" in str(caught.value)
    assert "conv.weight (codebook4)" in str(caught.value)
    grouped = Recipe("mine", (Rule("*", Scheme(int1)),), bs.make_recipe("W8A8-dynamic").activation)
    with pytest.raises(SchemeError, match="quantized inputs need a symmetric integer weight"):
        prepare(net, grouped)
    with pytest.raises(InputError, match="Linear was not prepared for training here"):
        convert(nn.Linear(4, 4))
    trained = prepare(net, "W4")
    set_bits(trained, 6)
    with pytest.raises(InputError, match=r"blocks.0.weight \(6 of 4\)"):
        convert(trained)
    on_top = prepare(nn.Sequential(nn.Linear(4, 4)), "W4")
    parametrizations.weight_norm(on_top[0], "bias", dim=None)
    with pytest.raises(InputError, match=r"quantizer of 0.weight .* of bias"):
        convert(on_top)
    with torch.no_grad():
        net.conv.weight[0] = float("nan")
    with pytest.raises(WeightsError, match=r"conv\.weight"):
        prepare(net, "W4")
