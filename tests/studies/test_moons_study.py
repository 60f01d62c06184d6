"""Two half moons: what the table and the picture are made of, and what 2 bits leave."""

import pytest
import torch

from bitsmith.data import load_dataset
from bitsmith.errors import InputError
from bitsmith.insight.evaluation import difference
from bitsmith.insight.measure import paired_difference
from bitsmith.studies import Options, studies
from bitsmith.studies.moons.networks import BITS, FORMS, Field, outcomes


@pytest.fixture(scope="module")
def found():
    data = load_dataset("moons")
    train, test = data.split("train"), data.split("test")
    field = Field.around(train, 60)
    return field, list(outcomes(train, test, field, Options(quick=True)))


def test_every_width_is_there_twice(found):
    _, them = found
    assert [(o.form, o.bits) for o in them] == [
        ("float", 32), *((form, bits) for bits in BITS for form in FORMS)
    ]  # fmt: skip
    assert {o.evaluation.n for o in them} == {300}


def test_differences_are_paired(found):
    plain, *rest = found[1]
    for o in rest:
        expected = paired_difference(o.evaluation.right, plain.evaluation.right)
        assert (o.against.delta, o.against.low, o.against.high) == expected


def test_two_bits_cut_the_plane_into_at_most_sixteen_cells(found):
    for o in found[1]:
        if o.bits == 2:
            assert len(torch.unique(o.margin)) <= 16
            rows, columns = (torch.unique(o.margin, dim=d) for d in (0, 1))
            assert rows.shape[0] <= 4
            assert columns.shape[1] <= 4


def test_the_field_is_what_the_network_says():
    data = load_dataset("moons").split("train")
    field = Field.around(data, 7)
    margin = field.margin(lambda x: torch.stack([x[:, 0], 2 * x[:, 1]], 1))
    assert margin.shape == (7, 7)
    for i, j in ((0, 0), (2, 5), (6, 3)):
        assert margin[i, j] == pytest.approx(float(2 * field.up[i] - field.across[j]), abs=1e-6)
    assert field.across[0] < data.x[:, 0].min() < data.x[:, 0].max() < field.across[-1]


def test_two_trained_bits_separate_the_moons_and_two_rounded_ones_do_not(found):
    own = {(o.form, o.bits): o.evaluation for o in found[1]}
    d = difference(own["QAT", 2], own["PTQ, nearest", 2])
    assert d.low > 0


def test_a_finding_says_whether_the_interval_holds_zero():
    for finding in studies["moons"]().run(Options(quick=True)).findings[1:]:
        for claim in finding.split("%. ")[1].split(";"):
            low, high = (float(v) for v in claim.split("[")[1].split("]")[0].split(","))
            assert ("not distinguishable" in claim) == (low <= 0 <= high)
            assert ("above" in claim) == (low > 0)


def test_it_takes_no_other_data():
    with pytest.raises(InputError, match="takes no data set"):
        studies["moons"]().run(Options(dataset="digits"))
