"""What every weight quantizer promises, for every scheme that it takes."""

from __future__ import annotations

import math

import pytest
import torch

from bitsmith.errors import InputError, SchemeError, UnknownNameError
from bitsmith.model.module_qat.quantizer import WeightQuantizer, choose
from bitsmith.numbers.formats.codebook import LearnedFormat, codebook2, codebook4, nf4
from bitsmith.numbers.formats.integer import int1, int4, int8, ternary, uint1, uint2, uint4
from bitsmith.numbers.formats.minifloat import bf16, e8m0, fp4_e2m1fn, fp16
from bitsmith.numbers.named_schemes import named_scheme
from bitsmith.numbers.scheme import PerBlock, PerChannel, PerGroup, PerTensor, Scheme

SCHEMES = {
    "int8 channel": Scheme(int8, granularity=PerChannel(0)),
    "int4 tensor": Scheme(int4, granularity=PerTensor()),
    "int4 group fp16": Scheme(int4, granularity=PerGroup(32), scale_format=fp16),
    "uint4 channel": Scheme(uint4, False, PerChannel(0)),
    "uint4 group fp16": Scheme(uint4, False, PerGroup(32), scale_format=fp16),
    "uint2 group bf16": Scheme(uint2, False, PerGroup(16), scale_format=bf16),
    "uint1 tensor": Scheme(uint1, False),
    "int4 asymmetric": Scheme(int4, False, PerChannel(0)),
    "int4 e8m0": Scheme(int4, granularity=PerGroup(32), scale_format=e8m0),
    "binary": Scheme(int1, granularity=PerChannel(0)),
    "binary group fp16": Scheme(int1, granularity=PerGroup(32), scale_format=fp16),
    "ternary": Scheme(ternary, granularity=PerChannel(0)),
    "ternary tensor fp16": Scheme(ternary, scale_format=fp16),
    "nf4": Scheme(nf4, granularity=PerGroup(64), scale_format=fp16),
    "fp4": Scheme(fp4_e2m1fn, granularity=PerGroup(32), scale_format=e8m0),
    "nvfp4": named_scheme("nvfp4"),
    "Q4_0": named_scheme("Q4_0"),
    "Q4_1": named_scheme("Q4_1"),
    "Q2_K": named_scheme("Q2_K"),
    "Q4_K": named_scheme("Q4_K"),
    "Q6_K": named_scheme("Q6_K"),
    "codebook4 rows": Scheme(codebook4, granularity=PerBlock((8, -1)), scale_format=fp16),
    "codebook2 tensor": Scheme(codebook2),
    "codebook vectors": Scheme(LearnedFormat(4, dimension=2), granularity=PerBlock((8, -1))),
    "half floats": Scheme(fp16),
}
CASES = [
    pytest.param(name, title, id=f"{name}, {title}")
    for name in WeightQuantizer.registry
    for title, scheme in SCHEMES.items()
    if not WeightQuantizer.registry[name].refusal(scheme)
]


def weight(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(16, 256, generator=generator)


def made(name: str, title: str, values: torch.Tensor | None = None) -> WeightQuantizer:
    return WeightQuantizer.registry[name](
        weight() if values is None else values, SCHEMES[title], "layer.weight"
    )


def trained(quantizer: WeightQuantizer, flat: torch.Tensor, steps: int = 3) -> torch.Tensor:
    """Take steps towards random targets, so that scales are no round numbers any more."""
    leaf = flat.clone().requires_grad_()
    descent = torch.optim.SGD([leaf, *quantizer.parameters()], lr=0.05)
    target = weight(7)
    for _ in range(steps):
        descent.zero_grad()
        (quantizer(leaf) - target).square().sum().backward()
        descent.step()
    return leaf.detach()


@pytest.mark.parametrize(("name", "title"), CASES)
def test_values_are_those_that_are_packed(name, title):
    quantizer = made(name, title)
    for flat in (weight(), trained(quantizer, weight()), weight(3) * 5):
        values = quantizer.values(flat).detach()
        packed = quantizer.qtensor(flat)
        assert torch.equal(values, packed.dequantize())
        assert packed.scheme == SCHEMES[title]
        again = quantizer.values(flat).detach()
        assert torch.equal(values, again)  # nothing random


@pytest.mark.parametrize(("name", "title"), CASES)
def test_every_parameter_has_one_axis_and_gets_a_gradient(name, title):
    quantizer, leaf = made(name, title), weight().requires_grad_()
    (quantizer(leaf) * weight(1)).sum().backward()
    assert leaf.grad.abs().sum() > 0
    for parameter in quantizer.parameters():
        assert parameter.dim() == 1
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "title"), CASES)
def test_start_loses_no_more_than_the_extremes_or_half_of_all(name, title):
    quantizer = made(name, title)
    error = (quantizer(weight()) - weight()).square().mean() / weight().square().mean()
    number = SCHEMES[title].format
    bits = number.bits // getattr(number, "dimension", 1)
    limit = {16: 1e-6, 8: 1e-3, 6: 1e-2, 4: 0.05}.get(bits, 1.0)
    assert float(error.detach()) < limit


