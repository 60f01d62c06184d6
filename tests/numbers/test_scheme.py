"""Schemes and granularities: what can be said, and what is refused with its reason."""

from __future__ import annotations

import json

import pytest

from bitsmith.errors import InputError, SchemeError, UnknownNameError
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.integer import int1, int2, int4, int8, integer_format, uint8
from bitsmith.numbers.granularity import Granularity
from bitsmith.numbers.scheme import PerChannel, PerTensor, Scheme


@pytest.mark.parametrize(
    ("scheme", "codes"),
    [
        (Scheme(int8), (-127, 127)),
        (Scheme(int8, narrow_range=False), (-128, 127)),
        (Scheme(int8, symmetric=False), (-128, 127)),
        (Scheme(int4), (-8, 7)),
        (Scheme(int4, narrow_range=True), (-7, 7)),
        (Scheme(int2, narrow_range=True), (-1, 1)),
        (Scheme(int1, symmetric=False), (-1, 0)),
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


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(-1)])
@pytest.mark.parametrize("rounding", ["half_even", "half_away", "floor"])
def test_json_round_trip_of_every_scheme_that_exists(
    bits: int, signed: bool, symmetric: bool, granularity: Granularity, rounding: str
) -> None:
    if symmetric and (not signed or bits == 1):
        return  # see the refusals below
    for narrow in (None, False, True) if symmetric else (None, False):
        scheme = Scheme(
            integer_format(bits, signed), symmetric, granularity, narrow, None, rounding
        )
        assert Scheme.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme


def test_what_cannot_exist_is_refused_with_its_reason() -> None:
    with pytest.raises(SchemeError, match="uint8 has no negative codes"):
        Scheme(uint8)
    with pytest.raises(SchemeError, match="int1 has the codes -1 and 0 only"):
        Scheme(int1)
    with pytest.raises(SchemeError, match="narrow_range mirrors"):
        Scheme(int8, symmetric=False, narrow_range=True)
    with pytest.raises(SchemeError, match="needs an integer format such as int8, not 'int8'"):
        Scheme("int8")
    with pytest.raises(SchemeError, match="granularity is a PerTensor"):
        Scheme(int8, granularity="per_tensor")
    with pytest.raises(SchemeError, match="scales are float32"):
        Scheme(int8, scale_format="float16")


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


def test_scale_shapes_broadcast() -> None:
    assert PerTensor().scale_shape((16, 3, 5, 5)) == ()
    assert PerChannel(0).scale_shape((16, 3, 5, 5)) == (16, 1, 1, 1)
    assert PerChannel(-1).scale_shape((2, 3, 7)) == (1, 1, 7)
    assert PerChannel(1).scale_shape((2, 3, 7)) == PerChannel(-2).scale_shape((2, 3, 7))


@pytest.mark.parametrize(("axis", "shape"), [(2, (3, 4)), (-3, (3, 4)), (0, ())])
def test_an_axis_that_is_not_there_is_refused(axis: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(SchemeError, match=f"axis {axis} does not exist"):
        PerChannel(axis).scale_shape(shape)


def test_errors_are_input_errors_and_formats_abstract() -> None:
    assert issubclass(SchemeError, InputError)
    with pytest.raises(TypeError):
        NumberFormat()
    with pytest.raises(TypeError):
        Granularity()
