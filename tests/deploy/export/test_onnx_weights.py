"""ONNX files of packed weights: run in ONNX Runtime and OpenVINO, and read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bitsmith.deploy.export.onnx_weights import check, read, write
from bitsmith.deploy.export.onnx_weights.places import places_of
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify.outputs import compare_outputs
from bitsmith.errors import ExportError, InputError, UnknownNameError, WeightsError
from bitsmith.model.layers.embedding import QuantEmbedding
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.layers.other import WeightOnly
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.weights import quantize_weights
from bitsmith.numbers import PerBlock, PerChannel, PerGroup, PerTensor, PerToken, Scheme
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.codebooks import cluster
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.integer import linear_accumulate
from bitsmith.numbers.named_schemes import named_scheme
from bitsmith.numbers.qtensor import QTensor
from emulate.machine import machines
from emulate.sessions import Case, run_all

WIDTH, ROWS, TOKENS = 96, 40, 50
PER_TOKEN = Scheme(formats["int8"], granularity=PerToken())
FP16 = formats["fp16"]

SCHEMES: dict[str, Scheme] = {
    **{
        f"uint{b}_g32": Scheme(formats[f"uint{b}"], False, PerGroup(32), scale_format=FP16)
        for b in range(1, 9)
    },
    **{f"int{b}_row": Scheme(formats[f"int{b}"], granularity=PerChannel(0)) for b in (2, 3, 4, 8)},
    "uint4_row": Scheme(formats["uint4"], False, PerChannel(0)),
    "uint2_row": Scheme(formats["uint2"], False, PerChannel(0)),
    "int8_tensor": Scheme(formats["int8"]),
    "uint4_tensor": Scheme(formats["uint4"], False, PerTensor()),
    "int4_bf16": Scheme(formats["int4"], granularity=PerGroup(16), scale_format=formats["bf16"]),
    "uint4_g96": Scheme(formats["uint4"], False, PerGroup(96)),
    "int4_e8m0": Scheme(formats["int4"], granularity=PerGroup(32), scale_format=formats["e8m0"]),
    "uint4_block": Scheme(formats["uint4"], False, PerBlock((8, 48))),
    "nf4": Scheme(formats["nf4"], granularity=PerGroup(32), scale_format=FP16),
    "mxfp4": named_scheme("mxfp4"),
    "fp8": Scheme(formats["fp8_e4m3fn"], granularity=PerChannel(0)),
    "binary": Scheme(formats["int1"], granularity=PerChannel(0)),
    "codebook3": Scheme(LearnedFormat(3), granularity=PerBlock((8, -1)), scale_format=FP16),
    "vectors": Scheme(LearnedFormat(4, 2), granularity=PerBlock((8, 48))),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(scheme: Scheme, shape: tuple[int, ...], stored: int = 0) -> PackedWeight:
    """A random weight; ``stored`` columns where its rows are padded."""
    weight = noise(*shape, seed=sum(shape)).flatten(1)
    weight = nn.functional.pad(weight, (0, max(stored - weight.shape[1], 0)))
    q = cluster(weight, scheme) if scheme.learned else quantize(weight, scheme)
    return PackedWeight(q, torch.Size(shape))


class Layers(nn.Module):
    """Layers beside each other, so that one translation serves all; each is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleDict()
        for i, (name, scheme) in enumerate(SCHEMES.items()):
            bias = nn.Parameter(noise(ROWS, seed=i)) if i % 2 else None
            self.linears[name] = QuantLinear(packed(scheme, (ROWS, WIDTH)), bias)
        self.narrow = nn.ModuleDict()
        for name in ("uint4_g32", "uint2_g32", "uint8_g32"):
            weight = packed(SCHEMES[name], (ROWS + 1, WIDTH - 13), WIDTH)  # 83 columns
            self.narrow[name] = QuantLinear(weight, None)
        self.narrow["int4_row"] = QuantLinear(packed(SCHEMES["int4_row"], (ROWS, 83)), None)
        self.tables = nn.ModuleDict()
        for name, stored in (("uint4_g32", WIDTH), ("uint2_g32", WIDTH), ("int8_row", 0)):
            table = packed(SCHEMES[name], (TOKENS, WIDTH - 13), stored)
            self.tables[name] = QuantEmbedding(table, None, torch.float32)
        for name in ("int4_row", "uint8_g32", "uint4_block", "int8_tensor", "nf4"):
            table = packed(SCHEMES[name], (TOKENS + 6, WIDTH))
            self.tables[f"{name}_whole"] = QuantEmbedding(table, None, torch.float32)
        conv = nn.Conv1d(WIDTH, 6, 3, padding=1)
        self.conv = WeightOnly(conv, {"weight": packed(SCHEMES["uint4_g32"], (6, WIDTH, 3))})
        self.flat = QuantLinear(packed(SCHEMES["int8_row"], (8, WIDTH)), None)

    def forward(self, x: Tensor, ids: Tensor) -> list[Tensor]:
        found = [layer(x) for layer in self.linears.values()]
        found += [layer(x[..., : WIDTH - 13]) for layer in self.narrow.values()]
        found += [table(ids) for table in self.tables.values()]
        return [*found, self.conv(x.transpose(1, 2)), self.flat(x.mean(1))]


