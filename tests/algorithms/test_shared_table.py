"""Codes from a table of a layer: few, bounded, and as good as a table can be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitsmith.algorithms.objective import output_error
from bitsmith.algorithms.roundings.shared_table import SharedTable
from bitsmith.errors import InputError, SchemeError
from bitsmith.numbers import Gram, PerChannel, PerTensor, Scheme, int8

INT8 = Scheme(int8, granularity=PerChannel(0))
#: Mean squared error of the best 2^b-level quantizer of a normal variable of variance 1
#: (Max, "Quantizing for minimum distortion", 1960, table I).
MAX_1960 = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}


@settings(max_examples=40)
@given(
    bits=st.integers(1, 5),
    limit=st.sampled_from([64, 127]),
    seed=st.integers(0, 99),
    shape=st.sampled_from([(1, 1), (3, 5), (4, 2, 3, 3)]),
    size=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_few_and_bounded(bits, limit, seed, shape, size):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
    q = SharedTable(bits, limit)(w, INT8).qtensor
    assert len(q.codes.unique()) <= 1 << bits
    assert int(q.codes.abs().max()) <= limit
    assert q.codes.dtype == torch.int8
    assert ((q.dequantize() - w).abs().amax() <= w.abs().amax()).all()


@pytest.mark.parametrize("bits", MAX_1960)
def test_as_good_as_the_best_quantizer_of_a_normal_variable(bits):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(32, 512, generator=generator)
    w *= torch.linspace(0.1, 10, 32)[:, None]  # a scale for each channel takes it out
    rounded = SharedTable(bits, 127)(w, INT8)
    relative = rounded.error / float(w.square().mean())
    assert 0.92 < relative / MAX_1960[bits] < 1.02  # below 1: it is fitted to the sample


def test_few_values_are_kept_exactly():
    table = torch.tensor([-64.0, -3.0, 0.0, 17.0])
    codes = torch.randint(0, 4, (6, 40), generator=torch.Generator().manual_seed(0))
    codes[:, 0] = 0
    w = table[codes] * torch.tensor([0.5, 0.25, 2.0, 0.125, 1.0, 4.0])[:, None]
    rounded = SharedTable(2, 64)(w, INT8)
    assert rounded.error < 1e-12 * float(w.square().mean())
    assert rounded.qtensor.codes.unique().tolist() == [-64, -3, 0, 17]


def test_channels_without_weights():
    w = torch.zeros(3, 4)
    assert SharedTable(2)(w, INT8).qtensor.codes.count_nonzero() == 0
    w[1] = torch.tensor([1.0, -1.0, 0.5, 0.0])
    q = SharedTable(2)(w, INT8).qtensor
    assert torch.equal(q.dequantize()[0], torch.zeros(4))
    assert (q.dequantize() - w).abs().max() < 0.01


def test_a_small_weight_far_below_the_others_does_not_cost_a_table():
    """Channels of any size count by their squared error, not by their number."""
    generator = torch.Generator().manual_seed(1)
    loud, quiet = torch.randn(2, 64, generator=generator), torch.randn(30, 64, generator=generator)
    quiet = quiet.sign() * (1 + 0.01 * quiet)
    w = torch.cat([loud * 100, quiet * 1e-3])
    error = (SharedTable(2)(w, INT8).qtensor.dequantize() - w)[:2].square().mean()
    alone = (SharedTable(2)(w[:2], INT8).qtensor.dequantize() - w[:2]).square().mean()
    assert error < 1.05 * alone


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_with_data_the_output_is_nearer_and_the_table_stays(bits):
    generator = torch.Generator().manual_seed(bits)
    gram = Gram()
    gram.update(
        torch.randn(256, 12, generator=generator) @ torch.randn(12, 48, generator=generator)
    )
    w = torch.randn(8, 48, generator=generator)
    alone, found = (SharedTable(bits, 64)(w, INT8, statistic=s) for s in (None, gram))
    assert found.objective < 0.5 * output_error(w, alone.qtensor.dequantize(), gram)
    assert set(found.qtensor.codes.unique().tolist()) <= set(alone.qtensor.codes.unique().tolist())


def test_inputs_that_were_always_zero():
    """No code matters to the output; those of the best table stay."""
    w, dead = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), Gram()
    dead.update(torch.zeros(5, 16))
    found, alone = SharedTable(2)(w, INT8, statistic=dead), SharedTable(2)(w, INT8)
    assert found.objective == 0
    assert float(found.error) <= 1.001 * float(alone.error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "1 to 7 bits, not 0"),
        ({"bits": 8}, "1 to 7 bits, not 8"),
        ({"limit": 128}, "from 1 to 127, not 128"),
        ({"sweeps": 0}, "sweeps is at least 1"),
        ({"refits": -1}, "refits at least 0"),
        ({"gain": 1.0}, "gain is a share"),
    ],
)
def test_settings_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SharedTable(**arguments)


def test_other_schemes_are_refused():
    for scheme in (Scheme(int8), Scheme(int8, granularity=PerTensor(), rounding="floor")):
        with pytest.raises(SchemeError, match="per channel of axis 0"):
            SharedTable()(torch.randn(4, 4), scheme)
