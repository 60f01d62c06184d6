"""The multilayer perceptron: tutorials' rounding by hand, calibrations, and what findings claim."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from bitsmith.errors import DataError, InputError, UnknownNameError
from bitsmith.insight.evaluation import Evaluation, difference
from bitsmith.insight.measure import paired_difference
from bitsmith.model.tutorial import RANGES, Simulated, ranges
from bitsmith.studies import Options, studies
from bitsmith.studies.mlp.findings import findings
from bitsmith.studies.mlp.networks import BITS, Outcome


@pytest.fixture
def layers():
    torch.manual_seed(1)
    return [nn.Linear(6, 5), nn.Linear(5, 3)]


def batches(count=3):
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(40, 6, generator=generator), None) for _ in range(count)]


def rounded(x, low, high, bits):
    """The definition in NumPy: unsigned codes of a range that holds 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / (2**bits - 1))
    zero = np.clip(np.round(-low / scale), 0, 2**bits - 1)
    return (np.clip(np.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


def weights(w, bits):
    """Symmetric over the full range; narrow at 8 bits."""
    top = 2 ** (bits - 1)
    scale = np.abs(w).max() / (127 if bits == 8 else top - 0.5)
    return np.clip(np.round(w / scale), -127 if bits == 8 else -top, top - 1) * scale


@pytest.mark.parametrize("bits", BITS)
def test_tutorials_by_hand(layers, bits):
    x = batches(1)[0][0]
    limits = ranges(layers, "minmax", bits, [(x, None)])
    got = Simulated(layers, bits, limits)(x).detach().numpy()
    a = x.numpy()
    real = a
    for i, layer in enumerate(layers):
        w, b = (p.detach().numpy() for p in (layer.weight, layer.bias))
        a = rounded(a, real.min(), real.max(), bits) @ weights(w, bits).T + b
        real = real @ w.T + b
        if i == 0:
            a, real = np.maximum(a, 0), np.maximum(real, 0)
    assert got == pytest.approx(a, abs=1e-4)


def test_ranges_that_have_seen_nothing(layers):
    found = ranges(layers, "none", 8, [])
    assert [(float(a), float(b)) for a, b in found] == [(-1.0, 1.0), (0.0, 1.0)]


def test_noise_does_not_look_at_the_images(layers):
    found = [ranges(layers, "noise", 8, [(x * k, None) for x, _ in batches()]) for k in (1, 50)]
    assert found[0] == found[1]
    assert 0 <= float(found[0][0][0]) < float(found[0][0][1]) < 1


def test_ranges_of_images_are_theirs(layers):
    found = ranges(layers, "minmax", 8, batches())
    everything = torch.cat([x for x, _ in batches()])
    assert float(found[0][0]) == float(everything.min())
    assert float(found[0][1]) == float(everything.max())
    assert float(found[1][1]) == pytest.approx(layers[0](everything).max().item(), rel=1e-6)


@pytest.fixture(scope="module")
def result():
    return studies["mlp"]().run(Options(quick=True, dataset="digits"))


def test_every_form_is_there(result):
    keys = [(r.method, r.weight_bits, r.granularity, r.calibrator) for r in result.records]
    assert keys[0] == ("float", 32, None, None)
    tutorials = {("ptq", b, "per-tensor", s) for b in BITS for s in RANGES}
    assert tutorials <= set(keys)
    for method in ("ptq", "ptq+finetune", "qat"):
        assert {(b) for m, b, g, _ in keys if (m, g) == (method, "per-channel")} == set(BITS)
    assert len(keys) == 1 + len(tutorials) + 3 * len(BITS)


def test_records_are_paired_with_float(result):
    plain = result.records[0]
    assert plain.delta is None
    for r in result.records[1:]:
        assert r.reference == plain.value
        assert r.delta == pytest.approx(r.value - plain.value, abs=1e-9)
        assert r.delta_low <= r.delta <= r.delta_high
        assert r.n == plain.n == 540


def test_it_learns_and_eight_bits_keep_it(result):
    own = {(r.method, r.weight_bits, r.granularity): r for r in result.records}
    assert own["float", 32, None].value > 80
    assert own["ptq", 8, "per-channel"].delta > -2


def test_missing_data_is_said_and_digits_stand_in(monkeypatch):
    from bitsmith.studies import mlp

    def absent(name):
        if name == "digits":
            return loaded(name)
        missing = type("Missing", (), {"split": lambda self, which: absent_split()})
        return missing()

    def absent_split():
        raise DataError("data set 'fashion-mnist': none; set BITSMITH_DATA")

    loaded = mlp.load_dataset
    monkeypatch.setattr(mlp, "load_dataset", absent)
    found = studies["mlp"]().run(Options(quick=True))
    assert len(found.skipped) == 1
    assert "set BITSMITH_DATA; everything here is of digits" in found.skipped[0]
    assert {r.dataset for r in found.records} == {"digits"}
    with pytest.raises(DataError, match="BITSMITH_DATA"):
        studies["mlp"]().run(Options(quick=True, dataset="mnist"))


def test_bad_data(tmp_path):
    study = studies["mlp"]()
    with pytest.raises(UnknownNameError, match="did you mean 'mnist'"):
        study.run(Options(dataset="mnits"))
    x = np.zeros((20, 4), np.float32)
    np.savez(tmp_path / "bare.npz", x_train=x, x_test=x)
    with pytest.raises(InputError, match="needs labels"):
        study.run(Options(quick=True, dataset=str(tmp_path / "bare.npz")))


def judged(right):
    right = torch.tensor(right)
    return Evaluation("x", "simulation", None, right.long(), right, None, {})


def outcome(method, bits, granularity, spec, right, plain):
    found = judged(right)
    return Outcome(method, bits, granularity, spec, found, difference(found, plain))


def test_findings_claim_an_order_only_where_the_interval_supports_it():
    n = 1000
    plain = judged([True] * 900 + [False] * 100)
    near, far = [True] * 899 + [False] * 101, [True] * 600 + [False] * 400
    them = [Outcome("float", 32, None, None, plain, None)]
    for bits in BITS:
        for spec in RANGES:
            seen = near if spec in ("minmax", "mse") else far
            them.append(outcome("ptq", bits, "per-tensor", spec, seen, plain))
        for method, seen in (("ptq", far), ("ptq+finetune", near), ("qat", near)):
            them.append(outcome(method, bits, "per-channel", "mse", seen, plain))
    said = findings(them)
    delta, low, high = paired_difference(torch.tensor(near), torch.tensor(far))
    assert f"Finetuning is above PTQ by {delta:.2f} [{low:.2f}, {high:.2f}] points" in said[2]
    assert "QAT and finetuning are not distinguishable (0.00" in said[2]
    assert "PTQ + finetune -0.10" in said[2]
    assert "points (not distinguishable)" in said[2]
    assert "what is lost is the calibration's" in said[1]
    assert f"{n:,} test images" in said[0]
    assert all(re.search(r"\d.*\.$", sentence) for sentence in said)
