"""Schemes: what can be said, and what is refused with its reason."""

from __future__ import annotations

import itertools
import json

import pytest

from bitsmith.errors import InputError, SchemeError, UnknownNameError
from bitsmith.numbers.formats import NumberFormat, formats
from bitsmith.numbers.formats.codebook import LearnedFormat, codebook4, nf4
from bitsmith.numbers.formats.integer import int1, int2, int4, int8, int16, ternary, uint8
from bitsmith.numbers.formats.minifloat import bf16, e8m0, fp8_e4m3fn, fp16
from bitsmith.numbers.granularity import Granularity
from bitsmith.numbers.scheme import PerBlock, PerChannel, PerGroup, PerTensor, Scheme


@pytest.mark.parametrize(
    ("scheme", "codes"),
    [
        (Scheme(int8), (-127, 127)),
        (Scheme(int8, narrow_range=False), (-128, 127)),
        (Scheme(int8, symmetric=False), (-128, 127)),
        (Scheme(int4), (-8, 7)),
        (Scheme(int4, narrow_range=True), (-7, 7)),
        (Scheme(int2, narrow_range=True), (-1, 1)),
        (Scheme(ternary), (-1, 1)),
        (Scheme(int16), (-32767, 32767)),
        (Scheme(uint8, symmetric=False), (0, 255)),
    ],
)
def test_codes_follow_symmetry_and_narrow_range(scheme: Scheme, codes: tuple[int, int]) -> None:
    assert (scheme.code_min, scheme.code_max) == codes


def test_an_unsaid_narrow_range_equals_its_resolution() -> None:
    assert Scheme(int8) == Scheme(int8, narrow_range=True)
    assert hash(Scheme(int8)) == hash(Scheme(int8, narrow_range=True))
    assert Scheme(int4) == Scheme(int4, narrow_range=False)
    assert Scheme(int8) != Scheme(int8, narrow_range=False)


GRANULARITIES = [PerTensor(), PerChannel(-1), PerGroup(32, axis=1), PerBlock((4, 4))]


@pytest.mark.parametrize("name", formats)
def test_json_round_trip_of_every_scheme_that_exists(name: str) -> None:
    """And what exists is what is not refused: at least one scheme for every format of elements."""
    made = 0
    choices = itertools.product(
        (True, False),
        GRANULARITIES,
        (None, False, True),
        (None, fp16, e8m0, Scheme(fp8_e4m3fn)),
        ("half_even", "floor", "stochastic"),
    )
    for symmetric, granularity, narrow, scales, rounding in choices:
        try:
            scheme = Scheme(formats[name], symmetric, granularity, narrow, scales, rounding)
        except SchemeError:
            continue
        made += 1
        assert Scheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme
        assert hash(Scheme.from_json(scheme.to_json())) == hash(scheme)
    assert (made > 0) == (name != "e8m0")  # the format of scales is no format of elements


def test_json_of_vectors_and_seeds() -> None:
    for scheme in (
        Scheme(LearnedFormat(8, dimension=4), granularity=PerChannel(0), scale_format=fp16),
        Scheme(int4, rounding="stochastic", seed=7),
        Scheme(int4, granularity=PerGroup(8), scale_format=Scheme(int8, scale_format=bf16)),
    ):
        assert Scheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme


TWO_LEVELS = Scheme(fp8_e4m3fn)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"format": uint8}, "uint8 has no negative codes"),
        ({"format": "int8"}, "its format is 'int8', not a number format; known formats: apot3"),
        ({"format": int1, "symmetric": False}, "int1 has no zero point"),
        ({"format": ternary, "symmetric": False}, "ternary has no zero point"),
        ({"format": ternary, "narrow_range": True}, "ternary has no lowest code to leave out"),
        ({"format": nf4, "symmetric": False}, "nf4 has no zero point"),
        ({"format": nf4, "narrow_range": True}, "nf4 has no lowest code"),
        ({"format": nf4, "rounding": "floor"}, "floor needs an integer format"),
        ({"format": codebook4, "rounding": "floor"}, "floor needs an integer format"),
        ({"format": e8m0}, "neither 0 nor negative values: it is a format of scales only"),
        ({"format": fp16, "granularity": PerChannel(0)}, "fp16 has an exponent in every value"),
        ({"format": bf16, "scale_format": fp16}, "bf16 takes no scale"),
        ({"symmetric": False, "narrow_range": True}, "narrow_range mirrors"),
        ({"granularity": "per_tensor"}, r"granularity is PerTensor\(\), .*PerBlock\(shape\)"),
        ({"scale_format": "float16"}, "scale_format is None, a float format or a scheme"),
        ({"scale_format": int8}, "a scale in int8 needs a scale of its own"),
        ({"scale_format": nf4}, "a scale in nf4 needs a scale of its own"),
        ({"scale_format": TWO_LEVELS}, "one scale for the whole tensor has no second level"),
        (
            {"granularity": PerGroup(8), "scale_format": Scheme(fp16)},
            "scales in fp16 have no second level: scale_format=fp16",
        ),
        (
            {"granularity": PerGroup(8), "scale_format": Scheme(int8, rounding="floor")},
            "scales are rounded half to even",
        ),
        (
            {"format": codebook4, "granularity": PerGroup(8), "scale_format": TWO_LEVELS},
            "not in two levels",
        ),
        ({"rounding": "up"}, "rounding is one of half_even, half_away, floor, stochastic"),
        ({"seed": 3}, r"a seed \(3\) is for stochastic rounding, not half_even"),
    ],
)
def test_what_cannot_exist_is_refused_with_its_reason(arguments: dict, reason: str) -> None:
    with pytest.raises(SchemeError, match=reason):
        Scheme(**{"format": int8, **arguments})


def test_every_reason_is_listed_at_once() -> None:
    with pytest.raises(SchemeError, match=r"no negative codes.*rounding is one of half_even"):
        Scheme(uint8, rounding="up")


def test_json_that_is_no_scheme_is_refused() -> None:
    good = Scheme(int8).to_json()
    with pytest.raises(SchemeError, match="has no bits"):
        Scheme.from_json({**good, "bits": 8})
    with pytest.raises(SchemeError, match="needs a format"):
        Scheme.from_json({"symmetric": True})
    with pytest.raises(UnknownNameError, match="did you mean 'per_tensor'"):
        Scheme.from_json({**good, "granularity": {"name": "per_tensr"}})
    with pytest.raises(SchemeError, match="cannot be read"):
        Scheme.from_json({**good, "granularity": {"name": "per_tensor", "axis": 1}})
    with pytest.raises(UnknownNameError, match="did you mean 'fp16'"):
        Scheme.from_json({**good, "scale_format": "bfp16"})


def test_integer_arithmetic_asks_for_an_integer_format() -> None:
    for number in (int1, nf4, fp8_e4m3fn, codebook4):
        with pytest.raises(SchemeError, match=f"an integer format such as int8, not {number}"):
            _ = Scheme(number).code_max


def test_errors_are_input_errors_and_formats_abstract() -> None:
    assert issubclass(SchemeError, InputError)
    with pytest.raises(TypeError):
        NumberFormat()
    with pytest.raises(TypeError):
        Granularity()
