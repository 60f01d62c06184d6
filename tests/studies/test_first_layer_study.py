"""The first convolution: published scales, errors by hand, and weights that are not at hand."""

import re

import numpy as np
import pytest
import torch

from bitsmith.errors import InputError, WeightsError
from bitsmith.numbers.granularity import PerChannel, PerTensor
from bitsmith.studies import Options, studies
from bitsmith.studies.first_layer import PUBLISHED, networks
from bitsmith.studies.first_layer.errors import (
    FORMS,
    FULL,
    NARROW,
    OWN,
    change,
    of,
    outcome,
    outcomes,
)
from bitsmith.studies.first_layer.findings import findings
from bitsmith.studies.first_layer.networks import Network


def weight(rows=64, columns=147, seed=0):
    """Random weights with the extremes that texts print for torchvision's ResNet-18."""
    w = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1
    w = w.clamp(-0.8, 0.8)
    w[3, 7], w[11, 2] = PUBLISHED
    return w.reshape(rows, 3, 7, 7)


def test_published_scales_and_zero_point():
    found = {o.form: o for o in outcomes(weight(), 8) if o.granularity == "per-tensor"}
    assert round(found[OWN].step, 7) == 0.0072935
    assert int(found[OWN].zero_point) == -12
    assert round(found[FULL].step, 7) == 0.0079723
    assert round(found[NARROW].step, 7) == 0.0080037
    assert int(found[FULL].zero_point) == int(found[NARROW].zero_point) == 0


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [PerTensor(), PerChannel(0)])
def test_errors_by_hand(bits, form, cut):
    w = weight()
    found = outcome(w, form, bits, cut)
    rows = w.double().numpy().reshape(1 if cut == PerTensor() else 64, -1)
    top = 2 ** (bits - 1)
    low, high = rows.min(1, keepdims=True).clip(max=0), rows.max(1, keepdims=True).clip(min=0)
    most = np.abs(rows).max(1, keepdims=True)
    scale = {FULL: 2 * most / (2 * top - 1), NARROW: most / (top - 1)}.get(
        form, (high - low) / (2 * top - 1)
    )
    scale = scale.astype(np.float32)
    first = -top + (form == NARROW)
    zero = np.round(first - low / scale) if form == OWN else 0 * scale
    codes = np.clip(np.round(rows.astype(np.float32) / scale) + zero, first, top - 1)
    error = (codes - zero) * scale - rows
    assert found.scale.numpy() == pytest.approx(scale.ravel(), rel=1e-6)
    assert found.mae == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert found.largest == pytest.approx(np.abs(error).max(), rel=1e-3)
    unused = (top - 1 - codes.max(1)) + (codes.min(1) - first)
    assert found.unused == pytest.approx(unused.mean())
    assert found.codes == 2 * top - (form == NARROW)


def test_symmetric_leaves_codes_to_no_weight_where_the_ends_differ():
    found = outcomes(weight(), 8)
    spared = round(254 * (1 - 0.8433799 / 1.0164733) / 2)
    assert abs(of(found, FULL).unused - spared) <= 1
    assert of(found, OWN).unused == 0


def test_change_is_paired_weight_by_weight():
    found = outcomes(weight(), 8)
    base, one = of(found, FULL), of(found, OWN)
    mean, low, high = change(one, base)
    assert mean == pytest.approx(100 * (one.mae / base.mae - 1), abs=1e-6)
    assert low < mean < high
    assert change(base, base) == (0, 0, 0)
    gaps = (one.error.abs() - base.error.abs()).numpy()
    half = 1.959964 * gaps.std(ddof=1) / np.sqrt(gaps.size)
    assert high - mean == pytest.approx(100 * half / base.mae, rel=1e-5)


def network(w):
    return Network("made", "made up", {"conv1": w})


def test_findings_claim_an_order_only_where_the_interval_supports_it():
    lopsided = weight().abs()
    said = findings({network(lopsided): {"conv1": outcomes(lopsided, 4)}}, 4)
    assert ": lower. In steps" in said[1]
    assert "asymmetric has the lower error in 1 and the higher in 0" in said[-1]
    level = torch.cat([weight(seed=1), -weight(seed=1)])
    said = findings({network(level): {"conv1": outcomes(level, 8)}}, 8)
    assert ": not distinguishable. In steps" in said[1]
    assert "in 1 the two are not distinguishable" in said[-1]
    assert all(re.search(r"\d.*\.$", sentence) for sentence in said)


def run(bits=8):
    return studies["first-layer"]().run(Options(quick=True, settings={"bits": bits}))


def test_the_range_of_texts_is_there_without_any_weights():
    table = run().tables[1]
    assert [row[1:] for row in table.rows] == [
        ("0.0079723", "0"), ("0.0080037", "0"), ("0.0072935", "-12")
    ]  # fmt: skip


def test_settings():
    found = run(4)
    assert {r.weight_bits for r in found.records} == {4}
    assert found.tables[0].title.endswith("at 4 bits")
    with pytest.raises(InputError, match="from 2 to 8"):
        run(9)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def test_resnet18_is_read_where_torchvision_keeps_it(checkpoints):
    state = {
        "conv1.weight": weight(),
        "bn1.weight": torch.ones(64),
        "layer1.0.conv1.weight": weight(64, 147, 1),
    }
    torch.save(state, checkpoints / "resnet18-f37072fd.pth")
    found = run()
    assert not [text for text in found.skipped if "ResNet-18" in text]
    own = [r for r in found.records if r.model == "resnet18"]
    assert {r.layer for r in own} == {"conv1", "layer1.0.conv1"}
    scale = next(r for r in own if r.metric == "scale" and r.recipe == "int8 asymmetric")
    assert (round(scale.value, 7), scale.layer) == (0.0072935, "conv1")
    assert next(r for r in own if r.metric == "zero_point" and "asym" in r.recipe).value == -12


def test_resnet18_that_is_absent_or_broken_is_said(checkpoints):
    said = run().skipped[-1]
    assert "no resnet18-*.pth" in said
    assert "torchvision.models.resnet18" in said
    path = checkpoints / "resnet18-f37072fd.pth"
    path.write_bytes(b"PK\x03\x04 cut")
    assert str(path) in run().skipped[-1]
    torch.save({"conv1.weight": weight() * float("nan")}, path)
    assert "weights of conv1 are NaN or infinite" in run().skipped[-1]
    torch.save({"stem.weight": weight()}, path)
    assert "does not begin with the convolution conv1" in run().skipped[-1]


def test_without_published_weights_a_network_is_trained_here(monkeypatch):
    def absent(name):
        raise WeightsError("no weights of cifar-resnet20")

    monkeypatch.setattr(networks, "load_model", absent)
    found = run()
    assert "a network trained here on digits takes its place" in found.skipped[0]
    assert "digits-cnn" in {r.model for r in found.records}
    first = next(r for r in found.records if r.model == "digits-cnn")
    assert (first.layer, first.n) == ("stem.0", 288)
