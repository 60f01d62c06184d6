"""The operators as PyTorch sees them, and everything that can be handed in wrong."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bitsmith.errors import BitsmithError, DataError, InputError, SchemeError, WeightsError
from bitsmith.model.kernels import library as loading
from bitsmith.model.kernels.form import MachineForm, form_of, structure
from bitsmith.model.kernels.library import Kernels, kernels, why_not
from bitsmith.model.kernels.operators import embedding, linear
from bitsmith.model.kernels.weight import in_large_pages, pack_weight
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.formats.integer import int4, int16, uint4
from bitsmith.numbers.named_schemes import named_scheme
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerBlock, PerChannel, PerGroup, Scheme

if kernels() is None:
    pytest.skip(f"no native kernels: {why_not()}", allow_module_level=True)

SCHEME = Scheme(uint4, False, PerGroup(32))


def weight(n: int = 24, k: int = 64) -> tuple[QTensor, str, Tensor]:
    q = quantize(torch.randn(n, k), SCHEME)
    form = form_of(SCHEME, (n, k))
    assert isinstance(form, MachineForm)
    return q, form.text, pack_weight(q, form)


def test_pytorch_accepts_the_operators() -> None:
    _, text, packed = weight()
    x, bias, index = torch.randn(2, 3, 64), torch.randn(24), torch.tensor([[0, 23]])
    linears, embeddings = torch.ops.bitsmith.linear.default, torch.ops.bitsmith.embedding.default
    torch.library.opcheck(linears, (x, packed, text, bias, 0))
    torch.library.opcheck(linears, (x.bfloat16(), packed, text, None, 1))
    torch.library.opcheck(embeddings, (packed, text, index, torch.float16))


class Seen(TorchDispatchMode):
    """The names of the operators that PyTorch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # as PyTorch has it
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_who_watches_sees_the_operator_and_the_same_numbers() -> None:
    _, text, packed = weight()
    x = torch.randn(2, 3, 64)
    with torch.no_grad():
        alone = linear(x, packed, text, None)
        with Seen() as seen:
            watched = linear(x, packed, text, None)
        with torch.profiler.profile() as profile:
            profiled = linear(x, packed, text, None)
    assert "bitsmith.linear.default" in seen.names
    assert "bitsmith::linear" in {event.key for event in profile.key_averages()}
    assert torch.equal(alone, watched)
    assert torch.equal(alone, profiled)


def test_a_large_weight_begins_with_a_large_page() -> None:
    page = 1 << 21
    for size, spare in ((page, 0), (2 * page + 64, page)):
        packed = torch.randint(256, (size,), dtype=torch.uint8)
        moved = in_large_pages(packed)
        assert torch.equal(moved, packed)
        assert moved.untyped_storage().nbytes() == size + spare
        assert not spare or moved.data_ptr() % page == 0


def test_gradients_are_those_of_the_dequantized_weight() -> None:
    q, text, packed = weight()
    bias = torch.randn(24, requires_grad=True)
    x = torch.randn(2, 3, 64, requires_grad=True)
    out = linear(x, packed, text, bias)
    given = torch.randn_like(out)
    out.backward(given)
    twin, offset = (t.detach().clone().requires_grad_() for t in (x, bias))
    nn.functional.linear(twin, q.dequantize(), offset).backward(given)
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(bias.grad, offset.grad)
    bias.grad = None
    linear(x, packed, text, bias, "int8").backward(given)
    torch.testing.assert_close(bias.grad, offset.grad)
    with torch.no_grad():
        assert not linear(x, packed, text, bias).requires_grad
    assert not linear(x, packed, text, None, "int8").requires_grad
    half = torch.randn(4, 64, dtype=torch.bfloat16, requires_grad=True)
    linear(half, packed, text, None).sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_wrong_inputs_are_errors() -> None:
    _, text, packed = weight()
    x = torch.randn(3, 64)
    wrong = [x[:, :-1], x.double(), x.int(), torch.tensor(1.0), x.to(torch.complex64)]
    for each in wrong:
        with pytest.raises(InputError, match=r"rows are float32, float16 or bfloat16 \[..., 64\]"):
            linear(each, packed, text, None)
    for bias in (torch.randn(23), torch.randn(24).double(), torch.randn(48)[::2], torch.zeros(()),
                 torch.randn(24, 1), torch.randn(24, device="meta")):  # fmt: skip
        with pytest.raises(InputError, match=r"the bias is float32 \[24\]"):
            linear(x, packed, text, bias)
    with pytest.raises(InputError, match="indices are int64 or int32"):
        embedding(packed, text, torch.ones(2), torch.float32)
    with pytest.raises(InputError, match=r"not torch.float64"):
        embedding(packed, text, torch.tensor([1]), torch.float64)
    for bad in (-1, 24, -(1 << 62), 1 << 62):
        with pytest.raises(
            IndexError, match=f"^index {bad} is not a row of a table of 24: 0 to 23"
        ):
            embedding(packed, text, torch.tensor([3, bad]), torch.float32)
    with pytest.raises((NotImplementedError, RuntimeError)):
        linear(x.to("meta"), packed, text, None).sum().item()


