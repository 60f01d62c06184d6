"""The folder: complete, sharded, written at once or not at all; damage is named on reading."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bitsmith.deploy.export.compressed_tensors import check, read, write
from bitsmith.errors import ExportError, InputError, WeightsError
from bitsmith.numbers import (
    PerChannel,
    PerGroup,
    PerTensor,
    QTensor,
    Scheme,
    fp16,
    int4,
    int8,
    nf4,
    quantize,
    uint4,
)

LINEARS = [f"layers.{i}.{kind}" for i in range(3) for kind in ("up", "down")] + ["head"]
G32 = Scheme(int4, granularity=PerGroup(32), rounding="half_away")
ROWS = Scheme(int8, granularity=PerChannel(0))


def stream(scheme: Scheme = G32, **others: Scheme) -> dict[str, QTensor | torch.Tensor]:
    """Return a model of three layers, its head in float; ``others`` by name of the kind."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, QTensor | torch.Tensor] = {
        "embed.weight": torch.randn(50, 64, generator=generator),
        "embed.positions": torch.arange(5),
    }
    for name in LINEARS:
        weight = torch.randn(50, 64, generator=generator)
        kind = name.rpartition(".")[2]
        found[f"{name}.weight"] = (
            weight if name == "head" else quantize(weight, others.get(kind, scheme))
        )
        found[f"{name}.bias"] = torch.randn(50, generator=generator).half()
    found["norm.weight"] = torch.ones(64, dtype=torch.bfloat16)
    found["flag"] = torch.tensor(True)
    return found


def same(a: Mapping, b: Mapping) -> bool:
    assert sorted(a) == list(b)
    for name, value in a.items():
        other = b[name]
        if isinstance(value, QTensor):
            assert value.scheme == other.scheme
            pairs = [
                (getattr(value, k), getattr(other, k)) for k in ("codes", "scale", "zero_point")
            ]
        else:
            pairs = [(value, other)]
        assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs), name
    return True