class Tiny(nn.Module):
    """One block of a language model with a tied head; rows of 48 and 80."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(TOKENS, 48)
        self.mix = nn.ModuleList(nn.Linear(48, 48, bias=i != 1) for i in range(3))
        self.norm = nn.LayerNorm(48)
        self.up = nn.Linear(48, 80)
        self.down = nn.Linear(80, 48)
        self.head = nn.Linear(48, TOKENS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.table(ids)
        q, k, v = (layer(x) for layer in self.mix)
        scores = q @ k.transpose(1, 2) / 7 + (1 - mask[:, None, :].float()) * -1e9
        x = self.norm(x + torch.softmax(scores, 2) @ v)
        logits: Tensor = self.head(x + self.down(nn.functional.gelu(self.up(x))))
        return logits


@pytest.fixture(scope="module")
def layers() -> Layers:
    return Layers().eval()


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for shape in ((3, 5), (1, 9), (2, 1)):
        yield noise(*shape, WIDTH), torch.arange(shape[0] * shape[1]).reshape(shape)


def sentences() -> Iterator[tuple[Tensor, Tensor]]:
    for shape in ((3, 7), (1, 12), (2, 2)):
        mask = torch.ones(shape, dtype=torch.int64)
        mask[0, -1] = 0
        yield torch.randint(0, TOKENS, shape, generator=torch.Generator().manual_seed(1)), mask


@pytest.fixture(scope="module")
def files(layers: Layers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    example = (noise(2, 4, WIDTH), torch.zeros(2, 4, dtype=torch.int64))
    return {
        form: write(layers, folder / f"{form}.onnx", example, form=form)
        for form in ("matmulnbits", "dequantize")
    }


def same(one: QTensor, other: QTensor) -> bool:
    pairs = [(one.codes, other.codes), (one.scale, other.scale), (one.zero_point, other.zero_point)]
    if one.codebook is not None and other.codebook is not None:
        pairs.append((one.codebook, other.codebook))
    return one.scheme == other.scheme and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
    )


def exposed(path: Path, *endings: str) -> tuple[bytes, list[str]]:
    """Return the file with inner tensors as further outputs, and their names."""
    proto = onnx.load(str(path))
    names = [o for n in proto.graph.node for o in n.output if o.endswith(endings)]
    types = {"codes": TensorProto.UINT8, "sums": TensorProto.INT32}
    for name in names:
        kind = types.get(name.rpartition(".")[2], TensorProto.FLOAT)
        proto.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    return proto.SerializeToString(), names


@pytest.mark.parametrize("form", ["matmulnbits", "dequantize"])
def test_every_scheme_computes_what_the_module_does(layers: Layers, files: dict[str, Path], form):
    found = compare_outputs(layers, open_session(files[form], threads=1), batches())
    assert len(found) == len(SCHEMES) + len(layers.narrow) + len(layers.tables) + 2
    assert [d.largest / d.magnitude for d in found if d.largest > 2e-6 * d.magnitude] == []


@pytest.mark.parametrize("form", ["matmulnbits", "dequantize"])
def test_embeddings_are_equal_bit_for_bit(layers: Layers, files: dict[str, Path], form):
    found = compare_outputs(layers, open_session(files[form], threads=1), batches())
    tables = found[len(SCHEMES) + len(layers.narrow) :][: len(layers.tables)]
    assert [d.largest for d in tables] == [0.0] * len(layers.tables)


@pytest.mark.parametrize("form", ["matmulnbits", "dequantize"])
def test_what_was_written_is_read_bit_for_bit(layers: Layers, files: dict[str, Path], form):
    found = read(files[form])
    places = places_of(layers)
    assert sorted(found) == sorted(p.name for p in places)
    assert [p.name for p in places if not same(found[p.name], p.packed.qtensor())] == []


def test_matmulnbits_holds_up_to_four_bits(files: dict[str, Path]):
    def counted(form: str) -> dict[int, int]:
        nodes = [n for n in onnx.load(str(files[form])).graph.node if n.op_type == "MatMulNBits"]
        bits = [next(a.i for a in n.attribute if a.name == "bits") for n in nodes]
        return {b: bits.count(b) for b in sorted(set(bits))}

    assert counted("matmulnbits") == {2: 5, 4: 12}
    assert counted("dequantize") == {}


@pytest.mark.parametrize("form", ["matmulnbits", "dequantize"])
def test_the_runtime_keeps_weights_as_codes(files: dict[str, Path], form, tmp_path):
    """Everything that depends on constants alone is computed at load; no weight may."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(files[form]), options, providers=["CPUExecutionProvider"])
    held = onnx.load(str(tmp_path / "optimized.onnx")).graph.initializer
    floats = [i for i in held if i.data_type == TensorProto.FLOAT]
    assert max(np.prod(i.dims) for i in floats) < ROWS * WIDTH / 2