@pytest.mark.parametrize(("name", "title"), CASES)
def test_nan_gives_nan_and_no_error(name, title):
    quantizer, flat = made(name, title), weight()
    flat[0, 0] = math.nan
    assert quantizer(flat).isnan().any()
    for parameter in quantizer.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter[0] = math.nan
        assert quantizer(weight()).isnan().any()
        with torch.no_grad():
            parameter.copy_(kept)


@pytest.mark.parametrize(("name", "title"), CASES)
def test_state_comes_back_bit_for_bit(name, title):
    first = made(name, title)
    flat = trained(first, weight())
    first.share = 0.5
    second = made(name, title, weight(9))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.values(flat), second.values(flat))
    assert second.share == 0.5


@pytest.mark.parametrize(("name", "title"), CASES)
def test_frozen_scales_stay(name, title):
    quantizer = made(name, title)
    if name == "minmax" and isinstance(SCHEMES[title].scale_format, Scheme):
        with pytest.raises(SchemeError, match=r"layer.weight: scales in two levels"):
            quantizer.freeze(weight(), True)
        return
    quantizer.freeze(weight(), True)
    before = quantizer.qtensor(weight())
    flat = trained(quantizer, weight()) * 1.5 if name != "codebook" else weight(4)
    after = quantizer.qtensor(flat)
    assert torch.equal(before.scale, after.scale)
    assert torch.equal(before.zero_point, after.zero_point)
    assert before.codebook is None or torch.equal(before.codebook, after.codebook)
    assert torch.equal(quantizer.values(flat).detach(), after.dequantize())
    quantizer.freeze(flat, False)
    assert all(p.requires_grad for p in quantizer.parameters())


@pytest.mark.parametrize(("name", "title"), CASES)
def test_zero_and_tiny_and_huge_weights_have_an_answer(name, title):
    for values in (torch.zeros(16, 256), torch.full((16, 256), 1e-30), weight() * 1e4):
        quantizer = made(name, title, values)
        found = quantizer(values).detach()
        assert torch.isfinite(found).all()
        assert torch.equal(found, quantizer.qtensor(values).dequantize())


def test_a_group_of_zeros_starts_where_its_weights_can_leave_zero():
    values = weight()
    values[0] = 0
    quantizer = made("lsq", "int8 channel", values)
    scale = quantizer.qtensor(values).scale
    assert float(scale[0]) == pytest.approx(float(scale[1:].mean()))
    alone = made("lsq", "int8 channel", torch.zeros(16, 256)).qtensor(torch.zeros(16, 256)).scale
    assert float(alone[0]) == pytest.approx(256**-0.5 / 128)


def test_xnor_and_twn_are_the_formulas_of_their_papers():
    flat = weight()
    binary = made("xnor", "binary").qtensor(flat)
    assert torch.equal(binary.scale, flat.abs().mean(1, keepdim=True))
    assert torch.equal(binary.dequantize().sign(), torch.where(flat < 0, -1.0, 1.0))
    threshold = 0.7 * flat.abs().mean(1, keepdim=True)
    found = made("twn", "ternary").qtensor(flat)
    above = flat.abs() > threshold
    assert torch.equal(found.codes, (flat.sign() * above).to(torch.int8))
    for row, kept, scale in zip(flat, above, found.scale, strict=True):
        assert float(scale) == pytest.approx(float(row[kept].abs().mean()), rel=1e-6)
    # the gradient of XNOR-Net: 1/n from the mean, the scale where |w| ≤ 1
    w = torch.tensor([[0.5, -2.0, 1.0, -0.25]], requires_grad=True)
    quantizer = WeightQuantizer.registry["xnor"](w, SCHEMES["binary"])
    quantizer(w)[0, 1].backward()  # d(−α)/dw
    expected = [-0.25, 0.25, -0.25, 0.25]
    assert w.grad[0].tolist() == pytest.approx(expected)


