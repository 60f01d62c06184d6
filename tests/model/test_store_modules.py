"""A saved model of the module lane is the same model, and never a float one on the way."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitsmith.model.store as store
from bitsmith.errors import InputError, WeightsError
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.presets import grouped_scheme
from bitsmith.model.recipe import Recipe, Rule
from bitsmith.model.store.parts import part_specs
from bitsmith.model.store.skeleton import build_skeleton
from bitsmith.model.weight_rows import WeightRow
from bitsmith.model.weights import quantize_weights
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.named_schemes import named_scheme
from bitsmith.numbers.scheme import PerBlock, PerChannel, PerGroup, Scheme
from bitsmith.numbers.stored import to_stored

RECIPES = ["W8", "W4G32", "W3G32", "NF4", "MXFP4", "CODEBOOK4", "W8A8-dynamic"]


class Zoo(nn.Module):
    """One of everything: tied, shared, convolution, recurrent, attention, rotary buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(48, 64, padding_idx=0)
        self.conv = nn.Conv1d(64, 64, 3, padding=1)
        self.norm = nn.BatchNorm1d(64)
        self.attend = nn.MultiheadAttention(64, 4, batch_first=True)
        self.lstm = nn.LSTM(64, 32, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(64, 64, batch_first=True)
        self.block = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.again = self.block
        self.twice = nn.ModuleList([self.block[0], nn.Linear(64, 64, bias=False)])
        self.head = nn.Linear(64, 48)
        self.head.weight = self.embed.weight
        angles = torch.arange(8.0)[:, None] * torch.logspace(0, -4, 32)
        self.register_buffer("angles", angles, persistent=False)
        self.register_buffer("turns", torch.polar(torch.ones(8, 32), angles), persistent=False)
        self.register_buffer("cache", None, persistent=False)
        self.gain = nn.Parameter(torch.ones(64))
        self.gain_too = self.gain

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (32, 2))) * self.turns)
        x = x.flatten(-2) * self.gain
        x = self.norm(self.conv(x.transpose(1, 2))).transpose(1, 2)
        x = self.attend(x, x, x)[0] + self.lstm(x)[0] + self.gru(x)[0]
        return self.head(self.twice[1](self.again(self.block(x))) * self.gain_too)


@pytest.fixture(scope="module")
def net() -> Zoo:
    torch.manual_seed(0)
    return Zoo().eval()


def ids() -> Tensor:
    return torch.arange(16).reshape(2, 8)


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(ids())
    return out


@pytest.fixture(scope="module")
def quantized(net: Zoo) -> Callable[[str], nn.Module]:
    made: dict[str, nn.Module] = {}

    def make(recipe: str) -> nn.Module:
        if recipe not in made:
            made[recipe] = quantize_weights(net, recipe, ragged="pad")
        return made[recipe]

    return make


@pytest.fixture
def saved(quantized: Callable[[str], nn.Module], tmp_path: Path) -> Path:
    return store.save(quantized("W4G32"), tmp_path / "m")


@pytest.mark.parametrize("recipe", RECIPES)
def test_round_trip(quantized: Any, tmp_path: Path, recipe: str) -> None:
    model = quantized(recipe)
    again = store.load(store.save(model, tmp_path / "m"), Zoo)
    assert torch.equal(run(again), run(model))
    assert again.recipe == model.recipe
    assert again.coverage == model.coverage
    before, after = model.state_dict(), again.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        if not tensor.is_meta:  # the empty ones where a weight was
            assert after[name].dtype == tensor.dtype
            assert torch.equal(after[name], tensor), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_a_folder_whose_rows_do_not_say_how_they_were_rounded(saved: Path) -> None:
    edit(saved, lambda d: [r.pop(k, 0) for r in d["coverage"] for k in ("algorithm", "objective")])
    rows = store.load(saved, Zoo).coverage
    assert {(r.algorithm, r.objective) for r in rows} == {("", None)}