def test_the_standard_form_runs_in_openvino_without_two_bits(tmp_path: Path):
    """OpenVINO 2026.4 has no UINT2. It rounds activations to 8 bits unless told not to."""
    openvino = pytest.importorskip("openvino")
    model = Layers().eval()
    for name, scheme in SCHEMES.items():
        if scheme.format.bits <= 2:
            del model.linears[name]
    del model.narrow["uint2_g32"], model.tables["uint2_g32"]
    x, ids = noise(3, 5, WIDTH), torch.arange(15).reshape(3, 5)
    path = write(model, tmp_path / "m.onnx", (x, ids), form="dequantize")
    config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    core = openvino.Core()
    theirs = core.compile_model(core.read_model(str(path)), "CPU", config)([x.numpy(), ids.numpy()])
    with torch.no_grad():
        for i, ours in enumerate(model(x, ids)):
            assert np.abs(ours.numpy() - theirs[i]).max() <= 2e-6 * ours.abs().max()


def test_int8_activations_are_near_and_in_fused_kernels(tmp_path: Path):
    torch.manual_seed(0)
    for form, recipe in (("matmulnbits", "W8"), ("dequantize", "W4G16")):
        model = quantize_weights(Tiny().eval(), recipe, rounding="nearest")
        path = tmp_path / "m.onnx"
        write(model, path, next(sentences()), form=form, activations="int8")
        session = open_session(path, threads=1)
        (found,) = compare_outputs(model, session, sentences())
        assert 0 < found.largest < 0.03 * found.magnitude
        # The tied head is shared with the embedding, so it stays as it is.
        assert sum(n.op == "MatMulNBits" for n in session.executed()) == 5


def test_a_tied_weight_is_held_once(tmp_path: Path):
    model = quantize_weights(Tiny().eval(), "W4G32", ragged="pad", rounding="nearest")
    path = write(model, tmp_path / "m.onnx", next(sentences()))
    found = read(path)
    assert found["head.weight"] is found["table.weight"]
    names = [i.name for i in onnx.load(str(path)).graph.initializer]
    assert "table.weight.codes" in names
    assert "head.weight.codes" not in names
    (difference,) = compare_outputs(model, open_session(path, threads=1), sentences())
    assert difference.largest <= 2e-6 * difference.magnitude


