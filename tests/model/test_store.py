"""A saved simulation is the same simulation."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

import bitsmith
from bitsmith.errors import InputError, WeightsError
from bitsmith.model.quantized import QuantizedModel


def data() -> list[torch.Tensor]:
    return [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))]


@pytest.fixture(scope="module")
def model() -> QuantizedModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Hardswish(),
        nn.ConvTranspose2d(4, 4, 2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(4 * 25, 3),
    )
    return bitsmith.ptq(net, "W8A8", data())


def test_round_trip(model: QuantizedModel, tmp_path: Path) -> None:
    folder = bitsmith.save(model, tmp_path / "m.bitsmith")
    again = bitsmith.load(folder)
    x = data()[0]
    assert torch.equal(again(x), model(x))
    assert again.coverage == model.coverage
    assert again.encodings == model.encodings
    assert again.recipe == model.recipe
    assert again.provenance == model.file_provenance()
    assert (again.target, again.machine) == (model.target, model.machine)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bitsmith"]
    bitsmith.export(model, tmp_path / "a.onnx")
    bitsmith.export(again, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("recipe", ["W4A4", "W2A3-edge8", "CODEBOOK3A4-edge8"])
def test_round_trip_of_fewer_bits(recipe: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3))
    model = bitsmith.ptq(net, recipe, data())
    again = bitsmith.load(bitsmith.save(model, tmp_path / "m"))
    assert torch.equal(again(data()[0]), model(data()[0]))
    assert again.encodings == model.encodings
    assert again.recipe == model.recipe
    for name, layer in model.program.layers.items():
        same = again.program.layers[name]
        assert (same.bits, same.nbytes) == (layer.bits, layer.nbytes)
        assert (same.table is None) == (layer.table is None)
        assert layer.table is None or torch.equal(same.table, layer.table)
    for form in ("int8", "packed"):
        bitsmith.export(model, tmp_path / "a.onnx", weights=form)
        bitsmith.export(again, tmp_path / "b.onnx", weights=form)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_saving_again_replaces_only_its_own(model: QuantizedModel, tmp_path: Path) -> None:
    folder = bitsmith.save(model, tmp_path / "m")
    bitsmith.save(model, folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a bitsmith folder"):
        bitsmith.save(model, tmp_path / "other")
    with pytest.raises(InputError, match="cannot be written"):
        bitsmith.save(model, tmp_path / "absent" / "m")


def test_no_float_weights_are_stored(model: QuantizedModel, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = bitsmith.save(model, tmp_path / "m")
    kept = load_file(folder / "tensors.safetensors")
    params = [k for k in kept if k.startswith("param:")]
    assert params
    assert all(k.startswith("param:3") for k in params)  # the transposed convolution's


@pytest.mark.parametrize("damage", ["truncated", "json", "keys", "version", "missing"])
def test_damage_is_named(model: QuantizedModel, tmp_path: Path, damage: str) -> None:
    folder = bitsmith.save(model, tmp_path / "m")
    graph = json.loads((folder / "graph.json").read_text())
    if damage == "truncated":
        raw = (folder / "tensors.safetensors").read_bytes()
        (folder / "tensors.safetensors").write_bytes(raw[: len(raw) // 2])
    elif damage == "json":
        (folder / "graph.json").write_text("{")
    elif damage == "missing":
        (folder / "tensors.safetensors").unlink()
    else:
        graph.pop("layers") if damage == "keys" else graph.update(version=99)
        (folder / "graph.json").write_text(json.dumps(graph))
    expected = InputError if damage == "missing" else WeightsError
    with pytest.raises(expected, match=str(folder)):
        bitsmith.load(folder)


HOSTILE = {
    "nested": (b"[" * 200_000, "nested too deeply"),
    "noise": (bytes(range(256)) * 40, "it is not JSON"),
    "text": (b"no JSON " * 1000, r"it is not JSON \(line 1\)"),
    "list": (b"[]", "not a JSON object"),
    "empty": (b'{"version": 1}', "'inputs' is missing"),
    "version": (b'{"version": [' + b"0," * 9999 + b"0]}", "this bitsmith reads 1"),
    "number": (b'{"version": ' + b"9" * 5000 + b"}", "it is not JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_one_short_message(
    model: QuantizedModel, tmp_path: Path, name: str
) -> None:
    content, message = HOSTILE[name]
    folder = bitsmith.save(model, tmp_path / "m")
    (folder / "graph.json").write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        bitsmith.load(folder)
    assert "bitsmith quantize" in str(caught.value)
    assert len(str(caught.value)) < len(str(folder)) + 300


PARTS = ["inputs", "outputs", "nodes", "outcomes", "encodings", "layers", "recipe", "coverage"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", [None, 3])
def test_entries_of_another_form_are_named_without_python(
    model: QuantizedModel, tmp_path: Path, part: str, value: object
) -> None:
    folder = bitsmith.save(model, tmp_path / "m")
    graph = json.loads((folder / "graph.json").read_text())
    graph[part] = value
    (folder / "graph.json").write_text(json.dumps(graph))
    with pytest.raises(WeightsError, match="bitsmith quantize") as caught:
        bitsmith.load(folder)
    assert "__init__" not in str(caught.value)
    assert "object is not" not in str(caught.value)


def test_files_have_the_mode_that_the_umask_says(model: QuantizedModel, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = bitsmith.save(model, tmp_path / "m")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"graph.json": 0o640, "tensors.safetensors": 0o640}
