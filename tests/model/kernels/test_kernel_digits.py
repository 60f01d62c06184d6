"""Few rows of floats as digits: what numbers beside larger ones keep, and rows without digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitsmith.model.kernels.form import MachineForm, form_of
from bitsmith.model.kernels.library import INSTRUCTIONS, kernels, why_not
from bitsmith.model.kernels.operators import linear
from bitsmith.model.kernels.weight import pack_weight
from bitsmith.numbers.affine import quantize
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.granularity import Granularity
from bitsmith.numbers.scheme import PerChannel, PerGroup, Scheme

if kernels() is None:
    pytest.skip(f"no native kernels: {why_not()}", allow_module_level=True)

EPS = torch.finfo(torch.float32).eps
ROWS = (1, 2, 3, 4, 5, 8)


@pytest.fixture(params=["avx512", "amx"])
def machine(request: pytest.FixtureRequest):
    """The instruction sets that have them."""
    library = kernels()
    assert library is not None
    number = {name: i for i, name in INSTRUCTIONS.items()}[request.param]
    if library.machine not in (2, 3) or number > library.machine:
        pytest.skip(f"this machine has {INSTRUCTIONS[library.machine]}, not {request.param}")
    before = library.in_use
    library.use(number)
    yield request.param
    library.use(before)


def weight(
    bits: int, n: int, k: int, granularity: Granularity, symmetric: bool = True
) -> tuple[Tensor, Tensor, MachineForm]:
    """Return the dequantized weight in float64, its packed bytes and their form."""
    number = integer_format(bits, signed=symmetric and bits > 1)
    q = quantize(torch.randn(n, k), Scheme(number, symmetric and bits > 1, granularity))
    form = form_of(q.scheme, (n, k))
    assert isinstance(form, MachineForm)
    return q.dequantize().double(), pack_weight(q, form), form


def bound(x: Tensor, w: Tensor) -> Tensor:
    """Of float32 sums, and of numbers that are rounded to 2^-30 of the largest one in their row."""
    largest = x.double().abs().amax(1, keepdim=True)
    terms = 2 * w.abs().amax(1)  # of a code and its zero point, whose difference the weight is
    sums = (x.double().abs().sum(1, keepdim=True)) * terms * (x.shape[1] + 8) * EPS
    return sums + 2.0**-30 * largest * w.abs().sum(1)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("granularity", [PerGroup(16), PerGroup(32), PerGroup(96), PerChannel(0)])
def test_rows_with_outliers(machine: str, bits: int, granularity: Granularity) -> None:
    for symmetric in (True, False):
        w, packed, form = weight(bits, 35, 192, granularity, symmetric)
        for rows in ROWS:
            for outlier in (1.0, 1e3, 1e6):
                x = torch.randn(rows, 192)
                x[:, 7] *= outlier
                error = (linear(x, packed, form.text, None).double() - x.double() @ w.T).abs()
                assert (error <= bound(x, w)).all(), float((error - bound(x, w)).max())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("columns", [256, 1024])
def test_random_rows_come_nearer_than_float32_does(machine: str, bits: int, columns: int) -> None:
    """Sums of a group are exact: the root mean square error is below that of PyTorch."""
    w, packed, form = weight(bits, 128, columns, PerGroup(64))
    for rows in (1, 2, 3):
        x = torch.randn(rows, columns)
        exact = x.double() @ w.T
        ours, theirs = (
            (found.double() - exact).square().mean()
            for found in (linear(x, packed, form.text, None), x @ w.float().T)
        )
        assert ours < theirs


@pytest.mark.parametrize("rows", ROWS)
def test_what_an_outlier_takes_from_the_others(machine: str, rows: int) -> None:
    """Where its weight is 0, numbers down to 1/64 of it are exact, and lesser ones within 2^-30."""
    q = quantize(torch.randn(16, 32), Scheme(integer_format(4, signed=False), False, PerChannel(0)))
    q.scale.fill_(1)
    q.zero_point.fill_(3)
    q.codes.fill_(3)
    q.codes.fill_diagonal_(4)  # w = 1 there
    form = form_of(q.scheme, (16, 32))
    assert isinstance(form, MachineForm)
    packed = pack_weight(q, form)
    x = torch.rand(rows, 32) / 2 + 0.5
    x[:, 20] = 63
    assert torch.equal(linear(x, packed, form.text, None), x[:, :16])
    x[:, 20] = 1e6
    found = linear(x, packed, form.text, None)
    assert ((found - x[:, :16]).abs() <= 2.0**-30 * 1e6 + EPS).all()


@pytest.mark.parametrize("rows", ROWS)
def test_rows_without_digits_and_those_beside_them(machine: str, rows: int) -> None:
    """Rows that are not finite or tiny are multiplied as floats, and change no other row."""
    w, packed, form = weight(4, 33, 128, PerGroup(64))
    x = torch.randn(rows, 128)
    whole = linear(x, packed, form.text, None)
    for value in (float("nan"), float("inf"), 1e-30, 1e-35, 0.0):
        for row in range(rows):
            changed = x.clone()
            changed[row] = value
            found = linear(changed, packed, form.text, None)
            others = [i for i in range(rows) if i != row]
            assert torch.equal(found[others], whole[others])
            if value != value or value == float("inf"):
                assert not found[row].isfinite().any()
            else:
                exact = changed[row].double() @ w.T
                limit = (128 + 8) * EPS * 2 * changed[row].double().abs() @ w.abs().T
                assert ((found[row].double() - exact).abs() <= limit + 1e-45).all()


@pytest.mark.parametrize("rows", ROWS)
def test_strides_bias_and_half_types(machine: str, rows: int) -> None:
    w, packed, form = weight(3, 40, 96, PerGroup(32), symmetric=False)
    bias = torch.randn(40)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        wide = torch.randn(rows, 200).to(dtype)
        x = wide[:, 50:146]
        found = linear(x, packed, form.text, bias)
        exact = x.double() @ w.T + bias.double()
        limit = bound(x.double(), w) + exact.abs() * torch.finfo(dtype).eps + 1e-6
        assert found.dtype == dtype
        assert ((found.double() - exact).abs() <= limit).all()
        assert torch.equal(found, linear(x.contiguous(), packed, form.text, bias))
