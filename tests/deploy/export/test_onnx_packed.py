"""Weights of fewer than 8 bits in the file: smaller, read back, and the same integer kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from bitsmith.deploy.export import Exporter, export
from bitsmith.deploy.export.onnx import weights as forms
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify import verify
from bitsmith.errors import ExportError
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.simulate import Program
from networks.harness import batches, quantized
from networks.structured import STRUCTURED

#: Recipe → type of the packed weights of inner layers, opset, whether there is a table.
RECIPES = {
    "W4A8": ("INT4", 21, False),
    "W3A3": ("INT4", 21, False),
    "W2A2-edge8": ("INT2", 25, False),
    "CODEBOOK4A8": ("UINT4", 21, True),
    "CODEBOOK2A4-edge8": ("UINT2", 25, True),
}
SHAPES = STRUCTURED["residual"].shapes


@pytest.fixture(scope="module", params=RECIPES)
def model(request: pytest.FixtureRequest) -> QuantizedModel:
    return quantized(replace(STRUCTURED["residual"], recipe=request.param))


@pytest.fixture(scope="module")
def files(model: QuantizedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packed")
    return {f: export(model, folder / f"{f}.onnx", weights=f) for f in ("int8", "packed")}


def types(path: Path) -> dict[str, str]:
    initializers = onnx.load(str(path)).graph.initializer
    return {i.name: TensorProto.DataType.Name(i.data_type) for i in initializers}


def test_what_the_file_holds(model, files):
    kind, opset, table = RECIPES[model.recipe.name]
    found = types(files["packed"])
    proto = onnx.load(str(files["packed"]))
    onnx.checker.check_model(proto, full_check=True)
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", opset)]
    part = "weight_indices" if table else "weight_codes"
    inner = [n for n, layer in model.program.layers.items() if layer.bits < 8]
    assert inner
    assert {found[f"{n}.{part}"] for n in inner} == {kind}
    edges = model.program.layers.keys() - set(inner)
    assert {found[f"{n}.weight_codes"] for n in edges} <= {"INT8"}
    assert len(edges) == (2 if "edge8" in model.recipe.name else 0)
    assert {v for k, v in types(files["int8"]).items() if "weight_codes" in k} == {"INT8"}


def test_codes_are_read_back_bit_for_bit(model, files):
    for path in files.values():
        read = Exporter.registry["onnx"]().read(path)
        assert read.keys() == model.program.layers.keys()
        for name, q in read.items():
            assert torch.equal(q.codes, model.program.layers[name].weight.codes)
            assert torch.equal(q.scale, model.program.layers[name].weight.scale)


def test_the_bytes_that_are_saved(model, files):
    """Codes and tables take what ``bits`` says, rounded up to a type that exists."""
    saved = 0
    for layer in model.program.layers.values():
        n, width = layer.weight.codes.numel(), {1: 2, 2: 2, 3: 4, 4: 4, 8: 8}[layer.bits]
        saved += n - (n * width + 7) // 8 - (0 if layer.table is None else layer.table.numel())
    sizes = {form: files[form].stat().st_size for form in files}
    nodes = 300 * len(model.program.layers)  # the names of what unpacks
    assert saved - nodes <= sizes["int8"] - sizes["packed"] <= saved


def test_the_runtime_runs_the_same_kernels_to_the_same_bits(model, files):
    data = batches(SHAPES, (16,), seed=3)
    found = {form: verify(model, path, data, threads=1) for form, path in files.items()}
    for v in found.values():
        assert v.passed, v.failures
        assert v.planned_integer == v.executed_integer > 0
        assert sum(t.differing + t.isolated_differing for t in v.tensors) == 0
        assert v.output_max_difference == 0
    assert found["packed"].operators == found["int8"].operators


def test_openvino_reads_four_bits(model, files):
    pytest.importorskip("openvino")
    if "2" in RECIPES[model.recipe.name][0]:
        pytest.skip("OpenVINO knows no type of 2 bits")
    (x,) = batches(SHAPES, (16,), seed=3)[0]
    plain, packed = (open_session(files[f], "openvino", threads=1)(x) for f in ("int8", "packed"))
    assert torch.equal(plain, packed)


def test_one_bit_is_two():
    """Weights of −1 and 1 are stored as INT2, without a table."""
    model = quantized(replace(STRUCTURED["mlp, relu"], recipe="CODEBOOK1A8"))
    program = model.program
    signs = {
        name: replace(
            layer,
            weight=replace(layer.weight, codes=layer.weight.codes.sign().clamp(min=-1)),
            table=torch.tensor([-1, 1], dtype=torch.int8),
        )
        for name, layer in program.layers.items()
    }
    binary = QuantizedModel(
        Program(program.graph, program.outcomes, program.encodings, signs),
        model.recipe,
        model.target,
        model.machine,
        model.provenance,
    )
    proto = forms_of(binary)
    stored = [i for i in proto.graph.initializer if i.name.endswith("weight_codes")]
    assert {TensorProto.DataType.Name(i.data_type) for i in stored} == {"INT2"}
    for i in stored:
        codes = signs[i.name.removesuffix(".weight_codes")].weight.codes.numpy()
        assert np.array_equal(numpy_helper.to_array(i).astype(np.int8), codes)
    (x,) = batches(STRUCTURED["mlp, relu"].shapes, (8,))[0]
    assert torch.equal(open_session(proto.SerializeToString(), threads=1)(x), binary(x))


def forms_of(model: QuantizedModel) -> onnx.ModelProto:
    from bitsmith.deploy.export.onnx.model_writer import write_model

    return write_model(model, {}, "packed")


def test_options(model, tmp_path):
    with pytest.raises(ExportError, match="weights='int4': the forms of weights are int8, packed"):
        export(model, tmp_path / "m.onnx", weights="int4")
    with pytest.raises(ExportError, match="onnx takes no example, form; it takes weights"):
        export(model, tmp_path / "m.onnx", form="packed", example=None)
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_without_the_type(model, tmp_path, monkeypatch):
    class Old:
        DataType = type("DataType", (), {"keys": staticmethod(lambda: ["INT4", "UINT4", "INT8"])})

    monkeypatch.setattr(forms, "TensorProto", Old)
    two = [n for n, layer in model.program.layers.items() if layer.bits <= 2]
    assert [line.split(":")[0] for line in forms.untyped(model.program.layers)] == two
    if two:
        with pytest.raises(ExportError, match=r"weights of 2 bits need onnx 1\.20 or newer"):
            export(model, tmp_path / "m.onnx", weights="packed")
