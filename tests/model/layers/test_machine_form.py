"""A packed weight is repacked for the machine when it is used, and nobody can tell."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor, nn

from bitsmith.errors import DataError, WeightsError
from bitsmith.model.kernels.library import kernels, why_not
from bitsmith.model.layers import packed as packed_module
from bitsmith.model.layers.embedding import QuantEmbedding
from bitsmith.model.layers.linear import QuantLinear
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.weights import quantize_weights
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.codebooks import cluster
from bitsmith.numbers.formats.codebook import codebook3, codebook4, nf4
from bitsmith.numbers.formats.integer import int1, int3, int8, ternary, uint4, uint8
from bitsmith.numbers.formats.minifloat import e8m0, fp16
from bitsmith.numbers.named_schemes import named_scheme
from bitsmith.numbers.scheme import PerBlock, PerChannel, PerGroup, PerTensor, PerToken, Scheme

if kernels() is None:
    pytest.skip(f"no native kernels: {why_not()}", allow_module_level=True)

ROWS = Scheme(int8, granularity=PerChannel(0))
GROUPS = Scheme(uint4, False, PerGroup(32), scale_format=fp16)
INT8_ROWS = Scheme(int8, granularity=PerToken())
SCHEMES = [
    ROWS,
    GROUPS,
    Scheme(int3, granularity=PerTensor()),
    Scheme(int3, False, PerChannel(0)),
    Scheme(uint8, False, PerGroup(16), scale_format=e8m0),
    Scheme(uint4, False, PerBlock((4, 16))),
    Scheme(int1, granularity=PerChannel(0)),
    Scheme(ternary, granularity=PerChannel(0), scale_format=fp16),
    Scheme(nf4, granularity=PerGroup(32)),
    Scheme(codebook3, granularity=PerChannel(0), scale_format=fp16),
    Scheme(codebook4, granularity=PerBlock((4, -1)), scale_format=fp16),
    named_scheme("mxfp4"),
    named_scheme("nvfp4"),
    named_scheme("superblock_int4"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


def packed(weight: Tensor, scheme: Scheme) -> PackedWeight:
    q = cluster(weight, scheme) if scheme.learned else quantize(weight, scheme)
    return PackedWeight(q, weight.shape)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(
        a.dtype == other[n].dtype and torch.equal(a, other[n]) for n, a in one.items()
    )


def copies(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part.clone() for name, part in parts.items()}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_canonical_form_comes_back_bit_for_bit(scheme: Scheme) -> None:
    weight = packed(torch.randn(12, 256), scheme)
    layer = QuantLinear(weight, None)
    before, state, size = copies(weight.parts()), copies(layer.state_dict()), weight.nbytes
    values = weight.dequantize()
    found = layer(torch.randn(3, 256))
    assert weight.machine is not None
    assert "codes" not in dict(weight.named_buffers())
    assert same(weight.parts(), before)
    assert same(layer.state_dict(), state)
    assert torch.equal(weight.dequantize(), values)
    assert weight.nbytes == size
    weight.release()
    assert weight.machine is None
    assert same(dict(weight.named_buffers()), {n.replace(".", "/"): p for n, p in before.items()})
    assert found.shape == (3, 12)


def test_parts_that_the_machine_form_has_are_freed() -> None:
    weight = packed(torch.randn(64, 256), GROUPS)
    layer = QuantLinear(weight, None)
    assert weight.machine is None  # nothing is done before it runs
    layer(torch.randn(1, 256))
    assert [name for name, _ in weight.named_buffers()] == ["machine"]


def test_loading_a_state_replaces_the_machine_form() -> None:
    one, other = (QuantLinear(packed(torch.randn(12, 64), GROUPS), None) for _ in range(2))
    x = torch.randn(3, 64)
    expected = other(x)
    one(x)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), expected)
    one.load_state_dict(copies(other.state_dict()), assign=True)
    assert torch.equal(one(x), expected)


def test_copies_and_pickles_hold_no_form_of_this_machine() -> None:
    torch.manual_seed(3)
    layer, x = QuantLinear(packed(torch.randn(12, 64), GROUPS), None), torch.randn(3, 64)
    fresh = len(pickle.dumps(layer))
    expected = layer(x)
    assert abs(len(pickle.dumps(layer)) - fresh) < 16  # names of storages
    twin = copy.deepcopy(layer)
    assert twin.packed.machine is not None
    assert twin.packed.machine.data_ptr() != layer.packed.machine.data_ptr()
    assert torch.equal(twin(x), expected)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.packed.machine is None
    assert torch.equal(loaded(x), expected)
    shared = copy.deepcopy(layer, {id(b): b for b in layer.buffers()})
    assert shared.packed.machine is layer.packed.machine


def test_moving() -> None:
    layer, x = QuantLinear(packed(torch.randn(12, 64), GROUPS), None), torch.randn(3, 64)
    before, expected = copies(layer.packed.parts()), layer(x)
    machine = layer.packed.machine
    assert layer.float().half().to("cpu").packed.machine is machine  # nothing to do
    assert same(layer.packed.parts(), before)
    assert torch.equal(layer(x), expected)
    layer.share_memory()
    assert torch.equal(layer(x), expected)
    state = copies(layer.state_dict())
    layer.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(layer(x), expected)
    abroad = copy.deepcopy(layer).to("meta")
    assert abroad.packed.machine is None
    assert {n: (p.shape, p.dtype) for n, p in abroad.packed.parts().items()} == {
        n: (p.shape, p.dtype) for n, p in before.items()
    }


def test_other_types_go_through_pytorch() -> None:
    layer = QuantLinear(packed(torch.randn(12, 64), GROUPS), nn.Parameter(torch.randn(12)))
    x = torch.randn(3, 64, dtype=torch.float64)
    weight = layer.packed.dequantize(torch.float64)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.bias.double()))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(3, 63))
    with pytest.raises(RuntimeError):
        layer(torch.ones(3, 64, dtype=torch.long))


def test_halves_and_autocast() -> None:
    layer = QuantLinear(packed(torch.randn(12, 64), GROUPS), nn.Parameter(torch.randn(12)))
    x = torch.randn(3, 64)
    expected = layer(x)
    for dtype in (torch.bfloat16, torch.float16):
        found = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == nn.functional.linear(x, x).dtype == torch.bfloat16


def test_an_adapter_learns_beside_a_packed_weight() -> None:
    """As in QLoRA: gradients go through the packed layer to what lies before it."""
    before = nn.Linear(64, 64)
    layer = QuantLinear(packed(torch.randn(12, 64), GROUPS), nn.Parameter(torch.randn(12)))
    twin, x = copy.deepcopy(before), torch.randn(5, 64)
    layer(before(x)).square().sum().backward()
    weight = layer.packed.qtensor().dequantize()
    out = nn.functional.linear(twin(x), weight, layer.bias.detach())
    out.square().sum().backward()
    torch.testing.assert_close(before.weight.grad, twin.weight.grad, rtol=1e-4, atol=1e-4)
    assert layer.bias.grad is not None


@pytest.mark.parametrize("inference", [False, True])
def test_one_that_first_ran_in_inference_mode_can_be_trained_through(inference: bool) -> None:
    layer, x = QuantLinear(packed(torch.randn(12, 64), GROUPS), None), torch.randn(3, 64)
    with torch.inference_mode(inference):
        layer(x)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None


class Tied(nn.Module):
    def __init__(self, activation: Scheme | None = None) -> None:
        super().__init__()
        table = packed(torch.randn(40, 64), ROWS)
        self.table = QuantEmbedding(table, None, torch.float32)
        self.head = QuantLinear(table, None, activation)
        self.last = QuantLinear(packed(torch.randn(8, 40), ROWS), nn.Parameter(torch.randn(8)))

    def forward(self, index: Tensor) -> Tensor:
        return self.last(self.head(self.table(index)))


@pytest.mark.parametrize("activation", [None, INT8_ROWS])
def test_a_tied_weight_has_one_form(activation: Scheme | None) -> None:
    model, index = Tied(activation).eval(), torch.tensor([[3, 0], [39, 3]])
    weight = model.table.packed
    assert torch.equal(model.table(index), weight.qtensor().dequantize()[index])
    model(index)
    assert model.head.packed is weight
    assert weight.use == ("float" if activation is None else "int8")
    assert torch.equal(model.table(index), weight.qtensor().dequantize()[index])


@pytest.mark.parametrize(
    ("ran", "activation", "backend"),
    [
        (False, None, "inductor"),
        (False, INT8_ROWS, "aot_eager"),
        (True, None, "aot_eager"),
        (True, INT8_ROWS, "aot_eager"),
    ],
)
def test_a_compiled_model_runs_native_kernels(
    ran: bool, activation: Scheme | None, backend: str
) -> None:
    model, index = Tied(activation).eval(), torch.tensor([[3, 0], [39, 3]])
    expected = copy.deepcopy(model)(index)
    if ran:
        model(index)
    with torch.no_grad():
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        assert torch.equal(compiled(index), expected)
        assert all(w.machine is not None for w in (model.table.packed, model.last.packed))
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(compiled(index), expected)
        assert torch.equal(compiled(index[:1]), model(index[:1]))
        model.last.packed.release()  # it is packed again
        assert torch.equal(compiled(index), expected)


def test_a_compiled_model_has_gradients() -> None:
    layer = QuantLinear(packed(torch.randn(12, 64), GROUPS), nn.Parameter(torch.randn(12)))
    x, twin = (torch.randn(3, 64).requires_grad_() for _ in range(2))
    twin.data = x.data.clone()
    torch.compile(layer, backend="aot_eager", fullgraph=True)(x).sum().backward()
    layer(twin).sum().backward()
    assert torch.equal(x.grad, twin.grad)


def test_an_exported_program_has_the_form_that_it_found() -> None:
    """Before it has run: the canonical one, for any machine. After: the one of this machine."""
    model, index = Tied().eval(), torch.tensor([[3, 0], [39, 3]])
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    portable = torch.export.export(model, (index,), dynamic_shapes=dynamic)
    assert model.table.packed.machine is None
    called = {str(n.target) for n in portable.graph.nodes if n.op == "call_function"}
    assert "bitsmith.dequantize.default" in called
    expected = model(index)
    # Float sums in another order: of 64 products, of which the last layer adds up 40 more.
    table, last = (w.qtensor().dequantize() for w in (model.table.packed, model.last.packed))
    sizes = (table[index].abs() @ table.abs().T) @ last.abs().T + model.last.bias.abs()
    most = float(sizes.detach().max()) * (64 + 40) * torch.finfo(torch.float32).eps
    here = torch.export.export(model, (index,), dynamic_shapes=dynamic)
    called = {str(n.target) for n in here.graph.nodes if n.op == "call_function"}
    assert {"bitsmith.linear.default", "bitsmith.embedding.default"} <= called
    assert "bitsmith.dequantize.default" not in called
    for program in (portable, here):
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        again = torch.export.load(file).module()
        for some in (index, index[:1].repeat(5, 1)):
            torch.testing.assert_close(again(some), model(some), rtol=0, atol=most)
        torch.testing.assert_close(again(index), expected, rtol=0, atol=most)


def test_threads_that_come_first_together_repack_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    original = packed_module.pack_weight
    monkeypatch.setattr(
        packed_module, "pack_weight", lambda q, form: (times.append(1), original(q, form))[1]
    )
    layer, x = QuantLinear(packed(torch.randn(400, 512), GROUPS), None), torch.randn(3, 512)
    found: list[Tensor] = []
    start = threading.Barrier(6)

    def run() -> None:
        start.wait()
        found.append(layer(x))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert times == [1]
    assert len(found) == 6
    assert all(torch.equal(found[0], other) for other in found)


def grouped(x: Tensor, layer: QuantLinear) -> Tensor:
    q, rows = layer.packed.qtensor(), quantize(x, INT8_ROWS)
    weight = q.dequantize().double()[:, : x.shape[-1]]
    return rows.dequantize().double() @ weight.T + layer.bias.detach().double()


@pytest.mark.parametrize("recipe", ["W4G64A8-dynamic", "W2G32A8-dynamic", "W4A8-dynamic"])
def test_groups_with_int8_rows(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantize_weights(nn.Sequential(nn.Linear(128, 24)).eval(), recipe)
    assert model.coverage[0].kernel.endswith("int8 rows")
    x = torch.randn(5, 128)
    native = model(x)
    monkeypatch.setattr(PackedWeight, "ready", lambda self: False)
    model[0].packed.release()
    by_torch = model(x)
    for found in (native, by_torch):
        torch.testing.assert_close(found.double(), grouped(x, model[0]), rtol=1e-5, atol=1e-5)
    if "G" not in recipe:
        assert torch.equal(native, by_torch)


@pytest.mark.parametrize("recipe", ["W4G64", "W4G64A8-dynamic", "NF4"])
def test_rows_that_were_padded(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantize_weights(nn.Sequential(nn.Linear(100, 24)).eval(), recipe, ragged="pad")
    x = torch.randn(2, 5, 100)
    native = model(x)
    assert model[0].packed.machine is not None
    monkeypatch.setattr(PackedWeight, "ready", lambda self: False)
    model[0].packed.release()
    torch.testing.assert_close(native, model(x), rtol=1e-4, atol=1e-5)


def test_integers_only_with_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantLinear(packed(torch.randn(12, 64), SCHEMES[8]), None, INT8_ROWS)
    assert layer.kernel == "torch: int8 rows times nf4"
    with pytest.raises(DataError, match="integer weights with zero points, not by nf4"):
        layer(torch.randn(2, 64))


def test_what_is_damaged_is_an_error_at_its_first_run() -> None:
    x = torch.randn(2, 64)
    weight = packed(torch.randn(4, 64), GROUPS)
    weight.codes = weight.codes[:-1]
    with pytest.raises(WeightsError, match="a packed weight is damaged: 256 codes of 4 bits"):
        QuantLinear(weight, None)(x)
    for scheme in (ROWS, GROUPS):
        weight = packed(torch.randn(4, 64), scheme)
        weight.scale.view(-1)[2] = float("nan") if scheme is ROWS else 0x7E00  # as a float16
        with pytest.raises(WeightsError, match="damaged"):
            QuantLinear(weight, None)(x)
        with pytest.raises(WeightsError, match="damaged"):
            QuantEmbedding(weight, None, torch.float32)(torch.tensor([1]))


def test_what_has_no_kernel_says_why_and_runs() -> None:
    layer = QuantLinear(packed(torch.randn(12, 64), named_scheme("Q4_1")), None)
    assert layer.kernel == "torch: offsets in place of zero points"
    x = torch.randn(3, 64)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.packed.dequantize()))
    assert layer.packed.machine is None


def test_a_copy_that_shares_its_tensors_shares_the_machine_form() -> None:
    model = quantize_weights(nn.Sequential(nn.Linear(64, 24)).eval(), "W4G64")
    model(torch.randn(1, 64))
    shared = copy.deepcopy(model, {id(b): b for b in model.buffers()})
    assert shared[0].packed.machine is model[0].packed.machine


NO_KERNELS = """
import sys, warnings, torch
from torch import nn
from bitsmith.model.kernels import library
from bitsmith.model.weights import quantize_weights
if sys.argv[1] == "absent":
    library._installed = lambda: iter([])
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    model = quantize_weights(nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 8)).eval(), "W8")
    model(torch.randn(2, 64))
    model(torch.randn(2, 64))
print([str(w.message) for w in said])
print([row.kernel for row in model.coverage])
"""


@pytest.mark.parametrize("how", ["absent", "off"])
def test_without_kernels_layers_run_and_it_is_said_once(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BITSMITH_KERNELS", raising=False)
    if how == "off":
        monkeypatch.setenv("BITSMITH_KERNELS", "off")
    run = subprocess.run(
        [sys.executable, "-c", NO_KERNELS, how], check=True, capture_output=True, text=True
    )
    said, coverage = run.stdout.splitlines()
    why = "BITSMITH_KERNELS=off" if how == "off" else "the kernels were not built"
    assert coverage.count(f"torch: {why}") == 2
    assert said.count("without native kernels") == (how == "absent")