def test_wrong_weights_are_errors() -> None:
    _, text, packed = weight()
    x = torch.randn(3, 64)
    other = weight(32)[2]
    garbage = torch.randint(0, 256, packed.shape, dtype=torch.uint8)
    wide = torch.stack([packed, packed], 1)
    for bad in (packed[:-1], packed[:10], packed[:0], torch.cat([packed, packed]), packed.int(),
                packed[None], packed.view(torch.int32), wide[:, 0], other, garbage,
                torch.zeros_like(packed)):  # fmt: skip
        with pytest.raises(WeightsError):
            linear(x, bad, text, None)
        with pytest.raises(WeightsError):
            embedding(bad, text, torch.tensor([0]), torch.float32)
    for place, value in ((0, 7), (0, 1), (1, 5), (1, 9), (2, 25), (2, -1), (3, 128), (4, 7), (5, 1),
                         (6, 16), (2, 1 << 62), (4, 0)):  # fmt: skip
        changed = text.split(",")
        changed[place] = str(value)
        with pytest.raises(BitsmithError):
            linear(torch.randn(3, 64 if place != 3 else 128), packed, ",".join(changed), None)
    for wrong in ("", "0,4", text + ",1", text.replace("4", "four"), text.replace("64", "6.4")):
        with pytest.raises(SchemeError, match="described by 8 integers"):
            linear(x, packed, wrong, None)
    for wrong in (f"{text[:-1]}9", f"{text[:-1]}{1 << 40}", text.replace("64", str(1 << 70))):
        with pytest.raises(SchemeError):
            linear(x, packed, wrong, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scales_that_are_not_finite_are_refused_before_they_are_packed(value: float) -> None:
    q, text, _ = weight()
    q.scale[3, 1] = value
    with pytest.raises(WeightsError, match="a scale or table entry is NaN or infinite"):
        pack_weight(q, MachineForm.parse(text))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_inputs_that_are_not_finite(value: float, rows: int) -> None:
    """Float rows propagate them, as PyTorch's do; int8 rows have no code for them."""
    _, text, packed = weight()
    x = torch.randn(rows, 64)
    x[-1, 5] = value
    found = linear(x, packed, text, None)
    assert not found[-1].isfinite().any()
    assert found[:-1].isfinite().all()
    counted = "1 NaN and 0 infinite" if value != value else "0 NaN and 1 infinite"
    with pytest.raises(DataError, match=f"{counted} of {rows * 64} values"):
        linear(x, packed, text, None, "int8")


def test_bytes_that_do_not_start_on_64_are_copied() -> None:
    _, text, packed = weight()
    room = torch.empty(len(packed) + 1, dtype=torch.uint8)
    room[1:] = packed
    x = torch.randn(2, 64)
    assert torch.equal(linear(x, room[1:], text, None), linear(x, packed, text, None))


def test_what_the_kernels_leave_to_pytorch() -> None:
    reasons = {
        named_scheme("Q4_1"): "offsets in place of zero points",
        Scheme(int16, granularity=PerChannel(0)): "int16 has more than 8 bits",
        Scheme(LearnedFormat(4, 2), granularity=PerChannel(0)): "a table of vectors",
        Scheme(LearnedFormat(4), granularity=PerGroup(32)): "tables that share rows",
        Scheme(int4, granularity=PerGroup(4)): "scales of 4 columns: at least 8",
        Scheme(int4, granularity=PerChannel(1)): "scales of 1 columns: at least 8",
    }
    for scheme, reason in reasons.items():
        assert form_of(scheme, (8, 64)) == reason
    assert form_of(SCHEME, (0, 64)) == form_of(SCHEME, (64,)) == "no rows and columns"
    whole = form_of(Scheme(LearnedFormat(4), granularity=PerBlock((-1, -1))), (8, 64))
    assert isinstance(whole, MachineForm)
    assert whole.tables == 1


def test_a_library_that_is_none_is_an_error_only_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "libbitsmith_kernels.so"
    empty.write_text("no library")
    other = Path(ctypes.util.find_library("c") or "libc.so.6")
    for bad in (empty, tmp_path / "absent.so", other):
        with pytest.raises(OSError):  # noqa: PT011  # the words are the system's
            Kernels(bad)
    monkeypatch.setattr(loading, "_installed", lambda: iter([empty]))
    monkeypatch.delenv("BITSMITH_KERNELS", raising=False)
    found, why = loading._loaded.__wrapped__()
    assert found is None
    assert str(empty) in why
    monkeypatch.setattr(loading, "_installed", lambda: iter([]))
    assert "were not built" in loading._loaded.__wrapped__()[1]
    monkeypatch.setenv("BITSMITH_KERNELS", str(empty))
    with pytest.raises(InputError, match="BITSMITH_KERNELS="):
        loading._loaded.__wrapped__()
    monkeypatch.setenv("BITSMITH_KERNELS", "off")
    assert loading._loaded.__wrapped__() == (None, "BITSMITH_KERNELS=off")


def test_an_unknown_instruction_set_is_an_error() -> None:
    found = kernels()
    assert found is not None
    before = found.in_use
    for unknown in (-1, 7, 99):
        with pytest.raises(SchemeError, match="instruction set"):
            found.use(unknown)
    assert found.in_use == before
    assert structure("0,4,8,64,32,0,0,0") is structure("0,4,8,64,32,0,0,0")


def test_importing_layers_loads_neither_the_library_nor_the_compiler() -> None:
    code = (
        "import bitsmith.model.layers.linear, bitsmith.model.kernels.library as l, sys;"
        "sys.exit(l._loaded.cache_info().currsize or 'torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
