"""The ONNX file: valid, complete, dynamic, with its provenance, written at once or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

import bitsmith
from bitsmith.deploy.export import Exporter, export, exporters
from bitsmith.errors import ExportError
from bitsmith.model.ptq import ptq
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.recipe import Recipe
from networks.harness import batches, quantized
from networks.structured import STRUCTURED


@pytest.fixture(scope="module")
def model() -> QuantizedModel:
    return quantized(STRUCTURED["residual"])


@pytest.fixture(scope="module")
def written(model: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    assert export(model, path, {"bitsmith.note": "of a test"}) == path
    return path


def metadata(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(str(path)).metadata_props}


def test_the_file_is_valid_and_standard(written):
    proto = onnx.load(str(written))
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 21)]
    assert {n.domain for n in proto.graph.node} == {""}
    names = [n.name for n in proto.graph.node]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_runs(model, written, batch):
    session = ort.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    (x,) = batches(STRUCTURED["residual"].shapes, (batch,))[0]
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert session.get_inputs()[0].shape == ["batch", 8, 9, 10]
    assert session.get_outputs()[0].shape == ["batch", 5]
    assert torch.equal(torch.from_numpy(y), model(x))


def test_metadata(model, written):
    found = metadata(written)
    assert found["bitsmith.version"] == bitsmith.__version__
    assert Recipe.from_json(json.loads(found["bitsmith.recipe"])) == model.recipe
    assert (found["bitsmith.target"], found["bitsmith.machine"]) == ("onnxruntime", "any")
    assert json.loads(found["bitsmith.provenance"])["calibration_samples"] == 32
    assert found["bitsmith.note"] == "of a test"


@pytest.mark.parametrize("name", ["residual", "residual W4A8", "residual W2A8", "mlp, relu"])
def test_weights_are_read_back_bit_for_bit(name, tmp_path):
    model = quantized(STRUCTURED[name])
    path = export(model, tmp_path / "m.onnx")
    read = Exporter.registry["onnx"]().read(path)
    assert read.keys() == model.program.layers.keys()
    for layer, q in read.items():
        expected = model.program.layers[layer].weight
        assert q.scheme == expected.scheme
        assert torch.equal(q.codes, expected.codes)
        assert torch.equal(q.scale, expected.scale)
        assert torch.equal(q.zero_point, expected.zero_point)


def test_biases_are_int32_in_steps_of_input_times_weight_scale(model, written):
    values = {
        i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(str(written)).graph.initializer
    }
    for name, layer in model.program.layers.items():
        source = model.program.graph.node(name).inputs[0]
        assert values[f"{name}.bias_codes"].dtype == np.int32
        step = np.float32(model.program.encodings[source].scale) * values[f"{name}.weight_scale"]
        assert (values[f"{name}.bias_scale"] == step).all()
        assert layer.weight.scale.numel() == step.size


def test_no_clamp_is_left_where_the_range_does_its_work(written):
    kinds = {n.op_type for n in onnx.load(str(written)).graph.node}
    assert not kinds & {"Relu", "Clip", "BatchNormalization"}


def test_the_same_model_gives_the_same_bytes(model, tmp_path):
    first, second = (export(model, tmp_path / f"{i}.onnx").read_bytes() for i in range(2))
    assert first == second


def test_how_long_it_took_changes_no_byte(model, tmp_path, monkeypatch):
    first = export(model, tmp_path / "a.onnx").read_bytes()
    rung = {"name": "ranges and rounding", "seconds": 1.25}
    timed = {**model.provenance, "quantize_seconds": 0.1, "rungs": [rung]}
    monkeypatch.setattr(model, "provenance", {**timed, "capture_seconds": 2.0})
    second = onnx.load(str(export(model, tmp_path / "b.onnx")))
    monkeypatch.setattr(model, "provenance", {**timed, "rungs": [{**rung, "seconds": 3.0}]})
    assert export(model, tmp_path / "c.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    metadata = {p.key: p.value for p in second.metadata_props}
    assert "seconds" not in metadata["bitsmith.provenance"]
    assert '"ranges and rounding"' in metadata["bitsmith.provenance"]
    monkeypatch.setattr(model, "provenance", {k: v for k, v in timed.items() if k != "rungs"})
    assert export(model, tmp_path / "d.onnx").read_bytes() == first


def test_unknown_suffix(model, tmp_path):
    with pytest.raises(ExportError, match=r"no exporter writes \.tflite: .*known: \.onnx"):
        export(model, tmp_path / "m.tflite")
    with pytest.raises(ExportError, match="a file without suffix"):
        export(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(model, tmp_path):
    with pytest.raises(ExportError, match=r"absent/m\.onnx cannot be written: No such file"):
        export(model, tmp_path / "absent" / "m.onnx")
    (tmp_path / "taken.onnx").mkdir()
    with pytest.raises(ExportError, match=r"taken\.onnx cannot be written: Is a directory"):
        export(model, tmp_path / "taken.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.onnx"]


def test_an_interrupted_write_leaves_the_old_file(model, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(model, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_reading_what_is_not_such_a_file(written, tmp_path):
    exporter = exporters["onnx"]()
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a protobuf")
    with pytest.raises(ExportError, match="is not a readable ONNX file"):
        exporter.read(path)
    proto = onnx.load(str(written))
    kept = [i for i in proto.graph.initializer if i.name != "head.weight_codes"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    onnx.save(proto, str(path))
    with pytest.raises(ExportError, match=r"no initializer .*head\.weight_codes.*was it changed"):
        exporter.read(path)


def test_a_float_layer_between_codes_stays_float():
    """ONNX Runtime would round its weight to 8 bits, one scale for all of it, unasked."""
    from networks.harness import compare

    for name in ("a layer in float", "the stem in float"):
        specimen = STRUCTURED[name]
        model = quantized(specimen)
        floats = [
            n for n in model.program.graph if n.op == "conv" and n.name not in model.program.layers
        ]
        (found,) = compare(model, batches(specimen.shapes, (4,)))
        assert found.operators["Conv"] + found.operators["FusedConv"] == len(floats) > 0


def test_a_kept_layer_is_as_fine_as_float(tmp_path):
    """The output of a kept layer is that of its float weight, to the last bit that codes show."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        net[1].weight[:, 1:] *= 1e-3  # one scale for the whole tensor would lose these
        net[1].bias.zero_()
    x = torch.randn(16, 4, 6, 6)
    model = ptq(net, "W8A8", [x])
    path = export(model, tmp_path / "m.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(options.optimized_model_filepath)
    values = {i.name: onnx.numpy_helper.to_array(i) for i in optimized.graph.initializer}
    (node,) = (n for n in optimized.graph.node if n.op_type == "ConvTranspose")
    assert np.array_equal(values[node.input[1]], net[1].weight.detach().numpy())
