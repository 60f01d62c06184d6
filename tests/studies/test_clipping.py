"""One outlier of 256 values: the numbers, against sums done by hand, and what is left out."""

from statistics import fmean

import numpy as np
import pytest
import torch
from torch import nn

from bitsmith.data.split import Split
from bitsmith.errors import DataError, InputError, UnknownNameError, WeightsError
from bitsmith.numbers.calibrators import calibrators
from bitsmith.studies import Options, studies
from bitsmith.studies.clipping.activations import block_outputs, compare
from bitsmith.studies.clipping.errors import Statistics, curve, scheme_of, specs
from bitsmith.studies.clipping.outlier import INLIERS, OUTLIER, WITHOUT, draw_values, outcomes


@pytest.fixture(scope="module")
def drawn():
    values = draw_values(5, 0)
    return values, [{(o.calibrator, o.bits): o for o in outcomes(x)} for x in values]


@pytest.fixture
def no_data(monkeypatch):
    """The weights are there, the pictures are not."""

    def absent(*args, **kwargs):
        raise DataError("data set 'cifar10': none; set BITSMITH_DATA")

    loaded = type("Loaded", (), {"module": nn.Identity(), "input_shape": (3, 32, 32)})
    monkeypatch.setattr("bitsmith.zoo.load_model", lambda *args: loaded)
    monkeypatch.setattr("bitsmith.data.load_dataset", absent)


def test_every_calibrator_takes_part():
    assert {spec.partition(":")[0] for spec in specs()} == set(calibrators)
    assert {"entropy", "gaussian", "laplace", "mse", "percentile:99.99"} <= set(specs())


def test_the_values_are_255_and_one():
    x = draw_values(3, 7)[2]
    assert len(x) == INLIERS + 1
    assert x[-1] == OUTLIER
    assert x[:-1].abs().max() < 6
    assert not torch.equal(x, draw_values(3, 8)[2])


def test_the_whole_range_by_hand(drawn):
    """NumPy and Python's round, on the definition of symmetric int8 and int4."""
    for x, found in zip(*drawn, strict=True):
        inside = x[:INLIERS].double().numpy()
        for bits, scale in ((8, 50 / 127), (4, 50 / 7.5)):
            codes = np.array([round(v / scale) for v in inside])
            own = found["minmax", bits]
            assert own.scale == pytest.approx(scale)
            assert own.codes == len(set(codes))
            assert own.mae == pytest.approx(np.abs(codes * scale - inside).mean(), rel=1e-5)


def test_an_outlier_wrecks_the_inliers(drawn):
    for found in drawn[1]:
        for bits, worse in ((8, 8), (4, 4)):
            assert found["minmax", bits].mae > worse * found[WITHOUT, bits].mae
        assert found["minmax", 8].codes < 25
        assert found[WITHOUT, 8].codes > 90
        assert found["minmax", 4].codes <= 3


def test_what_is_cut_off_is_wrong_by_the_rest(drawn):
    for found in drawn[1]:
        own = found["percentile:99", 8]
        assert own.limit < 6
        assert own.outlier_error == pytest.approx(OUTLIER - own.limit, rel=1e-3)
        assert own.mae < found["minmax", 8].mae / 5
        assert own.mse > found["minmax", 8].mse * 50


def test_one_of_256_is_more_than_a_percentile_of_99_9_leaves_out(drawn):
    for found in drawn[1]:
        for spec in ("percentile:99.9", "percentile:99.99"):
            assert found[spec, 8].limit == OUTLIER


def test_mse_is_never_above_any_other(drawn):
    """It searches a histogram, so up to the width of its bins."""
    for found in drawn[1]:
        for bits in (8, 4):
            least = min(o.mse for (s, b), o in found.items() if b == bits and s != WITHOUT)
            assert found["mse", bits].mse <= least * 1.02
    assert fmean(f["mse", 4].mse for f in drawn[1]) < fmean(f["minmax", 4].mse for f in drawn[1])


def test_entropy_gives_the_outlier_up(drawn):
    for found in drawn[1]:
        assert found["entropy", 8].limit < 6
        assert found["entropy", 4].mae < found["minmax", 4].mae / 3


def test_the_two_parts_of_the_error():
    """A range of ±3 in int4 has steps of 0.4: 1 becomes 0.8 or 1.2, 5 becomes 2.8."""
    x, at = torch.tensor([1.0, 5.0]), torch.tensor([3.0, 7.5])
    found = curve(x, torch.tensor([3, 1]), at, scheme_of(4, signed=True))
    assert found.rounding.tolist() == pytest.approx([0.75 * 0.04, 0.0], abs=1e-6)
    assert found.clipping.tolist() == pytest.approx([0.25 * 2.2**2, 0.0], abs=1e-5)
    assert torch.equal(found.total, found.clipping + found.rounding)


def test_the_curve_passes_through_the_choices(drawn):
    """The error at a calibrator's threshold is the error that quantizing with it has."""
    x, found = drawn[0][0], drawn[1][0]
    for bits in (8, 4):
        own = [o for (s, b), o in found.items() if b == bits and s != WITHOUT]
        at = torch.tensor([o.limit for o in own])
        line = curve(x, torch.ones(len(x)), at, scheme_of(bits, signed=True))
        assert line.total.tolist() == pytest.approx([o.mse for o in own], rel=1e-4)


