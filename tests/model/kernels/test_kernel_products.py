"""Every kernel against float64, on every instruction set of this machine."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitsmith.model.kernels.form import MachineForm, form_of
from bitsmith.model.kernels.library import INSTRUCTIONS, Kernels, kernels, why_not
from bitsmith.model.kernels.operators import embedding, linear
from bitsmith.model.kernels.weight import pack_weight, unpack_weight
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.codebook import LearnedFormat, nf4
from bitsmith.numbers.formats.integer import int1, int8, integer_format, ternary
from bitsmith.numbers.formats.minifloat import fp8_e4m3fn
from bitsmith.numbers.granularity import blocked
from bitsmith.numbers.named_schemes import named_scheme
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import PerBlock, PerChannel, PerGroup, PerTensor, PerToken, Scheme

if kernels() is None:
    pytest.skip(f"no native kernels: {why_not()}", allow_module_level=True)

EPS = torch.finfo(torch.float32).eps
INT8_ROWS = Scheme(int8, granularity=PerToken())


def library() -> Kernels:
    found = kernels()
    assert found is not None
    return found


def available() -> list[int]:
    """Return the instruction sets of this machine: one family, in rising order."""
    most = library().machine
    return [0, most] if INSTRUCTIONS[most] == "neon" else list(range(most + 1))


@pytest.fixture(params=available(), ids=[INSTRUCTIONS[i] for i in available()])
def machine(request: pytest.FixtureRequest):
    before = library().in_use
    library().use(request.param)
    yield INSTRUCTIONS[request.param]
    library().use(before)


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def integers(bits: int, n: int, k: int, group: int, symmetric: bool) -> QTensor:
    """Return random codes, all of them, with random scales and zero points."""
    number = integer_format(bits, signed=symmetric and bits > 1)
    granularity = PerChannel(0) if group == k else PerGroup(group)
    scheme = Scheme(number, symmetric and bits > 1, granularity, narrow_range=False)
    codes = torch.randint(scheme.code_min, scheme.code_max + 1, (n, k)).to(number.dtype)
    scale = torch.rand(n, k // group) + 0.01
    zero = torch.zeros(n, k // group, dtype=torch.int32)
    if not scheme.symmetric:
        zero = torch.randint(scheme.code_min, scheme.code_max + 1, zero.shape, dtype=torch.int32)
    return QTensor(codes, scale, zero, None, scheme)


def learned(bits: int, n: int, k: int, rows: int) -> QTensor:
    """Return random codes of random tables, each for ``rows`` rows."""
    scheme = Scheme(LearnedFormat(bits), granularity=PerBlock((rows, -1)))
    codes = torch.randint(0, 1 << bits, (n, k)).to(torch.uint8)
    shape = (n // rows, 1)
    zero = torch.zeros(shape, dtype=torch.int32)
    return QTensor(codes, torch.ones(shape), zero, torch.randn(*shape, 1 << bits), scheme)


def packed(q: QTensor, rows: str = "float") -> tuple[MachineForm, Tensor]:
    form = form_of(q.scheme, tuple(q.shape))
    assert isinstance(form, MachineForm), form
    form = form.for_rows(rows)
    return form, pack_weight(q, form)


def assert_float(q: QTensor, x: Tensor, bias: Tensor | None, found: Tensor) -> None:
    """A float32 product is within the error of any order of summation of the exact one.

    Where a group's sum is Σ u·x − zero·Σ x, the terms that are summed are those of ``u`` and of
    ``zero``: they bound the error, not their difference.
    """
    w = q.dequantize().double()
    exact = x.double() @ w.T
    sizes = x.double().abs() @ _terms(q).T
    if bias is not None:
        exact, sizes = exact + bias.double(), sizes + bias.double().abs()
    bound = (x.shape[-1] + 8) * EPS * sizes
    if found.dtype != torch.float32:
        bound = bound + exact.abs() * torch.finfo(found.dtype).eps + 1e-7
    error = (found.double() - exact).abs()
    assert found.isfinite().all()
    assert (error <= bound).all(), float((error - bound).max())


def _terms(q: QTensor) -> Tensor:
    """Return ``|scale| · (|u| + |zero|)`` of integers, ``|w|`` of tables."""
    if not q.scheme.affine:
        return q.dequantize().double().abs()
    low = 1 << (q.scheme.format.bits - 1) if q.scheme.integer.signed else 0
    wide, narrow = blocked(q.codes.shape, q.scale.shape)
    scale, zero = q.scale.double().abs().reshape(narrow), q.zero_point.reshape(narrow) + low
    return (scale * ((q.codes.double() + low).reshape(wide) + zero)).reshape(q.codes.shape)


def check(q: QTensor, rows: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> None:
    form, machine = packed(q)
    x = torch.randn(rows, form.k).to(dtype)
    offset = torch.randn(form.n) if bias else None
    found = linear(x, machine, form.text, offset)
    assert found.shape == (rows, form.n)
    assert found.dtype == dtype
    if rows:
        assert_float(q, x, offset, found)


ROWS = (0, 1, 2, 3, 5, 8, 11, 16, 17, 32, 33, 40)


@pytest.mark.parametrize("bits", range(1, 9))
def test_integers_of_all_widths(machine: str, bits: int) -> None:
    """Groups of every size there is, symmetric and not, odd numbers of rows and columns."""
    shapes = [(5, 48, 16), (33, 192, 64), (16, 100, 100), (7, 31, 31), (64, 256, 256), (3, 96, 32)]
    for (n, k, group), symmetric in itertools.product(shapes, (True, False)):
        q = integers(bits, n, k, group, symmetric)
        for rows in ROWS:
            check(q, rows, bias=rows % 2 == 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_widened(machine: str, dtype: torch.dtype) -> None:
    for q in (integers(4, 24, 128, 32, False), learned(4, 24, 96, 8)):
        for rows in (1, 4, 20):
            check(q, rows, dtype=dtype)


TABLES = {
    "nf4": Scheme(nf4, granularity=PerGroup(32)),
    "mxfp4": named_scheme("mxfp4"),
    "nvfp4": named_scheme("nvfp4"),
    "mxfp8_e4m3": named_scheme("mxfp8_e4m3"),
    "mxfp6_e2m3": named_scheme("mxfp6_e2m3"),
    "fp8": Scheme(fp8_e4m3fn, granularity=PerChannel(0)),
    "binary": Scheme(int1, granularity=PerChannel(0)),
    "ternary": Scheme(ternary, granularity=PerChannel(0)),
    "per tensor": Scheme(int8, granularity=PerTensor()),
    "blocks": Scheme(int8, granularity=PerBlock((4, 32))),
    "q6_k": named_scheme("Q6_K"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_blocks_and_two_levels(machine: str, name: str) -> None:
    k = 256 if name == "q6_k" else 160
    q = quantize(torch.randn(12, k), TABLES[name])
    for rows in (1, 4, 21):
        check(q, rows)


@pytest.mark.parametrize("bits", range(1, 9))
def test_learned_tables(machine: str, bits: int) -> None:
    for n, k, rows in ((24, 80, 8), (5, 33, 1), (16, 64, 16)):
        for x_rows in (1, 6, 18):
            check(learned(bits, n, k, rows), x_rows)


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpacking_gives_back_what_was_packed(machine: str, bits: int) -> None:
    shapes = ((33, 96, 16), (7, 31, 31), (16, 256, 64))
    for (n, k, group), symmetric, rows in itertools.product(
        shapes, (True, False), ("float", "int8", "lookup")
    ):
        q = integers(bits, n, k, group, symmetric)
        form, machine_bytes = packed(q, rows)
        found = unpack_weight(machine_bytes, form)
        low = 1 << (bits - 1) if q.scheme.integer.signed else 0
        assert torch.equal(found.codes.int() - low, q.codes.int())
        assert torch.equal(found.scale, q.scale)
        assert torch.equal(found.zero - low, q.zero_point)
    q = learned(bits, 8, 40, 4)
    form, machine_bytes = packed(q)
    found = unpack_weight(machine_bytes, form)
    assert found.table is not None
    assert q.codebook is not None
    assert torch.equal(found.codes, q.codes)
    assert torch.equal(found.table, q.codebook.reshape(2, -1).repeat_interleave(4, 0))


@pytest.mark.parametrize("rows", ["float", "int8", "lookup"])
def test_looked_up_rows_are_decoded_exactly(machine: str, rows: str, threads: int) -> None:
    index = torch.tensor([[3, 0, 19], [19, 7, 7]])
    weights = [integers(b, 20, 96, 32, s) for b in range(1, 9) for s in (True, False)]
    for q in [*weights, integers(8, 20, 31, 31, True)]:
        form, machine_bytes = packed(q, rows)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            found = embedding(machine_bytes, form.text, index, dtype)
            assert torch.equal(found, q.dequantize()[index].to(dtype))
    if rows != "int8":
        q = learned(4, 20, 96, 4)
        form, machine_bytes = packed(q, rows)
        for kind in (torch.int64, torch.int32):
            found = embedding(machine_bytes, form.text, index.to(kind), torch.float32)
            assert torch.equal(found, q.dequantize()[index])


def int8_rows(q: QTensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return ``x`` times ``q`` in integers: as defined for one scale a row, and in float64."""
    rows = quantize(x, INT8_ROWS)
    group = q.codes.shape[1] // q.scale.shape[1]
    u = (q.codes.long() - q.zero_point.repeat_interleave(group, 1)).double()
    exact = torch.zeros((), dtype=torch.float64)
    for g in range(q.scale.shape[1]):
        part = slice(g * group, (g + 1) * group)
        sums = rows.codes[:, part].double() @ u[:, part].T
        exact = exact + sums * q.scale[:, g].double()
    exact = exact * rows.scale.double()
    total = sums.float() * rows.scale * q.scale[:, -1]
    if bias is not None:
        total, exact = total + bias, exact + bias.double()
    return total, exact


