"""Static and dynamic ranges: drift and rounding by hand, and what findings claim."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from bitsmith.data import Normalization, Split, load_dataset, stand_in
from bitsmith.errors import DataError, InputError, UnknownNameError
from bitsmith.insight.evaluation import Evaluation, difference
from bitsmith.insight.measure import paired_difference
from bitsmith.studies import Options, static_dynamic, studies
from bitsmith.studies.static_dynamic.drift import Drift, Levels, drifted, drifts
from bitsmith.studies.static_dynamic.findings import Runs, findings
from bitsmith.studies.static_dynamic.networks import (
    BITS,
    FORMS,
    Outcome,
    Rounded,
    Subject,
    Use,
    outcomes,
)


def pixels(n=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 4, 5), dtype=np.uint8)


def split(x, name="test"):
    norm = Normalization((0.3,), (0.2,), channels="none")
    return Split("made", name, x, np.arange(len(x)) % 2, norm, classes=2)


def test_drift_of_images_by_hand():
    x = pixels()
    own = split(x)
    levels = Levels.of(own)
    raw = x[:, None] / 255
    for drift in drifts(quick=False):
        if drift.kind == "brightness":
            changed = raw + drift.amount
        else:
            mean = raw.mean((1, 2, 3), keepdims=True)
            changed = (raw - mean) * drift.amount + mean
        expected = (changed.clip(0, 1) - 0.3) / 0.2
        found = torch.cat([batch for batch, _ in drifted(own, drift, levels, size=4)])
        assert found.numpy() == pytest.approx(expected, abs=1e-5)


def test_no_drift_changes_nothing():
    own = split(pixels())
    (plain, _), *_ = own.batches(6)
    for drift in (Drift("brightness", 0.0), Drift("contrast", 1.0)):
        assert drift.none
        assert torch.equal(drift(plain, Levels.of(own)), plain)
    assert [d.label for d in (Drift("brightness", 0.0), Drift("brightness", -0.3))] == [
        "±0",
        "−0.3",
    ]
    assert Drift("contrast", 0.25).label == "×0.25"


def test_black_and_white_of_float_images_are_their_extremes():
    x = np.linspace(-3, 5, 24, dtype=np.float32).reshape(2, 1, 3, 4)
    levels = Levels.of(Split("made", "train", x, np.zeros(2, np.int64)))
    assert (float(levels.black), float(levels.white)) == (-3, 5)
    brighter = Drift("brightness", 0.5)(torch.from_numpy(x), levels)
    assert float(brighter.max()) == 5
    assert float(brighter.min()) == pytest.approx(1)


def test_each_kind_has_one_drift_that_is_none():
    for quick in (True, False):
        chosen = drifts(quick=quick)
        assert sorted(d.kind for d in chosen if d.none) == ["brightness", "contrast"]
        assert len(set(chosen)) == len(chosen)


@pytest.fixture
def layers():
    torch.manual_seed(3)
    return [nn.Linear(20, 8), nn.Linear(8, 3)]


def rounded(x, low, high, bits):
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = ((high - low) / (2**bits - 1)).astype(np.float32)
    zero = np.clip(np.round(-low / scale), 0, 2**bits - 1)
    return (np.clip(np.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


def weights(w, bits):
    """Symmetric, a scale a row; narrow at 8 bits."""
    top = 2 ** (bits - 1)
    scale = np.abs(w).max(1, keepdims=True) / (127 if bits == 8 else top - 0.5)
    return np.clip(np.round(w / scale), -127 if bits == 8 else -top, top - 1) * scale


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("static", [True, False])
def test_rounding_by_hand(layers, bits, static):
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(4)) * 2
    limits = [(torch.tensor(-1.5), torch.tensor(2.0)), (torch.tensor(0.0), torch.tensor(1.2))]
    found = Rounded(layers, bits, limits if static else None)(x).detach().numpy()
    a = x.numpy()
    for i, layer in enumerate(layers):
        w, b = (p.detach().numpy() for p in (layer.weight, layer.bias))
        ends = [np.float32(v) for v in limits[i]]
        if not static:
            ends = [a.min(1, keepdims=True), a.max(1, keepdims=True)]
        a = rounded(a, *ends, bits) @ weights(w, bits).T + b
        a = np.maximum(a, 0) if i == 0 else a
    assert found == pytest.approx(a, abs=1e-4)


def test_dynamic_does_not_depend_on_the_batch(layers):
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(5))
    x[7] *= 100
    net = Rounded(layers, 4, None)
    alone = torch.cat([net(row) for row in x.split(1)])
    assert torch.allclose(net(x), alone, atol=1e-5)


def test_the_weights_are_the_same_in_every_form(layers):
    one = (torch.tensor(0.0), torch.tensor(1.0))
    static, dynamic = Rounded(layers, 4, [one, one]), Rounded(layers, 4, None)
    for (a, _), (b, _) in zip(static._layers, dynamic._layers, strict=True):
        assert torch.equal(a, b)


def test_uses_by_hand(layers):
    own = split(pixels(30))
    module = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1])
    subject = Subject(module, own, own, Levels.of(own), "minmax", 30, None, 0)
    limits = [(torch.tensor(-1.0), torch.tensor(1.0)), (torch.tensor(0.0), torch.tensor(0.5))]
    drift = Drift("contrast", 0.5)
    x = torch.cat([b for b, _ in drifted(own, drift, subject.levels)]).flatten(1)
    hidden = torch.relu(layers[0](x)).detach()
    for use, values, (low, high) in zip(
        subject.uses(limits, drift), (x, hidden), limits, strict=True
    ):
        assert use.clipped == pytest.approx(
            float(((values < low) | (values > high)).float().mean())
        )
        spans = (values.max(1).values - values.min(1).values) / (high - low)
        assert use.spanned == pytest.approx(float(spans.mean()), rel=1e-5)


@pytest.fixture(scope="module")
def result():
    return studies["static-dynamic"]().run(Options(quick=True, dataset="digits"))


def test_every_form_is_there_under_every_drift(result):
    keys = [(r.op, r.algorithm, r.weight_bits) for r in result.records]
    assert len(set(keys)) == len(keys) == 6 * (1 + len(BITS) * len(FORMS))
    for r in result.records:
        assert r.n == 540
        if r.method == "ptq":
            assert r.delta == pytest.approx(r.value - r.reference, abs=1e-9)
            assert r.delta_low <= r.delta <= r.delta_high
    static = {r.calibrator for r in result.records if r.algorithm == "static"}
    dynamic = {r.calibrator for r in result.records if r.algorithm == "dynamic"}
    assert (static, dynamic) == ({"mse"}, {None})


def test_calibrated_anew_is_static_where_nothing_drifts(result):
    own = {(r.op, r.algorithm, r.weight_bits): r.value for r in result.records}
    for bits in BITS:
        for op in ("brightness ±0", "contrast ×1"):
            assert own[op, FORMS[0], bits] == own[op, FORMS[2], bits]


def test_missing_data_is_said_and_digits_stand_in(monkeypatch):
    loaded = stand_in.load_dataset

    def absent(name):
        if name == "digits":
            return loaded(name)

        def missing(self, which):
            raise DataError("data set 'fashion-mnist': none; set BITSMITH_DATA")

        return type("Missing", (), {"split": missing})()

    monkeypatch.setattr(stand_in, "load_dataset", absent)
    found = studies["static-dynamic"]().run(Options(quick=True))
    assert "set BITSMITH_DATA; everything here is of digits" in found.skipped[0]
    assert {r.dataset for r in found.records} == {"digits"}
    with pytest.raises(DataError, match="BITSMITH_DATA"):
        studies["static-dynamic"]().run(Options(quick=True, dataset="mnist"))


def test_bad_data_and_settings(tmp_path):
    study = studies["static-dynamic"]()
    with pytest.raises(DataError, match=r"a sample of 'moons' is \[2\]"):
        study.run(Options(quick=True, dataset="moons"))
    with pytest.raises(UnknownNameError, match="calibrator"):
        study.run(Options(quick=True, dataset="digits", settings={"calibrator": "noise"}))
    x, y = np.ones((40, 1, 4, 4), np.float32), np.arange(40) % 2
    np.savez(tmp_path / "flat.npz", x_train=x, x_test=x, y_train=y, y_test=y)
    with pytest.raises(DataError, match="every pixel is 1"):
        study.run(Options(quick=True, dataset=str(tmp_path / "flat.npz")))
    np.savez(tmp_path / "bare.npz", x_train=x, x_test=x)
    with pytest.raises(InputError, match="needs labels"):
        study.run(Options(quick=True, dataset=str(tmp_path / "bare.npz")))


def judged(right):
    right = torch.tensor(right)
    return Evaluation("x", "simulation", None, right.long(), right, None, {})


def made(worse):
    """Outcomes of which dynamic and static differ only where ``worse`` says how many are lost."""
    plain = judged([True] * 900 + [False] * 100)
    uses = (Use(1, 0.25, 0.5), Use(2, 0.0, 2.0), Use(3, 0.0, 1.0))
    found = []
    for drift in drifts(quick=True):
        found.append(Outcome(drift, "float", 32, plain, None))
        for bits in BITS:
            for form in FORMS:
                lost = worse.get((drift, bits), 0) if form == "static" else 1
                own = judged([True] * (900 - lost) + [False] * (100 + lost))
                seen = uses if form == "static" else ()
                found.append(Outcome(drift, form, bits, own, difference(own, plain), seen))
    return found


def test_findings_claim_an_order_only_where_the_interval_supports_it():
    dark = Drift("brightness", -0.4)
    found = made({(dark, 4): 60})
    said = findings(found)
    static, dynamic = ([True] * (900 - k) + [False] * (100 + k) for k in (60, 1))
    delta, low, high = paired_difference(torch.tensor(dynamic), torch.tensor(static))
    four = next(s for s in said if s.startswith("Brightness at 4 bits"))
    assert f"above static at −0.4, most at −0.4: {delta:+.2f} [{low:+.2f}, {high:+.2f}]" in four
    assert "not distinguishable at the other 2 of 3" in four
    assert "It predicts as float does on more images than static at −0.4" in four
    eight = next(s for s in said if s.startswith("Brightness at 8 bits"))
    assert "dynamic is not distinguishable at all 3 of 3" in eight
    assert "no more and no less often than static at all 3" in eight
    assert "25.0 / 0.0 / 0.0 % of the inputs" in said[-2]
    assert "a sample spans 50 / 200 / 100 % of them" in said[-2]
    assert all(re.search(r"\d.*\.$", sentence) for sentence in said)
    assert Runs(found).unlike(dark, "static", 4)[0] == 6.0


def test_outcomes_of_real_images_are_paired():
    data = load_dataset("digits")
    subject = static_dynamic.trained_subject(
        data, Options(quick=True, settings={"calibrator": "minmax"})
    )
    found = list(outcomes(subject, Options(quick=True)))
    plain = next(o for o in found if o.form == "float" and o.drift.none)
    still = [o for o in found if o.drift == plain.drift and o.form != "float"]
    for o in still:
        expected = paired_difference(o.evaluation.right, plain.evaluation.right)
        assert (o.against.delta, o.against.low, o.against.high) == expected
    assert next(o for o in still if (o.form, o.bits) == ("static", 8)).against.delta > -2
