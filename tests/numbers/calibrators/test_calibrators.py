"""Every registered calibrator, and each one's own meaning."""

from __future__ import annotations

import pickle

import pytest
import torch

from bitsmith.errors import DataError, InputError, SchemeError, UnknownNameError
from bitsmith.numbers.affine import fake_quantize, scale_zero_point
from bitsmith.numbers.calibrators import Calibrator, calibrators, make_calibrator
from bitsmith.numbers.calibrators.minmax import MinMax
from bitsmith.numbers.calibrators.mse import Mse, expected_squared_error
from bitsmith.numbers.calibrators.percentile import Percentile
from bitsmith.numbers.formats.integer import integer_format, uint8
from bitsmith.numbers.scheme import PerChannel, Scheme
from bitsmith.numbers.statistics import Extrema, Histogram, Statistic

ALL = pytest.mark.parametrize("name", list(calibrators))
SCHEMES = [Scheme(integer_format(b, True)) for b in (2, 3, 4, 8)]
SCHEMES += [Scheme(integer_format(b, False), False) for b in (1, 2, 4, 8)]
SCHEMES += [Scheme(integer_format(b, True), False) for b in (2, 4, 8)]
G = torch.Generator().manual_seed(0)
NORMAL = torch.randn(20_000, generator=G)
STREAMS = {
    "normal": NORMAL,
    "relu": NORMAL.relu(),
    "negative": -NORMAL.abs() - 1,
    "gelu": torch.nn.functional.gelu(2 * NORMAL),
    "heavy": NORMAL**5,
    "shifted": NORMAL + 40,
}


def seen(kind: type[Statistic], x: torch.Tensor) -> Statistic:
    statistic = kind()
    statistic.update(x)
    return statistic


def histogram(x: torch.Tensor) -> Histogram:
    h = Histogram()
    h.update(x)
    return h


def squared_error(x: torch.Tensor, scheme: Scheme, scale, zero_point) -> float:
    return float((fake_quantize(x, scheme, scale, zero_point) - x).double().pow(2).mean())


@ALL
@pytest.mark.parametrize("stream", list(STREAMS))
def test_a_calibrator_is_a_pure_function_to_a_valid_scale(name: str, stream: str) -> None:
    calibrator, x = calibrators[name](), STREAMS[stream]
    statistic, twin = (seen(calibrator.statistic, x) for _ in range(2))
    for scheme in SCHEMES:
        scale, zero_point = calibrator(statistic, scheme)
        low, high = calibrator.limits(statistic, scheme)
        assert low.dtype == high.dtype == torch.float32
        assert bool(low <= high)
        assert [*scale_zero_point(low, high, scheme)] == [scale, zero_point]
        assert calibrator(statistic, scheme) == (scale, zero_point)
        fake_quantize(x, scheme, scale, zero_point)  # checks scale and zero point
    assert repr(statistic.state_dict()) == repr(twin.state_dict())


@ALL
@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-44, 3.4e38])
def test_constant_tensors_have_a_valid_scale_and_survive(name: str, value: float) -> None:
    calibrator, x = calibrators[name](), torch.full((5,), value)
    statistic = seen(calibrator.statistic, x)
    for scheme in (s for s in SCHEMES if s.format.bits == 8):
        scale, zero_point = calibrator(statistic, scheme)
        back = fake_quantize(x, scheme, scale, zero_point)
        assert float((back - x).abs().max()) <= float(scale) * 0.51
        assert bool(torch.isfinite(back).all())


@ALL
def test_the_wrong_or_an_empty_statistic_or_granularity_is_refused(name: str) -> None:
    calibrator = calibrators[name]()
    other = Extrema if calibrator.statistic is Histogram else Histogram
    with pytest.raises(DataError, match=f"reads {calibrator.statistic.__name__}"):
        calibrator(seen(other, torch.ones(3)), SCHEMES[0])
    with pytest.raises(DataError, match="seen no values"):
        calibrator(calibrator.statistic(), SCHEMES[0])
    per_channel = Scheme(uint8, False, PerChannel(0))
    with pytest.raises(SchemeError):
        calibrator(seen(calibrator.statistic, torch.ones(3)), per_channel)


@ALL
def test_the_short_form_round_trips(name: str) -> None:
    calibrator = make_calibrator(name)
    assert isinstance(calibrator, Calibrator)
    assert make_calibrator(calibrator.spec) == calibrator


@pytest.mark.parametrize("argument", ["99.99", "99.999", "50", "100", "33.333333333333336"])
def test_percentile_reads_and_writes_its_argument(argument: str) -> None:
    calibrator = make_calibrator(f"percentile:{argument}")
    assert calibrator == Percentile(float(argument))
    assert calibrator.spec == f"percentile:{argument}"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("percentile:high", "percentile is a number, not 'high'"),
        ("percentile:", "is a number, not ''"),
        ("percentile:101", "above 0 and at most 100, not 101"),
        ("percentile:0", "above 0"),
        ("percentile:nan", "above 0"),
        ("mse:3", "takes no argument"),
        ("minmax:1", "takes no argument"),
        ("percentle:99", "did you mean 'percentile'"),
        ("", "unknown calibrator ''"),
    ],
)
def test_a_short_form_that_makes_no_sense_is_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        make_calibrator(spec)
    assert isinstance(error.value, UnknownNameError) == message.startswith(("did", "unknown"))


