"""Granularity: the worked example, and errors against a formula written out here."""

import pytest
import torch

from bitsmith.errors import WeightsError
from bitsmith.studies import Options, studies
from bitsmith.studies.granularity.errors import SIZES, outcomes, unlike_rows


@pytest.fixture
def without_weights(monkeypatch):
    def absent(*_, **__):
        raise WeightsError("no file")

    monkeypatch.setattr("bitsmith.zoo.load_model", absent)


def test_worked_example(without_weights):
    result = studies["granularity"]().run(Options(quick=True))
    rows = {row[0]: row[1:] for row in result.tables[0].rows}
    assert rows["per-tensor"][:3] == ("4 -8 6", "106 -127 119", "0.00827")
    assert rows["per-channel"][2] == "0.00039"
    note = result.tables[0].note
    assert all(text in note for text in ("118", "0.007563", "0.000493", "0.00827", "0.00039"))
    assert "falls 21 times" in result.findings[0]
    values = {(r.granularity, r.layer): r.value for r in result.records if r.op == "worked example"}
    assert values["per-tensor", "channel 0"] == pytest.approx(0.00827, abs=5e-6)
    assert values["per-channel", "channel 0"] == pytest.approx(0.00039, abs=5e-6)


def test_absent_weights_are_said_and_the_rest_runs(without_weights):
    result = studies["granularity"]().run(Options(quick=True))
    assert result.skipped == ("ResNet-20: no file",)
    assert [f.name for f in result.figures] == ["rows"]
    assert not any("ResNet" in finding for finding in result.findings)


def test_errors_are_those_of_the_formula():
    w = unlike_rows(64, seed=3)
    found = {(o.bits, o.granularity): o for o in outcomes(w, groups=(32,))}
    for bits, limit, low in ((8, 127, -127), (4, 7.5, -8)):
        cuts = {
            "per-tensor": w.abs().max(),
            "per-channel": w.abs().amax(1, keepdim=True),
            "per-group 32": w.view(64, 2, 32).abs().amax(2).repeat_interleave(32, 1),
        }
        for name, largest in cuts.items():
            scale = largest / limit
            guess = torch.round(w / scale).clamp(low, 2 ** (bits - 1) - 1) * scale
            error = (guess - w).double().abs()
            o = found[bits, name]
            assert o.mae == pytest.approx(float(error.mean()), rel=1e-4)
            rows = error.mean(1) / w.double().abs().mean(1)
            assert o.rows == pytest.approx(rows.tolist(), rel=1e-3)
            assert o.row_relative == pytest.approx(float(rows.mean()), rel=1e-4)
    assert found[4, "per-group 32"].bits_per_weight == 5
    assert found[8, "per-tensor"].bits_per_weight == 8 + 32 / w.numel()


def test_rows_have_the_sizes_that_are_told():
    w = unlike_rows(20_000, seed=0)
    assert w.std(1).tolist() == pytest.approx(SIZES, rel=0.03)
    assert (SIZES[0], SIZES[-1]) == pytest.approx((0.01, 1.0))


def test_a_group_that_does_not_divide_is_left_out():
    names = {o.granularity for o in outcomes(torch.randn(4, 3, 3, 3), groups=(16,))}
    assert names == {"per-tensor", "per-channel"}


def test_differences_are_paired():
    result = studies["granularity"]().run(Options(quick=True))
    for r in (r for r in result.records if r.op == "unlike rows"):
        if r.granularity == "per-tensor":
            assert r.delta is None
        else:
            assert r.delta_low < r.delta < r.delta_high < 0
            assert r.value - r.reference == pytest.approx(r.delta)