@pytest.mark.parametrize("bits", range(1, 9))
def test_int8_rows(machine: str, bits: int) -> None:
    """One scale a row: bit for bit. Groups: float32 sums of exact integers."""
    shapes = [(5, 48, 16), (33, 192, 64), (16, 100, 100), (7, 31, 31), (20, 256, 256), (9, 16, 16)]
    for (n, k, group), symmetric in itertools.product(shapes, (True, False)):
        q = integers(bits, n, k, group, symmetric)
        form, machine_bytes = packed(q, "int8")
        bias = torch.randn(n)
        for rows in ROWS:
            x = torch.randn(rows, k) * torch.rand(rows, 1) * 10
            found = linear(x, machine_bytes, form.text, bias, "int8")
            if not rows:
                continue
            total, exact = int8_rows(q, x, bias)
            if group == k:
                assert torch.equal(found, total)
            sizes = x.abs().double() @ _terms(q).T * 1.02 + bias.double().abs()
            assert ((found.double() - exact).abs() <= (k // group + 8) * EPS * sizes).all()


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
@pytest.mark.parametrize("rows", [1, 4, 20])
def test_no_sum_saturates_in_the_worst_case(machine: str, bits: int, rows: int) -> None:
    """Every product of the largest size and of one sign; neighbours that would leave 16 bits."""
    k = 512
    for symmetric in (True, False):
        q = integers(bits, 17, k, k, symmetric)
        low, high = q.scheme.code_min, q.scheme.code_max
        for code, zero in ((low, high), (high, low), (low, low), (high, high)):
            q.codes.fill_(code)
            if not symmetric:
                q.zero_point.fill_(zero)
            form, machine_bytes = packed(q, "int8")
            for sign in (1, -1):
                x = torch.full((rows, k), 3.0 * sign)
                total, _ = int8_rows(q, x, None)
                assert torch.equal(linear(x, machine_bytes, form.text, None, "int8"), total)


def test_rows_of_zeros_tiny_and_huge_numbers_have_the_codes_of_quantize(machine: str) -> None:
    q = integers(8, 9, 64, 64, True)
    form, machine_bytes = packed(q, "int8")
    x = torch.randn(8, 64)
    x[0] = 0
    x[1] *= 1e-44
    x[2] *= 1e37
    x[3] = -0.0
    x[4] = torch.arange(64) / 2 - 16  # ties
    x[5] = torch.finfo(torch.float32).max
    x[6] = torch.finfo(torch.float32).tiny
    total, _ = int8_rows(q, x, None)
    for rows in (x, x.repeat(3, 1)):
        found = linear(rows, machine_bytes, form.text, None, "int8")
        assert torch.equal(found[:8].nan_to_num(), total.nan_to_num())


def test_a_result_does_not_depend_on_threads_runs_or_strides(machine: str) -> None:
    weights = [integers(4, 200, 512, 64, False), learned(4, 200, 512, 8)]
    weights.append(integers(8, 200, 512, 512, True))
    for q, rows in itertools.product(weights, (1, 7, 40)):
        for kind in ("float", "int8") if q.codebook is None else ("float",):
            form, machine_bytes = packed(q, kind)
            wide = torch.randn(rows, 700)
            x = wide[:, 3 : 3 + form.k]
            assert x.data_ptr() % 16
            found = []
            before = torch.get_num_threads()
            for threads in (1, 2, 5, 2):
                torch.set_num_threads(threads)
                found.append(linear(x, machine_bytes, form.text, None, kind))
            torch.set_num_threads(before)
            found.append(linear(x.contiguous(), machine_bytes, form.text, None, kind))
            found.append(linear(x.T.contiguous().T, machine_bytes, form.text, None, kind))
            assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_many_float_rows(machine: str, threads: int, dtype: torch.dtype) -> None:
    """More rows, columns and groups than one task, one tile or one pass takes, and odd ones."""
    shapes = [
        (70, 17, 80, 16), (33, 31, 400, 16), (40, 257, 32, 32), (1, 50, 144, 48),
        (96, 33, 640, 160), (17, 300, 200, 200), (48, 100, 512, 256), (10, 18, 1000, 1000),
        (2100, 20, 64, 32),
    ]  # fmt: skip
    for n, (n_weight, rows, k, group) in enumerate(shapes):
        check(integers(1 + n % 8, n_weight, k, group, n % 2 == 0), rows, n % 3 > 0, dtype)
        check(integers(8, n_weight, k, group, False), rows, n % 3 > 0, dtype)


def identity(size: int) -> tuple[MachineForm, Tensor]:
    q = integers(8, size, size, 32, False)
    q.zero_point[::2] = 0
    q.zero_point[1::2] = 254
    q.scale.fill_(1)
    q.codes.copy_(q.zero_point.repeat_interleave(32, 1) + torch.eye(size, dtype=torch.int32))
    return packed(q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float_rows_times_the_identity_are_the_rows(machine: str, dtype: torch.dtype) -> None:
    """Every bit of ``x`` counts, whatever a kernel makes of it, in rows of any size."""
    form, machine_bytes = identity(96)
    limits = torch.finfo(dtype)
    x = (torch.randn(60, 96) * (1 - limits.eps / 2)).to(dtype)
    x[1] = limits.max
    x[2] = -limits.tiny
    x[3] = limits.smallest_normal * torch.linspace(0, 1, 96)  # denormal numbers
    x[4] = 0
    x[5] *= 2.0**-14 if dtype == torch.float16 else 1e-25
    x[6] *= 1000 if dtype == torch.float16 else 1e35
    x[7] = torch.nextafter(torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype))
    for rows in (x, x[:17]):
        assert torch.equal(linear(rows, machine_bytes, form.text, None), rows)


def test_what_tiny_numbers_beside_large_ones_lose(machine: str) -> None:
    """At most 2^-126 each, the smallest normal number: instructions may take less as 0."""
    form, machine_bytes = identity(64)
    x = torch.randn(40, 64) * 2.0 ** torch.linspace(-149, 0, 64)
    x[:, -1] = 1
    found = linear(x, machine_bytes, form.text, None)
    assert ((found.double() - x.double()).abs() <= 2.0**-126).all()
    assert torch.equal(found[:, 48:], x[:, 48:])


def test_a_row_does_not_depend_on_the_others(machine: str) -> None:
    q = integers(4, 90, 320, 64, False)
    q.scale.mul_(2.0**-8)  # no product of 3e38 overflows
    form, machine_bytes = packed(q)
    x = torch.randn(300, 320)
    whole = linear(x, machine_bytes, form.text, None)
    for part in (slice(0, 17), slice(5, 45), slice(17, 280)):
        assert torch.equal(linear(x[part], machine_bytes, form.text, None), whole[part])
    broken = x.clone()
    others = {0: float("nan"), 31: float("inf"), 32: 3e38, 150: 1e-30, 299: float("-inf")}
    for row, value in others.items():
        broken[row, row % 320] = value
        if value == 1e-30:
            broken[row] = value
    found = linear(broken, machine_bytes, form.text, None)
    kept = [row for row in range(300) if row not in others]
    assert torch.equal(found[kept], whole[kept])
    assert not found[[0, 31, 299]].isfinite().any()
    assert_float(q, broken[[32, 150]], None, found[[32, 150]])


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_float_sums_of_the_largest_products(machine: str, bits: int) -> None:
    """All products of one sign and of the largest size; scales that bring large sums back."""
    q = integers(bits, 20, 512, 128, False)
    q.scale.fill_(2.0**-20)
    low, high = q.scheme.code_min, q.scheme.code_max
    for code, zero in ((low, high), (high, low)):
        q.codes.fill_(code)
        q.zero_point.fill_(zero)
        form, machine_bytes = packed(q)
        for size in (1.0, 2.0**99, 2.0**110, 3e38):
            x = torch.full((40, 512), -size) * (1 - EPS)
            x[::3] *= -1
            found = linear(x, machine_bytes, form.text, None)
            assert_float(q, x, None, found)


def test_one_row_that_is_repeated_and_rows_that_overlap(machine: str) -> None:
    q = integers(4, 24, 64, 32, True)
    form, machine_bytes = packed(q)
    one = torch.randn(1, 64)
    for rows in (4, 20):
        found = linear(one.expand(rows, 64), machine_bytes, form.text, None)
        assert_float(q, one.expand(rows, 64), None, found)
    sliding = torch.randn(90).unfold(0, 64, 1)
    assert_float(q, sliding, None, linear(sliding, machine_bytes, form.text, None))
    assert linear(one[0], machine_bytes, form.text, None).shape == (24,)
    assert linear(one.view(1, 1, 64), machine_bytes, form.text, None).shape == (1, 1, 24)


@settings(max_examples=60)
@given(
    st.integers(1, 70), st.integers(1, 40), st.integers(1, 12), st.integers(0, 30),
    st.integers(1, 8), st.booleans(), st.randoms(use_true_random=False),
)  # fmt: skip
def test_any_shape(n: int, group: int, groups: int, rows: int, bits: int, symmetric: bool, random):
    group = max(group, 8) if groups > 1 else group
    torch.manual_seed(random.randrange(1 << 30))
    check(integers(bits, n, group * groups, group, symmetric), rows)
    check(learned(bits, n, group, 1), rows)