def test_entries_of_a_table_get_the_sum_of_their_members():
    quantizer, leaf = made("codebook", "codebook2 tensor"), weight().requires_grad_()
    g = weight(5)
    quantizer(leaf).backward(g)
    codes = quantizer.qtensor(weight()).codes.long()
    sums = torch.zeros(4).index_add(0, codes.reshape(-1), g.reshape(-1))
    factor = (weight().numel() / 4) ** -0.5
    assert torch.allclose(quantizer.get_parameter("table").grad, sums * factor, atol=1e-5)
    assert torch.equal(leaf.grad, g)
    with torch.no_grad():  # entries that overtake each other are sorted again
        table = quantizer.get_parameter("table")
        table.copy_(table.flip(0))
    assert torch.equal(quantizer.values(weight()), quantizer.qtensor(weight()).dequantize())


def test_scales_are_trained_as_they_are_stored():
    """A scale between two half floats has the value of the nearer one, while it trains."""
    quantizer = made("lsq", "int4 group fp16")
    parameter = quantizer.get_parameter("scale")
    with torch.no_grad():
        parameter.mul_(1.0003)
    used = quantizer.qtensor(weight()).scale
    assert torch.equal(used, used.half().float())
    exact = quantizer.get_buffer("unit") * parameter.detach()
    assert not torch.equal(used.reshape(-1), exact)
    assert torch.equal(used.reshape(-1), exact.half().float())


def test_a_scale_that_falls_to_nothing_stops_at_its_floor_and_can_rise_again():
    quantizer = made("lsq", "int8 channel")
    parameter = quantizer.get_parameter("scale")
    start = quantizer.qtensor(weight()).scale[2]
    with torch.no_grad():
        parameter[2] = -1.0
    assert quantizer.collapsed() == 1
    assert float(quantizer.qtensor(weight()).scale[2]) == pytest.approx(float(start) / 1024)
    (quantizer(weight()) - weight()).square().sum().backward()
    assert float(parameter.grad[2]) < 0  # descending raises it


def test_a_name_or_a_kind_chooses():
    assert choose("lsq", SCHEMES["int4 tensor"]).name == "lsq"
    assert choose("lsq", SCHEMES["uint4 channel"]).name == "lsq+"
    assert choose("lsq", SCHEMES["codebook4 rows"]).name == "codebook"
    assert choose("minmax", SCHEMES["binary"]).name == "xnor"
    assert choose("minmax", SCHEMES["ternary"]).name == "twn"
    assert choose("twn", SCHEMES["ternary"]).name == "twn"
    with pytest.raises(SchemeError, match=r"its table is learned, not a range \(learn='lsq' does"):
        choose("minmax", SCHEMES["codebook4 rows"])
    with pytest.raises(UnknownNameError, match="did you mean 'xnor'"):
        choose("xnr", SCHEMES["binary"])
    with pytest.raises(SchemeError, match="has no values"):
        WeightQuantizer.registry["lsq"](torch.zeros(0, 4), SCHEMES["int4 tensor"])
    with pytest.raises(SchemeError, match="lsq cannot train it: it has a zero point"):
        WeightQuantizer.registry["lsq"](weight(), SCHEMES["uint4 channel"])


def test_a_damaged_state_is_refused():
    quantizer = made("lsq", "int8 channel")
    with pytest.raises(InputError, match="damaged"):
        quantizer.set_extra_state(torch.zeros(3, dtype=torch.uint8))
    other = made("lsq", "int4 tensor").get_extra_state()
    with pytest.raises(InputError, match=r"layer.weight: the checkpoint was trained as int4"):
        quantizer.set_extra_state(other)