def test_unsigned_codes_follow_a_relu():
    seen = Statistics()
    seen.update(torch.tensor([0.0, 0.5, 4.0]))
    low, high = seen.limits("minmax", scheme_of(8, signed=False))
    assert (float(low), float(high)) == (0.0, 4.0)
    assert seen.histogram.high == 4.0


@pytest.fixture
def small():
    """Two blocks that a residual network's names stand for."""
    torch.manual_seed(0)
    stage = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(2)]
    module = nn.Sequential()
    module.add_module("layer1", nn.Sequential(*stage))
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    return module, Split("here", "train", x, None)


def test_activations_are_calibrated_on_some_and_judged_on_others(small):
    module, split = small
    found = compare(module, split, 40, 3)
    assert found.images == 40
    assert {o.layer for o in found.outcomes} == {"layer1.0", "layer1.1"}
    assert len(found.outcomes) == 2 * 2 * len(specs())
    order = np.random.default_rng(3).permutation(80)
    with torch.no_grad():
        first, rest = (module.layer1[0](torch.tensor(split.x[i])) for i in np.split(order, 2))
    own = next(
        o for o in found.outcomes if (o.layer, o.calibrator, o.bits) == ("layer1.0", "minmax", 8)
    )
    assert own.high == float(first.max())
    assert found.histograms["layer1.0"].count == first.numel()
    scale = own.high / 255
    there = (rest.double() / scale).round().clamp(0, 255) * scale
    ratio = rest.double().square().sum() / (there - rest).square().sum()
    assert own.sqnr == pytest.approx(10 * np.log10(float(ratio)), abs=1e-3)


def test_hooks_are_taken_away_again(small):
    module, _ = small
    with pytest.raises(RuntimeError):
        block_outputs(module, ["layer1.0"], torch.zeros(2, 5), lambda name, x: None)
    assert not module.layer1[0]._forward_hooks


def test_too_few_images_are_refused(small):
    module, split = small
    with pytest.raises(DataError, match="16 images are needed, 15 are there"):
        compare(module, Split("few", "train", split.x[:15], None), 40, 0)


def test_without_data_the_activations_are_left_out(no_data):
    result = studies["clipping"]().run(Options(quick=True))
    assert len(result.skipped) == 1
    assert result.skipped[0].startswith("activations of ResNet-20: data set 'cifar10'")
    assert {f.name for f in result.figures} == {"ranges", "threshold"}
    assert len(result.tables) == 2
    assert not any(r.model for r in result.records)


def test_without_weights_too(monkeypatch):
    def absent(*args, **kwargs):
        raise WeightsError("no weights")

    monkeypatch.setattr("bitsmith.zoo.load_model", absent)
    result = studies["clipping"]().run(Options(quick=True))
    assert result.skipped == ("activations of ResNet-20: no weights",)


@pytest.mark.parametrize("weights", [True, False], ids=["pictures", "weights"])
def test_nothing_is_downloaded_in_a_test(weights, monkeypatch, tmp_path):
    """Without a folder and with an empty cache, as on a machine that has no network."""
    monkeypatch.delenv("BITSMITH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if weights:
        loaded = type("Loaded", (), {"module": nn.Identity(), "input_shape": (3, 32, 32)})
        monkeypatch.setattr("bitsmith.zoo.load_model", lambda *args: loaded)
    (reason,) = studies["clipping"]().run(Options(quick=True)).skipped
    assert ("cifar-10-binary.tar.gz" if weights else "resnet20") in reason
    assert "tests use no network" in reason
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_data_that_was_asked_for_is_not_left_out(no_data):
    with pytest.raises(DataError, match="BITSMITH_DATA"):
        studies["clipping"]().run(Options(quick=True, dataset="mine.npz"))


def test_data_of_another_shape_is_refused(monkeypatch):
    loaded = type("Loaded", (), {"module": nn.Identity(), "input_shape": (3, 32, 32)})
    monkeypatch.setattr("bitsmith.zoo.load_model", lambda *args: loaded)
    with pytest.raises(InputError, match=r"\(3, 32, 32\), and 'moons' has \(2,\)"):
        studies["clipping"]().run(Options(quick=True, dataset="moons"))
    with pytest.raises(UnknownNameError):
        studies["clipping"]().run(Options(quick=True, dataset="cifar11"))


def test_the_seed_counts_and_is_recorded(no_data):
    one, other = (studies["clipping"]().run(Options(s, quick=True)) for s in (1, 2))
    assert {r.seed for r in one.records} == {1}
    assert [r.value for r in one.records] != [r.value for r in other.records]
    against = [r for r in one.records if r.calibrator == "percentile:99" and r.op == "inliers"]
    assert all(r.delta_low <= r.delta <= r.delta_high < 0 for r in against)


def test_the_findings_hold_the_numbers_of_the_table(no_data):
    result = studies["clipping"]().run(Options(quick=True))
    rows = {row[0]: row for row in result.tables[0].rows}
    assert rows["minmax"][3].split()[0] in result.findings[0]
    assert rows["minmax"][4] in result.findings[0]
    assert rows["minmax"][-1].rstrip("0") in result.findings[1]