def test_dynamic_codes_and_sums_are_those_of_the_module(tmp_path: Path):
    model = quantize_weights(Tiny().eval(), "W8A8-dynamic")
    path = write(model, tmp_path / "m.onnx", next(sentences()))
    content, names = exposed(path, ".tokens.codes", ".tokens.scale", ".sums")
    session = open_session(content, threads=1)
    seen: list[Tensor] = []
    hooks = [
        m.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        for m in model.modules()
        if isinstance(m, QuantLinear)
    ]
    ids, mask = next(sentences())
    with torch.no_grad():
        model(ids, mask)
    for hook in hooks:
        hook.remove()
    results = dict(zip(["y", *names], session.run(ids, mask), strict=True))
    codes = next(v for n, v in results.items() if n.endswith(".tokens.codes"))
    scale = next(v for n, v in results.items() if n.endswith(".tokens.scale"))
    sums = next(v for n, v in results.items() if n.endswith(".sums"))
    q = quantize(seen[0], PER_TOKEN)  # nothing before the first layer rounds
    assert torch.equal(codes.int() - 128, q.codes.int())
    assert torch.equal(scale, q.scale)
    first = next(m for m in model.modules() if isinstance(m, QuantLinear))
    assert torch.equal(sums, linear_accumulate(q.codes, 0, first.packed.qtensor().codes))


class Others(nn.Module):
    """Modules whose weights are dequantized for the call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.MultiheadAttention(32, 4, batch_first=True)
        self.lstm = nn.LSTM(32, 16, batch_first=True)
        self.gru = nn.GRU(16, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.mix(x, x, x, need_weights=False)
        return self.gru(self.lstm(mixed)[0])[0]


def test_attention_and_recurrent_layers(tmp_path: Path):
    model = quantize_weights(Others().eval(), "W4G16", rounding="nearest")
    path = write(model, tmp_path / "m.onnx", noise(2, 5, 32), form="dequantize")
    session = open_session(path, threads=1)
    assert list(session.output_names) == ["output"]
    (found,) = compare_outputs(model, session, [noise(2, 5, 32), noise(1, 5, 32)])
    assert found.largest <= 2e-6 * found.magnitude
    with pytest.raises(InputError, match="Expected: 5"):  # PyTorch fixes the length of a sequence
        session.run(noise(2, 8, 32))
    assert sum(n.op == "DequantizeLinear" for n in session.executed()) == 6


def test_rows_that_are_no_whole_bytes_are_held_in_eight_bits(files: dict[str, Path]):
    held = {i.name: i for i in onnx.load(str(files["dequantize"])).graph.initializer}
    assert held["linears.int4_row.weight.codes"].data_type == TensorProto.INT4
    assert held["narrow.int4_row.weight.codes"].data_type == TensorProto.INT8  # rows of 83


class Dynamic(nn.Module):
    """One dynamic layer: the end of the file is the end of its arithmetic."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scheme = Scheme(formats["int8"], granularity=PerChannel(0))
        held = PackedWeight(quantize(weight, scheme), weight.shape)
        self.layer = QuantLinear(held, None if bias is None else nn.Parameter(bias), PER_TOKEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("machine", machines())
def test_dynamic_products_are_exact_in_the_worst_case(machine: str, tmp_path: Path):
    """All at the ends of the range, where 16-bit pair sums saturate; floats equal bit for bit."""
    width = 3072
    weight = torch.ones(4, width)
    weight[1] = -1
    weight[2, ::2] = -1
    weight[3] = noise(width)
    model = Dynamic(weight, noise(4)).eval()
    x = torch.stack([torch.ones(width), -torch.ones(width), noise(width), torch.zeros(width)])
    x = torch.stack([x, x * 1e30, x * 1e-38])
    path = write(model, tmp_path / "m.onnx", x)
    content, names = exposed(path, ".sums")
    (result,) = run_all(
        machine, [Case(content, {onnx.load(str(path)).graph.input[0].name: x.numpy()})]
    )
    sums = result.outputs[1 + names.index(names[0])]
    assert sums[0, 0, 0] == 127 * 127 * width
    assert sums[0, 1, 0] == -127 * 127 * width
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(result.outputs[0]), model(x))


def test_the_file_names_no_place_of_this_machine(files: dict[str, Path]):
    content = files["dequantize"].read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in content
    assert b".py" not in content


