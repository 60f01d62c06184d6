"""QLinearAdd and QLinearMul over all 65,536 pairs of codes, and broadcasting."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.errors import DataError
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.integer import add, global_average_pool, mul
from bitsmith.numbers.integer.elementwise import fused_multiply_add
from emulate.qdq import Graph
from emulate.sessions import Case, run_all

FUNCTIONS = {"Add": add, "Mul": mul}


def encodings(seed: int, signed: bool) -> tuple[Encoding, Encoding, Encoding]:
    """Random encodings; every third set has scales in simple ratios, where ties abound."""
    rng = np.random.default_rng(seed)
    fmt = integer_format(8, signed)
    drawn = []
    for _ in range(3):
        scale = np.exp(rng.uniform(-6, 1))
        if seed % 3 == 0:
            scale = 2.0 ** -int(rng.integers(1, 6)) * int(rng.integers(1, 8))
        drawn.append(Encoding(float(scale), int(rng.integers(fmt.code_min, fmt.code_max + 1)), fmt))
    return drawn[0], drawn[1], drawn[2]


def case(op: str, a: np.ndarray, b: np.ndarray, es: tuple[Encoding, Encoding, Encoding]) -> Case:
    graph = Graph()
    left, right = graph.input(a.shape, a.dtype), graph.input(b.shape, b.dtype)
    y = graph.q(graph.op(op, graph.dq(left, es[0]), graph.dq(right, es[1])), es[2])
    graph.output(y, a.dtype)
    return Case(graph.model(), {left: a, right: b})


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_all_pairs_of_codes(machine, op, signed):
    codes = integer_format(8, signed).codes.numpy().astype(np.int8 if signed else np.uint8)
    a, b = np.meshgrid(codes, codes, indexing="ij")
    sets = [encodings(seed, signed) for seed in range(60)]
    results = run_all(machine, [case(op, a, b, es) for es in sets])
    for es, result in zip(sets, results, strict=True):
        assert result.operators == [f"QLinear{op}"]
        ours = FUNCTIONS[op](torch.from_numpy(a), es[0], torch.from_numpy(b), es[1], es[2])
        assert (ours.numpy() == result.outputs[0]).all(), es


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_extreme_codes_scales_and_zero_points(machine, op):
    """Sums and products up to thousands of ranges away, at both ends of the zero points."""
    ends = np.array([0, 1, 127, 128, 254, 255], np.uint8)
    a, b = np.meshgrid(ends, ends, indexing="ij")
    fmt = integer_format(8, signed=False)
    every = [Encoding(s, z, fmt) for s in (1e-4, 0.05, 30.0) for z in (0, 255)]
    sets = list(itertools.product(every, repeat=3))
    results = run_all(machine, [case(op, a, b, es) for es in sets])
    for es, result in zip(sets, results, strict=True):
        assert result.operators == [f"QLinear{op}"]
        ours = FUNCTIONS[op](torch.from_numpy(a), es[0], torch.from_numpy(b), es[1], es[2])
        assert (ours.numpy() == result.outputs[0]).all(), es


BROADCASTS = [
    ((2, 3, 5, 4), (2, 3, 1, 1)),
    ((2, 3, 1, 1), (2, 3, 5, 4)),
    ((1, 7, 1), (4, 7, 300)),
    ((4, 7, 300), (1,)),
    ((1,), (4, 7, 300)),
    ((300,), (4, 7, 300)),
    ((4, 7, 300), (1, 7, 300)),
    ((4, 1, 300), (1, 7, 300)),
    ((4, 7, 1), (1, 7, 1)),
    ((4, 7, 1), (4, 1, 1)),
    ((4, 300), (300,)),
    ((1,), (1,)),
]


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_broadcasting(machine, op):
    rng = np.random.default_rng(11)
    problems = []
    for seed in range(12):
        for shape_a, shape_b in BROADCASTS:
            a, b = (rng.integers(0, 256, s, dtype=np.uint8) for s in (shape_a, shape_b))
            es = encodings(seed, signed=False)
            problems.append((a, b, es, case(op, a, b, es)))
    wrong = []
    for (a, b, es, _), result in zip(
        problems, run_all(machine, [p[-1] for p in problems]), strict=True
    ):
        assert result.operators == [f"QLinear{op}"]
        ours = FUNCTIONS[op](torch.from_numpy(a), es[0], torch.from_numpy(b), es[1], es[2])
        if (ours.numpy() != result.outputs[0]).any():
            wrong.append((a.shape, b.shape))
    assert not wrong


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False).filter(
    lambda v: v == 0 or 1e-12 < abs(v) < 1e12
)


@settings(deadline=None)
@given(FLOATS, FLOATS, FLOATS)
def test_fused_multiply_add_rounds_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    found = fused_multiply_add(*(torch.tensor([v], dtype=torch.float32) for v in (a, b, c))).item()
    # Nearest: no neighbouring float32 is closer to the exact value.
    for neighbour in np.nextafter(np.float32(found), np.float32([-np.inf, np.inf])):
        assert abs(exact - Fraction(found)) <= abs(exact - Fraction(float(neighbour)))


def test_fused_multiply_add_where_float64_alone_rounds_twice():
    # 1 + 2^-24 is half-way between two float32; 2^-60 more decides, and float64 loses it.
    a, b, c = (torch.tensor([v]) for v in (2.0**-30, 2.0**-30, 1.0 + 2.0**-23))
    assert fused_multiply_add(a, b, c).item() == 1.0 + 2.0**-23
    half = torch.tensor([1.0 + 2.0**-12], dtype=torch.float32)
    exact = Fraction(half.item()) ** 2 + Fraction(2.0**-70)
    found = fused_multiply_add(half, half, torch.tensor([2.0**-70]))
    naive = (half.double() * half.double() + 2.0**-70).float()
    assert Fraction(found.item()) > exact > Fraction(naive.item())


def test_codes_must_match_their_encoding():
    e = Encoding(0.5, 3, integer_format(8, signed=False))
    codes = torch.zeros(2, dtype=torch.int8)
    with pytest.raises(DataError, match=r"a holds torch.int8, its encoding uint8; b holds"):
        add(codes, e, codes, e, e)


def test_a_broadcast_operand_written_second_is_the_same_channels_last(machine):
    """Behind a convolution the sum runs channels-last; the codes are those of channels-first."""
    rng = np.random.default_rng(12)
    problems = []
    for seed in range(30):
        ea, eb, ey = encodings(seed, signed=False)
        x = rng.integers(0, 256, (2, 16, 6, 6), dtype=np.uint8)
        graph = Graph()
        name = graph.input(x.shape)
        identity = np.eye(16, dtype=np.int8).reshape(16, 16, 1, 1)
        one = graph.dq_weight(identity, np.ones(16, np.float32))
        middle = graph.q(graph.op("Conv", graph.dq(name, ea), one), ea)
        mean = graph.q(graph.op("GlobalAveragePool", graph.dq(middle, ea)), eb)
        y = graph.q(graph.op("Add", graph.dq(middle, ea), graph.dq(mean, eb)), ey)
        graph.output(graph.q(graph.op("Conv", graph.dq(y, ey), one), ey))
        problems.append((x, (ea, eb, ey), Case(graph.model(), {name: x})))
    results = run_all(machine, [p[-1] for p in problems])
    for (x, (ea, eb, ey), _), result in zip(problems, results, strict=True):
        assert [op for op in result.operators if op != "Transpose"] == [
            "QLinearConv",
            "QLinearGlobalAveragePool",
            "QLinearAdd",
            "QLinearConv",
        ]
        a = torch.from_numpy(x)
        ours = add(a, ea, global_average_pool(a, ea, eb), eb, ey)
        assert (ours.numpy() == result.outputs[0]).all()