@pytest.mark.parametrize("stream", list(STREAMS))
def test_percentile_100_is_min_max(stream: str) -> None:
    x = STREAMS[stream]
    for scheme in SCHEMES:
        exact = MinMax()(seen(Extrema, x), scheme)
        assert Percentile(100.0)(histogram(x), scheme) == exact
        assert exact == scale_zero_point(x.min(), x.max(), scheme)


def test_minmax_keeps_channels_apart() -> None:
    x = NORMAL.view(4, 5, 1000)
    e = Extrema(1)
    e.update(x)
    scale, _ = MinMax()(e, Scheme(integer_format(8, True), granularity=PerChannel(1)))
    assert torch.allclose(scale.view(-1), x.abs().amax((0, 2)) / 127)


def holds(x: torch.Tensor, value: torch.Tensor, share: float, width: float) -> bool:
    """Whether ``share`` of ``x`` lies below ``value``, give or take the widest bin."""
    below, up_to = (x < value - 2 * width).sum(), (x <= value + 2 * width).sum()
    return bool(below <= share * len(x) <= up_to)


@pytest.mark.parametrize("percentile", [99.9, 99.0, 90.0, 50.0, 1.0])
@pytest.mark.parametrize("stream", list(STREAMS))
def test_the_stated_share_of_the_values_lies_inside(percentile: float, stream: str) -> None:
    x, h = STREAMS[stream], histogram(STREAMS[stream])
    tail = (1 - percentile / 100) / 2
    low, high = Percentile(percentile).limits(h, Scheme(uint8, symmetric=False))
    assert holds(x, low, tail, h.width)
    assert holds(x, high, 1 - tail, h.width)
    low, high = Percentile(percentile).limits(h, Scheme(integer_format(8, True)))
    assert holds(x.abs(), high, percentile / 100, h.width)
    assert float(low) == -float(high)


@pytest.mark.parametrize("rounding", ["half_even", "half_away", "floor"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.format}-{s.symmetric}")
def test_the_expected_error_is_that_of_quantizing_the_bin_centres(scheme, rounding) -> None:
    scheme = Scheme(scheme.format, scheme.symmetric, rounding=rounding)
    h = histogram(STREAMS["gelu"][:3000])
    # Off the bins' grid: else centres lie on thresholds, where float32 division may go either way.
    lows, highs = torch.tensor([-0.31, -0.05, 0.0]), torch.tensor([5.237, 1.191, 0.0137])
    scale, zero_point = scale_zero_point(lows, highs, scheme)
    found = expected_squared_error(h, scale, zero_point, scheme)
    centres = h.centres.float()
    for i in range(3):
        back = fake_quantize(centres, scheme, scale[i], zero_point[i]).double()
        brute = ((back - h.centres) ** 2 * h.counts).sum() / h.count
        assert float(found[i]) == pytest.approx(float(brute), rel=1e-5)


@pytest.mark.parametrize("stream", list(STREAMS))
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.format}-{s.symmetric}")
def test_mse_is_as_good_as_a_dense_search_and_never_worse_than_min_max(stream, scheme) -> None:
    x = STREAMS[stream]
    h = histogram(x)
    scale, zero_point = Mse()(h, scheme)
    found = squared_error(x, scheme, scale, zero_point)
    whole = scale_zero_point(x.min(), x.max(), scheme)
    assert found <= squared_error(x, scheme, *whole) * 1.01
    low, high, dense = min(h.low, 0.0), max(h.high, 0.0), torch.exp2(-torch.arange(80) / 8)
    if scheme.symmetric:
        bound = max(-low, high) * dense
        candidates = scale_zero_point(-bound, bound, scheme)
    else:
        pairs = torch.cartesian_prod(torch.unique(low * dense), torch.unique(high * dense))
        candidates = scale_zero_point(pairs[:, 0], pairs[:, 1], scheme)
    batches = zip(*(c.split(400) for c in candidates), strict=True)
    best = min(float(expected_squared_error(h, *b, scheme).min()) for b in batches)
    mine = float(expected_squared_error(h, scale.view(1), zero_point.view(1), scheme))
    assert mine <= best * 1.02


@ALL
@pytest.mark.parametrize("make", [lambda b: NORMAL[200 * b :][:200], lambda b: NORMAL[:200] * b])
def test_memory_does_not_grow_with_the_number_of_batches(name: str, make) -> None:
    sizes, statistic = {}, calibrators[name].statistic()
    for batch in range(1, 101):
        statistic.update(make(batch))
        state = statistic.state_dict().values()
        sizes[batch] = sum(v.nbytes for v in state if isinstance(v, torch.Tensor))
    assert sizes[100] <= max(sizes[10], 8 * 4096)  # 4096 counts, if the range asks for them
    assert len(pickle.dumps(statistic.state_dict())) < 8 * 4096 + 2048


def test_mse_clips_a_lone_outlier_at_few_bits_only() -> None:
    x = torch.cat([NORMAL, torch.tensor([30.0])])
    h = histogram(x)
    few, many = Scheme(integer_format(3, True)), Scheme(integer_format(8, True))
    assert float(Mse().limits(h, few)[1]) < 6
    assert float(Mse().limits(h, many)[1]) > 12