def test_what_was_one_is_one(saved: Path) -> None:
    model = store.load(saved, Zoo)
    assert model.head.packed is model.embed.packed
    assert model.again is model.block
    assert model.twice[0] is model.block[0]
    assert model.gain_too is model.gain
    text = json.loads((saved / "quantization.json").read_text())
    assert text["layers"]["head"]["weights"] == {"weight": "embed.weight"}
    assert text["shared"] == {"again": "block", "twice.0": "block.0"}
    assert text["floats"]["gain_too"]["tensor"] == "gain"


def test_the_file_has_the_names_of_the_float_model_and_no_float_weight(saved: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(saved / "weights.safetensors")
    float_names = {name for name, _ in Zoo().named_parameters()} | {"angles", "turns"}
    float_names |= {name for name, _ in Zoo().named_buffers()}
    assert {name.split("/")[0] for name in tensors} == float_names
    assert {n for n in tensors if n.startswith("embed.")} == {
        "embed.weight/codes",
        "embed.weight/scale",
    }
    assert all(t.dim() < 2 or n in ("angles", "turns") for n, t in tensors.items() if "/" not in n)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_tensors_are_pages_of_the_file(saved: Path) -> None:
    model = store.load(saved, Zoo)
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("/weights.safetensors"):
            low, high = line.split()[0].split("-")
            spans.append((int(low, 16), int(high, 16)))
    tensors = [t for t in model.state_dict().values() if not t.is_meta and t.numel()]
    assert len(tensors) > 30
    assert all(any(a <= t.data_ptr() < b for a, b in spans) for t in tensors)
    before = (saved / "weights.safetensors").read_bytes()
    tensors[0].zero_()
    assert (saved / "weights.safetensors").read_bytes() == before


def test_saving_over_the_folder_a_model_was_loaded_from(saved: Path) -> None:
    model = store.load(saved, Zoo)
    wanted = run(model)
    store.save(model, saved)
    assert torch.equal(run(model), wanted)
    assert torch.equal(run(store.load(saved, Zoo)), wanted)


def test_a_module_is_taken_as_skeleton_and_not_changed(net: Zoo, saved: Path) -> None:
    with torch.device("meta"):
        skeleton = Zoo()
    for given in (skeleton, net):
        kept = {name: id(t) for name, t in given.state_dict(keep_vars=True).items()}
        model = store.load(saved, given)
        assert isinstance(given.head, nn.Linear)
        assert {name: id(t) for name, t in given.state_dict(keep_vars=True).items()} == kept
        assert torch.equal(run(model), run(store.load(saved, Zoo)))


def test_a_layer_alone_and_half_precision(tmp_path: Path) -> None:
    for make, x in (
        (lambda: nn.Linear(32, 8, dtype=torch.bfloat16), torch.ones(2, 32, dtype=torch.bfloat16)),
        (lambda: nn.GRU(32, 8), torch.ones(2, 1, 32)),
        (lambda: nn.Conv2d(3, 4, 3, bias=False), torch.ones(1, 3, 5, 5)),
    ):
        model = quantize_weights(make().eval(), "W4")
        again = store.load(store.save(model, tmp_path / "m"), make)
        with torch.no_grad():
            ours, theirs = model(x), again(x)
        ours, theirs = (y[0] if isinstance(y, tuple) else y for y in (ours, theirs))
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_a_zoo_name_needs_no_skeleton(tmp_path: Path) -> None:
    from bitsmith.zoo import load_model

    net = load_model("mlp", pretrained=False).module
    model = quantize_weights(net, "W4")
    x = torch.linspace(0, 1, 784).reshape(1, 1, 28, 28)
    folder = store.save(model, tmp_path / "m", builder="mlp")
    assert torch.equal(store.load(folder)(x), model(x))
    assert torch.equal(store.load(folder, "mlp")(x), model(x))
    folder = store.save(model, tmp_path / "m", builder="os:getcwd")
    with pytest.raises(InputError, match="would run code"):
        store.load(folder)
    with pytest.raises(InputError, match="does not say what builds"):
        store.load(store.save(model, tmp_path / "m"))
    with pytest.raises(InputError, match="returned a str"):
        store.load(folder, lambda: "net")  # type: ignore[arg-type,return-value]  # on purpose


class Rotary(nn.Module):
    """Keeps a table that is no buffer, as some networks do."""

    def __init__(self, attribute: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        table = torch.arange(32.0)
        if attribute:
            self.table, self.more = table, [torch.ones(2)]
        else:
            self.register_buffer("table", table, persistent=False)
            self.same = self.table

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + self.table
        return y


def test_tensors_without_values_are_listed(tmp_path: Path) -> None:
    model = quantize_weights(Rotary(attribute=True).eval(), "W4")
    folder = store.save(model, tmp_path / "m")
    with torch.device("meta"):
        skeleton = Rotary(attribute=True)
    with pytest.raises(WeightsError, match=r"have no values.*: table, more; register"):
        store.load(folder, skeleton)
    x = torch.ones(1, 32)
    for make in (lambda: Rotary(attribute=True), Rotary(attribute=True)):
        assert torch.equal(store.load(folder, make)(x), model(x))
    model = quantize_weights(Rotary(attribute=False).eval(), "W4")
    again = store.load(store.save(model, folder), lambda: Rotary(attribute=False))
    assert again.same is again.table
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("before", [2, 3])
def test_complex_buffers_at_any_place_in_the_file(tmp_path: Path, before: int) -> None:
    def make() -> nn.Module:
        net = nn.Sequential(nn.Linear(8, before, bias=False))
        net.register_buffer("turns", torch.polar(torch.ones(5), torch.arange(5.0)).conj())
        return net

    model = quantize_weights(make(), "W4")
    again = store.load(store.save(model, tmp_path / "m"), make)
    assert again.turns.dtype == torch.complex64
    assert torch.equal(again.turns, model.turns)


def test_a_skeleton_has_no_weights() -> None:
    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(1 << 20, 1 << 20)  # four terabytes
            self.look = nn.Embedding(1 << 24, 1 << 16)
            self.drawn = nn.Parameter(torch.randn(4, 4))
            self.table = torch.arange(3.0) * 2

    net = build_skeleton(Drawn, None, Path("m"))
    assert all(parameter.is_meta for parameter in net.parameters())
    assert net.table.tolist() == [0, 2, 4]
    assert not nn.Linear(2, 2).weight.is_meta

    def reads() -> nn.Module:
        layer = nn.Linear(2, 2)
        float(layer.weight.detach().max())
        return layer

    with pytest.raises(InputError, match="building the model without weights failed"):
        build_skeleton(reads, None, Path("m"))
    assert not nn.Linear(2, 2).weight.is_meta


class Other(Zoo):
    """Misfits of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 40)
        self.conv = nn.Conv2d(64, 64, 3)  # type: ignore[assignment]  # was another
        self.gru = None  # type: ignore[assignment]  # was a module
        self.late = nn.Linear(2, 2)


def test_every_misfit_is_listed(saved: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        store.load(saved, Other)
    text = str(caught.value)
    for expected in (
        "conv is a Conv2d, not a Conv1d",
        "gru.weight_ih_l0 is not in the model",
        "gru.bias_hh_l0 is not in the model",
        "head.weight is [48, 64], in the model [40, 64]",
        "head.bias is [48], in the model [40]",
        "late.weight of the model is not in the file",
        "module again is the same as block in the file, one of its own in the model",
    ):
        assert expected in text

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    def scaled() -> Zoo:
        net = Zoo()
        net.block[0] = net.twice[0] = Scaled(64, 64)
        return net

    with pytest.raises(WeightsError, match=r"block.0 is a Scaled and does not compute as Linear"):
        store.load(saved, scaled)


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "quantization.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda d: d.update(version=2), "has version 2; this bitsmith reads 1"),
    "format": (
        lambda d: d["weights"]["conv.weight"]["scheme"].update(format="int99"),
        "'conv.weight': unknown format 'int99'",
    ),
    "scheme": (
        lambda d: d["weights"]["conv.weight"]["scheme"].update(format="uint3"),
        r"conv.weight/codes is torch.uint8 \[6144\] and must be torch.uint8 \[4608\]",
    ),
    "shape": (
        lambda d: d["weights"]["conv.weight"].update(shape=[64, 60, 3]),
        r"conv.weight is \[64, 60, 3\], in the model \[64, 64, 3\]",
    ),
    "stored": (
        lambda d: d["weights"]["conv.weight"].update(stored_shape=[64, 1 << 40]),
        "conv.weight/codes is",
    ),
    "negative": (
        lambda d: d["weights"]["conv.weight"].update(stored_shape=[64, -192]),
        "is not a shape",
    ),
    "weight": (lambda d: d["weights"].pop("conv.weight"), "there is no weight 'conv.weight'"),
    "layer": (lambda d: d["layers"].pop("conv"), "conv.weight of the model is not in the file"),
    "kind": (lambda d: d["layers"]["conv"].update(kind="linear"), "conv is a Conv1d"),
    "dtype": (
        lambda d: d["layers"]["conv"]["dtypes"].update(weight="load"),
        "'load' is not a floating-point type",
    ),
    "float": (lambda d: d["floats"].pop("norm.weight"), "norm.weight is not expected"),
    "complex": (lambda d: d["floats"]["gain"].update(complex=True), "gain is no tensor of pairs"),
    "list": (lambda d: d.update(weights=[]), "weights is list, not an object"),
    "sha": (lambda d: d.update(sha256="0" * 64), "SHA-256 is not the one"),
    "recipe": (lambda d: d["recipe"].update(rules=[]), "has no rules"),
    "coverage": (lambda d: d["coverage"][0].pop("layer"), "coverage: "),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_edited_by_hand(saved: Path, what: str) -> None:
    change, message = CHANGES[what]
    edit(saved, change)
    with pytest.raises(WeightsError, match=message) as caught:
        store.load(saved, Zoo)
    assert str(saved) in str(caught.value)


def header(size: int, entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", size or len(text)) + text


HUGE = {"dtype": "F32", "shape": [1 << 60, 1 << 60], "data_offsets": [0, 1 << 62]}
DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "short": lambda raw: raw[:5],
    "half": lambda raw: raw[: len(raw) // 2],
    "one byte less": lambda raw: raw[:-1],
    "one byte more": lambda raw: raw + b"0",
    "another byte": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "header of 2^63 bytes": lambda raw: header(1 << 63, {}),
    "header longer than the file": lambda raw: header(1 << 20, {}),
    "huge tensor": lambda raw: header(0, {"gain": HUGE}),
    "no JSON": lambda raw: struct.pack("<Q", 8) + b"\xff" * 8,
    "unknown type": lambda raw: header(0, {"gain": {**HUGE, "dtype": "X9"}}),
    "pickle": lambda raw: b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_tensors(saved: Path, what: str) -> None:
    path = saved / "weights.safetensors"
    path.write_bytes(DAMAGED[what](path.read_bytes()))
    with pytest.raises(WeightsError, match=str(path)):
        store.load(saved, Zoo)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ufeff{}", "[" * 100_000])
def test_json_that_is_none(saved: Path, text: str) -> None:
    (saved / "quantization.json").write_text(text)
    with pytest.raises(WeightsError, match=str(saved)):
        store.load(saved, Zoo)
    (saved / "quantization.json").write_bytes(b"\xff\xfe")
    with pytest.raises(WeightsError, match=str(saved)):
        store.load(saved, Zoo)


def test_missing_files_and_other_folders(quantized: Any, saved: Path, tmp_path: Path) -> None:
    (saved / "weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no weights.safetensors"):
        store.load(saved, Zoo)
    with pytest.raises(InputError, match=r"has no graph.json and no quantization.json"):
        store.load(tmp_path / "absent")
    (saved / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files too"):
        store.save(quantized("W4G32"), saved)
    assert (saved / "thesis.txt").read_text() == "mine"
    with pytest.raises(InputError, match="no packed weights"):
        store.save(nn.Linear(2, 2), tmp_path / "float")
    assert not (tmp_path / "float").exists()


def test_a_failed_save_keeps_the_older_folder(
    quantized: Any, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitsmith.model.store.modules.write_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(quantized("W8"), saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["m"]


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Counter(nn.Module):
        def get_extra_state(self) -> Any:
            return {"count": 1}

    net = nn.Sequential(nn.Linear(8, 8), Counter())
    with pytest.raises(InputError, match=r"without pickle: 1 \(Counter\)"):
        store.save(quantize_weights(net, "W4"), tmp_path / "m")
    net = nn.Sequential(nn.Linear(8, 8))
    net.register_buffer("sparse", torch.eye(2).to_sparse())
    with pytest.raises(InputError, match=r"sparse \(torch.sparse_coo\)"):
        store.save(quantize_weights(net, "W4"), tmp_path / "m")
    assert not list(tmp_path.iterdir())


SCHEMES = {
    **{f"{name} alone": Scheme(formats[name]) for name in ("fp16", "bf16", "int16", "ternary")},
    "uint16": Scheme(formats["uint16"], False, PerChannel(0)),
    "two levels": named_scheme("nvfp4"),
    "fp16 scales": grouped_scheme(3, 32),
    "int1": Scheme(formats["int1"], granularity=PerGroup(16)),
    "vectors": Scheme(LearnedFormat(4, 4), granularity=PerBlock((4, -1))),
}


@pytest.mark.parametrize("what", [w for w in SCHEMES if w != "vectors"])
def test_parts_are_those_of_the_packed_form(what: str) -> None:
    scheme = SCHEMES[what]
    q = quantize(torch.linspace(-2, 3, 8 * 64).reshape(8, 64), scheme)
    found = {name: (t.dtype, tuple(t.shape)) for name, t in to_stored(q).items()}
    assert part_specs(scheme, (8, 64)) == found


@pytest.mark.parametrize("what", SCHEMES)
def test_every_scheme_round_trips_and_is_applied_again(what: str, tmp_path: Path) -> None:
    scheme = SCHEMES[what]
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 2))
    recipe = Recipe("own", (Rule("0", scheme), Rule("1", None)), None)
    model = quantize_weights(net, recipe)
    again = store.load(
        store.save(model, tmp_path / "m"),
        lambda: nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 2)),
    )
    applied = store.apply_encodings(net, store.save_encodings(model, tmp_path / "e.safetensors"))
    for other in (again, applied):
        assert other[0].packed.scheme == scheme
        for name, part in model[0].packed.parts().items():
            assert torch.equal(other[0].packed.parts()[name], part), name


# Encodings apart from the model.


def as_stored(row: WeightRow) -> WeightRow:
    reason = row.reason.partition("searched was not better")[0].removesuffix("; ")
    return replace(row, reason=reason, algorithm="", objective=None, nearest_objective=None)


@pytest.mark.parametrize("recipe", RECIPES)
def test_encodings_of_the_same_checkpoint_give_the_same_codes(
    net: Zoo, quantized: Any, tmp_path: Path, recipe: str
) -> None:
    model = quantized(recipe)
    path = store.save_encodings(model, tmp_path / "e.safetensors")
    again = store.apply_encodings(net, path)
    assert torch.equal(run(again), run(model))
    # The rows differ in how the codes were found: by a rounding, or in ranges that are known.
    assert {r.algorithm for r in again.coverage if r.outcome == "packed"} == {"nearest"}
    assert [as_stored(row) for row in again.coverage] == [as_stored(r) for r in model.coverage]
    assert again.recipe == model.recipe
    assert again.head.packed is again.embed.packed
    before = model.state_dict()
    assert all(torch.equal(t, before[n]) for n, t in again.state_dict().items() if not t.is_meta)
    codes = sum(w.parts()["codes"].nbytes for w in model.modules() if isinstance(w, PackedWeight))
    assert path.stat().st_size < codes  # none of them is in the file
    assert b"/codes" not in path.read_bytes()


def test_another_checkpoint_gets_the_same_scales_and_is_listed(
    net: Zoo, quantized: Any, tmp_path: Path
) -> None:
    model = quantized("W4G32")
    path = store.save_encodings(model, tmp_path / "e.safetensors")
    tuned = Zoo().eval()
    tuned.load_state_dict(net.state_dict())
    with torch.no_grad():
        tuned.block[0].weight.mul_(0.9)
    again = store.apply_encodings(tuned, path)
    assert [r.layer for r in again.coverage if "another checkpoint" in r.reason] == [
        "block.0.weight"
    ]
    q, old = again.block[0].packed.qtensor(), model.block[0].packed.qtensor()
    assert torch.equal(q.scale, old.scale)
    assert torch.equal(q.zero_point, old.zero_point)
    steps = (tuned.block[0].weight.detach() - q.dequantize()).abs() / q.scale.repeat_interleave(
        32, 1
    )
    assert float(steps.max()) <= 0.5 + 1e-5  # nearest: no weight grew beyond its range


def test_codes_that_are_not_nearest_are_listed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    model = quantize_weights(net, "W3", torch.randn(64, 32), rounding="gptq")
    path = store.save_encodings(model, tmp_path / "e.safetensors")
    again = store.apply_encodings(net, path)
    changed = [r.layer for r in again.coverage if "not nearest" in r.reason]
    expected = []
    for name in ("0", "2"):
        new, old = (m.get_submodule(name).packed.parts()["codes"] for m in (again, model))
        expected += [] if torch.equal(new, old) else [f"{name}.weight"]
    assert changed == expected
    assert expected


def test_misfits_of_encodings_are_listed(quantized: Any, tmp_path: Path) -> None:
    path = store.save_encodings(quantized("W4G32"), tmp_path / "e.safetensors")
    other = Other()
    with torch.no_grad():
        other.block[0].weight[0, :3] = float("nan")
    with pytest.raises(WeightsError) as caught:
        store.apply_encodings(other, path)
    text = str(caught.value)
    for expected in (
        "conv.weight is [64, 64, 3], in the model [64, 64, 3, 3]",
        "gru.weight_ih_l0 is not a weight of the model",
        "late.weight of the model is not in the encodings",
        "head.weight is embed.weight in the encodings, head.weight in the model",
        "block.0.weight has 3 NaN or infinite of 4096 values",
    ):
        assert expected in text
    with torch.device("meta"):
        empty = Zoo()
    with pytest.raises(WeightsError, match=r"conv.weight is on the meta device"):
        store.apply_encodings(empty, path)


def test_files_that_are_no_encodings(net: Zoo, quantized: Any, saved: Path, tmp_path: Path) -> None:
    model, path = quantized("W4G32"), tmp_path / "e.safetensors"
    weights = saved / "weights.safetensors"
    before = weights.read_bytes()
    for call in (store.save_encodings, lambda _, p: store.apply_encodings(net, p)):
        with pytest.raises(WeightsError, match="does not hold encodings"):
            call(model, weights)
    assert weights.read_bytes() == before
    with pytest.raises(InputError, match="there is no file"):
        store.apply_encodings(net, path)
    with pytest.raises(InputError, match=r"name .* e.safetensors"):
        store.save_encodings(model, tmp_path / "e.json")
    with pytest.raises(InputError, match="cannot be written"):
        store.save_encodings(model, tmp_path / "absent" / "e.safetensors")
    store.save_encodings(model, path)
    store.save_encodings(model, path)
    raw = path.read_bytes()
    for damage in (raw[: len(raw) // 2], raw.replace(b'\\"version\\": 1', b'\\"version\\": 7', 1)):
        assert damage != raw
        path.write_bytes(damage)
        with pytest.raises(WeightsError, match=r"e\.safetensors"):
            store.apply_encodings(net, path)