def test_everything_that_cannot_be_written_is_listed(tmp_path: Path):
    fp16_scales = Scheme(formats["uint4"], False, PerGroup(8), scale_format=FP16)
    two_level = Scheme(
        formats["int4"],
        granularity=PerGroup(16),
        scale_format=Scheme(formats["uint8"], False, PerGroup(6)),
    )
    linears = {
        "small": QuantLinear(packed(fp16_scales, (8, 96)), None),
        "deep": QuantLinear(packed(two_level, (8, 96)), None),
        "wide": QuantLinear(packed(Scheme(formats["int16"]), (8, 96)), None),
        "halved": QuantLinear(packed(SCHEMES["int8_row"], (8, 96)), nn.Parameter(noise(8).half())),
        "grouped": QuantLinear(packed(SCHEMES["uint4_g32"], (8, 96)), None, PER_TOKEN),
        "odd": QuantLinear(packed(SCHEMES["int8_row"], (8, 96)), None, SCHEMES["int8_tensor"]),
    }
    model = nn.Sequential()
    for name, layer in linears.items():
        model.add_module(name, layer)
    with pytest.raises(ExportError) as caught:
        write(model.train(), tmp_path / "m.onnx", noise(2, 96))
    message = str(caught.value)
    for part in (
        "training mode",
        "halved.bias is torch.float16",
        "small.weight: PerGroup(size=8, axis=-1) on rows of 96 has no block of MatMulNBits",
        "deep.weight: scales in two levels are not stored",
        "wide.weight: int16 has 16 bits",
        "halved.weight: its layer computes in torch.float16",
        "grouped.weight: integer products need symmetric int8 weights, not uint4",
        "odd.weight: inputs are quantized as",
    ):
        assert part in message
    assert list(tmp_path.iterdir()) == []
    assert not [p for p in check(model.eval(), form="dequantize") if p.startswith("small")]


def test_bad_arguments_are_refused(layers: Layers, tmp_path: Path):
    with pytest.raises(UnknownNameError, match="form 'qdq'"):
        check(layers, form="qdq")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(UnknownNameError, match="activations 'int4'"):
        check(layers, activations="int4")  # type: ignore[arg-type]  # on purpose
    assert "no packed weight" in check(nn.Linear(2, 2).eval())[0]
    with pytest.raises(InputError, match="the example has list"):
        write(layers, tmp_path / "m.onnx", ([1, 2],))  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ExportError, match="cannot be written"):
        write(Dynamic(noise(4, 16), None).eval(), tmp_path / "none" / "m.onnx", noise(2, 16))


def test_a_model_that_cannot_be_translated_is_an_error(tmp_path: Path):
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = QuantLinear(packed(SCHEMES["int8_row"], (8, 16)), None)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(ExportError, match="cannot translate Branch: "):
        write(Branch().eval(), tmp_path / "m.onnx", noise(2, 16))
    assert list(tmp_path.iterdir()) == []


def test_files_that_were_changed_are_refused(tmp_path: Path):
    path = write(Dynamic(noise(4, 16), None).eval(), tmp_path / "m.onnx", noise(2, 16))
    whole = path.read_bytes()

    def refused(content: bytes, message: str) -> None:
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            read(path)

    with pytest.raises(InputError, match="cannot be read: No such file"):
        read(tmp_path / "none.onnx")
    refused(whole[: len(whole) // 2], "not an ONNX file, or is truncated")
    proto = onnx.load_from_string(whole)
    held = {i.name: i for i in proto.graph.initializer}
    held["layer.weight.scale"].CopyFrom(
        numpy_helper.from_array(np.ones((3, 1), np.float32), "layer.weight.scale")
    )
    held["layer.weight.codes"].raw_data = held["layer.weight.codes"].raw_data[:-1]
    refused(proto.SerializeToString(), r"scale has the type 1 and shape \(3, 1\).*codes holds 63")
    proto = onnx.load_from_string(whole)
    held = {i.name: i for i in proto.graph.initializer}
    held["layer.weight.codes"].raw_data = bytes(64)
    refused(proto.SerializeToString(), "codes run from -128")
    helper.set_model_props(proto, {"bitsmith.weights": '{"weights": 3}'})
    refused(proto.SerializeToString(), "metadata bitsmith.weights cannot be read")
    helper.set_model_props(proto, {})
    refused(proto.SerializeToString(), "bitsmith did not write it")
