"""Powers of two and their sums against the published levels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.logarithmic import ApotFormat, LogarithmicFormat, PowerOfTwoFormat

# Exponents −e of each term's powers of two, as the authors' released code lists them for 2 to 6
# bits beside the sign; the term may also be zero.
RELEASED = {
    2: [(1, 2, 3)],
    3: [(1, 2, 4), (3,)],
    4: [(1, 3, 5), (2, 4, 6)],
    5: [(1, 3, 6), (2, 4, 7), (5,)],
    6: [(1, 4, 7), (2, 5, 8), (3, 6, 9)],
}


@pytest.mark.parametrize("bits", range(2, 9))
def test_powers_of_two_from_1_downwards(bits: int) -> None:
    number = formats[f"pot{bits}"]
    assert number == PowerOfTwoFormat(bits)
    powers = [2.0**-e for e in range(2 ** (bits - 1) - 1)]
    assert sorted(number.grid.tolist()) == sorted([0.0, *powers, *(-p for p in powers)])
    assert number.fields == (1, bits - 1, 0)


@pytest.mark.parametrize("bits", RELEASED)
def test_additive_powers_are_those_of_the_released_code(bits: int) -> None:
    sums = [sum(c) for c in product(*((0.0, *(2.0**-e for e in t)) for t in RELEASED[bits]))]
    levels = np.array(sorted(set(sums)))
    assert len(levels) == 2**bits
    number = formats[f"apot{bits + 1}"]
    assert number == ApotFormat(bits + 1)
    expected = (levels / levels[-1]).astype(np.float32)
    assert np.array_equal(number.grid.numpy()[2**bits - 1 :], expected)
    assert np.array_equal(number.grid.numpy(), -number.grid.numpy()[::-1])


def test_the_two_differ_only_in_their_magnitudes() -> None:
    own = {n for f in (PowerOfTwoFormat, ApotFormat) for n in vars(f) if not n.startswith("_")}
    assert own == {"prefix", "fewest", "fields", "magnitudes", "rank"}
    with pytest.raises(TypeError, match="abstract"):
        LogarithmicFormat()


def test_the_widest_follows_the_same_formula() -> None:
    terms = [(0, 3, 7), (1, 4, 8), (2, 5, 9), (6,)]
    sums = [sum(c) for c in product(*((0.0, *(2.0**-e for e in t)) for t in terms))]
    levels = np.array(sorted(set(sums)))
    assert len(levels) == 128
    expected = (levels / levels[-1]).astype(np.float32)
    assert np.array_equal(formats["apot8"].grid.numpy()[127:], expected)


@pytest.mark.parametrize("name", ["pot2", "pot4", "pot8", "apot3", "apot8"])
def test_zero_has_one_code_and_no_sign(name: str) -> None:
    number = formats[name]
    spare = 1 << (number.bits - 1)
    assert number.encode(torch.tensor([0.0, -0.0, -1e-45])).tolist() == [0, 0, 0]
    assert spare not in number.codes.tolist()
    assert len(number.codes) == 2**number.bits - 1
    decoded = number.decode(torch.tensor([spare], dtype=torch.uint8))
    assert decoded.tolist() == [0.0]
    assert not bool(decoded.signbit())


def test_other_widths_are_refused() -> None:
    for bits in (1, 9):
        with pytest.raises(SchemeError, match=f"pot formats have 2 to 8 bits, not {bits}"):
            PowerOfTwoFormat(bits)
    for bits in (2, 9):
        with pytest.raises(SchemeError, match=f"apot formats have 3 to 8 bits, not {bits}"):
            ApotFormat(bits)
