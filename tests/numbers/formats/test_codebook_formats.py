"""Tables: nf4 from the normal distribution, tables of one's own, and learned ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bitsmith.errors import SchemeError
from bitsmith.numbers.formats import formats
from bitsmith.numbers.formats.codebook import LearnedFormat, TableFormat, nf4, table_format


def test_nf4_has_the_quantiles_of_the_normal_distribution() -> None:
    """arXiv 2305.14314, section 3: 8 negative and 9 positive quantiles, one zero, scaled to 1."""
    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2  # the mean of the two tails left out
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([positive, negative, [0.0]])) / positive.max()
    assert np.allclose(nf4.grid.numpy(), expected, rtol=0, atol=2e-6)
    assert len(nf4.codes) == 16
    assert nf4.bits == 4
    assert nf4.values[7] == 0.0
    assert (nf4.min, nf4.max) == (-1.0, 1.0)


def test_a_table_sorts_its_values_and_counts_its_bits() -> None:
    number = table_format("mine", [3, -0.0, 0.1, -2])
    assert number == TableFormat("mine", (-2.0, 0.0, float(np.float32(0.1)), 3.0))
    assert (number.bits, number.fields, number.signed) == (2, (0, 0, 2), True)
    assert not np.signbit(number.values[1])
    assert table_format("five", range(5)).bits == 3
    assert not table_format("five", range(5)).signed
    assert table_format("full", range(256)).bits == 8
    assert "mine" not in formats


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "2 to 256 values, not 1"),
        ([], "2 to 256 values, not 0"),
        (range(257), "2 to 256 values, not 257"),
        ([1, float("nan"), float("inf")], "not finite"),
        ([1e39, 0.0], "inf is not finite in float32"),
        ([1, 2, 1, 2, 3], "1, 2 are in the table more than once"),
        ([0.0, -0.0], "0 is in the table more than once"),
        ([0.1, 0.1 + 1e-12], "0.1 is in the table more than once"),
    ],
)
def test_a_table_lists_every_offender(values: list[float], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        table_format("mine", values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.1, 0.2, 1.0), "0.1, 0.2 are not float32 values"),
        ((0.0, 2.0, 1.0, 1.0), "1, 1 are not above the value before"),
        ((0.0, float("inf")), "inf is not finite"),
    ],
)
def test_the_constructor_takes_float32_in_order(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        TableFormat("mine", values)


def test_a_code_beyond_the_table_is_an_error() -> None:
    with pytest.raises(IndexError):
        table_format("three", [0, 1, 2]).decode(torch.tensor([3], dtype=torch.uint8))


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_learned_format_knows_its_codes_and_nothing_of_their_values(bits: int) -> None:
    number = formats[f"codebook{bits}"]
    assert number == LearnedFormat(bits)
    assert number.codes.tolist() == list(range(2**bits))
    assert (number.family, number.fields, number.dtype) == ("learned", (0, 0, bits), torch.uint8)
    wanted = "table belongs to each quantized tensor"
    for attribute in ("min", "max", "step", "grid"):
        with pytest.raises(SchemeError, match=wanted):
            getattr(number, attribute)
    with pytest.raises(SchemeError, match=rf"shape \(2, 3\): its {wanted}"):
        number.encode(torch.zeros(2, 3))
    with pytest.raises(SchemeError, match=wanted):
        number.decode(torch.zeros(2, 3, dtype=torch.uint8))


def test_a_learned_format_of_vectors_has_its_own_name() -> None:
    assert LearnedFormat(8, dimension=4).name == "codebook8x4"
    assert LearnedFormat(8, dimension=4) != formats["codebook8"]
    for bits, dimension in ((0, 1), (9, 1), (4, 0), (4, 9)):
        with pytest.raises(SchemeError, match=f"not {bits} bits and {dimension} weights"):
            LearnedFormat(bits, dimension)