def settings(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def edit(folder: Path, **changes) -> None:
    """Change keys of quantization_config; a path in a key goes by two underscores."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config["quantization_config"]
        for step in path:
            place = place[step]
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(stream(), tmp_path / "out", linears=LINEARS, config={"model_type": "llama"})


@pytest.mark.parametrize(
    "tensors",
    [
        stream(),
        stream(Scheme(uint4, False, PerGroup(16), scale_format=fp16)),
        stream(ROWS, up=G32),
        stream(Scheme(int4, False, PerTensor())),
        {
            k: v.T if isinstance(v, torch.Tensor) and v.dim() == 2 else v
            for k, v in stream().items()
        },
    ],
)
def test_read_gives_what_was_written(tmp_path, tensors):
    assert check(tensors, linears=LINEARS) == []
    assert same(tensors, read(write(tensors, tmp_path / "out", linears=LINEARS)))


def test_the_file_is_plain_safetensors_and_aligned(folder):
    held = load_file(folder / "model.safetensors")
    assert torch.equal(held["head.weight"], stream()["head.weight"])
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert size % 8 == 0
    places = sorted(v["data_offsets"] for v in header.values())
    assert places[0][0] == 0
    assert places[-1][1] == len(data) - 8 - size
    assert all(a[1] == b[0] for a, b in pairwise(places))
    wide = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "BOOL": 1}
    assert all(v["data_offsets"][0] % wide[v["dtype"]] == 0 for v in header.values())


def test_shards(tmp_path):
    tensors = stream()
    folder = write(tensors, tmp_path / "out", linears=LINEARS, shard_bytes=9000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2
    assert [p.name for p in sorted(folder.glob("*.safetensors"))] == files
    held = {name: part for f in files for name, part in load_file(folder / f).items()}
    assert set(held) == set(index["weight_map"])
    assert sum(t.nbytes for t in held.values()) == index["metadata"]["total_size"]
    assert same(tensors, read(folder))


def test_tensors_are_made_one_at_a_time(tmp_path):
    class Lazy(Mapping):
        alive = most = 0

        def __getitem__(self, name):
            found = stream()[name]
            if isinstance(found, QTensor):
                Lazy.alive += 1
                Lazy.most = max(Lazy.most, Lazy.alive)
                weakref.finalize(found, self.gone)
            return found

        def gone(self):
            Lazy.alive -= 1

        def __iter__(self):
            return iter(stream())

        def __len__(self):
            return len(stream())

    assert same(stream(), read(write(Lazy(), tmp_path / "out", linears=LINEARS)))
    assert 1 <= Lazy.most <= 2


def test_one_scheme_is_linear_and_the_rest_ignored(folder):
    found = settings(folder)
    assert found["ignore"] == ["head"]
    assert found["format"] == "pack-quantized"
    (group,) = found["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert group["weights"]["group_size"] == 32
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert "dequantize" not in found


def test_tied_heads_are_ignored(tmp_path):
    tensors = {k: v for k, v in stream().items() if not k.startswith("head")}
    assert settings(write(tensors, tmp_path / "out", linears=LINEARS))["ignore"] == ["head"]


@pytest.mark.parametrize("odd", [None, "layers.1.up"])
def test_targets_match_their_own_modules_in_the_package(tmp_path, odd):
    match = pytest.importorskip("compressed_tensors.utils.match")
    tensors = stream(up=ROWS)
    if odd:
        tensors[f"{odd}.weight"] = quantize(tensors[f"{odd}.weight"].dequantize(), G32)
    dynamic = [n for n in tensors if n.endswith("up.weight") and not (odd and odd in n)]
    found = settings(write(tensors, tmp_path / "out", linears=LINEARS, dynamic=dynamic))
    assert found["format"] == "mixed-precision"
    groups = found["config_groups"]
    if odd is None:
        assert groups["group_0"]["targets"] == [r"re:layers\.\d+\.up$"]
    model = nn.ModuleDict({"head": nn.Linear(1, 1), "upper": nn.Linear(1, 1)})
    model["layers"] = nn.ModuleList(
        nn.ModuleDict({"up": nn.Linear(1, 1), "down": nn.Linear(1, 1)}) for _ in range(3)
    )
    for name, group in groups.items():
        modules = match.match_named_modules(model, group["targets"], found["ignore"])
        scheme = Scheme.from_json(found["bitsmith"]["schemes"][name])
        assert {n for n, _ in modules} == {
            n.removesuffix(".weight")
            for n, v in tensors.items()
            if isinstance(v, QTensor) and v.scheme == scheme
        }


def test_everything_that_cannot_be_written_is_listed(tmp_path):
    tied = quantize(torch.randn(50, 64), G32)
    tensors = {
        **stream(),
        "embed.weight": tied,
        "twin.weight": tied,
        "conv.weight": quantize(torch.randn(2, 2, 3), ROWS),
        "lstm.weight_ih_l0": quantize(torch.randn(2, 4), ROWS),
        "table.weight": quantize(torch.randn(4, 4), Scheme(nf4)),
        "number": 3.0,
        "meta": torch.empty(3, device="meta"),
        "complex": torch.zeros(3, dtype=torch.complex64),
        "layers.0.up.weight_scale": torch.ones(1),
    }
    del tensors["head.weight"]
    config = {"vocab_size": 50, "quantization_config": {}, "bad": object()}
    problems = check(
        tensors,
        linears=[*LINEARS, "twin"],
        embeddings=["embed"],
        config=config,
        dynamic=["nothing.weight"],
    )
    text = "\n".join(problems)
    for words in (
        "config: it has a quantization_config already",
        "config: it cannot be written as JSON",
        "twin.weight: it is tied to embed.weight",
        "conv.weight: it has shape (2, 2, 3)",
        "lstm.weight_ih_l0: only the parameter 'weight'",
        "table.weight: nf4",
        "number: it is a float, not a tensor",
        "meta: it is on the meta device",
        "complex: safetensors has no type for torch.complex64",
        "layers.0.up.weight_scale: layers.0.up.weight_scale is taken by layers.0.up.weight",
        "dynamic names what is no quantized weight: nothing.weight",
        "embed.weight: head is tied to it",
    ):
        assert words in text
    assert len(problems) == 12
    with pytest.raises(ExportError, match=r"conv\.weight"):
        write(tensors, tmp_path / "out", linears=LINEARS)
    assert list(tmp_path.iterdir()) == []


def test_what_no_loader_could_use_is_listed():
    floats = {k: v for k, v in stream().items() if isinstance(v, torch.Tensor)}
    assert check(floats, linears=LINEARS) == ["no weight is quantized"]
    embedded = stream() | {"embed.weight": quantize(torch.randn(50, 64), ROWS)}
    (problem,) = check(embedded, linears=LINEARS, embeddings=["embed"])
    assert "2 schemes" in problem
    assert problem.endswith("embed")
    (problem,) = check(stream(up=Scheme(int4, False, PerChannel(0))), linears=LINEARS)
    assert "zero points" in problem
    (problem, *_) = check(embedded, linears=LINEARS, embeddings=["embed"], dynamic=["embed.weight"])
    assert "are indices" in problem
    (problem, _) = check(embedded, linears=LINEARS)
    assert problem == "embed.weight: embed is neither a Linear nor an Embedding of the model"


def test_a_folder_with_something_in_it_is_left_alone(folder):
    before = (folder / "config.json").read_text()
    with pytest.raises(InputError, match="not an empty folder"):
        write(stream(ROWS), folder, linears=LINEARS)
    assert (folder / "config.json").read_text() == before
    with pytest.raises(InputError, match="cannot be written"):
        write(stream(), folder / "no" / "such", linears=LINEARS)


def test_an_empty_folder_is_taken_and_nothing_is_left_of_a_failure(tmp_path):
    class Breaks(dict):
        asked = 0

        def __getitem__(self, name):
            if name == "norm.weight" and (asked := Breaks.asked):
                raise OSError(f"gone after {asked}")
            Breaks.asked += name == "norm.weight"
            return super().__getitem__(name)

    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="gone after 1"):
        write(Breaks(stream()), tmp_path / "out", linears=LINEARS)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert same(stream(), read(write(stream(), tmp_path / "out", linears=LINEARS)))


def test_a_folder_of_others_gets_the_scheme_it_describes(folder):
    edit(folder, bitsmith=None)
    q = read(folder)["layers.0.up.weight"]
    assert q.scheme == Scheme(int4, granularity=PerGroup(32))
    assert torch.equal(q.codes, stream()["layers.0.up.weight"].codes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quant_method": "gptq"}, ["quant_method is 'gptq'"]),
        ({"config_groups": {}}, ["config_groups has no group"]),
        ({"config_groups__group_0": 3}, ["group_0: it has no weights"]),
        ({"config_groups__group_0__format": "marlin-24"}, ["format is 'marlin-24'"]),
        ({"config_groups__group_0__targets": "Linear"}, ["targets is 'Linear'"]),
        ({"config_groups__group_0__targets": ["re:("]}, ["'re:(' is no pattern"]),
        ({"config_groups__group_0__targets": ["re:other"]}, ["layers.0.up: ", "no config group"]),
        ({"config_groups__group_0__weights__num_bits": 8}, ["num_bits is 8 and should be 4"]),
        ({"config_groups__group_0__weights__num_bits": "4"}, ["int of 4 bits"]),
        ({"config_groups__group_0__weights__type": "float"}, ["float of 4 bits"]),
        ({"config_groups__group_0__weights__strategy": "block"}, ["strategy is 'block'"]),
        ({"config_groups__group_0__weights__group_size": 0}, ["group_size is 0"]),
        ({"config_groups__group_0__weights__actorder": "group"}, ["order of activations"]),
        ({"config_groups__group_0__output_activations": {"num_bits": 8}}, ["outputs"]),
        ({"config_groups__group_0__input_activations": {"num_bits": 8}}, ["inputs"]),
        ({"config_groups__group_0__format": "int-quantized"}, ["stored pack-quantized"]),
        ({"kv_cache_scheme": {"num_bits": 8}, "transform_config": {"a": 1}}, ["kv_", "transform_"]),
        ({"quantization_status": "frozen"}, ["'frozen'"]),
        ({"ignore": "head"}, ["ignore is 'head'"]),
        ({"ignore": ["layers.0.up"]}, ["layers.0.up: ", "ignore list"]),
        ({"bitsmith__version": 2}, ["version 1"]),
        ({"bitsmith__schemes": {}}, ["one scheme for each"]),
        ({"bitsmith__schemes__group_0__format": "int5"}, ["num_bits is 4 and should be 5"]),
        ({"bitsmith__schemes__group_0__granularity__axis": 0}, ["has no strategy"]),
        ({"bitsmith__schemes__group_0__granularity__axis": "1"}, ["has no strategy"]),
        ({"bitsmith__schemes__group_0__granularity__axis": 1.0}, ["axis is 1.0"]),
        ({"bitsmith__schemes__group_0__format": "int16"}, ["int16 is not an integer format"]),
        ({"bitsmith__schemes__group_0__format": "intt"}, ["group_0", "intt"]),
        ({"bitsmith__schemes__group_0__scale_format": "fp16"}, ["float32", "float16"]),
        (
            {"bitsmith": None, "config_groups__group_0__weights__num_bits": 3},
            ["weight_packed", "layers.2.down"],
        ),
        (
            {"bitsmith": None, "config_groups__group_0__weights__group_size": 48},
            ["group_size must divide"],
        ),
    ],
)
def test_settings_edited_by_hand_are_named(folder, changes, words):
    edit(folder, **changes)
    with pytest.raises(WeightsError) as error:
        read(folder)
    assert str(folder) in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_tensors_edited_by_hand_are_named(folder):
    held = load_file(folder / "model.safetensors")
    del held["layers.0.up.weight_scale"]
    held["layers.1.up.weight_shape"] = torch.tensor([64, 50])
    held["layers.2.up.weight_g_idx"] = torch.zeros(64, dtype=torch.int32)
    save_file(held, folder / "model.safetensors")
    with pytest.raises(WeightsError) as error:
        read(folder)
    for name in (
        "layers.0.up: weight_scale is missing",
        "layers.1.up",
        "layers.2.up: weight_g_idx",
    ):
        assert name in str(error.value)


def test_codes_out_of_the_scheme_s_range_are_named(tmp_path):
    tensors = {"a.weight": quantize(torch.randn(4, 32), Scheme(int4, narrow_range=True))}
    folder = write(tensors, tmp_path / "out", linears=["a"])
    held = load_file(folder / "model.safetensors")
    held["a.weight_packed"][0, 0] = 0  # eight codes of −8
    save_file(held, folder / "model.safetensors")
    message = r"a: .*codes run from -8 to [0-7], the scheme's from -7"
    with pytest.raises(WeightsError, match=message):
        read(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_named(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        read(folder)


def test_missing_and_broken_files_are_named(folder, tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        read(tmp_path / "nowhere")
    (folder / "model.safetensors").rename(folder / "aside")
    with pytest.raises(InputError, match="neither"):
        read(folder)
    index = folder / "model.safetensors.index.json"
    for text, error, words in (
        ("{", WeightsError, "is not JSON"),
        ("[]", WeightsError, "not an object"),
        ("{}", WeightsError, "no weight_map"),
        ('{"weight_map": {"a": "../aside"}}', WeightsError, "outside"),
        ('{"weight_map": {"a": "gone"}}', InputError, "gone"),
        ('{"weight_map": {"a": "aside"}}', WeightsError, "not in the file of the index: a"),
    ):
        index.write_text(text)
        with pytest.raises(error, match=re.escape(words)):
            read(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(WeightsError, match="not quantized"):
        read(folder)
